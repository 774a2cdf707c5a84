//! A way to signal an eventfd of a frontend that never waits, whatever the frontend does with it.
//!
//! A frontend shares the file description, so it can take O_NONBLOCK off again: a write(2) to an
//! eventfd whose counter is full then waits until it is read. The kernel itself never waits when it
//! signals an eventfd, and it does so for each completion of an io_uring with which the eventfd is
//! registered. So there is an io_uring for the eventfd, and each signal is an operation on it that
//! does nothing.
#![expect(unsafe_code, reason = "a submission is handed to the kernel")]

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode};
use vmm_sys_util::eventfd::EventFd;

/// Attempts at a submission for which the kernel has no memory.
const ATTEMPTS: usize = 3;

/// See the module's text. The eventfd itself need not be kept.
pub(super) struct Signal(IoUring);

impl Signal {
    /// For `eventfd`, which was seen to be one.
    ///
    /// # Errors
    /// What io_uring_setup(2) or io_uring_register(2) report.
    pub fn new(eventfd: &EventFd) -> io::Result<Self> {
        let ring = IoUring::new(1)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        Ok(Self(ring))
    }

    /// Counts the eventfd up; one that is counted to the brim stays there.
    ///
    /// # Errors
    /// What io_uring_enter(2) reports; the next signal then makes up for it.
    pub fn signal(&mut self) -> io::Result<()> {
        // Room for one more.
        self.0.completion().for_each(drop);
        let nothing = opcode::Nop::new().build();
        // SAFETY: the operation refers to no memory. One that the kernel did not take before is
        // as good as this one, which then finds no room.
        let _ = unsafe { self.0.submission().push(&nothing) };
        let mut result = Ok(0);
        for _ in 0..ATTEMPTS {
            result = self.0.submit();
            if result.is_ok() {
                break;
            }
        }
        result.map(drop)
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.0.as_raw_fd()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn each_signal_counts_up_by_one_even_when_the_descriptor_is_closed() {
        let theirs = EventFd::new(EFD_NONBLOCK).unwrap();
        let ours = theirs.try_clone().unwrap();
        let mut signal = Signal::new(&ours).unwrap();
        drop(ours);
        assert!(theirs.read().is_err(), "nobody signalled");
        for _ in 0..1000 {
            signal.signal().unwrap();
        }
        assert_eq!(theirs.read().unwrap(), 1000);
        signal.signal().unwrap();
        assert_eq!(theirs.read().unwrap(), 1);
    }

    #[test]
    fn an_eventfd_that_blocks_and_is_full_makes_nobody_wait() {
        let full = EventFd::new(0).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let mut signal = Signal::new(&full).unwrap();
        let (done, waiting) = mpsc::channel();
        // A thread of its own, which is left behind if it hangs.
        std::thread::spawn(move || {
            for _ in 0..100 {
                signal.signal().unwrap();
            }
            done.send(()).unwrap();
        });
        waiting.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(full.read().unwrap() >= u64::MAX - 1);
    }
}
