//! What a supervisor counts, for whoever asks it by SIGUSR1 or at its status socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Counts since the supervisor started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    /// From the tenant to the appliance.
    pub kicks: u64,
    /// From the appliance to the tenant.
    pub calls: u64,
    /// Calls that had to wake the supervisor up.
    pub trapped_doorbells: u64,
    /// Appliances that attached.
    pub attachments: u64,
    /// Requests that they were sent.
    pub requests: u64,
}

impl Counters {
    /// Writes the log line.
    pub fn report(&self, hba: &str) {
        let Self {
            kicks,
            calls,
            trapped_doorbells,
            ..
        } = self;
        tracing::info!(%hba, kicks, calls, trapped_doorbells, "counted");
    }
}

/// Asks a supervisor, from another thread or a signal handler, to log what it has counted.
#[derive(Debug, Clone)]
pub struct Report(Arc<EventFd>);

impl Report {
    /// A new one, which nobody has asked.
    ///
    /// # Errors
    /// What `eventfd` gave.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
    }

    /// Asks for one line.
    pub fn report(&self) {
        // Only fails if the supervisor has been asked 2^64 times.
        let _ = self.0.write(1);
    }

    /// Whether somebody asked since the last time.
    pub fn is_asked(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        super::borrow(&self.0)
    }
}

impl AsRawFd for Report {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
