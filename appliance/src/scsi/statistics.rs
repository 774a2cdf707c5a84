//! What initiators have done with a unit, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::Op;

/// What a command that is counted does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Read,
    Write,
    Flush,
}

impl Deed {
    /// What `op` is counted as; `None` if it is not.
    #[inline]
    pub const fn of(op: &Op) -> Option<Self> {
        match op.plain() {
            Op::Read { .. } => Some(Self::Read),
            Op::Write { .. }
            | Op::WriteSame { .. }
            | Op::WriteVerify { .. }
            | Op::CompareAndWrite { .. }
            | Op::Or { .. } => Some(Self::Write),
            Op::Flush => Some(Self::Flush),
            Op::Compare { .. }
            | Op::Check { .. }
            | Op::Zero { .. }
            | Op::Mend { .. }
            | Op::Unmap { .. }
            | Op::Prefetch { .. }
            | Op::Allocation { .. }
            | Op::Copy { .. }
            | Op::Watch(_)
            | Op::Protected(_)
            | Op::Barrier => None,
        }
    }
}

/// What was counted. Times are in microseconds, so that 64 bits are enough for half a million years.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Blocks from the unit to initiators.
    pub blocks_read: u64,
    /// Blocks from initiators to the unit.
    pub blocks_written: u64,
    pub read_time: u64,
    pub write_time: u64,
}

impl Totals {
    fn with(self, other: Self, add: fn(u64, u64) -> u64) -> Self {
        Self {
            reads: add(self.reads, other.reads),
            writes: add(self.writes, other.writes),
            flushes: add(self.flushes, other.flushes),
            blocks_read: add(self.blocks_read, other.blocks_read),
            blocks_written: add(self.blocks_written, other.blocks_written),
            read_time: add(self.read_time, other.read_time),
            write_time: add(self.write_time, other.write_time),
        }
    }
}

/// What one worker has done for one nexus. Only its thread counts, so that a plain load and a plain
/// store do; and it is in cache lines of its own (processors fetch them in pairs), so that no two
/// workers write to the same.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    blocks_read: AtomicU64,
    blocks_written: AtomicU64,
    read_time: AtomicU64,
    write_time: AtomicU64,
}

#[inline]
fn add(counter: &AtomicU64, value: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(value);
    counter.store(sum, Ordering::Relaxed);
}

impl Tally {
    /// A command is done that moved so many blocks and took so long.
    #[inline]
    pub fn count(&self, deed: Deed, blocks: u64, time: Duration) {
        let time = || {
            if time.is_zero() {
                return 0;
            }
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        };
        match deed {
            Deed::Read => {
                add(&self.reads, 1);
                add(&self.blocks_read, blocks);
                add(&self.read_time, time());
            }
            Deed::Write => {
                add(&self.writes, 1);
                add(&self.blocks_written, blocks);
                add(&self.write_time, time());
            }
            Deed::Flush => add(&self.flushes, 1),
        }
    }

    fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            reads: get(&self.reads),
            writes: get(&self.writes),
            flushes: get(&self.flushes),
            blocks_read: get(&self.blocks_read),
            blocks_written: get(&self.blocks_written),
            read_time: get(&self.read_time),
            write_time: get(&self.write_time),
        }
    }
}

/// The counters of one unit.
#[derive(Debug, Default)]
pub struct Statistics(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// Of those that have gone.
    gone: Totals,
    /// What there was when the counters were reset.
    zero: Totals,
    here: Vec<Arc<Tally>>,
}

impl Statistics {
    /// One more counts.
    pub fn join(&self, tally: &Arc<Tally>) {
        let mut counted = self.counted();
        let Counted { gone, here, .. } = &mut *counted;
        here.retain(|known| {
            // Nobody else has it, so that it stands still.
            let is_gone = Arc::strong_count(known) == 1;
            if is_gone {
                *gone = gone.with(known.totals(), u64::wrapping_add);
            }
            !is_gone
        });
        here.push(Arc::clone(tally));
    }

    /// What was counted since the last reset.
    pub fn totals(&self) -> Totals {
        let counted = self.counted();
        counted.all().with(counted.zero, u64::wrapping_sub)
    }

    /// Everything is counted from zero again.
    pub fn reset(&self) {
        let mut counted = self.counted();
        counted.zero = counted.all();
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn all(&self) -> Totals {
        let here = self.here.iter().map(|tally| tally.totals());
        here.fold(self.gone, |all, one| all.with(one, u64::wrapping_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_those_did_who_have_gone_still_counts() {
        let statistics = Statistics::default();
        for _ in 0..3 {
            let tally = Arc::default();
            statistics.join(&tally);
            tally.count(Deed::Read, 8, Duration::from_micros(5));
            tally.count(Deed::Write, 2, Duration::from_millis(1));
            tally.count(Deed::Flush, 0, Duration::from_secs(1));
        }
        let totals = Totals {
            reads: 3,
            writes: 3,
            flushes: 3,
            blocks_read: 24,
            blocks_written: 6,
            read_time: 15,
            write_time: 3000,
        };
        assert_eq!(statistics.totals(), totals);
        assert_eq!(statistics.counted().here.len(), 1, "two were let go");
        statistics.reset();
        assert_eq!(statistics.totals(), Totals::default());
    }
}
