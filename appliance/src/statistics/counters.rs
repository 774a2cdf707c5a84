//! The counters of one worker: for each logical unit, and for its HBA.

use std::time::{Duration, Instant};

use super::ending::Ending;
use super::histogram::Histogram;
use super::snapshot::{CountersSnapshot, HistogramSnapshot, TraceSnapshot};
use super::totals::Totals;
use super::trace::Trace;
use crate::scsi::{Address, Place};

/// Sense keys that there are.
const KEYS: usize = 16;

/// What a worker counts.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    units: Vec<(Address, Box<Unit>)>,
    /// Place of the unit that was counted for last.
    last: usize,
    /// Commands to what is no logical unit that the tenant sees.
    elsewhere: u64,
    /// Of its HBA over all attachments, but for what `units` have; of LUNs, what is no more there.
    pub hba: Totals,
}

/// About one logical unit.
#[derive(Debug, Default)]
struct Unit {
    /// Name of its LUN.
    lun: String,
    counters: Counters,
    trace: Trace,
}

#[derive(Debug, Default)]
struct Counters {
    commands: u64,
    reads: u64,
    writes: u64,
    bytes_read: u64,
    bytes_written: u64,
    by_key: [u64; KEYS],
    /// Ended with another status than GOOD and CHECK CONDITION.
    other_status: u64,
    /// Ended by a virtio-scsi response other than OK.
    not_carried_out: u64,
    latency: Histogram,
    late: Late,
}

/// About the commands whose disk was not given them at once.
#[derive(Debug, Default)]
struct Late {
    latency: Histogram,
    queued: Histogram,
    worked_on: Histogram,
}

impl Statistics {
    /// Nothing counted yet of an attachment, and `hba` before it.
    pub fn new(hba: Totals) -> Self {
        Self {
            hba,
            ..Self::default()
        }
    }

    /// Begins to count for the unit of the LUN named `lun` that has come to `address`.
    pub fn begin(&mut self, address: Address, lun: &str) {
        let unit = Unit {
            lun: lun.to_owned(),
            ..Unit::default()
        };
        if let Some(place) = self.place_of(address) {
            let (_, gone) = self.units.swap_remove(place);
            let kept = self.hba.luns.entry(gone.lun).or_default();
            kept.add(&gone.counters.snapshot());
        }
        self.units.push((address, Box::new(unit)));
    }

    /// Forgets LUNs of which `is_served` says that they are no more.
    pub fn forget(&mut self, is_served: impl Fn(&str) -> bool) {
        self.hba.luns.retain(|lun, _| is_served(lun));
    }

    /// What was counted about the HBA over all attachments.
    pub fn totals(&self) -> Totals {
        let mut totals = self.hba.clone();
        for (_, unit) in &self.units {
            let lun = totals.luns.entry(unit.lun.clone()).or_default();
            lun.add(&unit.counters.snapshot());
        }
        totals
    }

    /// Place of the unit at `address`.
    #[inline]
    fn place_of(&self, address: Address) -> Option<usize> {
        let last = self.units.get(self.last);
        if last.is_some_and(|(at, _)| *at == address) {
            return Some(self.last);
        }
        self.units.iter().position(|(at, _)| *at == address)
    }

    fn unit(&self, address: Address) -> Option<&Unit> {
        let (_, unit) = self.units.get(self.place_of(address)?)?;
        Some(unit)
    }

    /// Counts a command to `place` with the driver's `tag` that has ended.
    #[inline]
    pub fn ended(&mut self, place: Place, tag: u64, ending: &Ending, now: Instant) {
        let unit = match place {
            Place::Unit(address) => self.place_of(address).and_then(|place| {
                self.last = place;
                self.units.get_mut(place)
            }),
            Place::ReportLuns(_) | Place::NoUnit(_) | Place::NoTarget => None,
        };
        match unit {
            Some((_, unit)) => {
                unit.counters.add(ending, now);
                unit.trace.add(tag, ending, now);
            }
            None => {
                self.elsewhere += 1;
                self.hba.elsewhere += 1;
            }
        }
    }

