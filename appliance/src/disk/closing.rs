//! Files whose closing takes long, closed where nobody waits for it.

use crate::pinning;
use std::ops::Deref;

/// A file, or whatever closes one when it is dropped.
///
/// The last close(2) of a block device writes what the page cache has of it, for as long as the
/// device takes; and the last user of a disk may be a worker, which has other disks to serve.
#[derive(Debug)]
pub struct ClosedElsewhere<T: Send + 'static> {
    /// There until this is dropped.
    file: Option<T>,
    is_slow: bool,
}

impl<T: Send + 'static> ClosedElsewhere<T> {
    /// Closes `file` on a thread of its own if that `is_slow`, otherwise where it is dropped.
    pub fn new(file: T, is_slow: bool) -> Self {
        Self {
            file: Some(file),
            is_slow,
        }
    }

    /// Whether closing it takes long.
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }
}

impl<T: Send + 'static> Deref for ClosedElsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.file.as_ref().expect("it is there until the drop")
    }
}

impl<T: Send + 'static> Drop for ClosedElsewhere<T> {
    fn drop(&mut self) {
        let Some(file) = self.file.take().filter(|_| self.is_slow) else {
            return;
        };
        // On an error what was to run is dropped, and with it the file: here then.
        let _ = pinning::spawn_free("close", move || drop(file));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Closing it waits until it is told to go on, and says then that it is closed.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv_timeout(Duration::from_secs(20));
            let _ = self.1.send(());
        }
    }

    #[test]
    fn nobody_waits_for_a_file_that_is_slow_to_close() {
        let (go, wait) = mpsc::channel();
        let (closed, end) = mpsc::channel();
        drop(ClosedElsewhere::new(Slow(wait, closed), true));
        assert_eq!(end.try_recv(), Err(mpsc::TryRecvError::Empty));
        go.send(()).unwrap();
        assert_eq!(end.recv_timeout(Duration::from_secs(20)), Ok(()));
    }

    #[test]
    fn a_file_that_is_quick_to_close_is_closed_when_it_is_dropped() {
        let (go, wait) = mpsc::channel();
        let (closed, end) = mpsc::channel();
        go.send(()).unwrap();
        drop(ClosedElsewhere::new(Slow(wait, closed), false));
        assert_eq!(end.try_recv(), Ok(()));
    }
}
