//! The bounce pool: page-aligned memory of our own, for I/O that cannot reach the tenant's.
#![expect(
    unsafe_code,
    reason = "the pool's memory is mapped, unmapped and sliced here"
)]

use std::io;
use std::ptr::NonNull;

/// Bytes of a huge page, where there are any: fewer of them are looked up and counted for a transfer.
const HUGE: usize = 2 << 20;

/// Memory handed out in runs of granules.
///
/// Whoever holds a [`Run`] alone decides what happens to its bytes, the kernel's reads and writes
/// included.
#[derive(Debug)]
pub struct Pool {
    start: NonNull<u8>,
    /// Which granules are handed out.
    taken: Vec<bool>,
    /// Where the next search starts: just after the run handed out last.
    next: usize,
    free: usize,
    leaked: bool,
}

/// Consecutive granules of a pool; given back by [`Pool::give_back`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "memory that is not given back is lost to the pool"]
pub struct Run {
    first: usize,
    count: usize,
    /// Bytes asked for, at most `count` granules.
    len: usize,
}

impl Run {
    /// Bytes that may be used.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Granules that are taken for them.
    pub fn granules(&self) -> usize {
        self.count
    }
}

// SAFETY: the mapping is the pool's alone, and nothing of it belongs to the thread that made it.
unsafe impl Send for Pool {}

impl Pool {
    /// Bytes of a granule: a page, which every O_DIRECT of today is content with.
    pub const GRANULE: usize = 4096;

    /// A pool of at least `len` bytes and one granule.
    ///
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(len: usize) -> io::Result<Self> {
        let granules = len.div_ceil(Self::GRANULE).max(1);
        let bytes = granules
            .checked_mul(Self::GRANULE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let start = map(bytes)?;
        Ok(Self {
            start,
            taken: vec![false; granules],
            next: 0,
            free: granules,
            leaked: false,
        })
    }

    /// All of the memory, to be registered with the kernel.
    pub fn whole(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: self.taken.len() * Self::GRANULE,
        }
    }

    /// Takes room for `len` bytes, or for fewer (whole granules) where there is no such run;
    /// `None` only if nothing at all is free.
    pub fn take(&mut self, len: usize) -> Option<Run> {
        if self.free == 0 || len == 0 {
            return None;
        }
        let wanted = len.div_ceil(Self::GRANULE);
        let (first, count) = self.find(wanted);
        self.taken[first..first + count].fill(true);
        self.free -= count;
        self.next = first + count;
        Some(Run {
            first,
            count,
            len: len.min(count * Self::GRANULE),
        })
    }

    /// The first run of `wanted` free granules from `next` on, wrapping around, or the longest.
    fn find(&self, wanted: usize) -> (usize, usize) {
        let mut best = (0, 0);
        for range in [self.next..self.taken.len(), 0..self.taken.len()] {
            let mut count = 0;
            for at in range {
                if self.taken[at] {
                    count = 0;
                    continue;
                }
                count += 1;
                if count > best.1 {
                    best = (at + 1 - count, count);
                }
                if count == wanted {
                    return best;
                }
            }
        }
        best
    }

    /// Gives a run back; the kernel must be done with it.
    pub fn give_back(&mut self, run: Run) {
        let granules = &mut self.taken[run.first..run.first + run.count];
        debug_assert!(granules.iter().all(|&taken| taken), "given back twice");
        granules.fill(false);
        self.free += run.count;
    }

    /// Granules that are free.
    pub fn free(&self) -> usize {
        self.free
    }

    /// Granules, free or not.
    pub fn granules(&self) -> usize {
        self.taken.len()
    }

    /// Leaves the memory mapped for ever; for when the kernel may still write to it.
    pub fn leak(&mut self) {
        self.leaked = true;
    }

    /// Address of byte `at` of the run.
    pub fn address(&self, run: &Run, at: usize) -> *mut u8 {
        debug_assert!(at <= run.len);
        self.start
            .as_ptr()
            .wrapping_add(run.first * Self::GRANULE + at)
    }

    /// The bytes of a run that the kernel is not using.
    pub fn bytes(&self, run: &Run) -> &[u8] {
        let start = self.address(run, 0);
        // SAFETY: as in `bytes_mut`; the borrow of `self` excludes slices that can be written.
        unsafe { std::slice::from_raw_parts(start, run.len) }
    }

