//! Latencies, counted in buckets that are about 6 % wide.

use std::time::Duration;

/// Buckets of each power of two.
const STEPS: usize = 16;
const STEP_BITS: u32 = STEPS.ilog2();

/// How often each latency occurred.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    pub fn new() -> Self {
        Self {
            counts: vec![0; (64 - STEP_BITS as usize + 1) * STEPS],
        }
    }

    #[inline]
    pub fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)] += 1;
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The latency that `percent` of all do not exceed; `None` without any.
    pub fn percentile(&self, percent: u64) -> Option<Duration> {
        let total: u64 = self.counts.iter().sum();
        let wanted = (total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_nanos(most(bucket)))
    }
}

/// The bucket of a latency: below 16 ns each has its own, above 16 share each power of two.
fn bucket(nanoseconds: u64) -> usize {
    let shift = (nanoseconds | STEPS as u64).ilog2() - STEP_BITS;
    let step = usize::try_from(nanoseconds >> shift).unwrap_or(usize::MAX);
    shift as usize * STEPS + step
}

/// The longest latency of a bucket.
fn most(bucket: usize) -> u64 {
    if bucket < 2 * STEPS {
        return bucket as u64;
    }
    let shift = bucket / STEPS - 1;
    let step = (bucket - shift * STEPS) as u64;
    ((step + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_a_sixteenth_wide() {
        for latency in [0, 1, 15, 16, 17, 31, 32, 100, 1000, 123_456_789] {
            let upper = most(bucket(latency));
            assert!(
                upper >= latency && upper - latency <= latency / 16,
                "{latency}"
            );
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_latencies() {
        let mut histogram = Histogram::new();
        for nanoseconds in 1..=10 {
            histogram.record(Duration::from_nanos(nanoseconds));
        }
        let percentile = |p| histogram.percentile(p).unwrap().as_nanos();
        assert_eq!((percentile(50), percentile(99)), (5, 10));
        assert_eq!(Histogram::new().percentile(50), None);
    }
}
