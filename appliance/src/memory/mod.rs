//! Memory that the appliance shares with others, read as what somebody else may change at any time.
//!
//! [`Mapping`] is a mapped piece of a BAR, or the memory files of a tenant on the same host, which
//! [`Held`] keeps in place. Of BAR4 one is made the [`SessionMemory`], shared with the shim: mailbox
//! slots, call counters, memory table. Of BAR2 (or those files) and a memory table one is made the
//! [`TenantMemory`], in which guest-physical addresses lead to bytes; [`Segments`] are the pieces of
//! it that make up one buffer. How fast the CPU reaches them is found by [`window`]; [`DirtyLog`] says
//! which pages were written to; [`own`] gives disks memory that is nobody's but ours.

mod dirty_log;
mod held;
mod mapping;
mod own;
mod pieces;
mod segments;
mod session;
mod tenant;
#[cfg(test)]
pub(crate) mod testing;
mod wide;
pub mod window;

pub use dirty_log::DirtyLog;
pub use held::Held;
pub use mapping::{Mapping, PART_ALIGNMENT, Part};
pub use own::own;
pub use segments::{OutOfBounds, Segments};
pub use session::{SessionMemory, TableReadError, TooShort};
pub use tenant::{Hint, TableError, TenantMemory, Unmapped, mapped_len};
