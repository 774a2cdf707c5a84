//! What of a tenant's memory was written to, for a frontend that migrates the tenant while it runs.
//!
//! Chains are noted when they are fetched, and their writable buffers marked when they go back:
//! a page has to be marked after it was written to, and before its ring is said to have stopped.
//! More is marked than was written, which costs the migration a page sent for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::memory::{DirtyLog, TenantMemory};
use crate::ring::{Chain, MAX_PIECES};

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
pub(crate) struct Buffers {
    chains: BTreeMap<u16, Vec<(u64, u64)>>,
    /// Buffers of all of them.
    count: usize,
}

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
    /// Most buffers of a ring that are noted: as many as 128 requests of a usual driver have. Where
    /// order is kept, very long chains could be very many.
    const MAX: usize = 16384;

    /// How many more chains there is room for, whatever they are like.
    pub fn room(&self) -> usize {
        Self::MAX.saturating_sub(self.count) / MAX_PIECES
    }

    /// Takes note of a chain whose buffers are in `memory`.
    pub fn note(&mut self, chain: &Chain, memory: &TenantMemory) {
        let mut ranges = Vec::new();
        for (offset, len) in chain.writable.places() {
            ranges.extend(memory.addresses(offset, len));
        }
        self.keep(chain.head, ranges);
    }

    fn keep(&mut self, head: u16, ranges: Vec<(u64, u64)>) {
        self.count += ranges.len();
        // What an earlier chain at this head left unmarked stays to be marked.
        self.chains.entry(head).or_default().extend(ranges);
    }

    /// Marks the buffers of the chain at `head`, which goes back, and forgets them.
    pub fn mark(&mut self, head: u16, log: &DirtyLog) {
        let ranges = self.chains.remove(&head).unwrap_or_default();
        self.count -= ranges.len();
        for (address, len) in ranges {
            log.mark(address, len);
        }
    }

    /// Marks the buffers of all chains: they may have been written to, and do not go back.
    pub fn mark_all(&self, log: &DirtyLog) {
        for &(address, len) in self.chains.values().flatten() {
            log.mark(address, len);
        }
    }
}

// A ring with nothing in flight has room for a chain.
const _: () = assert!(Buffers::MAX >= MAX_PIECES);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn there_is_room_for_chains_while_the_longest_would_still_fit() {
        let mut buffers = Buffers::default();
        assert_eq!(buffers.room(), 4);
        buffers.keep(1, vec![(0, 16); 4096]);
        assert_eq!(buffers.room(), 3);
        buffers.keep(2, vec![(0, 16); 4097]);
        assert_eq!(buffers.room(), 1);
        buffers.keep(3, vec![(0, 16); 4096]);
        assert_eq!(buffers.room(), 0);
    }

    #[test]
    fn a_head_that_comes_again_takes_nothing_from_what_was_noted_of_it() {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(8).unwrap();
        let log = DirtyLog::new(&file, 0, 8).unwrap();
        let mut buffers = Buffers::default();
        buffers.keep(5, vec![(0x1000, 1)]);
        buffers.keep(5, vec![(0x4000, 1), (0x9000, 1)]);
        assert_eq!(buffers.count, 3);
        buffers.mark(5, &log);
        assert_eq!(buffers.count, 0);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0x12, 0x02, 0, 0, 0, 0, 0, 0]);
    }
}
