//! Our own vfio-user server.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::device::VhostPci;

/// Skeleton: one connected vfio-user client. On drop it shuts reading down, drains what is
/// unread and closes (QEMU aborts if its bytes are left unread).
pub struct Connection(UnixStream);

/// What `ready` left to do.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more until the socket is readable (or writable) again: wait for an event.
    Waiting,
    /// A batch was served and more may be there: call again, without waiting for an event.
    More,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// QEMU closed it (the device was unplugged, or QEMU quit).
    #[error("skeleton")]
    Eof,
}

impl Connection {
    /// Makes the stream non-blocking. Register it READABLE | WRITABLE (edge-triggered is fine).
    pub fn new(_stream: UnixStream) -> io::Result<Self> {
        todo!()
    }
    /// Serves what is readable; on Err the device has been told already (client_gone).
    pub fn ready(&mut self, _device: &mut VhostPci) -> Result<Progress, Closed> {
        todo!()
    }
}
impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
