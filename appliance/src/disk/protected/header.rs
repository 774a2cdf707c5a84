//! The header by which a file is known to hold protection information.

use super::layout::{ENTRY, GROUP, HEADER};
use super::store::Medium;
use super::tag::Protection;
use crate::disk::DiskError;
use crate::disk::io::Pool;

/// What a header begins with; the last byte is the version of the layout.
const MAGIC: [u8; 8] = *b"VPCI-PI\x01";
/// Bytes at the start of a file that are zero if it is blank: no filesystem or partition table
/// leaves as many free.
const BLANK: usize = 1 << 20;

/// Why a file is not taken for a disk with protection information.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else is in it.
    #[error(
        "it holds something else, which `protection` would destroy; give the LUN a blank disk (all \
         zeros, as a new file is, or after blkdiscard -z), or remove `protection`"
    )]
    NotBlank,
    /// It was made for another configuration.
    #[error(
        "it was made with `protection = \"{protection}\"` and `block_size = {block_size}`; set these"
    )]
    Other {
        /// What its tags mean.
        protection: Protection,
        /// Bytes of its blocks.
        block_size: u32,
    },
    /// It was made by another version of the appliance.
    #[error("its header is unknown: a newer appliance made it, or it is damaged")]
    Unknown,
    /// Not even one block has room beside its tags.
    #[error("it has no room for a block with its tags; make it larger")]
    TooSmall,
    /// Nothing can be written to it.
    #[error("it is blank and read-only; let the LUN be written to once")]
    ReadOnly,
    /// It cannot be read or written.
    #[error(transparent)]
    Io(DiskError),
}

/// Checks the header of a file; a blank file gets one.
///
/// # Errors
/// [`HeaderError`].
pub fn take(
    medium: &impl Medium,
    block_size: u32,
    protection: Protection,
    read_only: bool,
) -> Result<(), HeaderError> {
    let memory = |error: std::io::Error| {
        HeaderError::Io(DiskError::from_errno(
            error.raw_os_error().unwrap_or(libc::ENOMEM),
        ))
    };
    let mut pool = Pool::new(HEADER).map_err(memory)?;
    let Some(run) = pool.take(HEADER) else {
        return Err(HeaderError::Io(DiskError::Busy));
    };
    let header = pool.bytes_mut(&run);
    medium.read(0, header).map_err(HeaderError::Io)?;
    let ours = bytes(block_size, protection);
    if header.iter().any(|&byte| byte != 0) {
        return check(header, &ours);
    }
    // The rest is looked at in pieces, up to its end.
    for at in (HEADER..BLANK).step_by(HEADER) {
        match medium.read(at as u64, header) {
            Ok(()) if header.iter().all(|&byte| byte == 0) => {}
            Ok(()) => return Err(HeaderError::NotBlank),
            Err(DiskError::Truncated) => break,
            Err(error) => return Err(HeaderError::Io(error)),
        }
    }
    if read_only {
        return Err(HeaderError::ReadOnly);
    }
    header.fill(0);
    header[..ours.len()].copy_from_slice(&ours);
    medium.write(0, header).map_err(HeaderError::Io)?;
    medium.sync().map_err(HeaderError::Io)
}

/// What a header says.
fn bytes(block_size: u32, protection: Protection) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(block_size.to_be_bytes());
    bytes.push(match protection {
        Protection::Type1 => 1,
        Protection::Type3 => 3,
    });
    bytes
}

fn check(header: &[u8], ours: &[u8]) -> Result<(), HeaderError> {
    if header.starts_with(ours) {
        return Ok(());
    }
    if !header.starts_with(&MAGIC[..MAGIC.len() - 1]) {
        return Err(HeaderError::NotBlank);
    }
    let block_size = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    let protection = match header[12] {
        1 => Protection::Type1,
        3 => Protection::Type3,
        _ => return Err(HeaderError::Unknown),
    };
    if header[7] != MAGIC[7] || !matches!(block_size, 512 | 4096) {
        return Err(HeaderError::Unknown);
    }
    Err(HeaderError::Other {
        protection,
        block_size,
    })
}

// The layout that version 1 stands for.
const _: () = assert!(GROUP == 256 && ENTRY == 16 && HEADER == 4096);
