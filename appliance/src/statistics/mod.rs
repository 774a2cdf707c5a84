//! What a worker counts about the commands that it serves.
//!
//! Everything here belongs to one worker and is written by its thread alone: nothing is shared, so
//! counting costs a few additions in memory that is in the processor's cache. Who wants to know
//! asks the worker, which answers with a [`HbaSnapshot`].

mod counters;
mod ending;
mod histogram;
mod snapshot;
mod totals;
mod trace;

pub(crate) use self::counters::Statistics;
pub(crate) use self::ending::Ending;
pub use self::snapshot::{
    CountersSnapshot, HbaSnapshot, HistogramSnapshot, PauseSnapshot, TaskSnapshot, TraceSnapshot,
    UnitSnapshot,
};
pub use self::totals::Totals;
