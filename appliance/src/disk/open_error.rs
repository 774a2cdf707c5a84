//! Why a disk could not be opened, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::SnapshotError;

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct OpenError {
    /// The file or device.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: OpenProblem,
}

/// What is wrong with a file or device that should be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenProblem {
    /// There is nothing at the path.
    #[error("no such file or device; create it or correct `path` (or `serial`) of the LUN")]
    Missing,
    /// The file may not be opened this way.
    #[error(
        "permission denied; let the appliance's user read{} it",
        if *.write { " and write" } else { "" }
    )]
    Permission {
        /// Whether it was to be written.
        write: bool,
    },
    /// It can only be read.
    #[error(
        "it can only be read; set `read_only = true` for the LUN, or let the appliance write it"
    )]
    OnlyReadable,
    /// A directory, pipe, character device, …
    #[error("it is neither a regular file nor a block device")]
    WrongKind,
    /// Another open file description holds a lock that excludes ours.
    #[error(
        "it is locked by another user of the same file; stop the other one (another appliance, or \
         another LUN of this one), or give this LUN a disk of its own"
    )]
    Locked,
    /// The kernel uses the device (mounted, part of a RAID or volume group), or another opener
    /// has claimed it as we do.
    #[error(
        "the device is in use: mounted, part of a RAID or volume group, or another LUN's or \
         another appliance's disk; release it there, or give this LUN a disk of its own"
    )]
    InUse,
    /// The filesystem has no O_DIRECT.
    #[error(
        "its filesystem has no direct I/O; put the file elsewhere or set `cache = \"write-back\"` for the LUN"
    )]
    NoDirect,
    /// O_DIRECT needs larger blocks than the LUN has.
    #[error(
        "direct I/O on it needs blocks of {needed} bytes, but the LUN has {block_size}; set \
         `block_size = {needed}` or `cache = \"write-back\"`"
    )]
    Alignment {
        /// Bytes that offsets and lengths must be multiples of.
        needed: u32,
        /// Bytes of the LUN's blocks.
        block_size: u32,
    },
    /// A block size that is neither 512 nor 4096.
    #[error("`block_size = {0}` is not possible; use 512 or 4096")]
    BlockSize(u32),
    /// Not even one block.
    #[error("it has {size} bytes, less than one block of {block_size}; make it larger")]
    TooSmall {
        /// Bytes of the file or device.
        size: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// A part of a block at the end.
    #[error(
        "its size of {size} bytes is not a multiple of the block size {block_size}; resize it to \
         {} bytes",
        size.next_multiple_of(u64::from(*block_size))
    )]
    NotAMultiple {
        /// Bytes of the file or device, or of the LUN where its size is configured.
        size: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// The LUN is configured larger than its disk.
    #[error(
        "the LUN is to have {wanted} bytes, but its disk only has {size}; enlarge the disk or lower `size`"
    )]
    LargerThanDisk {
        /// Configured bytes of the LUN.
        wanted: u64,
        /// Bytes of the file or device.
        size: u64,
    },
    /// A rollback was interrupted, and cannot be finished.
    #[error(
        "it is rolled back in part only, as that was interrupted, and that cannot be finished: {0}. \
         The folder named as it is, with `.snapshots` behind, has the snapshot, and in `.before` \
         what the disk was; remove `.rollback` there to use it as it is"
    )]
    Rollback(Box<SnapshotError>),
    /// A rollback was interrupted, and may not be finished.
    #[error(
        "it is rolled back to {0:?} in part only, as that was interrupted; serve it once without \
         `read_only`, which finishes it"
    )]
    HalfRolledBack(String),
    /// Anything else.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
