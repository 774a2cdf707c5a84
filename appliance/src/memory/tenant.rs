//! The tenant's guest-physical memory, as one memory table describes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spec::session::MemoryEntry;

use super::{Mapping, Segments};

/// Number of the next snapshot.
static SNAPSHOTS: AtomicU64 = AtomicU64::new(0);

/// An immutable snapshot of the tenant's memory: what a memory table says, over the mapping of
/// BAR2. A new table makes a new snapshot; requests that are under way keep theirs.
#[derive(Debug)]
pub struct TenantMemory {
    mapping: Arc<Mapping>,
    /// Sorted by guest address, without overlaps, all inside the mapping.
    entries: Vec<MemoryEntry>,
    snapshot: u64,
}

/// The two entries in which addresses were found last: a request has its header here and its data
/// there. It belongs to who looks, so that lookers share nothing, and is no more than a guess: an
/// old one, or one of another memory, costs a search.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hint {
    last: usize,
    before: usize,
}

/// A memory table that cannot be used, or an address that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// An entry without a byte.
    #[error("memory table entry at guest address {0:#x} is empty")]
    Empty(u64),
    /// An entry whose end is beyond the address space.
    #[error("memory table entry at guest address {0:#x} passes the end of the address space")]
    Overflow(u64),
    /// Two entries that share addresses.
    #[error("memory table entries overlap at guest address {0:#x}")]
    Overlap(u64),
    /// An entry that is not all in BAR2.
    #[error("memory table entry at guest address {0:#x} lies outside BAR2")]
    OutsideBar(u64),
}

/// Guest addresses that the memory table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest address {0:#x} is not in the tenant's memory table")]
pub struct Unmapped(pub u64);

