//! Session memory (BAR4): the mailbox slots, the call counters and the memory table.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use spec::doorbell::{self, Words};
use spec::mailbox::{self, Header, MAX_PAYLOAD};
use spec::session::{self, MEMORY_SLOTS, MemoryEntry, UnitMark};
use vm_memory::VolatileMemory;

use super::Mapping;

/// How often a table is read again that the shim is writing at that moment.
const TABLE_READ_LIMIT: usize = 1000;

/// The mapping of BAR4, read word by word: the shim may rewrite any of it at any time.
#[derive(Debug)]
pub struct SessionMemory {
    mapping: Mapping,
}

/// Why the memory table could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableReadError {
    /// The shim did not stop writing it.
    #[error("the memory table kept changing while it was read")]
    Busy,
    /// More entries than a table can have.
    #[error("the memory table claims {0} entries, more than {MEMORY_SLOTS}")]
    TooLong(u32),
    /// The table in place is of another generation.
    #[error("the memory table is of generation {found}, not {wanted}")]
    Generation {
        /// Generation that the request named.
        wanted: u32,
        /// Generation that the table has.
        found: u32,
    },
}

/// A mapping too short to be session memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("BAR4 holds {0} bytes, fewer than session memory")]
pub struct TooShort(usize);

impl SessionMemory {
    /// Session memory in `mapping`.
    ///
    /// # Errors
    /// [`TooShort`] if it cannot be that.
    pub fn new(mapping: Mapping) -> Result<Self, TooShort> {
        if u64::try_from(mapping.len()).is_ok_and(|len| len >= session::LEN) {
            Ok(Self { mapping })
        } else {
            Err(TooShort(mapping.len()))
        }
    }

    /// Counts one more call of `ring`; returns whether the shim sleeps, so that its trapped
    /// doorbell must be rung as well. A ring is called for by one thread at a time.
    pub fn call(&self, ring: u16) -> bool {
        doorbell::call(self, ring)
    }

    /// A copy of the memory table of `generation`.
    ///
    /// # Errors
    /// [`TableReadError`].
    pub fn memory_table(&self, generation: u32) -> Result<Vec<MemoryEntry>, TableReadError> {
        for _ in 0..TABLE_READ_LIMIT {
            let before = self.word(session::MEMORY_SEQUENCE);
            if before.is_multiple_of(2) {
                let found = self.word(session::MEMORY_GENERATION);
                let count = self.word(session::MEMORY_COUNT);
                let entries = self.entries(count);
                // The entries must have been read before the sequence is looked at again.
                fence(Ordering::Acquire);
                if self.word(session::MEMORY_SEQUENCE) == before {
                    if found != generation {
                        return Err(TableReadError::Generation {
                            wanted: generation,
                            found,
                        });
                    }
                    return entries.ok_or(TableReadError::TooLong(count));
                }
            }
            std::thread::yield_now();
        }
        Err(TableReadError::Busy)
    }

    /// A copy of the request slot: header and payload, whose length is that of the header, or
    /// as much as a slot can have.
    pub fn request(&self) -> (Header, Vec<u8>) {
        let mut bytes = [0; mailbox::HEADER_LEN];
        self.copy_from(session::MAILBOX_REQUEST, &mut bytes);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let header = Header {
            sequence: word(0),
            operation: word(4),
            len: word(8),
            status: word(12),
        };
        let len = usize::try_from(header.len).map_or(MAX_PAYLOAD, |len| len.min(MAX_PAYLOAD));
        let mut payload = vec![0; len];
        self.copy_from(session::MAILBOX_REQUEST + HEADER_LEN, &mut payload);
        (header, payload)
    }

    /// Writes the reply slot.
    pub fn reply(&self, header: Header, payload: &[u8]) {
        self.copy_to(session::MAILBOX_REPLY, &header.to_bytes());
        self.copy_to(session::MAILBOX_REPLY + HEADER_LEN, payload);
        // The slot must be complete before the MAILBOX_REPLY register says so.
        fence(Ordering::SeqCst);
    }

    /// The mark in a slot, below [`session::UNIT_MARKS`].
    pub fn mark(&self, slot: usize) -> UnitMark {
        let mut bytes = [0; UnitMark::LEN];
        self.copy_from(session::unit_mark(slot), &mut bytes);
        UnitMark::from_bytes(&bytes)
    }

    /// Writes the mark in a slot, below [`session::UNIT_MARKS`]. It is there before anything that
    /// is written to the tenant afterwards.
    pub fn set_mark(&self, slot: usize, mark: UnitMark) {
        self.copy_to(session::unit_mark(slot), &mark.to_bytes());
        fence(Ordering::SeqCst);
    }

    fn entries(&self, count: u32) -> Option<Vec<MemoryEntry>> {
        let count = usize::try_from(count).ok().filter(|n| *n <= MEMORY_SLOTS)?;
        (0..count)
            .map(|index| {
                let mut bytes = [0; MemoryEntry::LEN];
                self.copy_from(session::memory_entry(index), &mut bytes);
                MemoryEntry::from_bytes(&bytes).ok()
            })
            .collect()
    }

    fn word(&self, offset: u64) -> u32 {
        self.load(offset, Ordering::Acquire)
    }

    fn with_word<T>(&self, offset: u64, access: impl FnOnce(&AtomicU32) -> T) -> T {
        let slice = self.slice(offset, size_of::<u32>());
        let word = slice
            .get_atomic_ref::<AtomicU32>(0)
            .expect("words of session memory are aligned");
        access(word)
    }

    // BAR4 is a window as BAR2 is, so these are few wide accesses as well. `new` checked the
    // length, and offsets are the layout's.

