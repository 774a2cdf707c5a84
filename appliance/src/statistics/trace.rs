//! The last commands to a logical unit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ending::Ending;
use super::snapshot::TraceSnapshot;
use crate::scsi::describe;

/// How many are kept.
const KEPT: usize = 128;

/// The last commands of one initiator to one logical unit.
#[derive(Debug)]
pub(super) struct Trace {
    /// How many there were before those that are kept.
    gone: u64,
    kept: VecDeque<Traced>,
}

#[derive(Debug)]
struct Traced {
    tag: u64,
    ending: Ending,
    at: Instant,
}

impl Default for Trace {
    /// With room for all, so that nothing is allocated on the way of a command.
    fn default() -> Self {
        Self {
            gone: 0,
            kept: VecDeque::with_capacity(KEPT),
        }
    }
}

impl Trace {
    /// Keeps one more, and the oldest no longer.
    pub fn add(&mut self, tag: u64, ending: &Ending, at: Instant) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.gone += 1;
        }
        self.kept.push_back(Traced {
            tag,
            ending: *ending,
            at,
        });
    }

    /// What is kept, oldest first.
    pub fn snapshot(&self, now: Instant) -> Vec<TraceSnapshot> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        (self.gone..)
            .zip(&self.kept)
            .map(|(number, traced)| {
                let Traced { tag, ending, at } = traced;
                TraceSnapshot {
                    worker: 0,
                    number,
                    tag: *tag,
                    command: describe::command(&ending.cdb),
                    ending: describe::ending(
                        ending.response,
                        ending.status,
                        ending.key.map(|key| (key, ending.code.0, ending.code.1)),
                    ),
                    good: ending.is_good(),
                    bytes: ending.read + ending.written,
                    took_us: micros(at.saturating_duration_since(ending.since)),
                    ago_us: micros(now.saturating_duration_since(*at)),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_numbers_go_on() {
        let mut trace = Trace::default();
        let now = Instant::now();
        let ending = Ending::failed([0; 32], now, 3);
        for tag in 0..KEPT as u64 + 2 {
            trace.add(tag, &ending, now);
        }
        let kept = trace.snapshot(now);
        assert_eq!(kept.len(), KEPT);
        assert_eq!((kept[0].number, kept[0].tag), (2, 2));
        assert_eq!(kept[0].command, "TEST UNIT READY");
        assert!(!kept[0].good);
    }
}
