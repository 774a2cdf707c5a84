//! A vhost-pci function: how it is found, opened and reached.

pub mod discover;
mod vfio;

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::Mapping;

pub use vfio::{OpenError, VfioFunction};

/// A vhost-pci function, however it is reached: through VFIO in the storage VM, or by speaking
/// vfio-user in tests.
///
/// Whoever implements it makes sure that a [`Mapping`] keeps open what it maps; whoever uses it
/// drops every mapping before the device, since an unplug waits for that.
pub trait Device: Send + Sync {
    /// Reads the BAR0 register at `offset` (bytes; a multiple of 4).
    ///
    /// # Errors
    /// `InvalidInput` for an offset that is not a register's; what the transport reports.
    fn read32(&self, offset: u64) -> io::Result<u32>;

    /// Writes the BAR0 register at `offset` (bytes; a multiple of 4).
    ///
    /// # Errors
    /// As [`Self::read32`].
    fn write32(&self, offset: u64, value: u32) -> io::Result<()>;

    /// Maps the first `len` bytes of a mapped BAR.
    ///
    /// # Errors
    /// `InvalidInput` if the BAR cannot be mapped or is shorter; what mmap(2) reports.
    fn map(&self, bar: usize, len: u64) -> io::Result<Mapping>;

    /// Length of a BAR in bytes, 0 if it does not exist.
    ///
    /// # Errors
    /// What the transport reports.
    fn bar_len(&self, bar: usize) -> io::Result<u64>;

    /// Enables as many MSI vectors as can be had, at most one for each of `fds`, which are then
    /// signalled in order; returns how many. (An MSI is a write by the function, so it needs to
    /// be bus master: it has been since it was opened.)
    ///
    /// # Errors
    /// What the transport reports; an error if not even one vector can be had.
    fn enable_vectors(&self, fds: &[&EventFd]) -> io::Result<usize>;

    /// Disables every MSI vector.
    ///
    /// # Errors
    /// What the transport reports.
    fn disable_vectors(&self) -> io::Result<()>;

    /// Signalled when the function must be let go (the VFIO REQ interrupt), if there is such.
    fn release_request(&self) -> Option<&EventFd>;
}
