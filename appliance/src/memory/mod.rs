//! The tenant's memory: guest-physical ranges, and the host memory behind them.

mod mapping;
mod segments;

pub use mapping::Mapping;
pub use segments::Segments;
