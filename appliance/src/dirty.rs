//! What of a tenant's memory was written to, for a frontend that migrates the tenant while it runs.
//!
//! Chains are noted when they are fetched, and their writable buffers marked when they go back:
//! a page has to be marked after it was written to, and before its ring is said to have stopped.
//! More is marked than was written, which costs the migration a page sent for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::memory::{DirtyLog, TenantMemory};
use crate::ring::Chain;

/// Where to mark what.
#[derive(Debug)]
pub(crate) struct Logging {
    /// The bitmap.
    pub log: Arc<DirtyLog>,
    /// Under which guest address the used ring of each ring is marked, of those that are.
    pub used: BTreeMap<u16, u64>,
}

/// Guest addresses and lengths of the buffers of one ring's chains that are in flight, by heads.
#[derive(Debug, Default)]
pub(crate) struct Buffers(BTreeMap<u16, Vec<(u64, u64)>>);

impl Logging {
    /// Marks a used ring of so many entries, with what follows them.
    pub fn mark_used(&self, ring: u16, entries: u16) {
        if let Some(&address) = self.used.get(&ring) {
            // Flags, index, elements, avail event (virtio 1.3 §2.7.8).
            self.log.mark(address, 6 + 8 * u64::from(entries));
        }
    }
}

impl Buffers {
    /// Takes note of a chain whose buffers are in `memory`.
    pub fn note(&mut self, chain: &Chain, memory: &TenantMemory) {
        let mut ranges = Vec::new();
        for (offset, len) in chain.writable.places() {
            ranges.extend(memory.addresses(offset, len));
        }
        self.0.insert(chain.head, ranges);
    }

    /// Marks the buffers of the chain at `head`, which goes back, and forgets them.
    pub fn mark(&mut self, head: u16, log: &DirtyLog) {
        for (address, len) in self.0.remove(&head).into_iter().flatten() {
            log.mark(address, len);
        }
    }

    /// Marks the buffers of all chains: they may have been written to, and do not go back.
    pub fn mark_all(&self, log: &DirtyLog) {
        for &(address, len) in self.0.values().flatten() {
            log.mark(address, len);
        }
    }
}
