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
use std::sync::atomic::AtomicU16;

use vm_memory::VolatileSlice;

use super::wide;

/// A shared read-write mapping, unmapped on drop.
///
/// Whoever shares it may write to it at any time, so it is only ever read and written by
/// volatile copies.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// What must outlive the mapping (a VFIO device must not be closed before it).
    _owner: Option<Arc<dyn Any + Send + Sync>>,
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
            _owner: owner,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the `len` bytes at `offset` are all in the mapping.
    #[inline]
    pub fn has(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// The `len` bytes at `offset`, or `None` where they are not all in the mapping.
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

    /// Address of the byte at `offset`, which `len - 1` more of the mapping follow.
    #[inline]
    fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = self.has(offset, len);
        assert!(inside, "{len} bytes at {offset:#x} leave the mapping");
        // SAFETY: `offset` is within the mapping, or just at its end.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
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