    /// Commands to what is no logical unit.
    pub fn elsewhere(&self) -> u64 {
        self.elsewhere
    }

    /// What was counted at `address`.
    pub fn counters(&self, address: Address) -> CountersSnapshot {
        let unit = self.unit(address);
        unit.map(|unit| unit.counters.snapshot())
            .unwrap_or_default()
    }

    /// The last commands to `address`, oldest first.
    pub fn trace(&self, address: Address, now: Instant) -> Vec<TraceSnapshot> {
        let unit = self.unit(address);
        unit.map(|unit| unit.trace.snapshot(now))
            .unwrap_or_default()
    }
}

impl Counters {
    #[inline]
    fn add(&mut self, ending: &Ending, now: Instant) {
        self.commands += 1;
        if ending.read > 0 {
            self.reads += 1;
        } else if ending.written > 0 {
            self.writes += 1;
        }
        self.bytes_read += ending.read;
        self.bytes_written += ending.written;
        // Of what a disk does at once, no time has passed: the clock is read once in a turn.
        let took = if now == ending.since {
            Duration::ZERO
        } else {
            now.saturating_duration_since(ending.since)
        };
        self.latency.add(took);
        if let Some(begun) = ending.begun {
            let worked_on = now.saturating_duration_since(begun);
            self.late.latency.add(took);
            self.late.worked_on.add(worked_on);
            self.late.queued.add(took.saturating_sub(worked_on));
        }
        if ending.is_good() {
            return;
        }
        match ending.key {
            Some(key) => self.by_key[usize::from(key) % KEYS] += 1,
            None if ending.response == spec::virtio_scsi::response::OK => self.other_status += 1,
            None => self.not_carried_out += 1,
        }
    }

    /// How long commands waited for their disk, and how long for it to be done: those that did not
    /// wait are counted once, by their latency.
    fn split(&self) -> (HistogramSnapshot, HistogramSnapshot) {
        let mut worked_on = self.latency.snapshot();
        worked_on.take(&self.late.latency.snapshot());
        let at_once = worked_on.count();
        worked_on.add(&self.late.worked_on.snapshot());
        let mut queued = self.late.queued.snapshot();
        if at_once > 0 {
            queued.add(&HistogramSnapshot {
                buckets: vec![(0, at_once)],
                ..HistogramSnapshot::default()
            });
        }
        (queued, worked_on)
    }

