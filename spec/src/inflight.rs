//! The layout of in-flight memory (BAR1), which says of each ring which requests are under way.
//!
//! The shim owns it, the appliance writes it, and the tenant's QEMU keeps it while nobody serves
//! the ring. So whoever reads it believes nothing: the functions here turn bytes into values, and
//! the values have to be checked. The regions are those of vhost-user (split ring).

use crate::wire::array;

/// Length of in-flight memory in bytes; a power of two, as a BAR must be, and small enough for
/// the 2 MiB that a root port has for 32-bit BARs.
pub const LEN: u64 = 0x10_0000;
/// Where the regions begin: the page before them stays empty, so that 0 is no region's offset.
pub const REGIONS: u64 = 0x1000;
/// Regions begin at multiples of this.
pub const ALIGNMENT: u64 = 64;

/// `u64`: feature bits of the region; 0.
pub const FEATURES: u64 = 0;
/// `u16`: 0 before the region is used, then [`VERSION_1`].
pub const VERSION: u64 = 8;
/// `u16`: entries, as many as the ring has.
pub const ENTRY_COUNT: u64 = 10;
/// `u16`: the head that was given back last.
pub const LAST_BATCH_HEAD: u64 = 12;
/// `u16`: the used index up to which marks are cleared.
pub const USED_INDEX: u64 = 14;
/// The first entry; entry `i` belongs to the chain whose head is descriptor `i`.
pub const ENTRIES: u64 = 16;

/// Value of [`VERSION`] in a region of this layout.
pub const VERSION_1: u16 = 1;

/// One entry of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// Whether the chain is in flight.
    pub in_flight: bool,
    /// The head that was given back before this one.
    pub next: u16,
    /// Tells which of two chains was fetched first.
    pub counter: u64,
}

impl Entry {
    /// Bytes of one entry.
    pub const LEN: usize = 16;
    /// Offset of the mark, one byte: 0, or 1 while the chain is in flight. Five reserved bytes
    /// follow.
    pub const MARK: u64 = 0;
    /// Offset of `next`.
    pub const NEXT: u64 = 6;
    /// Offset of `counter`.
    pub const COUNTER: u64 = 8;

    /// The entry in these bytes; any mark but 0 is one.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [mark, _, _, _, _, _, a, b, counter @ ..] = *bytes;
        Self {
            in_flight: mark != 0,
            next: u16::from_le_bytes([a, b]),
            counter: u64::from_le_bytes(counter),
        }
    }
}

/// The header of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// See [`VERSION`].
    pub version: u16,
    /// See [`ENTRY_COUNT`].
    pub entries: u16,
    /// See [`LAST_BATCH_HEAD`].
    pub last_batch_head: u16,
    /// See [`USED_INDEX`].
    pub used_index: u16,
}

impl Header {
    /// Bytes of the header.
    pub const LEN: usize = 16;

    /// The header in these bytes; its values are not checked.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at| {
            let field = usize::try_from(at)
                .ok()
                .and_then(|at| array(bytes, at).ok());
            u16::from_le_bytes(field.unwrap_or_default())
        };
        Self {
            version: word(VERSION),
            entries: word(ENTRY_COUNT),
            last_batch_head: word(LAST_BATCH_HEAD),
            used_index: word(USED_INDEX),
        }
    }
}

/// Offset of the entry of `head` from the beginning of its region.
pub const fn entry(head: u16) -> u64 {
    ENTRIES + (Entry::LEN * head as usize) as u64
}

/// Bytes of the region of a ring with this many entries.
pub const fn region_len(entries: u16) -> u64 {
    (entry(0) + (Entry::LEN * entries as usize) as u64).next_multiple_of(ALIGNMENT)
}

/// The regions of all rings of one HBA, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regions {
    rings: u16,
    entries: u16,
}

impl Regions {
    /// Regions for so many rings of at most so many entries each; `None` if there is no room for
    /// them, or nothing to make room for.
    pub const fn new(rings: u16, entries: u16) -> Option<Self> {
        let regions = Self { rings, entries };
        if rings == 0 || entries == 0 || regions.len() > LEN - REGIONS {
            return None;
        }
        Some(regions)
    }

