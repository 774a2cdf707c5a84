//! The record of a tracked ring's requests under way, in in-flight memory.
//!
//! An appliance that comes after this one reads it when the ring starts. While the ring runs it is
//! only written, since the tenant's QEMU can write it, too: what we need to know is kept here. Its
//! stores are plain ones, in an order that says the truth whenever they end
//! (`spec/vhost-pci.md` §9).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spec::inflight::{
    ENTRY_COUNT, Entry, FEATURES, Header, LAST_BATCH_HEAD, USED_INDEX, VERSION, VERSION_1, entry,
    is_region,
};

use crate::memory::Mapping;
use crate::ring::Violation;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Journal {
    mapping: Arc<Mapping>,
    /// Offset of the region in the mapping.
    region: usize,
    /// Number of the next chain to be fetched.
    counter: u64,
    /// The head that was given back last.
    last: u16,
    /// Whether the chain at each head is in flight.
    open: Vec<bool>,
    /// How many are.
    count: usize,
    /// Those that were marked at the start and are to be fetched again, in this order.
    again: VecDeque<u16>,
}

impl Journal {
    /// The record at `offset` of `mapping`, of a ring of `size` entries whose used index is
    /// `used`; begun anew if there is none. `None` if there is no room for one.
    pub fn open(mapping: Arc<Mapping>, offset: u32, size: u16, used: u16) -> Option<Self> {
        let region = usize::try_from(offset).ok()?;
        let len = usize::try_from(entry(size)).ok()?;
        if !is_region(offset, size) || !mapping.has(region, len) {
            return None;
        }
        let mut journal = Self {
            mapping,
            region,
            counter: 0,
            last: 0,
            open: vec![false; usize::from(size)],
            count: 0,
            again: VecDeque::new(),
        };
        let mut bytes = [0; Header::LEN];
        journal.mapping.read(region, &mut bytes);
        let header = Header::from_bytes(&bytes);
        if header.version == VERSION_1 && header.entries == size {
            journal.last = header.last_batch_head;
            journal.clear_given_back(&header, used);
            journal.recover();
        } else {
            journal.begin_anew(size, used);
        }
        Some(journal)
    }

    /// How many chains are in flight, those to be fetched again among them.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are chains to be fetched again.
    pub fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// The next chain to be fetched again.
    pub fn next_again(&mut self) -> Option<u16> {
        self.again.pop_front()
    }

    /// Gives up what was to be fetched again; it stays marked.
    pub fn give_up_again(&mut self) {
        while let Some(head) = self.again.pop_front() {
            self.forget(head);
        }
    }

    /// Takes note of a chain that was fetched, before anything is done for it.
    ///
    /// # Errors
    /// [`Violation::InFlight`] if it is in flight already.
    pub fn fetched(&mut self, head: u16) -> Result<(), Violation> {
        // The ring has checked the head, which is the first descriptor of its chain.
        let open = self.open.get_mut(usize::from(head));
        let Some(open) = open.filter(|open| !**open) else {
            return Err(Violation::InFlight(head));
        };
        *open = true;
        self.count += 1;
        let counter = self.counter.to_le_bytes();
        self.mapping.write(self.at(head, Entry::COUNTER), &counter);
        self.counter = self.counter.wrapping_add(1);
        self.mark(head, true);
        Ok(())
    }

    /// Whether the chain is in flight.
    pub fn is_open(&self, head: u16) -> bool {
        self.open.get(usize::from(head)) == Some(&true)
    }

    /// Counts a chain no more that nobody can give back; it stays marked.
    pub fn forget(&mut self, head: u16) {
        if let Some(open) = self.open.get_mut(usize::from(head))
            && std::mem::take(open)
        {
            self.count -= 1;
        }
    }

    /// Before the driver sees, by one store, that chains, which are in flight, are given back.
    pub fn before_used(&mut self, heads: &[u16]) {
        for &head in heads {
            self.store(self.at(head, Entry::NEXT), self.last);
            self.store(self.region + offset(LAST_BATCH_HEAD), head);
            self.last = head;
        }
    }

    /// After the driver could see it, by the used index `used`.
    pub fn after_used(&mut self, heads: &[u16], used: u16) {
        for &head in heads {
            self.forget(head);
            self.mark(head, false);
        }
        self.store(self.region + offset(USED_INDEX), used);
    }

    /// Clears the marks of chains that the driver has got back already.
    fn clear_given_back(&mut self, header: &Header, used: u16) {
        let size = self.open.len();
        let count = used.wrapping_sub(header.used_index);
        let mut head = header.last_batch_head;
        for _ in 0..usize::from(count).min(size) {
            if usize::from(head) >= size {
                break;
            }
            let next = self.entry(head).next;
            self.mark(head, false);
            head = next;
        }
        self.store(self.region + offset(USED_INDEX), used);
    }

    /// Takes up what is still marked.
    fn recover(&mut self) {
        let mut marked = Vec::new();
        for (head, open) in (0..).zip(&mut self.open) {
            let at = self.region + offset(entry(head));
            let mut bytes = [0; Entry::LEN];
            self.mapping.read(at, &mut bytes);
            let entry = Entry::from_bytes(&bytes);
            if entry.in_flight {
                *open = true;
                marked.push((entry.counter, head));
            }
        }
        marked.sort_unstable();
        self.counter = marked.last().map_or(0, |(last, _)| last.wrapping_add(1));
        self.count = marked.len();
        self.again = marked.into_iter().map(|(_, head)| head).collect();
    }

    /// Makes an empty record.
    fn begin_anew(&mut self, size: u16, used: u16) {
        self.store(self.region + offset(VERSION), 0);
        for head in 0..size {
            self.mapping.write(self.at(head, 0), &[0; Entry::LEN]);
        }
        self.mapping.write(self.region + offset(FEATURES), &[0; 8]);
        self.store(self.region + offset(ENTRY_COUNT), size);
        self.store(self.region + offset(LAST_BATCH_HEAD), 0);
        self.store(self.region + offset(USED_INDEX), used);
        self.store(self.region + offset(VERSION), VERSION_1);
    }

    fn entry(&self, head: u16) -> Entry {
        let mut bytes = [0; Entry::LEN];
        self.mapping.read(self.at(head, 0), &mut bytes);
        Entry::from_bytes(&bytes)
    }

    /// The mark is one byte; the reserved one after it is written along, as 0.
    fn mark(&self, head: u16, in_flight: bool) {
        self.store(self.at(head, Entry::MARK), u16::from(in_flight));
    }

    /// Offset in the mapping of a field of the entry of `head`.
    fn at(&self, head: u16, field: u64) -> usize {
        self.region + offset(entry(head)) + offset(field)
    }

    /// Whoever sees this store sees those before it.
    fn store(&self, at: usize, value: u16) {
        let word = self.mapping.atomic_u16(at);
        word.store(value.to_le(), Ordering::Release);
    }
}

/// An offset of the layout, all of which are far below 2^32.
fn offset(offset: u64) -> usize {
    usize::try_from(offset).expect("a region is shorter than memory")
}

#[cfg(test)]
mod tests;