    fn snapshot(&self) -> CountersSnapshot {
        let (queued, worked_on) = self.split();
        let keys = (0..).zip(self.by_key);
        CountersSnapshot {
            commands: self.commands,
            reads: self.reads,
            writes: self.writes,
            bytes_read: self.bytes_read,
            bytes_written: self.bytes_written,
            sense_keys: keys.filter(|(_, count)| *count > 0).collect(),
            other_status: self.other_status,
            not_carried_out: self.not_carried_out,
            latency: self.latency.snapshot(),
            queued,
            worked_on,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::Answer;

    const AT: Address = Address { target: 0, lun: 3 };

    fn answer(status: u8, sense: &[u8], residual: u32) -> Answer {
        Answer {
            status,
            sense: sense.to_vec(),
            data: Vec::new(),
            residual,
        }
    }

    #[test]
    fn a_command_counts_where_it_went_and_how_it_ended() {
        let mut statistics = Statistics::default();
        statistics.begin(AT, "root");
        let start = Instant::now();
        let now = start + Duration::from_micros(7);
        let mut end = |answer: &Answer, buffers| {
            let ending = Ending::answered([0x28; 32], start, answer, buffers);
            statistics.ended(Place::Unit(AT), 9, &ending, now);
        };
        end(&answer(0, &[], 0), (0, 4096));
        end(&answer(0, &[], 512), (1024, 0));
        // ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE, in both formats.
        let mut fixed = [0; 18];
        (fixed[0], fixed[2], fixed[12]) = (0xf0, 5, 0x21);
        end(&answer(2, &fixed, 4096), (0, 4096));
        end(&answer(2, &[0x72, 5, 0x21, 0, 0, 0, 0, 0], 0), (0, 0));
        end(&answer(0x18, &[], 0), (0, 0));
        let reset = Ending::failed([0; 32], start, spec::virtio_scsi::response::RESET);
        statistics.ended(Place::Unit(AT), 9, &reset, now);
        statistics.ended(Place::NoUnit(0), 9, &reset, now);

        let counted = statistics.counters(AT);
        assert_eq!((counted.commands, counted.reads, counted.writes), (6, 1, 1));
        assert_eq!((counted.bytes_read, counted.bytes_written), (4096, 512));
        assert_eq!(counted.sense_keys, [(5, 2)].into());
        assert_eq!((counted.other_status, counted.not_carried_out), (1, 1));
        assert_eq!((counted.latency.count(), counted.latency.max_us), (6, 7));
        assert_eq!(statistics.elsewhere(), 1);
    }

    #[test]
    fn a_unit_in_the_place_of_another_starts_from_nothing() {
        let mut statistics = Statistics::default();
        statistics.begin(AT, "root");
        let now = Instant::now();
        let ending = Ending::answered([0; 32], now, &answer(0, &[], 0), (0, 0));
        statistics.ended(Place::Unit(AT), 1, &ending, now);
        assert_eq!(statistics.trace(AT, now).len(), 1);
        statistics.begin(AT, "other");
        assert_eq!(statistics.counters(AT).commands, 0);
        assert!(statistics.trace(AT, now).is_empty());
    }

    #[test]
    fn totals_outlive_a_unit_and_go_on_when_its_lun_comes_again() {
        let mut statistics = Statistics::default();
        let now = Instant::now();
        let ending = Ending::answered([0; 32], now, &answer(0, &[], 0), (0, 8));
        for lun in ["root", "other", "root"] {
            statistics.begin(AT, lun);
            statistics.ended(Place::Unit(AT), 1, &ending, now);
        }
        let mut next = Statistics::new(statistics.totals());
        next.begin(AT, "root");
        next.ended(Place::Unit(AT), 1, &ending, now);
        next.ended(Place::NoUnit(0), 1, &ending, now);
        let totals = next.totals();
        let of = |lun| (totals.luns[lun].commands, totals.luns[lun].bytes_read);
        assert_eq!((of("root"), of("other")), ((3, 24), (1, 8)));
        assert_eq!(totals.luns["root"].latency.count(), 3);
        assert_eq!(totals.elsewhere, 1);
        next.forget(|lun| lun == "root");
        assert!(!next.totals().luns.contains_key("other"));
    }

    #[test]
    fn time_before_the_disk_is_told_apart_from_time_at_it() {
        let mut statistics = Statistics::default();
        statistics.begin(AT, "root");
        let start = Instant::now();
        let micros = Duration::from_micros;
        let at_once = Ending::answered([0; 32], start, &answer(0, &[], 0), (0, 0));
        let late = Ending {
            begun: Some(start + micros(900)),
            ..at_once
        };
        statistics.ended(Place::Unit(AT), 1, &at_once, start + micros(50));
        statistics.ended(Place::Unit(AT), 2, &late, start + micros(1000));
        let counted = statistics.counters(AT);
        assert_eq!((counted.queued.sum_us, counted.queued.count()), (900, 2));
        assert_eq!(counted.queued.buckets[0], (0, 1));
        assert_eq!(
            (counted.worked_on.sum_us, counted.worked_on.count()),
            (150, 2)
        );
        assert_eq!(counted.latency.sum_us, 1050);
    }
}
