//! Where a driver has its requests that sends one at a time.
//!
//! What there is of a request comes out of the driver's caches line by line: the descriptor says where
//! the table is, the table where the header is. A driver that waits for each request before it makes
//! the next has it in the same memory again, as a rule; so all of these lines are fetched together,
//! before it is known that they are the right ones. Only what is read then counts, and it is read as
//! ever.

use super::Chain;
use super::parts::Parts;
use crate::memory::Mapping;

/// Offsets in the mapping, of the last request that came alone; 0 where it had no such thing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Habit {
    pub descriptor: usize,
    pub table: usize,
    /// Its header, and what the response goes to.
    pub readable: usize,
    pub writable: usize,
}

impl Habit {
    /// Has the CPU fetch what the next request may be in. Where the mapping is another meanwhile, that
    /// is of no use, and does no harm.
    #[inline]
    pub fn prefetch(&self, mapping: &Mapping) {
        mapping.prefetch(self.descriptor);
        mapping.prefetch(self.table);
        mapping.prefetch(self.readable);
        mapping.prefetch_to_write(self.writable);
    }

    /// Takes note of where a request was, with a table there if it has one.
    #[inline]
    pub fn learn(&mut self, chain: &Chain, table: Option<usize>, parts: &Parts) {
        *self = Self {
            descriptor: parts.place(parts.descriptors(), chain.head),
            table: table.unwrap_or_default(),
            readable: chain.readable.first_offset().unwrap_or_default(),
            writable: chain.writable.first_offset().unwrap_or_default(),
        };
    }
}
