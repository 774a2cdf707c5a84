//! Looking for requests for a while after work, in place of being kicked for each.

use std::time::{Duration, Instant};

use super::Worker;
use crate::config::Poll;

/// Whether the worker is to stay awake.
#[derive(Debug)]
pub(super) struct Polling {
    poll: Poll,
    /// Something was fetched or ended since it was last asked.
    worked: bool,
    /// Until when it stays awake.
    until: Option<Instant>,
}

impl Polling {
    /// It sleeps as soon as there is nothing to do.
    pub fn new() -> Self {
        Self {
            poll: Poll::For(Duration::ZERO),
            worked: false,
            until: None,
        }
    }

    /// Stays awake as `poll` says from now on.
    pub fn set(&mut self, poll: Poll) {
        (self.poll, self.until) = (poll, None);
    }

    /// Takes note of work.
    #[inline]
    pub fn work(&mut self) {
        self.worked = true;
    }

    /// Whether the worker is to stay awake at `now`.
    fn is_awake(&mut self, now: Instant) -> bool {
        let worked = std::mem::take(&mut self.worked);
        match self.poll {
            Poll::Always => true,
            Poll::For(Duration::ZERO) => false,
            Poll::For(time) => {
                if worked {
                    self.until = now.checked_add(time);
                }
                self.until.is_some_and(|until| now < until)
            }
        }
    }
}

impl Worker {
    /// Looks for requests, if the worker is to stay awake; otherwise asks for kicks again before it
    /// sleeps, and looks once more. Without a request ring that runs there is nothing to look at.
    pub(super) fn poll(&mut self) {
        if self.polling.is_awake(self.now) && self.rings.has_requests() {
            self.statistics.hba.polls += 1;
            self.rings.poll(&mut self.ready);
        } else if self.rings.is_polled() {
            self.rings.await_kicks(&mut self.ready, &*self.shim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(50);

    #[test]
    fn a_worker_stays_awake_for_its_time_after_the_last_work() {
        let mut polling = Polling::new();
        let start = Instant::now();
        polling.set(Poll::For(TIME));
        assert!(!polling.is_awake(start));
        polling.work();
        assert!(polling.is_awake(start));
        assert!(polling.is_awake(start + TIME / 2));
        polling.work();
        assert!(polling.is_awake(start + TIME));
        assert!(polling.is_awake(start + TIME * 2 - Duration::from_nanos(1)));
        assert!(!polling.is_awake(start + TIME * 2));
    }

    #[test]
    fn a_worker_without_a_time_sleeps_and_one_that_always_polls_does_not() {
        let mut polling = Polling::new();
        let now = Instant::now();
        polling.work();
        assert!(!polling.is_awake(now));
        polling.set(Poll::Always);
        assert!(polling.is_awake(now));
        polling.set(Poll::For(TIME));
        assert!(!polling.is_awake(now));
    }
}
