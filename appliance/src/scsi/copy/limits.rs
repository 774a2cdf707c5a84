//! The most that one copy may ask for, as the third-party copy page tells it.

/// CSCD descriptors of an EXTENDED COPY (MAXIMUM CSCD DESCRIPTOR COUNT).
pub const MAX_CSCDS: u16 = 16;
/// Segment descriptors of an EXTENDED COPY (MAXIMUM SEGMENT DESCRIPTOR COUNT).
pub const MAX_SEGMENTS: u16 = 64;
/// Bytes of all descriptors of an EXTENDED COPY (MAXIMUM DESCRIPTOR LIST LENGTH).
pub const MAX_DESCRIPTORS: u32 = 32 * (MAX_CSCDS as u32 + MAX_SEGMENTS as u32);
/// Bytes of a segment (MAXIMUM SEGMENT LENGTH): more than 65535 blocks of 4096 bytes.
pub const MAX_SEGMENT: u32 = 256 << 20;
/// Bytes that one command copies: what a disk does well within a command's time.
pub const MAX_COPY: u64 = 512 << 20;
/// Bytes that a token represents (MAXIMUM BYTES IN BLOCK ROD), or that are written with one.
pub const MAX_ROD: u64 = 256 << 20;
/// Block device range descriptors (MAXIMUM RANGE DESCRIPTORS).
pub const MAX_RANGES: u16 = 64;
/// Bytes that a disk copies in one operation. In between it is looked whether the copy may go on.
pub const MAX_PART: u64 = 16 << 20;
/// Bytes that go through our memory at a time, where disks cannot copy them among themselves: a whole
/// number of blocks of either.
pub const MAX_RELAY: usize = 256 << 10;
/// Buffers of [`MAX_RELAY`] bytes that the copies of an HBA have at a time.
pub const MAX_RELAYS: usize = 64;
/// Copies of one I_T nexus that are under way or remembered (TOTAL CONCURRENT COPIES).
pub const MAX_OPERATIONS: u8 = 64;
/// Tokens of an HBA.
pub const MAX_TOKENS: usize = 128;
/// Seconds that a token lives without being used, at most (MAXIMUM INACTIVITY TIMEOUT) and where
/// nothing is said (DEFAULT INACTIVITY TIMEOUT).
pub const MAX_INACTIVITY: u32 = 600;
pub const DEFAULT_INACTIVITY: u32 = 60;

const _: () = assert!(MAX_SEGMENT as u64 <= MAX_COPY && MAX_ROD <= MAX_COPY);
const _: () = assert!(MAX_SEGMENT as u64 >= 0xffff * 4096);
// A token's parameter list says how long its descriptors are in two bytes.
const _: () = assert!(536 + 16 * MAX_RANGES as u32 <= u16::MAX as u32);
const _: () = assert!(MAX_RELAY.is_multiple_of(4096));
// TRANSFER COUNT of RECEIVE COPY STATUS(LID1) has four bytes.
const _: () = assert!(MAX_COPY <= u32::MAX as u64);
