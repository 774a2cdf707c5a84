//! Work that a disk may keep from ending, on a thread of its own: whoever asked for it hears of
//! that in time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{Failure, code};

/// How long a change may take before whoever asked for it is told that it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// The change that is under way: there is one at a time.
#[derive(Debug, Default, Clone)]
pub(super) struct Changes(Arc<Mutex<Option<Instant>>>);

/// Ends a change when it is dropped, however that comes.
struct Ends(Changes);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Changes {
    /// For how long a change has been under way.
    pub fn under_way(&self) -> Option<Duration> {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    /// Does `work`, and waits for it for a while.
    ///
    /// # Errors
    /// What it reports; [`code::BUSY`] if another is under way, [`code::TIMEOUT`] if it takes too
    /// long: it goes on then.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        {
            let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(since) = *since {
                let seconds = since.elapsed().as_secs();
                return Err(Failure::new(
                    code::BUSY,
                    format!(
                        "another change is under way since {seconds} s; wait for it (status tells)"
                    ),
                ));
            }
            *since = Some(Instant::now());
        }
        let ends = Ends(self.clone());
        let done = in_time(PATIENCE, move || {
            let _ends = ends;
            work()
        })?;
        done.unwrap_or_else(|| {
            let seconds = PATIENCE.as_secs();
            Err(Failure::new(
                code::TIMEOUT,
                format!(
                    "it is not done after {seconds} s, and goes on: a disk does not answer; look \
                     with: disks, status"
                ),
            ))
        })
    }
}

/// Does `work` on a thread; `None` if it takes longer than `patience`.
///
/// # Errors
/// [`code::SYSTEM`] if there is no thread for it, or it panics.
pub(super) fn in_time<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, Failure> {
    let (done, outcome) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("control-work".into())
        .spawn(move || {
            let _ = done.send(work());
        })
        .map_err(|error| {
            Failure::new(code::SYSTEM, format!("a thread cannot be started: {error}"))
        })?;
    match outcome.recv_timeout(patience) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new(
            code::SYSTEM,
            "it panicked; the log of the appliance says where",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_change_is_refused_while_the_first_is_under_way() {
        let changes = Changes::default();
        let (go, wait) = mpsc::channel::<()>();
        let (other, began) = (changes.clone(), mpsc::channel());
        let first = thread::spawn(move || {
            other.run(move || {
                began.0.send(()).unwrap();
                wait.recv().ok();
                Ok(())
            })
        });
        began.1.recv().unwrap();
        assert_eq!(changes.run(|| Ok(())).unwrap_err().code, code::BUSY);
        go.send(()).unwrap();
        first.join().unwrap().unwrap();
        assert_eq!(changes.run(|| Ok(7)), Ok(7));
    }

    #[test]
    fn a_change_that_panics_is_over() {
        let changes = Changes::default();
        let failed = changes.run::<()>(|| panic!("on purpose"));
        assert_eq!(failed.unwrap_err().code, code::SYSTEM);
        assert_eq!(changes.under_way(), None);
    }
}
