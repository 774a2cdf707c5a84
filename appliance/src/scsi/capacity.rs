//! READ CAPACITY: how many blocks there are, with what they are like.

use super::protection;
use crate::disk::{Abilities, Geometry, Protection};

/// LBPME: blocks can be given back.
const MANAGED: u8 = 0x80;
/// LBPRZ: blocks that were given back read as zeros.
const ZEROS: u8 = 0x40;

/// READ CAPACITY(10) data (SBC-3 §5.15).
pub fn short(geometry: &Geometry) -> Vec<u8> {
    // More than 32 bits of LBA: all ones, "use READ CAPACITY(16)".
    let last = u32::try_from(last(geometry)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), geometry.block_size.to_be_bytes()].concat()
}

/// READ CAPACITY(16) data (SBC-3 §5.16).
pub fn long(geometry: &Geometry, abilities: &Abilities, protection: Option<Protection>) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[0..8].copy_from_slice(&last(geometry).to_be_bytes());
    data[8..12].copy_from_slice(&geometry.block_size.to_be_bytes());
    // P_I_EXPONENT stays 0: one tag for each block.
    data[12] = protection.map_or(0, protection::capacity_flags);
    // LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT, four bits.
    let per_physical = geometry.physical_block_size / geometry.block_size;
    let exponent = per_physical.checked_ilog2().unwrap_or(0).min(15);
    data[13] = u8::try_from(exponent).unwrap_or(0);
    // LOWEST ALIGNED LOGICAL BLOCK ADDRESS stays 0: a disk starts with a physical block.
    if abilities.thin.is_some() {
        data[14] = MANAGED | ZEROS;
    }
    data
}

fn last(geometry: &Geometry) -> u64 {
    geometry.blocks.saturating_sub(1)
}
