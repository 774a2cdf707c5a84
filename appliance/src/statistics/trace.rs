//! The last commands to a logical unit.

use std::time::{Duration, Instant};

use super::ending::Ending;
use super::snapshot::TraceSnapshot;
use crate::scsi::describe;

/// How many are kept.
const KEPT: usize = 128;

/// The last commands of one initiator to one logical unit.
#[derive(Debug)]
pub(super) struct Trace {
    /// How many there were.
    count: u64,
    /// The last of them; once there are as many as are kept, each in the place of its number.
    kept: Vec<Traced>,
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
            count: 0,
            kept: Vec::with_capacity(KEPT),
        }
    }
}

impl Trace {
    /// Keeps one more, and the oldest no longer.
    #[inline]
    pub fn add(&mut self, tag: u64, ending: &Ending, at: Instant) {
        let next = self.next();
        match self.kept.get_mut(next) {
            Some(oldest) => {
                // Field by field: it is copied once, on the way of each command.
                oldest.tag = tag;
                oldest.ending = *ending;
                oldest.at = at;
            }
            None => self.kept.push(Traced {
                tag,
                ending: *ending,
                at,
            }),
        }
        self.count += 1;
    }

    /// Where the next goes.
    #[inline]
    fn next(&self) -> usize {
        // Less than KEPT.
        usize::try_from(self.count % KEPT as u64).unwrap_or(0)
    }

    /// What is kept, oldest first.
    pub fn snapshot(&self, now: Instant) -> Vec<TraceSnapshot> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let oldest = if self.kept.len() < KEPT {
            0
        } else {
            self.next()
        };
        let (later, earlier) = self.kept.split_at(oldest);
        (self.count - self.kept.len() as u64..)
            .zip(earlier.iter().chain(later))
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
