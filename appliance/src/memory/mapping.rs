//! A piece of memory shared with somebody else, mapped for as long as it is used.
#![expect(
    unsafe_code,
    reason = "mmap, munmap and pointers into the mapping live here only"
)]

use std::any::Any;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use vm_memory::VolatileSlice;

use super::wide;

/// A shared read-write mapping, unmapped on drop.
///
/// Whoever shares it may write to it at any time, so it is only ever read and written by
/// volatile copies.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Whether each access costs, and not each byte.
    uncached: AtomicBool,
    /// What must outlive the mapping (a VFIO device must not be closed before it).
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// Parts of a mapping of several files begin at multiples of this: the largest pages that a file
/// can be made of fit.
pub const PART_ALIGNMENT: usize = 1 << 30;

/// A file in a mapping of several.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The file.
    pub fd: BorrowedFd<'a>,
    /// Offset of its first byte in the mapping, a multiple of [`PART_ALIGNMENT`].
    pub at: usize,
    /// Bytes of it.
    pub len: usize,
}

// SAFETY: the mapping is plain shared memory without thread affinity; all access goes through
// volatile copies, as it must in any case because another process writes to it.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset` (both multiples of the page size), keeping `owner`
    /// alive until the mapping is gone.
    ///
    /// # Errors
    /// What mmap(2) reports; `InvalidInput` for a zero length or an offset beyond `off_t`.
    pub fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
        if len == 0 || isize::try_from(len).is_err() {
            return Err(invalid());
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory that
        // exists already; `len` was checked above.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(invalid)?;
        Ok(Self {
            start,
            len,
            uncached: AtomicBool::new(false),
            owner,
        })
    }

    /// Maps several files into one run of addresses, each whole from its start; what lies between
    /// them can be neither read nor written.
    ///
    /// # Errors
    /// What mmap(2) reports; `InvalidInput` if parts overlap, are empty, or do not lie in the
    /// first `len` bytes.
    pub fn of_files(len: usize, parts: &[Part<'_>]) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let mut end = 0;
        for part in parts {
            if part.len == 0 || part.at < end || !part.at.is_multiple_of(PART_ALIGNMENT) {
                return Err(invalid());
            }
            end = part.at.checked_add(part.len).ok_or_else(invalid)?;
        }
        if len == 0 || end > len {
            return Err(invalid());
        }
        let whole = Self::reserve(len)?;
        for part in parts {
            // SAFETY: the addresses are inside `whole`, as checked above, which nobody has used
            // yet and which is unmapped as a whole.
            let start = unsafe {
                libc::mmap(
                    whole.start.as_ptr().add(part.at).cast(),
                    part.len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    part.fd.as_raw_fd(),
                    0,
                )
            };
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(whole)
    }

    /// Addresses that nothing is behind yet; the first is a multiple of [`PART_ALIGNMENT`].
    fn reserve(len: usize) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let larger = len.checked_add(PART_ALIGNMENT).ok_or_else(invalid)?;
        if isize::try_from(larger).is_err() {
            return Err(invalid());
        }
        // SAFETY: as in `new`; these addresses cannot be accessed.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                larger,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        let before = start.align_offset(PART_ALIGNMENT);
        let after = PART_ALIGNMENT - before;
        // SAFETY: `before + len + after` are the bytes that were just reserved, and nobody uses
        // those at either end.
        unsafe {
            if before > 0 {
                libc::munmap(start.cast(), before);
            }
            if after > 0 {
                libc::munmap(start.add(before + len).cast(), after);
            }
            Ok(Self {
                start: NonNull::new(start.add(before)).ok_or_else(invalid)?,
                len,
                uncached: AtomicBool::new(false),
                owner: None,
            })
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Takes note that the CPU's accesses go past its caches.
    pub fn set_uncached(&self) {
        self.uncached.store(true, Ordering::Relaxed);
    }

    /// Whether data, too, is to be copied in few wide accesses.
    #[inline]
    pub fn is_uncached(&self) -> bool {
        self.uncached.load(Ordering::Relaxed)
    }

    /// Whether it is memory that the kernel has pages of, and so can have a disk read and write. Of a
    /// device's it has none.
    #[inline]
    pub fn is_ram(&self) -> bool {
        self.owner.is_none()
    }

    /// Whether the `len` bytes at `offset` are all in the mapping.
    #[inline]
    pub fn has(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// The `len` bytes at `offset`, or `None` where they are not all in the mapping.
    #[inline]
    pub fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        if !self.has(offset, len) {
            return None;
        }
        // SAFETY: `offset + len` is within the mapping (checked above), which lives as long as
        // the borrow of `self`.
        Some(unsafe { VolatileSlice::new(self.start.as_ptr().add(offset), len) })
    }

    /// Copies the bytes from `offset` into `to`, each read once, in few wide accesses.
    ///
    /// # Panics
    /// If they are not all in the mapping: the caller has checked its offsets.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.pointer(offset, to.len());
        // SAFETY: `pointer` checked that the bytes are in the mapping, which is only accessed by
        // volatile copies.
        unsafe { wide::read(from, to) }
    }

    /// Copies `from` to the bytes from `offset`, in few wide accesses.
    ///
    /// # Panics
    /// As [`Self::read`].
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.pointer(offset, from.len());
        // SAFETY: as in `read`.
        unsafe { wide::write(from, to) }
    }

    /// The two bytes at `offset`, for ordered access.
    ///
    /// # Panics
    /// If they are not in the mapping, or `offset` is odd: the caller has checked its offsets.
    #[inline]
    pub fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2), "offset {offset:#x} is odd");
        let word = self.pointer(offset, size_of::<u16>()).cast::<u16>();
        // SAFETY: `pointer` checked that the bytes are in the mapping, which lives as long as the
        // borrow of `self`; mappings start at a page, so an even offset is aligned.
        unsafe { AtomicU16::from_ptr(word) }
    }

    /// The eight bytes at `offset`, for ordered access.
    ///
    /// # Panics
    /// If they are not in the mapping, or `offset` is no multiple of 8: the caller has checked its
    /// offsets.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8),
            "offset {offset:#x} is not aligned"
        );
        let word = self.pointer(offset, size_of::<u64>()).cast::<u64>();
        // SAFETY: `pointer` checked that the bytes are in the mapping, which lives as long as the
        // borrow of `self`; mappings start at a page, so a multiple of 8 is aligned.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Has the CPU fetch what is at `offset` into its caches, for it is wanted soon; where it has no
    /// such instruction, or the mapping no such offset, nothing happens.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        #[cfg(target_arch = "x86_64")]
        self.hint::<{ std::arch::x86_64::_MM_HINT_T0 }>(offset);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }

    /// As [`Self::prefetch`], in order to write there.
    #[inline]
    pub fn prefetch_to_write(&self, offset: usize) {
        #[cfg(target_arch = "x86_64")]
        self.hint::<{ std::arch::x86_64::_MM_HINT_ET0 }>(offset);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn hint<const HINT: i32>(&self, offset: usize) {
        if offset < self.len {
            // SAFETY: `offset` is within the mapping, of which nothing is read or written.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<HINT>(self.start.as_ptr().add(offset).cast());
            }
        }
    }

    /// Address of the byte at `offset`, which `len - 1` more of the mapping follow.
    #[inline]
    fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        if !self.has(offset, len) {
            outside(offset, len);
        }
        // SAFETY: `offset` is within the mapping, or just at its end.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Where it is not in the way of who stays inside.
