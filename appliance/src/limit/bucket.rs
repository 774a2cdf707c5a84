//! A token bucket in whole numbers, which loses nothing to rounding.

use std::time::{Duration, Instant};

/// Parts of a token: so many that a rate of tokens a second is as many parts a nanosecond.
const PARTS: i128 = 1_000_000_000;
/// Picoseconds of a second.
const PICOSECONDS: u128 = 1_000_000_000_000;

/// Tokens that come at a rate, up to a limit, and are taken.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Tokens a second.
    rate: u64,
    /// Most tokens that there can be.
    burst: u64,
    /// Parts of tokens that there are; owed, where it is below zero.
    level: i128,
    /// For when that is.
    at: Instant,
}

impl Bucket {
    /// A full one of `rate` tokens a second, at least 1, that holds as many as come in `burst`, at
    /// least 2.
    pub fn full(rate: u64, burst: Duration, now: Instant) -> Self {
        let rate = rate.max(1);
        let burst = tokens(rate, burst);
        Self {
            rate,
            burst,
            level: parts(burst),
            at: now,
        }
    }

    /// Another rate and burst from `now` on; what there is stays, what is owed, too.
    pub fn change(&mut self, rate: u64, burst: Duration, now: Instant) {
        self.refill(now);
        self.rate = rate.max(1);
        self.burst = tokens(self.rate, burst);
        self.level = self.level.min(parts(self.burst));
    }

    /// Adds what has come until `now`; a time before the last is that one. Returns the parts of
    /// tokens for which there was no room.
    pub fn refill(&mut self, now: Instant) -> i128 {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        let come = i128::try_from(elapsed)
            .unwrap_or(i128::MAX)
            .saturating_mul(self.rate.into());
        let level = self.level.saturating_add(come);
        self.level = level.min(parts(self.burst));
        self.at = self.at.max(now);
        level.saturating_sub(self.level)
    }

    /// Most tokens that there can be.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// When it was refilled last.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// How long after the last [`Self::refill`] there is enough for `cost` tokens: of more than half
    /// of what there can be, the rest is owed. So the other half has room for what comes while
    /// whoever waits is late.
    pub fn wait(&self, cost: u64) -> Duration {
        self.wait_for_parts(parts(cost.min(self.burst / 2)))
    }

