//! How long commands took: a histogram whose buckets are a quarter apart at most.

use std::time::Duration;

use super::snapshot::HistogramSnapshot;

/// Buckets of one doubling.
const PARTS: u64 = 4;
/// All buckets; the last has whatever took longer than two minutes, too.
const BUCKETS: usize = 104;

/// Counts of durations.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: [u64; BUCKETS],
    sum: Duration,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }
}

/// The bucket of a number of microseconds: 0 to 3 have one each, then each doubling has four.
fn bucket(micros: u64) -> usize {
    let place = match micros.checked_ilog2() {
        None | Some(0 | 1) => micros,
        Some(log) => {
            let part = (micros >> (log - 2)) & (PARTS - 1);
            u64::from(log - 1) * PARTS + part
        }
    };
    usize::try_from(place).map_or(BUCKETS - 1, |place| place.min(BUCKETS - 1))
}

/// The largest number of microseconds in a bucket; the last has no such.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let (doubling, part) = (bucket / PARTS - 1, bucket % PARTS);
    ((PARTS + part + 1) << doubling) - 1
}

impl Histogram {
    /// Counts one.
    #[inline]
    pub fn add(&mut self, took: Duration) {
        if took.is_zero() {
            self.buckets[0] += 1;
            return;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)] += 1;
        self.sum = self.sum.saturating_add(took);
        self.longest = self.longest.max(took);
    }

    /// What was counted.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let used = self.buckets.iter().enumerate();
        HistogramSnapshot {
            buckets: used
                .filter(|(_, count)| **count > 0)
                .map(|(place, &count)| (upper(place), count))
                .collect(),
            sum_us: micros(self.sum),
            max_us: micros(self.longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_where_the_next_begins() {
        let mut before = None;
        for place in 0..BUCKETS - 1 {
            let last = upper(place);
            assert_eq!(bucket(last), place, "{last}");
            assert_eq!(bucket(last + 1), place + 1, "{last}");
            assert!(before < Some(last));
            before = Some(last);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_come_from_the_bucket_in_which_they_are() {
        let mut histogram = Histogram::default();
        for _ in 0..99 {
            histogram.add(Duration::from_micros(100));
        }
        histogram.add(Duration::from_millis(50));
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 100);
        assert_eq!(snapshot.percentile(50), 111);
        assert_eq!(snapshot.percentile(99), 111);
        assert_eq!(snapshot.percentile(100), 50_000);
        assert_eq!((snapshot.max_us, snapshot.sum_us), (50_000, 59_900));
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_micros(3));
        let before = histogram.snapshot();
        histogram.add(Duration::from_micros(3));
        histogram.add(Duration::from_micros(9));
        let since = histogram.snapshot().since(&before);
        assert_eq!(since.buckets, [(3, 1), (9, 1)]);
        assert_eq!(since.percentile(100), 9);
    }
}
