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

use vm_memory::VolatileSlice;

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

    /// The `len` bytes at `offset`, or `None` where they are not all in the mapping.
    pub fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset + len` is within the mapping (checked above), which lives as long as
        // the borrow of `self`.
        Some(unsafe { VolatileSlice::new(self.start.as_ptr().add(offset), len) })
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
