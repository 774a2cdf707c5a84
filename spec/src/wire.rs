//! Little-endian fields of a byte slice.

/// A byte slice that is too short for the structure it should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

impl std::fmt::Display for Truncated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("too few bytes for this structure")
    }
}

impl std::error::Error for Truncated {}

/// The `N` bytes at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Truncated> {
    let end = offset.checked_add(N).ok_or(Truncated)?;
    bytes
        .get(offset..end)
        .and_then(|field| field.try_into().ok())
        .ok_or(Truncated)
}

/// The little-endian `u32` at `offset`.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> Result<u32, Truncated> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian `u64` at `offset`.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> Result<u64, Truncated> {
    array(bytes, offset).map(u64::from_le_bytes)
}
