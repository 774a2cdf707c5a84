//! A sealed memfd that this process made, and its mapping here.
#![expect(
    unsafe_code,
    reason = "memfd_create, mmap and atomic access to the mapping live here only"
)]

use std::ffi::{CStr, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use spec::doorbell::Words;

use super::descriptor;
use crate::kept::KeptFd;

/// Bytes of the words that the memory is read and written by.
pub(crate) const WORD: usize = size_of::<u32>();

/// Memory shared with a peer that may write to it at any time, accessed by words only: each
/// access is one atomic load or store, so no value is ever read twice or torn.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    start: NonNull<AtomicU32>,
    words: usize,
    fd: KeptFd,
}

// SAFETY: the mapping has no thread affinity, and every access to it is atomic.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// Memory of `len` zero bytes (a multiple of the page size), sealed so that nobody who gets
    /// its descriptor can change the length and send us to SIGBUS.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2), fcntl(2) or mmap(2) report; `InvalidInput` for a
    /// length of zero or beyond the address space.
    pub(crate) fn new(name: &CStr, len: u64) -> io::Result<Self> {
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        let file = memfd(name, len, seals)?;
        Self::map(OwnedFd::from(file).into(), len)
    }

    /// The memory behind `fd`, as [`Self::new`] made it with this length, maybe in a process
    /// that is gone.
    ///
    /// # Errors
    /// What mmap(2) reports; `InvalidInput` if the file is shorter or could become so.
    pub(crate) fn open(fd: KeptFd, len: u64) -> io::Result<Self> {
        let seals = descriptor::seals(fd.as_fd())?.unwrap_or(0);
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        if seals & libc::F_SEAL_SHRINK == 0 || file.metadata()?.len() < len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::map(fd, len)
    }

    fn map(fd: KeptFd, len: u64) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let bytes = usize::try_from(len).map_err(|_| invalid())?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory that
        // exists already; mmap itself refuses a length of zero.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or_else(invalid)?,
            words: bytes / WORD,
            fd,
        })
    }

    /// The memfd, to be handed to the peer.
    pub(crate) fn fd(&self) -> &KeptFd {
        &self.fd
    }

    /// Its memfd is this one from now on: the same, but known to the keeper.
    pub(crate) fn set_fd(&mut self, fd: KeptFd) {
        self.fd = fd;
    }

    /// Where the `len` bytes at byte `offset` are, for the kernel to read and write.
    ///
    /// # Panics
    /// If they are not all inside.
    pub(crate) fn place(&self, offset: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.words * WORD),
            "{len} bytes at {offset:#x} are not inside the shared memory"
        );
        self.start.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    /// Reads the word at byte `offset`.
    ///
    /// # Panics
    /// If the offset is odd or outside: offsets are ours, never a peer's.
    pub(crate) fn load(&self, offset: u64, order: Ordering) -> u32 {
        self.word(offset).load(order)
    }

    /// Writes the word at byte `offset`.
    ///
    /// # Panics
    /// As [`Self::load`].
    pub(crate) fn store(&self, offset: u64, value: u32, order: Ordering) {
        self.word(offset).store(value, order);
    }

    /// Reads `to.len()` bytes, a multiple of four, from byte `offset`, each word once.
    ///
    /// # Panics
    /// As [`Self::load`].
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) {
        assert!(
            to.len().is_multiple_of(WORD),
            "shared memory is read by words"
        );
        for (at, word) in (offset..).step_by(WORD).zip(to.chunks_exact_mut(WORD)) {
            word.copy_from_slice(&self.load(at, Ordering::Relaxed).to_le_bytes());
        }
    }

    /// Writes `from`, a multiple of four bytes, at byte `offset`.
    ///
    /// # Panics
    /// As [`Self::load`].
    pub(crate) fn write(&self, offset: u64, from: &[u8]) {
        let (words, rest) = from.as_chunks::<WORD>();
        assert!(rest.is_empty(), "shared memory is written by words");
        for (at, word) in (offset..).step_by(WORD).zip(words) {
            self.store(at, u32::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let index = offset / WORD;
        assert!(
            offset.is_multiple_of(WORD) && index < self.words,
            "offset {offset:#x} is not a word of session memory"
        );
        // SAFETY: `index` is below the number of words in the mapping (asserted above), which
        // lives as long as `self`; a mapping is page aligned; and the file cannot shrink (sealed
        // in `new`), so the page is there. Peers in other processes write to it at any time,
        // which an atomic allows.
        unsafe { self.start.add(index).as_ref() }
    }
}

impl Words for SharedMemory {
    fn load(&self, offset: u64, order: Ordering) -> u32 {
        self.load(offset, order)
    }

    fn store(&self, offset: u64, value: u32, order: Ordering) {
        self.store(offset, value, order);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping with this length, and no reference into it can outlive
        // `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * WORD) };
    }
}

/// A memfd of `len` zero bytes with these seals.
///
/// # Errors
/// What memfd_create(2), ftruncate(2) or fcntl(2) report.
pub(super) fn memfd(name: &CStr, len: u64, seals: c_int) -> io::Result<File> {
    // SAFETY: `name` is a C string; the result is checked below before it is used.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is not negative (checked above), was just made and is nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    // SAFETY: F_ADD_SEALS takes an int and touches no memory of ours.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_little_endian_words() {
        let memory = SharedMemory::new(c"test", 4096).unwrap();
        memory.write(8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(memory.load(8, Ordering::Relaxed), 0x0403_0201);
        memory.store(12, 9, Ordering::Relaxed);
        let mut back = [0; 12];
        memory.read(4, &mut back);
        assert_eq!(back, [0, 0, 0, 0, 1, 2, 3, 4, 9, 0, 0, 0]);
    }

    // covers: VPCI-BAR-4
    #[test]
    fn its_length_cannot_be_changed_by_whoever_has_the_descriptor() {
        let memory = SharedMemory::new(c"test", 4096).unwrap();
        let theirs = File::from(memory.fd().as_fd().try_clone_to_owned().unwrap());
        assert!(theirs.set_len(0).is_err());
        assert!(theirs.set_len(8192).is_err());
    }

    #[test]
    #[should_panic(expected = "not a word of session memory")]
    fn an_offset_past_the_end_is_our_own_mistake() {
        let memory = SharedMemory::new(c"test", 4096).unwrap();
        memory.load(4096, Ordering::Relaxed);
    }
}