    fn copy_from(&self, offset: u64, to: &mut [u8]) {
        self.mapping.read(place(offset), to);
    }

    fn copy_to(&self, offset: u64, from: &[u8]) {
        self.mapping.write(place(offset), from);
    }

    fn slice(&self, offset: u64, len: usize) -> vm_memory::VolatileSlice<'_> {
        self.mapping
            .slice(offset, len)
            .expect("`new` checked the length and offsets are the layout's")
    }
}

impl Words for SessionMemory {
    #[inline]
    fn load(&self, offset: u64, order: Ordering) -> u32 {
        self.with_word(offset, |word| u32::from_le(word.load(order)))
    }

    #[inline]
    fn store(&self, offset: u64, value: u32, order: Ordering) {
        self.with_word(offset, |word| word.store(value.to_le(), order));
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// An offset of the layout; one that were none would be outside every mapping.
fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Bytes of a slot's header, as an offset.
const HEADER_LEN: u64 = mailbox::HEADER_LEN as u64;

#[cfg(test)]
mod tests {
    use super::super::testing::private_memory;
    use super::*;

    fn session() -> SessionMemory {
        SessionMemory::new(private_memory(0x2_0000)).unwrap()
    }

    fn publish(session: &SessionMemory, generation: u32, entries: &[MemoryEntry]) {
        for (index, entry) in entries.iter().enumerate() {
            session.copy_to(session::memory_entry(index), &entry.to_bytes());
        }
        let count = u32::try_from(entries.len()).unwrap();
        session.copy_to(session::MEMORY_COUNT, &count.to_le_bytes());
        session.copy_to(session::MEMORY_GENERATION, &generation.to_le_bytes());
    }

    #[test]
    fn the_table_is_read_as_it_was_published() {
        let session = session();
        let entry = MemoryEntry {
            guest_address: 1 << 32,
            len: 0x1000,
            bar_offset: 0x2000,
        };
        publish(&session, 3, &[entry]);
        assert_eq!(session.memory_table(3), Ok(vec![entry]));
        assert_eq!(
            session.memory_table(4),
            Err(TableReadError::Generation {
                wanted: 4,
                found: 3
            })
        );
    }

    /// Writes tables as the shim does, for as long as `running`: the one of generation g has 64
    /// entries at address g, of g bytes, at offset g.
    fn rewrite_tables(session: &SessionMemory, running: impl Fn() -> bool) {
        let sequence = |value: u32| {
            session.with_word(session::MEMORY_SEQUENCE, |word| {
                word.store(value.to_le(), Ordering::Release);
            });
        };
        for generation in (1..).take_while(|_| running()) {
            sequence(2 * generation - 1);
            fence(Ordering::SeqCst);
            publish(session, generation, &[table_entry(generation); 64]);
            sequence(2 * generation);
            // Long enough for a table to be read now and then.
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }

    fn table_entry(generation: u32) -> MemoryEntry {
        let value = u64::from(generation);
        MemoryEntry {
            guest_address: value,
            len: value,
            bar_offset: value,
        }
    }

    // covers: VPCI-MEM-4
    #[test]
    fn a_table_that_changes_while_it_is_read_is_never_mixed_with_another() {
        let session = session();
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut tables = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| rewrite_tables(&session, || !done.load(Ordering::Relaxed)));
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while tables.len() < 200 && std::time::Instant::now() < deadline {
                // The table in place now, or one that was a moment ago.
                let generation = session.word(session::MEMORY_GENERATION);
                let table = session.memory_table(generation).ok();
                tables.extend(table.filter(|_| generation != 0).map(|t| (generation, t)));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(tables.len(), 200, "too few to show anything");
        for (generation, table) in tables {
            assert_eq!(table, [table_entry(generation); 64]);
        }
    }

    // covers: VPCI-MEM-4
    #[test]
    fn a_table_that_is_being_written_for_ever_is_given_up() {
        let session = session();
        session.copy_to(session::MEMORY_SEQUENCE, &1u32.to_le_bytes());
        assert_eq!(session.memory_table(0), Err(TableReadError::Busy));
    }

    // covers: VPCI-MEM-5
    #[test]
    fn a_table_of_513_entries_is_refused() {
        let session = session();
        session.copy_to(session::MEMORY_COUNT, &513u32.to_le_bytes());
        assert_eq!(session.memory_table(0), Err(TableReadError::TooLong(513)));
    }

    #[test]
    fn a_call_counts_up_and_says_whether_the_shim_sleeps() {
        let session = session();
        assert!(!session.call(2));
        session.copy_to(session::NEED_WAKEUP, &1u32.to_le_bytes());
        assert!(session.call(2));
        assert_eq!(session.word(session::call_counter(2)), 2);
        assert_eq!(session.word(session::call_counter(3)), 0);
    }

    #[test]
    fn a_call_counter_wraps() {
        let session = session();
        session.copy_to(session::call_counter(2), &u32::MAX.to_le_bytes());
        session.call(2);
        assert_eq!(session.word(session::call_counter(2)), 0);
    }

    #[test]
    fn a_payload_longer_than_the_slot_is_cut() {
        let session = session();
        let header = Header {
            sequence: 1,
            operation: 2,
            len: u32::MAX,
            status: 0,
        };
        session.copy_to(session::MAILBOX_REQUEST, &header.to_bytes());
        let (copy, payload) = session.request();
        assert_eq!(copy, header);
        assert_eq!(payload.len(), MAX_PAYLOAD);
    }

    #[test]
    fn a_mapping_of_one_page_is_not_session_memory() {
        assert_eq!(
            SessionMemory::new(private_memory(4096)).unwrap_err(),
            TooShort(4096)
        );
    }
}