impl TenantMemory {
    /// The snapshot of `entries` over `mapping`, whose offsets are those of BAR2.
    ///
    /// # Errors
    /// [`TableError`], naming the entry that makes no sense.
    pub fn new(mapping: Arc<Mapping>, mut entries: Vec<MemoryEntry>) -> Result<Self, TableError> {
        check_table(&mut entries)?;
        for entry in &entries {
            let outside = TableError::OutsideBar(entry.guest_address);
            let len = usize::try_from(entry.len).map_err(|_| outside)?;
            mapping.slice(entry.bar_offset, len).ok_or(outside)?;
        }
        Ok(Self {
            mapping,
            entries,
            snapshot: SNAPSHOTS.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// What tells this snapshot from every other of this process.
    #[inline]
    pub fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// The mapping that everything is in.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Appends the `len` bytes at guest address `address` to `segments`, a buffer in this memory's
    /// mapping. Returns in how many pieces.
    ///
    /// # Errors
    /// [`Unmapped`] with the first address that the table does not have.
    #[inline]
    pub fn append(
        &self,
        hint: &mut Hint,
        segments: &mut Segments,
        address: u64,
        len: u32,
    ) -> Result<usize, Unmapped> {
        if let Some((offset, len)) = self.whole(hint, address, len.into()) {
            let pushed = segments.push(offset, len);
            return pushed.map(|()| 1).map_err(|_| Unmapped(address));
        }
        self.append_parts(hint, segments, address, len)
    }

    #[cold]
    fn append_parts(
        &self,
        hint: &mut Hint,
        segments: &mut Segments,
        address: u64,
        len: u32,
    ) -> Result<usize, Unmapped> {
        let mut pieces = 0;
        self.for_each_part(hint, address, len.into(), |at, offset, len| {
            pieces += 1;
            segments.push(offset, len).map_err(|_| Unmapped(at))
        })?;
        Ok(pieces)
    }

    /// The guest addresses, with lengths, at which the `len` bytes at `offset` of the mapping are to
    /// be seen.
    pub fn addresses(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        self.entries.iter().filter_map(move |entry| {
            // Neither passes the end of the mapping.
            let start = offset.max(entry.bar_offset);
            let end = (offset + len).min(entry.bar_offset + entry.len);
            let len = end.checked_sub(start).filter(|len| *len > 0)?;
            Some((entry.guest_address + (start - entry.bar_offset), len))
        })
    }

    /// Copies the bytes at guest address `address` into `to`, each read once.
    ///
    /// # Errors
    /// [`Unmapped`] with the first address that the table does not have.
    pub fn read(&self, hint: &mut Hint, address: u64, to: &mut [u8]) -> Result<(), Unmapped> {
        let mut rest = to;
        let len = rest.len() as u64;
        self.for_each_part(hint, address, len, |at, offset, len| {
            let offset = usize::try_from(offset).map_err(|_| Unmapped(at))?;
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            self.mapping.read(offset, now);
            rest = later;
            Ok(())
        })
    }

    /// Offset in the mapping of the `len` bytes at guest address `address`, or `None` if they are
    /// not all in memory, or not one run in the mapping.
    #[inline]
    pub fn run(&self, hint: &mut Hint, address: u64, len: u64) -> Option<usize> {
        let start = match self.whole(hint, address, len) {
            Some((offset, _)) => offset,
            None => self.run_across(hint, address, len)?,
        };
        usize::try_from(start).ok()
    }

    /// As [`Self::run`], for more entries than one.
    #[cold]
    fn run_across(&self, hint: &mut Hint, address: u64, len: u64) -> Option<u64> {
        let mut start = None;
        let mut end = None;
        self.for_each_part(hint, address, len, |at, offset, len| {
            if end.is_some_and(|end| end != offset) {
                return Err(Unmapped(at));
            }
            start = start.or(Some(offset));
            end = Some(offset + len as u64);
            Ok(())
        })
        .ok()?;
        start
    }

    /// Offset and length of the `len` bytes at `address` if one entry has them all, and there is
    /// one at least.
    #[inline]
    fn whole(&self, hint: &mut Hint, address: u64, len: u64) -> Option<(u64, usize)> {
        let entry = self.entry(hint, address)?;
        let into = address - entry.guest_address;
        if len == 0 || len > entry.len - into {
            return None;
        }
        Some((entry.bar_offset + into, usize::try_from(len).ok()?))
    }

    /// Calls `part` for each part of the `len` bytes at `address` that is in one entry, with its
    /// address, offset in the mapping and length.
    fn for_each_part(
        &self,
        hint: &mut Hint,
        address: u64,
        len: u64,
        mut part: impl FnMut(u64, u64, usize) -> Result<(), Unmapped>,
    ) -> Result<(), Unmapped> {
        let mut at = address;
        let mut rest = len;
        while rest > 0 {
            let entry = self.entry(hint, at).ok_or(Unmapped(at))?;
            let into = at - entry.guest_address;
            let now = rest.min(entry.len - into);
            let len = usize::try_from(now).map_err(|_| Unmapped(at))?;
            part(at, entry.bar_offset + into, len)?;
            rest -= now;
            // Not beyond the address space, which no entry passes.
            at += now;
        }
        Ok(())
    }

    /// The entry that has `address`: one that `hint` names, or the one that is found.
    #[inline]
    fn entry(&self, hint: &mut Hint, address: u64) -> Option<&MemoryEntry> {
        match self.entries.get(hint.last) {
            Some(entry) if has(entry, address) => Some(entry),
            _ => self.other_entry(hint, address),
        }
    }

    #[inline(never)]
    fn other_entry(&self, hint: &mut Hint, address: u64) -> Option<&MemoryEntry> {
        let before = self.entries.get(hint.before);
        if let Some(entry) = before.filter(|entry| has(entry, address)) {
            return Some(entry);
        }
        let index = self.search(address)?;
        *hint = Hint {
            last: index,
            before: hint.last,
        };
        self.entries.get(index)
    }

    /// Index of the entry that has `address`.
    #[inline(never)]
    fn search(&self, address: u64) -> Option<usize> {
        let after = self
            .entries
            .partition_point(|entry| entry.guest_address <= address);
        let index = after.checked_sub(1)?;
        has(self.entries.get(index)?, address).then_some(index)
    }
}

/// Whether `address` is in `entry`.
#[inline]
fn has(entry: &MemoryEntry, address: u64) -> bool {
    // Below the entry the difference wraps, to more than any length that the entry can have.
    address.wrapping_sub(entry.guest_address) < entry.len
}

/// How many bytes of BAR2 the table needs mapped, counted from its start.
///
/// # Errors
/// [`TableError`], naming the entry that makes no sense.
pub fn mapped_len(entries: &[MemoryEntry]) -> Result<u64, TableError> {
    entries.iter().try_fold(0, |longest: u64, entry| {
        entry
            .bar_offset
            .checked_add(entry.len)
            .map(|end| longest.max(end))
            .ok_or(TableError::OutsideBar(entry.guest_address))
    })
}

/// Sorts the table by guest address and checks that it describes one address space.
fn check_table(entries: &mut [MemoryEntry]) -> Result<(), TableError> {
    entries.sort_by_key(|entry| entry.guest_address);
    let mut end = 0;
    for entry in entries.iter() {
        if entry.len == 0 {
            return Err(TableError::Empty(entry.guest_address));
        }
        if entry.guest_address < end {
            return Err(TableError::Overlap(entry.guest_address));
        }
        end = entry
            .guest_address
            .checked_add(entry.len)
            .ok_or(TableError::Overflow(entry.guest_address))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::shared_memory;
    use super::*;

    const fn entry(guest_address: u64, len: u64, bar_offset: u64) -> MemoryEntry {
        MemoryEntry {
            guest_address,
            len,
            bar_offset,
        }
    }

    fn memory(entries: &[MemoryEntry]) -> Result<TenantMemory, TableError> {
        TenantMemory::new(shared_memory(0x4000), entries.to_vec())
    }

    #[test]
    fn bytes_of_the_mapping_are_found_at_each_of_their_addresses() {
        // The second half of the first entry is the first of the second.
        let entries = [entry(0x1_0000, 0x2000, 0), entry(0x8_0000, 0x2000, 0x1000)];
        let memory = memory(&entries).unwrap();
        let at = |offset, len| memory.addresses(offset, len).collect::<Vec<_>>();
        assert_eq!(at(0x800, 0x1000), [(0x1_0800, 0x1000), (0x8_0000, 0x800)]);
        assert_eq!(at(0x2ff0, 0x10), [(0x8_1ff0, 0x10)]);
        assert_eq!(at(0x3000, 0x1000), []);
        assert_eq!(at(0x800, 0), []);
    }

    fn append(memory: &TenantMemory, address: u64, len: u32) -> Result<Segments, Unmapped> {
        let mut segments = Segments::new(Arc::clone(memory.mapping()));
        memory
            .append(&mut Hint::default(), &mut segments, address, len)
            .map(|pieces| {
                assert_eq!(pieces, segments.pieces());
                segments
            })
    }

    #[test]
    fn a_buffer_may_cross_from_one_entry_to_the_next() {
        let memory = memory(&[entry(0x2000, 0x1000, 0), entry(0x1000, 0x1000, 0x3000)]).unwrap();
        let segments = append(&memory, 0x1ffe, 4).unwrap();
        assert_eq!(segments.write_at(0, b"abcd"), 4);
        let mut bytes = [0; 2];
        memory.mapping().read(0x3ffe, &mut bytes);
        assert_eq!(&bytes, b"ab");
        memory.mapping().read(0, &mut bytes);
        assert_eq!(&bytes, b"cd");
        let mut bytes = [0; 4];
        memory
            .read(&mut Hint::default(), 0x1ffe, &mut bytes)
            .unwrap();
        assert_eq!(&bytes, b"abcd");
    }

    #[test]
    fn a_buffer_across_a_hole_is_refused_with_the_address_of_the_hole() {
        let memory = memory(&[entry(0, 0x1000, 0), entry(0x2000, 0x1000, 0x1000)]).unwrap();
        for (address, len, hole) in [
            (0xfff, 2, 0x1000),
            (u64::MAX, 2, u64::MAX),
            (0x2fff, 2, 0x3000),
        ] {
            assert_eq!(append(&memory, address, len).unwrap_err(), Unmapped(hole));
        }
    }

    #[test]
    fn a_hint_of_another_memory_is_only_a_guess() {
        let many = memory(&[
            entry(0, 0x1000, 0),
            entry(0x2000, 0x1000, 0x1000),
            entry(0x4000, 0x1000, 0x2000),
        ])
        .unwrap();
        let few = memory(&[entry(0x4000, 0x800, 0x3000), entry(0x8000, 0x800, 0)]).unwrap();
        few.mapping().write(0x3000, b"few");
        many.mapping().write(0x2000, b"many");
        let mut hint = Hint::default();
        let mut bytes = [0; 3];
        for _ in 0..2 {
            many.read(&mut hint, 0x4000, &mut bytes).unwrap();
            assert_eq!(&bytes, b"man");
            few.read(&mut hint, 0x4000, &mut bytes).unwrap();
            assert_eq!(&bytes, b"few");
            let beyond = few.read(&mut hint, 0x47fe, &mut bytes);
            assert_eq!(beyond, Err(Unmapped(0x4800)));
            let before = many.read(&mut hint, 0x1fff, &mut bytes);
            assert_eq!(before, Err(Unmapped(0x1fff)));
        }
    }

    #[test]
    fn every_address_of_512_entries_is_found_whatever_the_hint() {
        let entries: Vec<_> = (0..512)
            .map(|at: u64| entry(0x40 * at, 0x20, 0x20 * (511 - at)))
            .collect();
        let memory = memory(&entries).unwrap();
        for at in 0..512u16 {
            let offset = usize::from(511 - at) * 0x20;
            memory.mapping().write(offset, &at.to_le_bytes());
        }
        for hint in [0, 1, 255, 511, 512, usize::MAX] {
            for at in (0..512u16).rev() {
                let address = 0x40 * u64::from(at);
                let mut bytes = [0; 2];
                let mut hint = Hint {
                    last: hint,
                    before: at.into(),
                };
                hint.before += 1;
                memory.read(&mut hint, address, &mut bytes).unwrap();
                assert_eq!(u16::from_le_bytes(bytes), at);
                let hole = memory.read(&mut hint, address + 0x20, &mut bytes);
                assert_eq!(hole, Err(Unmapped(address + 0x20)));
            }
        }
    }

    #[test]
    fn a_run_is_in_one_piece_of_the_mapping() {
        let memory = memory(&[
            entry(0, 0x1000, 0x1000),
            entry(0x1000, 0x800, 0x2000),
            entry(0x1800, 0x800, 0),
            entry(0x2000, 0x800, 0),
        ])
        .unwrap();
        let run = |address, len| memory.run(&mut Hint::default(), address, len);
        assert_eq!(run(0xff0, 0x20), Some(0x1ff0));
        assert_eq!(run(0, 0x1800), Some(0x1000));
        assert_eq!(run(0x17ff, 2), None, "it goes on elsewhere");
        assert_eq!(run(0x1800, 0x801), None, "the same bytes twice");
        assert_eq!(run(0x2700, 0x101), None, "it ends before");
        assert_eq!(run(0, 0), None);
    }

    #[test]
    fn each_snapshot_is_another_though_its_table_is_the_same() {
        let table = [entry(0, 0x1000, 0)];
        let [one, other] = [memory(&table).unwrap(), memory(&table).unwrap()];
        assert_ne!(one.snapshot(), other.snapshot());
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused() {
        assert_eq!(memory(&[entry(8, 0, 0)]).unwrap_err(), TableError::Empty(8));
        assert_eq!(
            memory(&[entry(0, 0x1001, 0), entry(0x1000, 0x1000, 0)]).unwrap_err(),
            TableError::Overlap(0x1000)
        );
        assert_eq!(
            memory(&[entry(0x1000, 0x1000, 0x3001)]).unwrap_err(),
            TableError::OutsideBar(0x1000)
        );
        assert_eq!(
            memory(&[entry(u64::MAX, 2, 0)]).unwrap_err(),
            TableError::Overflow(u64::MAX)
        );
        assert_eq!(
            mapped_len(&[entry(0, 1, u64::MAX)]),
            Err(TableError::OutsideBar(0))
        );
    }

    #[test]
    fn memory_ends_where_its_entry_ends_though_the_mapping_goes_on() {
        let memory = memory(&[entry(0, 0x800, 0)]).unwrap();
        let mut byte = [0];
        let mut at = |address| memory.read(&mut Hint::default(), address, &mut byte);
        assert_eq!(at(0x7ff), Ok(()));
        assert_eq!(at(0x800), Err(Unmapped(0x800)));
    }
}
