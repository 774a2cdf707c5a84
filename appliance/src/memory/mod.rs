//! Memory that the appliance shares with others, read as what somebody else may change at any time.
//!
//! [`Mapping`] is a mapped piece of a BAR. Of BAR4 one is made the [`SessionMemory`], shared with
//! the shim: mailbox slots, call counters, memory table. Of BAR2 and that table one is made the
//! [`TenantMemory`], in which guest-physical addresses lead to bytes; [`Segments`] are the pieces
//! of it that make up one buffer.

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
