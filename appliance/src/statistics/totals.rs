//! What was counted about one HBA since the appliance was started, over all its attachments.

use std::collections::BTreeMap;

use super::snapshot::CountersSnapshot;

/// Kinds of task management functions that are told apart: those of
/// [`spec::virtio_scsi::task_management`] by their codes, and all others.
pub(crate) const FUNCTIONS: usize = 9;

/// The counts of one worker of an HBA, or of all of them. Each takes them over from the one in its
/// place before it, so that none ever becomes less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// How often it was served; for a worker, how many in its place have served it.
    pub attachments: u64,
    /// Turns of their loops.
    pub turns: u64,
    /// Those of them that looked at the request rings without having been kicked.
    pub polls: u64,
    /// Kicks of the tenant that woke them.
    pub kicks: u64,
    /// Calls that trapped into the shim.
    pub calls_trapped: u64,
    /// Calls that the shim saw without a trap.
    pub calls_seen: u64,
    /// Calls by an eventfd of the tenant.
    pub calls_signalled: u64,
    /// Requests fetched from each ring, by its number.
    pub requests: Vec<u64>,
    /// Task management functions by their codes; the last has those of other codes.
    pub functions: [u64; FUNCTIONS],
    /// Resets by the tenant's driver.
    pub resets: u64,
    /// Times that the tenant went away.
    pub disconnects: u64,
    /// Rings that were retired for what the driver did.
    pub retired: u64,
    /// Commands to what is no logical unit that it sees.
    pub elsewhere: u64,
    /// Of each LUN by its name, as long as the LUN is served.
    pub luns: BTreeMap<String, CountersSnapshot>,
}

impl Totals {
    /// Counts requests that were fetched from a ring.
    #[inline]
    pub(crate) fn fetched(&mut self, ring: u16, count: usize) {
        let place = usize::from(ring);
        if self.requests.len() <= place {
            self.requests.resize(place + 1, 0);
        }
        self.requests[place] += count as u64;
    }

    /// Counts a task management function of this code.
    pub(crate) fn managed(&mut self, function: u32) {
        let place = usize::try_from(function).unwrap_or(usize::MAX);
        self.functions[place.min(FUNCTIONS - 1)] += 1;
    }

    /// Adds what another worker of the same HBA counted. How often the HBA was served the first of
    /// them knows.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            attachments: _,
            turns,
            polls,
            kicks,
            calls_trapped,
            calls_seen,
            calls_signalled,
            requests,
            functions,
            resets,
            disconnects,
            retired,
            elsewhere,
            luns,
        } = other;
        self.turns += turns;
        self.polls += polls;
        self.kicks += kicks;
        self.calls_trapped += calls_trapped;
        self.calls_seen += calls_seen;
        self.calls_signalled += calls_signalled;
        let rings = self.requests.len().max(requests.len());
        self.requests.resize(rings, 0);
        for (mine, theirs) in self.requests.iter_mut().zip(requests) {
            *mine += theirs;
        }
        for (mine, theirs) in self.functions.iter_mut().zip(functions) {
            *mine += theirs;
        }
        self.resets += resets;
        self.disconnects += disconnects;
        self.retired += retired;
        self.elsewhere += elsewhere;
        for (name, counters) in luns {
            self.luns.entry(name.clone()).or_default().add(counters);
        }
    }

    /// Whether it was taken later than another of the same worker's place.
    pub(crate) fn is_later(&self, other: &Self) -> bool {
        (self.attachments, self.turns) > (other.attachments, other.turns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_no_standard_has_counts_as_other() {
        let mut totals = Totals::default();
        for code in [0, 7, 8, u32::MAX] {
            totals.managed(code);
        }
        assert_eq!(totals.functions, [1, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn each_ring_counts_for_itself() {
        let mut totals = Totals::default();
        totals.fetched(3, 2);
        totals.fetched(0, 1);
        totals.fetched(3, 5);
        assert_eq!(totals.requests, [1, 0, 0, 7]);
    }

    #[test]
    fn what_workers_counted_is_added_up_ring_by_ring_and_lun_by_lun() {
        let of = |attachments, requests: &[u64], commands| Totals {
            attachments,
            kicks: 1,
            requests: requests.to_vec(),
            luns: BTreeMap::from([(
                "root".to_owned(),
                CountersSnapshot {
                    commands,
                    ..CountersSnapshot::default()
                },
            )]),
            ..Totals::default()
        };
        let mut all = of(3, &[1, 0, 5], 5);
        all.add(&of(2, &[0, 0, 0, 7], 7));
        assert_eq!(
            all,
            Totals {
                kicks: 2,
                ..of(3, &[1, 0, 5, 7], 12)
            }
        );
    }

    #[test]
    fn a_later_worker_is_later_whatever_it_counted() {
        let of = |attachments, turns| Totals {
            attachments,
            turns,
            ..Totals::default()
        };
        assert!(of(2, 0).is_later(&of(1, 9)));
        assert!(of(1, 9).is_later(&of(1, 8)));
        assert!(!of(1, 9).is_later(&of(1, 9)));
    }
}