    /// The bytes of a run that the kernel is not using, to be written.
    pub fn bytes_mut(&mut self, run: &Run) -> &mut [u8] {
        let start = self.address(run, 0);
        // SAFETY: a run lies within the mapping (`take` made it from granules of it), and the
        // borrow of `self` keeps the mapping and excludes other slices. The kernel writes to runs
        // only between submission and completion, in which the caller does not call this.
        unsafe { std::slice::from_raw_parts_mut(start, run.len) }
    }
}

/// So many bytes, whole pages, in huge ones where there are enough of them and the kernel has some.
fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    // Enough to begin at a huge page.
    let slack = if bytes < HUGE { 0 } else { HUGE };
    let len = bytes.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory that
    // exists already.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mapped = start.cast::<u8>();
    let start = if slack == 0 {
        mapped
    } else {
        // Less than `slack`, as pages are smaller.
        let before = mapped.align_offset(HUGE);
        // SAFETY: `before`, `bytes` and what is left of `slack` are the bytes that were just mapped,
        // and nobody uses them yet; those at either end are unmapped. Whether the kernel takes the
        // advice does not matter.
        unsafe {
            let start = mapped.add(before);
            if before > 0 {
                libc::munmap(mapped.cast(), before);
            }
            libc::munmap(start.add(bytes).cast(), slack - before);
            libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE);
            start
        }
    };
    NonNull::new(start).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        let whole = self.whole();
        // SAFETY: this is the mapping that `new` made; no slice of it outlives `self`, and the
        // loop that submits I/O into it drops it only when none is in flight.
        unsafe { libc::munmap(whole.iov_base, whole.iov_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_overlap_and_shrink_when_memory_is_short() {
        let mut pool = Pool::new(4 * Pool::GRANULE).unwrap();
        let a = pool.take(100).unwrap();
        let b = pool.take(5000).unwrap();
        let c = pool.take(100_000).unwrap();
        assert_eq!((a.len(), b.len(), c.len()), (100, 5000, 4096));
        assert_eq!(pool.take(1), None);
        pool.bytes_mut(&a).fill(1);
        pool.bytes_mut(&b).fill(2);
        pool.bytes_mut(&c).fill(3);
        assert!(pool.bytes_mut(&a).iter().all(|&byte| byte == 1));
        assert!(pool.bytes_mut(&b).iter().all(|&byte| byte == 2));
        pool.give_back(b);
        assert_eq!(pool.take(9000).unwrap().len(), 8192);
    }

    /// What the kernel says of the mapping that has an address: its flags (proc(5), VmFlags).
    fn flags_at(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let first = line.split(' ').next().unwrap_or_default();
            if let Some((start, end)) = first.split_once('-')
                && let Ok(start) = usize::from_str_radix(start, 16)
                && let Ok(end) = usize::from_str_radix(end, 16)
            {
                inside = (start..end).contains(&address);
            } else if inside && first == "VmFlags:" {
                return line.to_owned();
            }
        }
        panic!("nothing is mapped at {address:#x}");
    }

    #[test]
    fn a_large_pool_is_of_huge_pages_where_there_are_any() {
        for len in [HUGE, 2 * HUGE + Pool::GRANULE] {
            let mut pool = Pool::new(len).unwrap();
            assert_eq!(pool.start.as_ptr().addr() % HUGE, 0);
            let whole = pool.take(len).unwrap();
            assert_eq!(whole.len(), len);
            pool.bytes_mut(&whole).fill(7);
            if std::fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
                let flags = flags_at(pool.start.as_ptr().addr());
                assert!(flags.contains(" hg"), "{flags}");
            }
        }
        let small = Pool::new(HUGE - Pool::GRANULE).unwrap();
        assert_eq!(small.granules(), HUGE / Pool::GRANULE - 1);
    }

    #[test]
    fn a_run_is_page_aligned() {
        let mut pool = Pool::new(1).unwrap();
        let run = pool.take(512).unwrap();
        assert_eq!(pool.address(&run, 0) as usize % 4096, 0);
        assert_eq!(pool.take(512), None);
    }
}
