//! What an HBA's workers tell about themselves at one moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::totals::Totals;
use crate::memory::window::Class;

/// One HBA at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HbaSnapshot {
    /// Its logical units.
    pub units: Vec<UnitSnapshot>,
    /// Commands to what is no logical unit that it sees, since it was attached.
    pub elsewhere: u64,
    /// Commands on which disks work or which wait.
    pub in_flight: usize,
    /// How many of these there may be.
    pub most_in_flight: usize,
    /// What the mapping of the tenant's memory is to the CPU, where that is known.
    pub window: Option<Class>,
    /// Rings that its driver has started.
    pub rings: usize,
    /// Whether it looks for requests without being kicked just now.
    pub polls: bool,
    /// Whether it takes no new commands, because it is drained.
    pub drained: bool,
    /// The oldest commands that are under way, if they were asked for.
    pub tasks: Vec<TaskSnapshot>,
    /// The last commands, if they were asked for, oldest first.
    pub trace: Vec<TraceSnapshot>,
    /// Its workers.
    pub workers: Vec<WorkerSnapshot>,
}

/// One worker of an HBA at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSnapshot {
    /// Its place among them, from 0.
    pub place: usize,
    /// The CPU on which it stays, if on one.
    pub cpu: Option<usize>,
    /// The rings that it serves, of those that the driver has started.
    pub rings: Vec<u16>,
    /// Commands of these on which disks work or which wait.
    pub in_flight: usize,
    /// Whether it looks for requests without being kicked just now.
    pub polls: bool,
    /// What was counted since the appliance was started.
    #[serde(skip)]
    pub totals: Totals,
}

/// One logical unit of an HBA at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSnapshot {
    /// Name of the LUN.
    pub lun: String,
    /// Where it is: TARGET:LUN.
    pub at: String,
    /// Commands on which its disk works or which wait.
    pub in_flight: usize,
    /// Those of them that a limit keeps from its disk.
    #[serde(default)]
    pub limited: usize,
    /// What was counted since it was there.
    pub counters: CountersSnapshot,
    /// How it pauses, if it does.
    pub pause: Option<PauseSnapshot>,
}

/// What was counted of the commands to one logical unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersSnapshot {
    /// Commands that have ended.
    pub commands: u64,
    /// Those of them that brought the tenant data.
    pub reads: u64,
    /// Those of them that took data from the tenant.
    pub writes: u64,
    /// Bytes that the tenant got.
    pub bytes_read: u64,
    /// Bytes that the tenant gave.
    pub bytes_written: u64,
    /// How many ended with CHECK CONDITION, by sense key.
    pub sense_keys: BTreeMap<u8, u64>,
    /// How many ended with another status than GOOD and CHECK CONDITION.
    pub other_status: u64,
    /// How many were ended by a reset, an abort or a transport failure.
    pub not_carried_out: u64,
    /// How long they took, from being fetched to being given back.
    pub latency: HistogramSnapshot,
    /// The part of that before their disk was given them: they waited for others of their blocks
    /// or for memory.
    #[serde(default)]
    pub queued: HistogramSnapshot,
    /// The rest of that.
    #[serde(default)]
    pub worked_on: HistogramSnapshot,
}

/// A unit that pauses until its disk is mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseSnapshot {
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Commands that wait for that.
    pub held: usize,
}

/// A command that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSnapshot {
    /// Name of its LUN.
    pub lun: String,
    /// The driver's name for it.
    pub tag: u64,
    /// What it is.
    pub command: String,
    /// For how long, in milliseconds.
    pub age_ms: u64,
    /// What it waits for.
    pub waits: String,
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSnapshot {
    /// The place of the worker that carried it out.
    #[serde(default)]
    pub worker: usize,
    /// Its number among those of its worker and LUN, from 0.
    pub number: u64,
    /// The driver's name for it.
    pub tag: u64,
    /// What it was.
    pub command: String,
    /// How it ended.
    pub ending: String,
    /// Whether that is GOOD.
    pub good: bool,
    /// Bytes that were moved.
    pub bytes: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// How long ago it ended, in microseconds.
    pub ago_us: u64,
}

/// How long commands took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistogramSnapshot {
    /// For each bucket with something in it: the most microseconds in it, and how many.
    pub buckets: Vec<(u64, u64)>,
    /// All together, in microseconds.
    pub sum_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

impl HistogramSnapshot {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The microseconds within which `percent` of them ended, up to a quarter too many.
    pub fn percentile(&self, percent: u64) -> u64 {
        let need = self.count().saturating_mul(percent).div_ceil(100);
        let mut seen = 0;
        for (upper, count) in &self.buckets {
            seen += count;
            if seen >= need {
                return (*upper).min(self.max_us);
            }
        }
        0
    }

    /// What came since `earlier`, a snapshot of the same histogram; its maximum is that of its
    /// highest bucket.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before: BTreeMap<_, _> = earlier.buckets.iter().copied().collect();
        let buckets: Vec<_> = self
            .buckets
            .iter()
            .map(|(upper, count)| {
                let before = before.get(upper).copied().unwrap_or(0);
                (*upper, count.saturating_sub(before))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        Self {
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            max_us: buckets
                .last()
                .map_or(0, |(upper, _)| (*upper).min(self.max_us)),
            buckets,
        }
    }

    /// Takes away what another counted, which is part of this; the maximum stays.
    pub(super) fn take(&mut self, other: &Self) {
        for (upper, count) in &mut self.buckets {
            let other = other.buckets.iter().find(|(its, _)| its == upper);
            *count = count.saturating_sub(other.map_or(0, |(_, count)| *count));
        }
        self.buckets.retain(|(_, count)| *count > 0);
        self.sum_us = self.sum_us.saturating_sub(other.sum_us);
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        let mut all: BTreeMap<_, _> = self.buckets.iter().copied().collect();
        for (upper, count) in &other.buckets {
            *all.entry(*upper).or_default() += count;
        }
        self.buckets = all.into_iter().collect();
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }
}

impl CountersSnapshot {
    /// How many did not end with GOOD, unit attentions left out: these tell, and are no errors.
    pub fn errors(&self) -> u64 {
        let keys = self.sense_keys.iter().filter(|(key, _)| **key != 6);
        keys.map(|(_, count)| count).sum::<u64>() + self.other_status + self.not_carried_out
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        self.commands += other.commands;
        self.reads += other.reads;
        self.writes += other.writes;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        for (key, count) in &other.sense_keys {
            *self.sense_keys.entry(*key).or_default() += count;
        }
        self.other_status += other.other_status;
        self.not_carried_out += other.not_carried_out;
        self.latency.add(&other.latency);
        self.queued.add(&other.queued);
        self.worked_on.add(&other.worked_on);
    }
}