    /// How long after the last [`Self::refill`] there are so many parts of tokens, and be it more
    /// than there can be.
    pub fn wait_for_parts(&self, wanted: i128) -> Duration {
        let missing = wanted.saturating_sub(self.level);
        let Ok(missing @ 1..) = u128::try_from(missing) else {
            return Duration::ZERO;
        };
        let nanoseconds = missing.div_ceil(self.rate.into());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Takes `cost` tokens, there or not.
    pub fn take(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(parts(cost));
    }

    /// Takes parts of tokens, there or not.
    pub fn take_parts(&mut self, cost: i128) {
        self.level = self.level.saturating_sub(cost);
    }

    /// In how many picoseconds `cost` tokens come.
    pub fn time_of(&self, cost: u64) -> u128 {
        u128::from(cost) * PICOSECONDS / u128::from(self.rate)
    }

    /// In how many picoseconds so many parts of tokens come.
    pub fn time_of_parts(&self, cost: i128) -> u128 {
        // A part comes in a nanosecond at a rate of 1.
        cost.unsigned_abs() * 1000 / u128::from(self.rate)
    }
}

/// Tokens that come in `time`, at least 2: for one that waits, and for its being late.
fn tokens(rate: u64, time: Duration) -> u64 {
    let parts = u128::from(rate) * time.as_nanos();
    let tokens = parts.div_ceil(PARTS.unsigned_abs());
    u64::try_from(tokens).unwrap_or(u64::MAX).max(2)
}

/// Parts of so many tokens.
pub(super) fn parts(tokens: u64) -> i128 {
    i128::from(tokens) * PARTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes from a bucket as soon as there is enough, each of `costs` in turn, for `time`. Each
    /// time one comes by the lateness in turn too late. Returns when each was taken, and how much.
    fn saturate(
        rate: u64,
        burst: Duration,
        costs: &[u64],
        lateness: &[u64],
        time: Duration,
    ) -> Vec<(Duration, u64)> {
        let start = Instant::now();
        let mut bucket = Bucket::full(rate, burst, start);
        let (mut now, mut taken) = (start, Vec::new());
        for (&cost, &late) in costs.iter().cycle().zip(lateness.iter().cycle()) {
            bucket.refill(now);
            let wait = bucket.wait(cost);
            if !wait.is_zero() {
                now += wait + Duration::from_nanos(late);
                bucket.refill(now);
                assert_eq!(bucket.wait(cost), Duration::ZERO, "it waited long enough");
            }
            if now - start > time || taken.len() > 5000 {
                break;
            }
            bucket.take(cost);
            taken.push((now - start, cost));
        }
        taken
    }

    #[test]
    fn a_rate_that_divides_no_second_does_not_drift() {
        // A third of a second for each: 333333333.3 ns. Two are there at the start.
        let taken = saturate(3, Duration::ZERO, &[1], &[0], Duration::from_secs(2000));
        let last = taken[3001].0;
        assert_eq!(taken[1].0, Duration::ZERO);
        assert!(
            (Duration::from_secs(1000)..Duration::from_nanos(1_000_000_000_001)).contains(&last),
            "{last:?}"
        );
    }

    #[test]
    fn more_than_half_of_the_burst_passes_and_is_owed() {
        let start = Instant::now();
        let mut bucket = Bucket::full(1000, Duration::from_millis(100), start);
        assert_eq!(bucket.wait(5000), Duration::ZERO);
        bucket.take(5000);
        // 100 were there; 4900 are owed, and 1 more is wanted.
        assert_eq!(bucket.wait(1), Duration::from_millis(4901));
        assert_eq!(bucket.wait(5000), Duration::from_millis(4950));
    }

    #[test]
    fn what_is_owed_is_owed_at_another_rate_too() {
        let start = Instant::now();
        let mut bucket = Bucket::full(10, Duration::ZERO, start);
        bucket.take(102);
        bucket.change(100, Duration::ZERO, start);
        assert_eq!(bucket.wait(1), Duration::from_millis(1010));
        bucket.change(1000, Duration::ZERO, start + Duration::from_secs(1));
        assert_eq!(bucket.wait(1), Duration::from_millis(1));
    }

    #[test]
    fn a_time_before_the_last_brings_nothing() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut bucket = Bucket::full(10, Duration::ZERO, later);
        bucket.take(2);
        bucket.refill(start);
        bucket.refill(later);
        assert_eq!(bucket.wait(1), Duration::from_millis(100));
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_its_share_and_a_burst(
            rate in 1_u64..2_000_000,
            burst in 0_u64..500,
            costs in prop::collection::vec(1_u64..70_000, 1..8),
            lateness in prop::collection::vec(0_u64..20_000_000, 1..8),
        ) {
            let burst = Duration::from_millis(burst);
            let taken = saturate(rate, burst, &costs, &lateness, Duration::from_secs(100));
            let (largest, full) = (costs.iter().max().unwrap(), tokens(rate, burst));
            let most = full + largest.saturating_sub(full / 2);
            // The worst window that ends at each: tokens less what has come, at its lowest.
            let (mut sum, mut lowest) = (0_i128, i128::MAX);
            for (at, cost) in taken {
                let come = i128::try_from(at.as_nanos()).unwrap() * i128::from(rate);
                lowest = lowest.min(sum - come);
                sum += parts(cost);
                let over = sum - come - lowest;
                prop_assert!(over <= parts(most), "{over} parts in a window, {most} tokens at once");
            }
        }

        #[test]
        fn who_always_wants_more_gets_the_rate(
            rate in 1_u64..2_000_000,
            burst in 20_u64..500,
            costs in prop::collection::vec(1_u64..70_000, 1..8),
            lateness in prop::collection::vec(0_u64..10_000_000, 1..8),
        ) {
            // Nothing is lost while it comes late, by half a burst at most.
            let lateness: Vec<_> = lateness
                .iter()
                .map(|late| *late.min(&(burst * 1_000_000 / 2)))
                .collect();
            let burst = Duration::from_millis(burst);
            let taken = saturate(rate, burst, &costs, &lateness, Duration::from_secs(100));
            let &(last, _) = taken.last().unwrap();
            let all: u128 = taken.iter().map(|(_, cost)| u128::from(*cost)).sum();
            let due = u128::from(rate) * last.as_nanos() / 1_000_000_000;
            prop_assert!(all * 100 >= due * 95, "{all} of {due}");
        }
    }
}
