//! What a run leaves behind in the process.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may take to bury threads that have ended, its own io_uring workers among
/// them.
const PATIENCE: Duration = Duration::from_secs(20);

/// File descriptors and threads of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Residue {
    pub(super) fds: usize,
    threads: usize,
}

impl Residue {
    /// Those there are now.
    pub(super) fn now() -> Self {
        let count = |directory| fs::read_dir(directory).expect("procfs").count();
        Self {
            fds: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }

    /// Waits until at most `more` of each are there beside these.
    ///
    /// # Panics
    /// If something stays.
    pub(super) fn wait_for_at_most(self, more: usize) {
        let begun = Instant::now();
        loop {
            let now = Self::now();
            if now.fds <= self.fds + more && now.threads <= self.threads + more {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{now:?} after {self:?}: something stays"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}
