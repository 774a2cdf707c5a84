//! The vhost-pci PCI function.

mod event;
mod profile;

use std::io;
use std::os::fd::OwnedFd;

use spec::mailbox::{Reply, Request};
use spec::session::MemoryEntry;

pub use event::{DeviceEvent, Refusal};
pub use profile::{Profile, ProfileError};

/// The vhost-pci PCI function (skeleton).
pub struct VhostPci {}

/// Skeleton.
#[derive(Debug, thiserror::Error)]
pub enum TenantMemoryError {
    /// memfd without F_SEAL_SHRINK
    #[error("unsealed")]
    Unsealed,
    /// storage QEMU has the device mapped already
    #[error("in use")]
    InUse,
    // … ReadOnly, Empty, NotPageMultiple, TooLarge, Io(io::Error)
}
/// Skeleton.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Over 512 entries, or an entry outside the tenant's memory file.
    #[error("skeleton")]
    Skeleton,
}
/// Skeleton.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// No appliance is attached (its BackendDown event is pending or was taken).
    #[error("no appliance is attached")]
    NotAttached,
    /// The previous request has no reply yet.
    #[error("busy")]
    Busy,
}
/// Skeleton.
#[derive(Debug, thiserror::Error)]
pub enum BadReply {
    /// …
    #[error("skeleton")]
    Skeleton,
}

impl VhostPci {
    /// Makes it.
    pub fn new(_profile: &Profile) -> io::Result<Self> {
        todo!()
    }
    /// The tenant's memory: a memfd sealed against shrinking. Before QEMU connects.
    pub fn set_tenant_memory(&mut self, _file: OwnedFd) -> Result<(), TenantMemoryError> {
        todo!()
    }
    /// As set_tenant_memory, for a path-backed file that only the operator may write.
    pub fn set_trusted_tenant_memory(&mut self, _file: OwnedFd) -> Result<(), TenantMemoryError> {
        todo!()
    }
    /// Lets it go, after QEMU closed.
    pub fn clear_tenant_memory(&mut self) -> Result<(), TenantMemoryError> {
        todo!()
    }
    /// Writes the table, returns its generation.
    pub fn publish_memory(&mut self, _entries: &[MemoryEntry]) -> Result<u32, TableError> {
        todo!()
    }
    /// FRONTEND_UP; counts CONNECTION on each change to true.
    pub fn set_frontend_up(&mut self, _up: bool) {
        todo!()
    }
    /// Whether an appliance is attached.
    pub fn backend_up(&self) -> bool {
        todo!()
    }
    /// MSI vectors enabled.
    pub fn vectors(&self) -> usize {
        todo!()
    }
    /// Posts a request, returns its sequence number.
    pub fn post(&mut self, _request: Request) -> Result<u32, PostError> {
        todo!()
    }
    /// Reads the reply slot once, for the number in a DeviceEvent::Reply.
    pub fn reply(&mut self, _sequence: u32) -> Result<Reply, BadReply> {
        todo!()
    }
    /// Turns the attached appliance away (STATUS.REFUSED, ERROR); BackendDown follows.
    pub fn refuse(&mut self, _reason: Refusal) {
        todo!()
    }
    /// The tenant reset its HBA: NEEDS_RESET is cleared.
    pub fn clear_ring_errors(&mut self) {
        todo!()
    }
    /// Fires the ring's MSI vector, or latches it until MSI is on.
    pub fn kick(&mut self, _ring: u16) {
        todo!()
    }
    /// The next event. Call until None after every Connection::ready.
    pub fn take_event(&mut self) -> Option<DeviceEvent> {
        todo!()
    }
    /// need_wakeup = 1; whether calls came meanwhile (then collect_calls).
    pub fn arm(&mut self) -> bool {
        todo!()
    }
    /// need_wakeup = 0.
    pub fn disarm(&mut self) {
        todo!()
    }
    /// Calls `ring` for each ring whose call counter moved.
    pub fn collect_calls(&mut self, _call: impl FnMut(u16)) {
        todo!()
    }
    /// QEMU is gone: forgets vectors, detaches the appliance. Connection::ready does it by itself when it returns Err.
    pub fn client_gone(&mut self) {
        todo!()
    }
}