    /// For how many rings.
    pub const fn rings(&self) -> u16 {
        self.rings
    }

    /// For how many entries of each.
    pub const fn entries(&self) -> u16 {
        self.entries
    }

    /// Bytes of all of them.
    pub const fn len(&self) -> u64 {
        self.rings as u64 * region_len(self.entries)
    }

    /// Never: there is a ring with an entry.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Offset in BAR1 of the region of `ring`; `None` if there is none, or none so long.
    pub fn offset(&self, ring: u16, entries: u16) -> Option<u32> {
        let offset = REGIONS + u64::from(ring) * region_len(self.entries);
        (ring < self.rings && entries <= self.entries)
            .then(|| u32::try_from(offset).ok())
            .flatten()
    }
}

/// Whether a region of so many entries may be at `offset` of BAR1.
pub fn is_region(offset: u32, entries: u16) -> bool {
    let offset = u64::from(offset);
    offset >= REGIONS
        && offset.is_multiple_of(ALIGNMENT)
        && offset
            .checked_add(region_len(entries))
            .is_some_and(|end| end <= LEN)
}

const _: () = {
    assert!(LEN.is_power_of_two());
    assert!(REGIONS.is_multiple_of(ALIGNMENT));
    assert!(
        crate::device::MAX_RINGS == 128 && Regions::new(128, 256).is_some(),
        "every ring of QEMU's default length (128 entries) has room, and longer ones"
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_its_header_and_entries_and_ends_at_a_multiple_of_64() {
        assert_eq!(region_len(128), 2112);
        assert_eq!(region_len(3), 64);
        assert_eq!(region_len(4), 128);
        assert_eq!(entry(2), 48);
    }

    // covers: VPCI-INF-2
    #[test]
    fn regions_follow_each_other_after_the_first_page() {
        let regions = Regions::new(10, 128).unwrap();
        assert_eq!(regions.len(), 21120);
        assert_eq!(regions.offset(0, 128), Some(4096));
        assert_eq!(regions.offset(3, 64), Some(4096 + 3 * 2112));
        assert_eq!(regions.offset(10, 128), None);
        assert_eq!(regions.offset(3, 256), None);
    }

    #[test]
    fn there_is_room_for_62_rings_of_1024_entries_and_not_for_the_largest_of_all() {
        assert!(Regions::new(62, 1024).is_some());
        assert_eq!(Regions::new(128, 1024), None);
        assert_eq!(Regions::new(u16::MAX, u16::MAX), None);
        assert_eq!(Regions::new(0, 128), None);
        assert_eq!(Regions::new(3, 0), None);
    }

    #[test]
    fn no_region_lies_in_the_first_page_or_reaches_past_the_end() {
        assert!(is_region(4096, 128));
        assert!(!is_region(0, 128));
        assert!(!is_region(4097, 128));
        assert!(is_region(0x10_0000 - 64, 3));
        assert!(!is_region(0x10_0000 - 64, 4));
        assert!(!is_region(u32::MAX - 63, 4));
    }

    #[test]
    fn an_entry_is_read_as_vhost_user_lays_it_out() {
        let bytes = [1, 0, 0, 0, 0, 0, 5, 1, 9, 0, 0, 0, 0, 0, 0, 2];
        let entry = Entry::from_bytes(&bytes);
        assert!(entry.in_flight);
        assert_eq!((entry.next, entry.counter), (0x105, 0x0200_0000_0000_0009));
        assert!(!Entry::from_bytes(&[0; 16]).in_flight);
    }

    #[test]
    fn a_header_is_read_as_vhost_user_lays_it_out() {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 7, 0, 0xff, 0xff];
        assert_eq!(
            Header::from_bytes(&bytes),
            Header {
                version: 1,
                entries: 128,
                last_batch_head: 7,
                used_index: 0xffff
            }
        );
    }
}
