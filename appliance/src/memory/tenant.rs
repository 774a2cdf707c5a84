//! The tenant's guest-physical memory, as one memory table describes it.

use std::sync::Arc;

use spec::session::MemoryEntry;
use vm_memory::guest_memory::Result as AccessResult;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::{Mapping, Segments};

/// An immutable snapshot of the tenant's memory: what a memory table says, over the mapping of
/// BAR2. A new table makes a new snapshot; requests that are under way keep theirs.
#[derive(Debug)]
pub struct TenantMemory {
    mapping: Arc<Mapping>,
    /// Sorted by guest address, without overlaps, all inside the mapping.
    entries: Vec<MemoryEntry>,
    regions: GuestRegionCollection<BarRegion>,
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
        let mut regions = Vec::with_capacity(entries.len());
        for entry in &entries {
            let outside = TableError::OutsideBar(entry.guest_address);
            let len = usize::try_from(entry.len).map_err(|_| outside)?;
            mapping.slice(entry.bar_offset, len).ok_or(outside)?;
            regions.push(BarRegion {
                mapping: Arc::clone(&mapping),
                entry: *entry,
            });
        }
        let regions = if regions.is_empty() {
            GuestRegionCollection::new()
        } else {
            GuestRegionCollection::from_regions(regions)
                .map_err(|_| TableError::Overlap(entries[0].guest_address))?
        };
        Ok(Self {
            mapping,
            entries,
            regions,
        })
    }

    /// This memory as vm-memory sees it.
    pub fn regions(&self) -> &GuestRegionCollection<BarRegion> {
        &self.regions
    }

    /// The mapping that everything is in.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// An empty buffer in this memory.
    pub fn segments(&self) -> Segments {
        Segments::new(Arc::clone(&self.mapping))
    }

    /// Appends the `len` bytes at guest address `address` to `segments`, a buffer of this memory.
    ///
    /// # Errors
    /// [`Unmapped`] with the first address that the table does not have.
    pub fn append(&self, segments: &mut Segments, address: u64, len: u32) -> Result<(), Unmapped> {
        let mut at = address;
        let mut rest = u64::from(len);
        while rest > 0 {
            let next = self
                .entries
                .partition_point(|entry| entry.guest_address <= at);
            let entry = next
                .checked_sub(1)
                .map(|index| self.entries[index])
                .filter(|entry| at - entry.guest_address < entry.len)
                .ok_or(Unmapped(at))?;
            let into = at - entry.guest_address;
            let part = rest.min(entry.len - into);
            let len = usize::try_from(part).map_err(|_| Unmapped(at))?;
            segments
                .push(entry.bar_offset + into, len)
                .map_err(|_| Unmapped(at))?;
            rest -= part;
            at = at.checked_add(part).filter(|_| rest > 0).unwrap_or(at);
        }
        Ok(())
    }
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

/// One entry of the table as a vm-memory region.
#[derive(Debug)]
pub struct BarRegion {
    mapping: Arc<Mapping>,
    entry: MemoryEntry,
}

impl GuestMemoryRegion for BarRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.entry.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.entry.guest_address)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> AccessResult<VolatileSlice<'_>> {
        let invalid = GuestMemoryError::InvalidBackendAddress;
        let end = u64::try_from(count)
            .ok()
            .and_then(|n| offset.0.checked_add(n));
        if end.is_none_or(|end| end > self.entry.len) {
            return Err(invalid);
        }
        self.mapping
            .slice(self.entry.bar_offset + offset.0, count)
            .ok_or(invalid)
    }
}

impl GuestMemoryRegionBytes for BarRegion {}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

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
    fn a_buffer_may_cross_from_one_entry_to_the_next() {
        let memory = memory(&[entry(0x2000, 0x1000, 0), entry(0x1000, 0x1000, 0x3000)]).unwrap();
        let mut segments = memory.segments();
        memory.append(&mut segments, 0x1ffe, 4).unwrap();
        assert_eq!(segments.write_at(0, b"abcd"), 4);
        let mut bytes = [0; 2];
        memory
            .mapping()
            .slice(0x3ffe, 2)
            .unwrap()
            .copy_to(&mut bytes);
        assert_eq!(&bytes, b"ab");
        memory
            .regions()
            .read_slice(&mut bytes, GuestAddress(0x2000))
            .unwrap();
        assert_eq!(&bytes, b"cd");
    }

    #[test]
    fn a_buffer_across_a_hole_is_refused_with_the_address_of_the_hole() {
        let memory = memory(&[entry(0, 0x1000, 0), entry(0x2000, 0x1000, 0x1000)]).unwrap();
        let mut segments = memory.segments();
        assert_eq!(
            memory.append(&mut segments, 0xfff, 2),
            Err(Unmapped(0x1000))
        );
        assert_eq!(
            memory.append(&mut segments, u64::MAX, 2),
            Err(Unmapped(u64::MAX))
        );
        assert_eq!(
            memory.append(&mut segments, 0x2fff, 2),
            Err(Unmapped(0x3000))
        );
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
    fn a_region_ends_where_its_entry_ends_though_the_mapping_goes_on() {
        let memory = memory(&[entry(0, 0x800, 0)]).unwrap();
        let mut byte = [0];
        assert!(
            memory
                .regions()
                .read_slice(&mut byte, GuestAddress(0x7ff))
                .is_ok()
        );
        assert!(
            memory
                .regions()
                .read_slice(&mut byte, GuestAddress(0x800))
                .is_err()
        );
    }
}
