//! The bytes of a block in each of its versions.
//!
//! They say which block and which version it is, and half of one with half of another is neither.

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What a block holds in a version: its number, and words that only this block has in it.
pub fn content(lba: u64, version: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    if version == 0 {
        return bytes;
    }
    let mut word = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lba;
    for (at, chunk) in (0..).zip(bytes.chunks_mut(8)) {
        if at == 0 {
            chunk.copy_from_slice(&version.to_le_bytes());
        } else {
            // Xorshift.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// The version that a block holds; `None` if it is none, or not whole.
pub fn version(lba: u64, bytes: &[u8]) -> Option<u64> {
    let mut number = [0; 8];
    number.copy_from_slice(bytes.get(..8)?);
    let version = u64::from_le_bytes(number);
    (content(lba, version) == bytes).then_some(version)
}
