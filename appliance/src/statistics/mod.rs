//! What a worker counts about the commands that it serves.
//!
//! Everything here belongs to one worker and is written by its thread alone: nothing is shared, so
//! counting costs a few additions in memory that is in the processor's cache. Who wants to know
//! asks the workers of an HBA, and what they tell is added up to one [`HbaSnapshot`].

mod counters;
mod ending;
mod gathering;
mod histogram;
mod snapshot;
mod totals;
mod trace;

pub(crate) use self::counters::Statistics;
pub(crate) use self::ending::Ending;
pub(crate) use self::gathering::Gathering;
pub use self::snapshot::{
    CountersSnapshot, HbaSnapshot, HistogramSnapshot, PauseSnapshot, TaskSnapshot, TraceSnapshot,
    UnitSnapshot, WorkerSnapshot,
};
pub use self::totals::Totals;
