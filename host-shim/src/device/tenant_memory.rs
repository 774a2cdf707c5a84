//! The tenant's memory file behind BAR2.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use super::descriptor;
use crate::kept::KeptFd;

/// Bytes that a mapped area must be a multiple of (a page of the storage VM's host).
const PAGE: u64 = 4096;
/// Largest BAR offered, in bytes: what a 52-bit physical address can hold with room to spare.
const MAX_BAR: u64 = 1 << 50;

/// A memory file of the tenant that cannot become BAR2.
#[derive(Debug, thiserror::Error)]
pub enum TenantMemoryError {
    /// Somebody could shrink the file and kill the storage VM's QEMU with it (SIGBUS).
    #[error(
        "the tenant's memory is not sealed against shrinking; give its QEMU \
         -object memory-backend-memfd,share=on,seal=on (seal=on is the default)"
    )]
    Unsealed,
    /// The file cannot be mapped for writing.
    #[error("the tenant's memory cannot be written; give its QEMU a backend with readonly=off")]
    ReadOnly,
    /// The file's length cannot be mapped.
    #[error("the tenant's memory is {0} bytes; it must be a multiple of 4096, not 0")]
    Length(u64),
    /// The file is larger than any BAR.
    #[error("the tenant's memory is {0} bytes; at most 2^50 can be mapped")]
    TooLarge(u64),
    /// The storage VM's QEMU has the device open: what it mapped cannot be changed.
    #[error("the device is plugged into the storage VM; unplug it before its memory is changed")]
    InUse,
    /// The kernel refused to say what the file is.
    #[error("cannot look at the tenant's memory file: {0}")]
    Io(#[from] io::Error),
}

/// The tenant's memory: a file of which everything becomes one BAR. The shim never maps it.
#[derive(Debug)]
pub(super) struct TenantMemory {
    fd: KeptFd,
    len: u64,
}

impl TenantMemory {
    /// A memfd that is sealed against shrinking.
    ///
    /// # Errors
    /// [`TenantMemoryError`] if it is not, or cannot be mapped.
    pub(super) fn sealed(file: impl Into<KeptFd>) -> Result<Self, TenantMemoryError> {
        let file = file.into();
        let seals = descriptor::seals(file.as_fd())?.ok_or(TenantMemoryError::Unsealed)?;
        if seals & libc::F_SEAL_SHRINK == 0 {
            return Err(TenantMemoryError::Unsealed);
        }
        if seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
            return Err(TenantMemoryError::ReadOnly);
        }
        Self::trusted(file)
    }

    /// A file of which the operator says that nobody will shrink it.
    ///
    /// # Errors
    /// [`TenantMemoryError`] if it cannot be mapped.
    pub(super) fn trusted(file: impl Into<KeptFd>) -> Result<Self, TenantMemoryError> {
        let file = file.into();
        if !descriptor::is_read_write(file.as_fd())? {
            return Err(TenantMemoryError::ReadOnly);
        }
        let len = File::from(file.as_fd().try_clone_to_owned()?)
            .metadata()?
            .len();
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(TenantMemoryError::Length(len));
        }
        if len > MAX_BAR {
            return Err(TenantMemoryError::TooLarge(len));
        }
        Ok(Self { fd: file, len })
    }

    /// The file.
    pub(super) fn fd(&self) -> &KeptFd {
        &self.fd
    }

    /// Length of the file, all of which is mapped, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Length of the BAR in bytes: QEMU takes powers of two only.
    pub(super) fn bar_len(&self) -> u64 {
        self.len.next_power_of_two()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::OwnedFd;

    use super::super::shared_memory;
    use super::*;

    /// A memfd of `len` bytes with these seals.
    pub(crate) fn memfd(len: u64, seals: i32) -> OwnedFd {
        shared_memory::memfd(c"tenant", len, seals).unwrap().into()
    }

    pub(crate) const SHRINK: i32 = libc::F_SEAL_SHRINK;

    #[test]
    fn memory_is_a_bar_of_the_next_power_of_two() {
        let memory = TenantMemory::sealed(memfd(6 << 30, SHRINK)).unwrap();
        assert_eq!((memory.len(), memory.bar_len()), (6 << 30, 8 << 30));
        let memory = TenantMemory::sealed(memfd(1 << 30, SHRINK)).unwrap();
        assert_eq!((memory.len(), memory.bar_len()), (1 << 30, 1 << 30));
    }

    // covers: VPCI-SEC-1
    #[test]
    fn memory_that_could_shrink_is_refused() {
        let unsealed = TenantMemory::sealed(memfd(4096, 0));
        assert!(matches!(unsealed, Err(TenantMemoryError::Unsealed)));
        let grow_only = TenantMemory::sealed(memfd(4096, libc::F_SEAL_GROW));
        assert!(matches!(grow_only, Err(TenantMemoryError::Unsealed)));
        let path_backed: OwnedFd = File::open("/proc/self/exe").unwrap().into();
        let path_backed = TenantMemory::sealed(path_backed);
        assert!(matches!(path_backed, Err(TenantMemoryError::Unsealed)));
    }

    #[test]
    fn memory_that_cannot_be_written_is_refused() {
        let sealed = TenantMemory::sealed(memfd(4096, SHRINK | libc::F_SEAL_WRITE));
        assert!(matches!(sealed, Err(TenantMemoryError::ReadOnly)));
        let read_only: OwnedFd = File::open("/proc/self/exe").unwrap().into();
        let read_only = TenantMemory::trusted(read_only);
        assert!(matches!(read_only, Err(TenantMemoryError::ReadOnly)));
    }

    #[test]
    fn memory_of_an_unmappable_length_is_refused() {
        let empty = TenantMemory::sealed(memfd(0, SHRINK));
        assert!(matches!(empty, Err(TenantMemoryError::Length(0))));
        let odd = TenantMemory::sealed(memfd(4097, SHRINK));
        assert!(matches!(odd, Err(TenantMemoryError::Length(4097))));
    }
}
