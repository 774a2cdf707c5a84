//! Disks: bounded arrays of blocks, and the loop that reads and writes them.
//!
//! Above this module stand `scsi`, which decides what to do with which disk, and the worker,
//! which owns one [`Io`]. A disk never sees a SCSI command or a vring.

mod error;
mod file;
mod io;
mod open_error;
mod sys;

use std::sync::Arc;

pub use error::DiskError;
pub use file::{Cache, FileDisk, FileOptions, OpenFile};
pub use io::{Event, Io, Request, SetupError};
pub use open_error::{OpenError, OpenProblem};

/// What a disk is like; it stays so while the disk is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a logical block: 512 or 4096.
    pub block_size: u32,
    /// Number of logical blocks, at least 1.
    pub blocks: u64,
    /// Bytes of a physical block: a power of two, at least `block_size`.
    pub physical_block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// An operation on a disk; offset and length in bytes, multiples of the block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// From the disk to the tenant.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to move.
        len: usize,
    },
    /// From the tenant to the disk.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to move.
        len: usize,
        /// Done only when the data is on stable storage (SBC-3: force unit access).
        fua: bool,
    },
    /// Done when every write that was done before it is on stable storage.
    Flush,
}

/// A disk, as the layers above it see it.
///
/// Whoever calls checks nothing: [`Io::submit`] refuses what is outside the geometry or larger
/// than its buffer. An implementation decides which file an operation goes to, or that it fails.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// What the disk is like.
    fn geometry(&self) -> Geometry;
    /// The file on which [`Io`] carries `op` out; offsets are the same in both.
    ///
    /// # Errors
    /// What the operation shall end with instead.
    fn file_for(&self, op: &Op) -> Result<Arc<OpenFile>, DiskError>;
}
