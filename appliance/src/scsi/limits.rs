//! The most that one command may ask for, as the block limits page tells it (SBC-4, block limits
//! VPD page).

/// Blocks that one command moves, compares or verifies (MAXIMUM TRANSFER LENGTH): one more than
/// the 10-byte commands can ask for.
pub const MAX_TRANSFER: u32 = 0x1_0000;
/// Blocks of a COMPARE AND WRITE (MAXIMUM COMPARE AND WRITE LENGTH): all that its CDB can ask for.
pub const MAX_COMPARE_AND_WRITE: u8 = u8::MAX;
/// Blocks of a WRITE SAME (MAXIMUM WRITE SAME LENGTH): a disk that has to write them all does so
/// well within a command's time.
pub const MAX_WRITE_SAME: u64 = 0x10_0000;
/// Blocks of all descriptors of an UNMAP together (MAXIMUM UNMAP LBA COUNT).
pub const MAX_UNMAP_BLOCKS: u32 = 0x40_0000;
/// Descriptors of an UNMAP (MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT).
pub const MAX_UNMAP_DESCRIPTORS: u32 = 256;

const _: () = assert!(MAX_TRANSFER > u16::MAX as u32);
const _: () = assert!(MAX_TRANSFER as u64 <= MAX_WRITE_SAME);
// An UNMAP parameter list with that many descriptors fits PARAMETER LIST LENGTH.
const _: () = assert!(8 + 16 * MAX_UNMAP_DESCRIPTORS <= u16::MAX as u32);
