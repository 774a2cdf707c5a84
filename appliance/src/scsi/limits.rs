//! The most that one command may ask for, as the block limits page tells it (SBC-4, Block Limits
//! VPD page).

use crate::disk::{Abilities, Geometry};

/// Blocks that one command moves, compares or verifies (MAXIMUM TRANSFER LENGTH): one more than
/// the 10-byte commands can ask for.
pub const MAX_TRANSFER: u32 = 0x1_0000;
/// Blocks of a COMPARE AND WRITE (MAXIMUM COMPARE AND WRITE LENGTH): all that its CDB can ask for.
pub const MAX_COMPARE_AND_WRITE: u8 = u8::MAX;
/// Bytes of a WRITE SAME: a disk that has to write them all does so well within a command's time.
const MAX_WRITE_SAME: u64 = 512 << 20;
/// Blocks of all descriptors of an UNMAP together (MAXIMUM UNMAP LBA COUNT); libiscsi's conformance
/// tests take more for a mistake.
pub const MAX_UNMAP_BLOCKS: u32 = 0x10_0000;
/// Descriptors of an UNMAP (MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT).
pub const MAX_UNMAP_DESCRIPTORS: u16 = 256;
/// Descriptors in the answer to a GET LBA STATUS; the initiator asks on from where it ends.
pub const MAX_LBA_STATUS_DESCRIPTORS: usize = 256;
/// Blocks that a PRE-FETCH really fetches, of all that it may ask for.
pub const MAX_PREFETCH: u64 = 0x1_0000;

const _: () = assert!(MAX_TRANSFER > u16::MAX as u32);
const _: () = assert!(MAX_TRANSFER as u64 * 4096 <= MAX_WRITE_SAME);
// An UNMAP parameter list with that many descriptors fits PARAMETER LIST LENGTH.
const _: () = assert!(8 + 16 * MAX_UNMAP_DESCRIPTORS as u32 <= u16::MAX as u32);

/// Blocks of a WRITE SAME (MAXIMUM WRITE SAME LENGTH).
pub fn write_same(geometry: &Geometry) -> u64 {
    MAX_WRITE_SAME / u64::from(geometry.block_size)
}

/// Limits of a WRITE ATOMIC(16) in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtomicLimits {
    /// ATOMIC ALIGNMENT and ATOMIC TRANSFER LENGTH GRANULARITY, at least 1.
    ///
    /// Multiples of it, up to the maximum and at multiples of it, are written if there is a
    /// [window](crate::disk::Atomic::window) for them and the disk does not end inside that. So
    /// they must not be on both sides of a multiple of the maximum; what begins at one is always
    /// inside. For that rule the page has no field: its boundary (MAXIMUM ATOMIC BOUNDARY SIZE) is
    /// one at which a write is cut into several.
    pub granularity: u32,
    /// MAXIMUM ATOMIC TRANSFER LENGTH.
    pub max: u32,
}

/// Limits of atomic writes; `None` if there are none that a command could ask for.
pub fn atomic(abilities: &Abilities, geometry: &Geometry) -> Option<AtomicLimits> {
    let atomic = abilities.atomic?;
    let granularity = (atomic.min / geometry.block_size).max(1);
    // TRANSFER LENGTH has two bytes.
    let max = (atomic.max / geometry.block_size).min(0x8000);
    (granularity <= max).then_some(AtomicLimits { granularity, max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Atomic;

    fn limits(block_size: u32, min: u32, max: u32) -> Option<AtomicLimits> {
        let geometry = Geometry {
            block_size,
            blocks: 1,
            physical_block_size: block_size,
            read_only: false,
        };
        let abilities = Abilities {
            atomic: Some(Atomic { min, max }),
            ..Abilities::default()
        };
        atomic(&abilities, &geometry)
    }

    #[test]
    fn limits_of_atomic_writes_are_told_in_blocks() {
        let some = |granularity, max| Some(AtomicLimits { granularity, max });
        assert_eq!(limits(512, 4096, 65536), some(8, 128));
        assert_eq!(limits(4096, 512, 65536), some(1, 16));
        assert_eq!(limits(512, 512, 1 << 30), some(1, 0x8000));
        assert_eq!(limits(4096, 512, 512), None, "no block fits");
        assert_eq!(limits(512, 1 << 30, 1 << 30), None, "no length says it");
    }
}
