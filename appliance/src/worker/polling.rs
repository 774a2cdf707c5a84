//! Looking for requests for a while after work, in place of being kicked for each.

use std::hint;
use std::time::{Duration, Instant};

use spec::virtio_scsi::CONTROL_QUEUE;

use super::{BATCH, Worker};
use crate::config::Poll;

/// How often a ring, or each of several less often, is looked at before it is looked what else there
/// is to do, where nothing is under way.
const LOOKS: usize = 16;
/// Most times in a row that a worker sleeps at once, where staying awake was in vain.
const MOST_SKIPPED: u32 = 64;

/// Whether the worker is to stay awake.
///
/// Staying awake for a time is a wager that more comes meanwhile. Where it is lost again and again,
/// it is made more and more seldom: what comes is slower than that, or the driver has to run on the
/// very processor that the worker keeps from it. Whether a driver soon has more is one question, and
/// whether a disk is soon done another: each has a wager of its own.
#[derive(Debug)]
pub(super) struct Polling {
    poll: Poll,
    /// Commands came since it was last asked.
    came: bool,
    /// Commands ended since then that had not taken long.
    ended: bool,
    /// Until when it stays awake, and by which wager.
    awake: Option<(Instant, After)>,
    /// The wagers after commands came, and after some ended.
    wagers: [Wager; 2],
}

/// What the worker stays awake after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Commands came, and none has ended: their disk may soon be done.
    Came,
    /// Commands ended that had not taken long: their driver may soon have more.
    Ended,
}

/// How often staying awake was in vain.
#[derive(Debug, Clone, Copy, Default)]
struct Wager {
    /// How often it is not made after it was in vain once more, doubled each time.
    penalty: u32,
    /// How often it is not made from now on.
    skipped: u32,
}

impl Polling {
    /// It sleeps as soon as there is nothing to do.
    pub fn new() -> Self {
        Self {
            poll: Poll::For(Duration::ZERO),
            came: false,
            ended: false,
            awake: None,
            wagers: [Wager::default(); 2],
        }
    }

    /// Stays awake as `poll` says from now on.
    pub fn set(&mut self, poll: Poll) {
        let (came, ended) = (self.came, self.ended);
        *self = Self::new();
        (self.poll, self.came, self.ended) = (poll, came, ended);
    }

    /// A command came.
    #[inline]
    pub fn came(&mut self) {
        self.came = true;
    }

    /// A command ended, so long after it came. One that took longer than the worker would stay awake
    /// is not followed by the next any sooner for that.
    #[inline]
    pub fn ended(&mut self, after: Duration) {
        if let Poll::For(time) = self.poll {
            self.ended |= after < time;
        }
    }

    /// Whether the worker is to stay awake at `now`.
    fn is_awake(&mut self, now: Instant) -> bool {
        let came = std::mem::take(&mut self.came);
        let worked = match std::mem::take(&mut self.ended) {
            true => Some(After::Ended),
            false => came.then_some(After::Came),
        };
        let time = match self.poll {
            Poll::Always => return true,
            Poll::For(Duration::ZERO) => return false,
            Poll::For(time) => time,
        };
        if let Some(after) = worked {
            if let Some((_, won)) = self.awake.take() {
                self.wagers[won as usize].penalty = 0;
            }
            let wager = &mut self.wagers[after as usize];
            if wager.skipped > 0 {
                wager.skipped -= 1;
            } else {
                self.awake = now.checked_add(time).map(|until| (until, after));
            }
        } else if let Some((until, lost)) = self.awake
            && now >= until
        {
            self.awake = None;
            let wager = &mut self.wagers[lost as usize];
            wager.skipped = wager.penalty;
            wager.penalty = (wager.penalty * 2).clamp(1, MOST_SKIPPED);
        }
        self.awake.is_some()
    }
}

impl Worker {
    /// Looks for requests, if the worker is to stay awake. Those that come while nothing else is under
    /// way are served at once, a batch of them at most: a whole turn of the loop takes as long as one
    /// of them again.
    pub(super) fn poll(&mut self) {
        self.look();
        let mut served = 0;
        while served < BATCH && self.has_requests_alone() {
            for ring in std::mem::take(&mut self.ready) {
                // One that there is no room for comes to an end, too.
                served += self.serve(ring).max(1);
            }
            self.rings.call(self.now, &*self.shim);
            self.look();
        }
        if served > 0 {
            self.now = Instant::now();
        }
    }

    /// Whether there are requests to be served, and there is nothing else that a turn would look
    /// after but whom somebody wakes the loop for.
    fn has_requests_alone(&self) -> bool {
        self.rings.is_polled()
            && !self.ready.is_empty()
            && !self.ready.has(CONTROL_QUEUE)
            && self.tasks.is_empty()
            && self.unfinished.is_none()
            && self.settling.is_none()
            && self.early.is_empty()
    }

    /// Looks for requests, if the worker is to stay awake; otherwise asks for kicks again before it
    /// sleeps, and looks once more. Without a request ring that runs there is nothing to look at.
    fn look(&mut self) {
        let rings = self.rings.count_requests();
        if self.polling.is_awake(self.now) && rings > 0 {
            self.statistics.hba.polls += 1;
            self.rings.poll(&mut self.ready);
            let more = if self.tasks.is_empty() {
                LOOKS / rings
            } else {
                1
            };
            for _ in 1..more {
                if !self.ready.is_empty() {
                    break;
                }
                hint::spin_loop();
                self.rings.poll(&mut self.ready);
            }
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
        polling.ended(TIME / 2);
        assert!(polling.is_awake(start));
        assert!(polling.is_awake(start + TIME / 2));
        polling.ended(TIME / 2);
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
                polling.ended(TIME / 2);
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
        polling.ended(TIME / 2);
        while !polling.is_awake(now) {
            now += TIME;
            polling.ended(TIME / 2);
        }
        // It pays.
        polling.ended(TIME / 2);
        assert!(polling.is_awake(now + TIME / 2));
        assert!(!polling.is_awake(now + TIME * 2));
        assert_eq!(times_awake(&mut polling, now + TIME * 4, 1), 1);
    }

    #[test]
    fn a_disk_that_is_seldom_done_soon_is_waited_for_asleep_and_a_fast_driver_awake() {
        let mut polling = Polling::new();
        let mut now = Instant::now();
        polling.set(Poll::For(TIME));
        let mut awake = [0, 0];
        for _ in 0..500 {
            polling.came();
            awake[0] += u32::from(polling.is_awake(now));
            now += TIME * 2;
            assert!(!polling.is_awake(now));
            polling.ended(TIME / 2);
            awake[1] += u32::from(polling.is_awake(now));
            now += TIME / 2;
        }
        // As above for what came: 2, 7 of the next 134, and one in 65 of the others.
        assert_eq!(awake, [14, 500]);
    }

    #[test]
    fn nobody_stays_awake_after_a_command_that_took_longer_than_that() {
        let mut polling = Polling::new();
        polling.set(Poll::For(TIME));
        polling.ended(TIME);
        assert!(!polling.is_awake(Instant::now()));
    }

    #[test]
    fn a_worker_without_a_time_sleeps_and_one_that_always_polls_does_not() {
        let mut polling = Polling::new();
        let now = Instant::now();
        polling.ended(TIME / 2);
        assert!(!polling.is_awake(now));
        polling.set(Poll::Always);
        assert!(polling.is_awake(now));
        polling.set(Poll::For(TIME));
        assert!(!polling.is_awake(now));
    }
}
