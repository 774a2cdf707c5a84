//! Families of metrics, written sample by sample.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::statistics::HistogramSnapshot;

/// The upper ends of histograms' buckets: powers of two from 16 µs to 16.8 s. They are ends of the
/// buckets that workers count in, too.
const ENDS: std::ops::RangeInclusive<u32> = 4..=24;

/// What families are written to.
pub(super) struct Writer<'a>(pub DescriptorEncoder<'a>);

/// What a family is.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// Its name, without prefix, unit and `_total`.
    pub name: &'static str,
    pub unit: Option<&'static Unit>,
    /// What it says.
    pub help: &'static str,
}

impl Writer<'_> {
    /// A family of counters.
    pub fn counters<L: EncodeLabelSet>(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let Family { name, unit, help } = family;
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in samples {
            let mut sample = metric.encode_family(&labels)?;
            sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    /// A family of gauges.
    pub fn gauges<L: EncodeLabelSet>(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let Family { name, unit, help } = family;
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A family of histograms of durations, in seconds.
    pub fn histograms<'s, L: EncodeLabelSet>(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = (L, &'s HistogramSnapshot)>,
    ) -> Result<(), Error> {
        let Family { name, unit, help } = family;
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, histogram) in samples {
            let sum = seconds(histogram.sum_us);
            let mut sample = metric.encode_family(&labels)?;
            sample.encode_histogram::<NoLabelSet>(
                sum,
                histogram.count(),
                &buckets(histogram),
                None,
            )?;
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 microseconds are three hundred years"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The counts between the ends, in the order of these; the last is of what took longer.
fn buckets(histogram: &HistogramSnapshot) -> Vec<(f64, u64)> {
    let ends = ENDS.map(|log| 1_u64 << log);
    let mut from = 0;
    let mut buckets = Vec::new();
    for end in ends.chain([u64::MAX]) {
        let within = histogram.buckets.iter();
        // The number of whole microseconds of what took less than `end`.
        let within = within.filter(|(upper, _)| (from..end).contains(upper));
        let count = within.map(|(_, count)| count).sum();
        let bound = if end == u64::MAX {
            f64::INFINITY
        } else {
            seconds(end)
        };
        buckets.push((bound, count));
        from = end;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_the_end_that_it_did_not_reach() {
        let histogram = HistogramSnapshot {
            // Of less than 16 µs, of 16 to 19, and of more than two minutes.
            buckets: vec![(15, 1), (19, 2), (150_994_943, 4)],
            sum_us: 0,
            max_us: 0,
        };
        let buckets = buckets(&histogram);
        assert_eq!(buckets[0], (0.000_016, 1));
        assert_eq!(buckets[1], (0.000_032, 2));
        assert_eq!(buckets[20], (16.777_216, 0));
        assert_eq!(buckets[21], (f64::INFINITY, 4));
        assert_eq!(buckets.len(), 22);
    }
}
