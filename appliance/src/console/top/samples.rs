//! From counters at two moments to figures a second.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::control::protocol::{CountersSnapshot, Tenant, TenantState};

/// Samples of the past that are kept of each row.
const KEPT: usize = 120;

/// What one LUN of one tenant does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub tenant: String,
    pub at: String,
    pub lun: String,
    /// What is to be known about the tenant or the LUN, if it is not just attached.
    pub note: &'static str,
    pub iops: u64,
    pub read_per_s: u64,
    pub written_per_s: u64,
    pub errors_per_s: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    pub queue: usize,
    /// Operations a second at the last looks, the newest last.
    #[serde(skip)]
    pub past: VecDeque<u64>,
}

/// The figures, and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Samples {
    at: Option<Instant>,
    before: BTreeMap<(String, String, String), CountersSnapshot>,
    rows: Vec<Row>,
    /// Operations a second of all together.
    pub past: VecDeque<u64>,
}

impl Samples {
    /// The rows, as the tenants came.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Takes the counters as they are `now`.
    pub fn take(&mut self, tenants: &[Tenant], now: Instant) {
        let took = self.at.replace(now).map(|at| now.duration_since(at));
        let (mut rows, mut before) = (Vec::new(), BTreeMap::new());
        for tenant in tenants {
            for (at, lun) in &tenant.luns {
                let key = (tenant.name.clone(), at.clone(), lun.clone());
                let unit = tenant.units.iter().find(|unit| unit.at == *at);
                let mut row = Row {
                    tenant: tenant.name.clone(),
                    at: at.clone(),
                    lun: lun.clone(),
                    note: note(tenant),
                    queue: unit.map_or(0, |unit| unit.in_flight),
                    ..Row::default()
                };
                if let Some(unit) = unit {
                    if unit.limited > 0 && row.note.is_empty() {
                        row.note = "limited";
                    }
                    if let (Some(took), Some(old)) = (took, self.before.get(&key)) {
                        row.fill(&unit.counters, old, took);
                    }
                    before.insert(key, unit.counters.clone());
                }
                let mut rows_before = self.rows.iter_mut();
                if let Some(old) = rows_before.find(|old| old.is_same(&row)) {
                    row.past = std::mem::take(&mut old.past);
                }
                remember(&mut row.past, row.iops);
                rows.push(row);
            }
        }
        (self.rows, self.before) = (rows, before);
        let all = self.rows.iter().map(|row| row.iops).sum();
        remember(&mut self.past, all);
    }
}

impl Row {
    fn is_same(&self, other: &Self) -> bool {
        (&self.tenant, &self.at, &self.lun) == (&other.tenant, &other.at, &other.lun)
    }

    fn fill(&mut self, new: &CountersSnapshot, old: &CountersSnapshot, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        // Fewer than before: they began again.
        let a_second = |new: u64, old: u64| new.saturating_sub(old).saturating_mul(1000) / millis;
        self.iops = a_second(new.commands, old.commands);
        self.read_per_s = a_second(new.bytes_read, old.bytes_read);
        self.written_per_s = a_second(new.bytes_written, old.bytes_written);
        self.errors_per_s = a_second(new.errors(), old.errors());
        let latency = new.latency.since(&old.latency);
        self.p50_us = latency.percentile(50);
        self.p99_us = latency.percentile(99);
        self.max_us = latency.max_us;
    }
}

/// What is to be known about a tenant.
fn note(tenant: &Tenant) -> &'static str {
    match tenant.state {
        TenantState::Absent => "absent",
        TenantState::Ending => "ending",
        TenantState::Silent => "silent",
        TenantState::Attached if tenant.drained => "drained",
        TenantState::Attached if tenant.polls => "polls",
        TenantState::Attached => "",
    }
}

fn remember(past: &mut VecDeque<u64>, value: u64) {
    if past.len() == KEPT {
        past.pop_front();
    }
    past.push_back(value);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::protocol::{HistogramSnapshot, UnitSnapshot};

    /// A tenant with one LUN that has done so many reads of 4 KiB.
    pub(in crate::console::top) fn tenant(reads: u64) -> Tenant {
        let unit = UnitSnapshot {
            lun: "root".into(),
            at: "0:0".into(),
            in_flight: 3,
            limited: 0,
            counters: CountersSnapshot {
                commands: reads,
                reads,
                bytes_read: reads * 4096,
                latency: HistogramSnapshot {
                    buckets: vec![(95, reads)],
                    sum_us: reads * 90,
                    max_us: 90,
                },
                ..CountersSnapshot::default()
            },
            pause: None,
        };
        Tenant {
            name: "tenant1".into(),
            uuid: String::new(),
            state: TenantState::Attached,
            access: String::new(),
            poll: "0".into(),
            luns: [("0:0".to_owned(), "root".to_owned())].into(),
            in_flight: 3,
            most_in_flight: 1024,
            memory: None,
            rings: 3,
            polls: true,
            drained: false,
            limit: None,
            group: None,
            weight: 1,
            elsewhere: 0,
            units: vec![unit],
            workers: Vec::new(),
        }
    }

    #[test]
    fn who_waits_for_a_limit_is_told_from_who_waits_for_a_disk() {
        let mut limited = tenant(1000);
        limited.polls = false;
        let mut samples = Samples::default();
        samples.take(&[limited.clone()], Instant::now());
        assert_eq!(samples.rows()[0].note, "");
        limited.units[0].limited = 2;
        samples.take(&[limited], Instant::now());
        assert_eq!(samples.rows()[0].note, "limited");
    }

    #[test]
    fn figures_are_what_came_since_the_last_look() {
        let mut samples = Samples::default();
        let start = Instant::now();
        samples.take(&[tenant(1000)], start);
        assert_eq!(samples.rows()[0].iops, 0, "nothing to compare with");
        samples.take(&[tenant(3000)], start + Duration::from_secs(2));
        let row = &samples.rows()[0];
        assert_eq!((row.iops, row.read_per_s, row.queue), (1000, 4_096_000, 3));
        assert_eq!((row.p50_us, row.p99_us, row.max_us), (90, 90, 90));
        assert_eq!((row.note, samples.past.len()), ("polls", 2));
        // It was attached anew.
        samples.take(&[tenant(10)], start + Duration::from_secs(3));
        assert_eq!(samples.rows()[0].iops, 0);
        assert_eq!(samples.rows()[0].past, [0, 1000, 0]);
    }
}
