//! The tenant's memory: guest-physical ranges, and the host memory behind them.

mod mapping;
mod segments;
mod session;
mod tenant;
#[cfg(test)]
pub(crate) mod testing;

pub use mapping::Mapping;
pub use segments::{OutOfBounds, Segments};
pub use session::{SessionMemory, TableReadError, TooShort};
pub use tenant::{BarRegion, TableError, TenantMemory, Unmapped, mapped_len};
