//! The layout of session memory (BAR4), which the shim owns and the appliance maps.
//!
//! The appliance may write every byte of it, so the shim reads each word once and trusts none;
//! the tenant and its QEMU never see it.

use crate::wire::{Truncated, le64};

/// Length of session memory in bytes; a power of two, as a BAR must be.
pub const LEN: u64 = 0x2_0000;

/// Slot of the request that the shim posts to the appliance.
pub const MAILBOX_REQUEST: u64 = 0x1000;
/// Slot of the reply that the appliance writes.
pub const MAILBOX_REPLY: u64 = 0x2000;
/// Length of one mailbox slot in bytes.
pub const MAILBOX_SLOT_LEN: usize = 0x1000;

/// The doorbell page: need-wakeup flag and call counters.
pub const DOORBELL_PAGE: u64 = 0x4000;
/// `u32`, written by the shim: 1 while it sleeps, so that a call must also ring the trapped
/// doorbell; 0 while it polls the counters.
pub const NEED_WAKEUP: u64 = DOORBELL_PAGE;
/// Bytes from one ring's call counter to the next: one cache line.
pub const CALL_STRIDE: u64 = 64;

/// The memory table: header, then [`MEMORY_SLOTS`] entries.
pub const MEMORY_TABLE: u64 = 0x8000;
/// `u32`, seqlock: odd while the shim writes the table.
pub const MEMORY_SEQUENCE: u64 = MEMORY_TABLE;
/// `u32`: number of entries.
pub const MEMORY_COUNT: u64 = MEMORY_TABLE + 4;
/// `u32`: the generation in the MEMORY_GENERATION register that this table belongs to.
pub const MEMORY_GENERATION: u64 = MEMORY_TABLE + 8;
/// The first entry.
pub const MEMORY_ENTRIES: u64 = MEMORY_TABLE + 64;
/// Most entries of the table (QEMU's limit for memory slots).
pub const MEMORY_SLOTS: usize = 512;

/// The marks of units: [`UNIT_MARKS`] slots. The appliance's own; the shim keeps them.
pub const UNIT_MARK_SLOTS: u64 = 0x1_0000;
/// Most units of an HBA that have a mark at a time.
pub const UNIT_MARKS: usize = 256;

/// The mark in slot `index`.
pub const fn unit_mark(index: usize) -> u64 {
    UNIT_MARK_SLOTS + (index * UnitMark::LEN) as u64
}

/// A unit with writes that are acknowledged, but in the memory of the storage VM only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnitMark {
    /// The unit's NAA identifier.
    pub unit: u64,
    /// Which boot of the storage VM has them in its memory (boot_id); zero if the slot is free.
    pub boot: [u8; 16],
}

impl UnitMark {
    /// Bytes of one slot; bytes 8 to 15 are reserved and zero.
    pub const LEN: usize = 32;

    /// Whether the slot is free.
    pub fn is_free(&self) -> bool {
        self.boot == [0; 16]
    }

    /// This mark as it stands in its slot.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.unit.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.boot);
        bytes
    }

    /// The mark in the bytes of a slot.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut mark = Self::default();
        let mut unit = [0; 8];
        unit.copy_from_slice(&bytes[0..8]);
        mark.unit = u64::from_le_bytes(unit);
        mark.boot.copy_from_slice(&bytes[16..32]);
        mark
    }
}

/// The call counter of `ring`: a `u32` that the appliance increments for each interrupt it
/// wants the tenant to get.
pub const fn call_counter(ring: u16) -> u64 {
    DOORBELL_PAGE + CALL_STRIDE * (ring as u64 + 1)
}

/// The table entry at `index`.
pub const fn memory_entry(index: usize) -> u64 {
    MEMORY_ENTRIES + (index * MemoryEntry::LEN) as u64
}

/// One range of the tenant's guest-physical memory and where it is in BAR2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEntry {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Length in bytes, not zero.
    pub len: u64,
    /// Offset in BAR2 (and in the tenant's memory file) of its first byte.
    pub bar_offset: u64,
}

impl MemoryEntry {
    /// Bytes of one entry; the last 8 are reserved and zero.
    pub const LEN: usize = 32;

    /// This entry as it stands in the table.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.guest_address.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.bar_offset.to_le_bytes());
        bytes
    }

    /// The entry in `bytes`, at least [`Self::LEN`] of them; its values are not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Truncated> {
        if bytes.len() < Self::LEN {
            return Err(Truncated);
        }
        Ok(Self {
            guest_address: le64(bytes, 0)?,
            len: le64(bytes, 8)?,
            bar_offset: le64(bytes, 16)?,
        })
    }
}

const _: () = {
    assert!(LEN.is_power_of_two());
    assert!(MAILBOX_REQUEST + MAILBOX_SLOT_LEN as u64 <= MAILBOX_REPLY);
    assert!(MAILBOX_REPLY + MAILBOX_SLOT_LEN as u64 <= DOORBELL_PAGE);
    assert!(DOORBELL_PAGE + CALL_STRIDE * (crate::device::MAX_RINGS as u64 + 1) <= MEMORY_TABLE);
    assert!(MEMORY_ENTRIES + (MEMORY_SLOTS * MemoryEntry::LEN) as u64 <= UNIT_MARK_SLOTS);
    assert!(UNIT_MARK_SLOTS + (UNIT_MARKS * UnitMark::LEN) as u64 <= LEN);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_mark_survives_its_bytes() {
        let mark = UnitMark {
            unit: 0x3123_4567_89ab_cdef,
            boot: [7; 16],
        };
        assert_eq!(UnitMark::from_bytes(&mark.to_bytes()), mark);
        assert!(!mark.is_free() && UnitMark::default().is_free());
    }

    #[test]
    fn a_memory_entry_survives_its_bytes() {
        let entry = MemoryEntry {
            guest_address: 1 << 32,
            len: 4096,
            bar_offset: 2 << 30,
        };
        assert_eq!(MemoryEntry::from_bytes(&entry.to_bytes()), Ok(entry));
        assert_eq!(MemoryEntry::from_bytes(&[0; 31]), Err(Truncated));
    }
}