#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize) -> ! {
    panic!("{len} bytes at {offset:#x} leave the mapping");
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of the mapping that `new` made, and no slice of it
        // can outlive `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::testing::private_file;
    use super::*;

    const GAP: usize = PART_ALIGNMENT;

    #[test]
    fn several_files_are_seen_in_one_mapping_each_where_it_was_put() {
        let files = [private_file(8192), private_file(4096)];
        let part = |file: usize, at, len| Part {
            fd: files[file].as_fd(),
            at,
            len,
        };
        let parts = [part(0, 0, 8192), part(1, GAP, 4096), part(0, 2 * GAP, 8192)];
        let mapping = Mapping::of_files(2 * GAP + 8192, &parts).unwrap();
        mapping.write(4096, b"first");
        mapping.write(GAP, b"other");
        let mut bytes = [0; 5];
        mapping.read(2 * GAP + 4096, &mut bytes);
        assert_eq!(&bytes, b"first");
        mapping.read(2 * GAP, &mut bytes);
        assert_eq!(bytes, [0; 5]);
        assert!(mapping.slice(2 * GAP as u64 + 8192, 1).is_none());
    }

    #[test]
    fn parts_that_overlap_or_leave_the_mapping_are_refused() {
        let file = private_file(8192);
        let part = |at, len| Part {
            fd: file.as_fd(),
            at,
            len,
        };
        let refused = |len, parts: &[Part<'_>]| Mapping::of_files(len, parts).is_err();
        assert!(refused(GAP, &[part(0, GAP + 1)]));
        assert!(refused(2 * GAP, &[part(0, GAP + 1), part(GAP, 4096)]));
        assert!(refused(GAP, &[part(4096, 4096)]));
        assert!(refused(GAP, &[part(0, 0)]));
        assert!(refused(usize::MAX, &[part(0, 4096)]));
        assert!(refused(0, &[]));
    }
}
