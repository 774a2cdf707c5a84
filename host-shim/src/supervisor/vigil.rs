//! Staying awake for a while after a call, to see the next without being rung.
//!
//! It is a wager that the next comes meanwhile. Where it is lost again and again, as where a tenant
//! sends one request at a time and the disk takes longer, it is made more and more seldom.

use std::time::{Duration, Instant};

/// Most calls in a row after which nobody stays awake, where that was in vain.
const MOST_SKIPPED: u32 = 64;

/// Whether the supervisor is awake for calls.
#[derive(Debug)]
pub(super) struct Vigil {
    /// How long after a call.
    time: Duration,
    /// Until when, if it is awake.
    until: Option<Instant>,
    /// A call was seen since it was rung.
    won: bool,
    /// How many calls are skipped after it was in vain once more, doubled each time.
    penalty: u32,
    /// How many are skipped from now on.
    skipped: u32,
}

impl Vigil {
    /// Stays awake for so long after a call; never if that is zero.
    pub fn new(time: Duration) -> Self {
        Self {
            time,
            until: None,
            won: false,
            penalty: 0,
            skipped: 0,
        }
    }

    /// Whether it is awake.
    pub fn is_kept(&self) -> bool {
        self.until.is_some()
    }

    /// A call rang; whether it stays awake from now on.
    pub fn rung(&mut self, now: Instant) -> bool {
        if self.time.is_zero() {
            return false;
        }
        if self.until.is_none() && self.skipped > 0 {
            self.skipped -= 1;
            return false;
        }
        self.won &= self.until.is_some();
        self.until = now.checked_add(self.time);
        self.is_kept()
    }

    /// A call was seen without that.
    pub fn seen(&mut self, now: Instant) {
        self.won = true;
        self.until = now.checked_add(self.time);
    }

    /// Whether none was seen for long.
    pub fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// Falls asleep.
    pub fn end(&mut self) {
        self.until = None;
        if self.won {
            self.penalty = 0;
        } else {
            self.skipped = self.penalty;
            self.penalty = (self.penalty * 2).clamp(1, MOST_SKIPPED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(50);

    /// How often it is awake after `calls` of which each comes when it sleeps again.
    fn in_vain(vigil: &mut Vigil, start: Instant, calls: u32) -> usize {
        (0..calls)
            .filter(|call| {
                let now = start + TIME * 3 * *call;
                let kept = vigil.rung(now);
                assert!(!vigil.is_over(now + TIME / 2));
                assert_eq!(vigil.is_over(now + TIME), kept);
                if kept {
                    vigil.end();
                }
                kept
            })
            .count()
    }

    #[test]
    fn it_is_kept_ever_more_seldom_where_it_is_in_vain() {
        let mut vigil = Vigil::new(TIME);
        // Twice at once, then after 1, 2, 4, 8, 16, 32 and 64 calls, and after 64 more often than
        // that.
        assert_eq!(in_vain(&mut vigil, Instant::now(), 2 + 127 + 7), 2 + 7);
        assert_eq!(in_vain(&mut vigil, Instant::now(), 650), 10);
    }

    #[test]
    fn it_is_kept_as_long_as_calls_are_seen_and_after_the_next_again() {
        let mut vigil = Vigil::new(TIME);
        let mut now = Instant::now();
        in_vain(&mut vigil, now, 2 + 127 + 7);
        while !vigil.rung(now) {
            now += TIME;
        }
        for _ in 0..5 {
            now += TIME / 2;
            assert!(!vigil.is_over(now));
            vigil.seen(now);
        }
        assert!(vigil.is_over(now + TIME));
        vigil.end();
        assert!(!vigil.is_kept());
        // It paid.
        assert_eq!(in_vain(&mut vigil, now + TIME, 2), 2);
    }

    #[test]
    fn without_a_time_it_is_never_kept() {
        let mut vigil = Vigil::new(Duration::ZERO);
        assert!(!vigil.rung(Instant::now()) && !vigil.is_kept());
    }
}
