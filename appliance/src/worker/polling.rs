//! Looking for requests for a while after work, in place of being kicked for each.

use std::time::{Duration, Instant};

use super::Worker;
use crate::config::Poll;

/// Most times in a row that a worker sleeps at once, where staying awake was in vain.
const MOST_SKIPPED: u32 = 64;

/// Whether the worker is to stay awake.
///
/// Staying awake for a time is a wager that more comes meanwhile. Where it is lost again and again,
/// it is made more and more seldom: what comes is slower than that, or the driver has to run on the
/// very processor that the worker keeps from it.
#[derive(Debug)]
pub(super) struct Polling {
    poll: Poll,
    /// Something was fetched or ended since it was last asked.
    worked: bool,
    /// Until when it stays awake.
    until: Option<Instant>,
    /// How often it is not to stay awake after it was in vain once more, doubled each time.
    penalty: u32,
    /// How often it is not to stay awake from now on.
    skipped: u32,
}

impl Polling {
    /// It sleeps as soon as there is nothing to do.
    pub fn new() -> Self {
        Self {
            poll: Poll::For(Duration::ZERO),
            worked: false,
            until: None,
            penalty: 0,
            skipped: 0,
        }
    }

    /// Stays awake as `poll` says from now on.
    pub fn set(&mut self, poll: Poll) {
        let worked = self.worked;
        *self = Self::new();
        (self.poll, self.worked) = (poll, worked);
    }

    /// Takes note of work.
    #[inline]
    pub fn work(&mut self) {
        self.worked = true;
    }

    /// Whether the worker is to stay awake at `now`.
    fn is_awake(&mut self, now: Instant) -> bool {
        let worked = std::mem::take(&mut self.worked);
        let time = match self.poll {
            Poll::Always => return true,
            Poll::For(Duration::ZERO) => return false,
            Poll::For(time) => time,
        };
        if worked {
            if self.until.is_some() {
                self.penalty = 0;
            } else if self.skipped > 0 {
                self.skipped -= 1;
                return false;
            }
            self.until = now.checked_add(time);
        } else if self.until.is_some_and(|until| now >= until) {
            self.until = None;
            self.skipped = self.penalty;
            self.penalty = (self.penalty * 2).clamp(1, MOST_SKIPPED);
        }
        self.until.is_some()
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

    /// How often a worker stays awake of `times` that work comes to it when it sleeps, as it does
    /// again before more comes.
    fn times_awake(polling: &mut Polling, start: Instant, times: u32) -> u32 {
        (0..times)
            .map(|time| {
                let now = start + TIME * 4 * time;
                polling.work();
                let awake = polling.is_awake(now);
                assert!(!polling.is_awake(now + TIME));
                u32::from(awake)
            })
            .sum()
    }

    #[test]
    fn a_worker_that_stays_awake_in_vain_does_so_ever_more_seldom() {
        let mut polling = Polling::new();
        let start = Instant::now();
        polling.set(Poll::For(TIME));
        // Twice at once, then after sleeping at once 1, 2, 4, 8, 16, 32 and 64 times, and after 64
        // more often than that.
        assert_eq!(times_awake(&mut polling, start, 2 + 127 + 7), 2 + 7);
        assert_eq!(times_awake(&mut polling, start + TIME * 1000, 650), 10);
    }

    #[test]
    fn a_worker_that_did_not_stay_awake_in_vain_does_so_each_time_again() {
        let mut polling = Polling::new();
        let start = Instant::now();
        polling.set(Poll::For(TIME));
        times_awake(&mut polling, start, 2 + 127 + 7);
        let mut now = start + TIME * 1000;
        polling.work();
        while !polling.is_awake(now) {
            now += TIME;
            polling.work();
        }
        // It pays.
        polling.work();
        assert!(polling.is_awake(now + TIME / 2));
        assert!(!polling.is_awake(now + TIME * 2));
        assert_eq!(times_awake(&mut polling, now + TIME * 4, 1), 1);
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
