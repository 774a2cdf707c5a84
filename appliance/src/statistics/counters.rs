//! The counters of one worker: for each logical unit, and for all of them.

use std::time::{Duration, Instant};

use super::ending::Ending;
use super::histogram::Histogram;
use super::snapshot::{CountersSnapshot, TraceSnapshot};
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
}

/// About one logical unit.
#[derive(Debug, Default)]
struct Unit {
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
}

impl Statistics {
    /// Begins to count for a unit that has come to `address`.
    pub fn begin(&mut self, address: Address) {
        self.units.retain(|(at, _)| *at != address);
        self.units.push((address, Box::default()));
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
            None => self.elsewhere += 1,
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
        self.latency.add(if now == ending.since {
            Duration::ZERO
        } else {
            now.saturating_duration_since(ending.since)
        });
        if ending.is_good() {
            return;
        }
        match ending.key {
            Some(key) => self.by_key[usize::from(key) % KEYS] += 1,
            None if ending.response == spec::virtio_scsi::response::OK => self.other_status += 1,
            None => self.not_carried_out += 1,
        }
    }

    fn snapshot(&self) -> CountersSnapshot {
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
        statistics.begin(AT);
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
        statistics.begin(AT);
        let now = Instant::now();
        let ending = Ending::answered([0; 32], now, &answer(0, &[], 0), (0, 0));
        statistics.ended(Place::Unit(AT), 1, &ending, now);
        assert_eq!(statistics.trace(AT, now).len(), 1);
        statistics.begin(AT);
        assert_eq!(statistics.counters(AT).commands, 0);
        assert!(statistics.trace(AT, now).is_empty());
    }
}
