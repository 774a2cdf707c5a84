//! Disks: bounded arrays of blocks, and the loop that reads and writes them.
//!
//! Above this module stand `scsi`, which decides what to do with which disk, and the worker,
//! which owns one [`Io`]. A disk never sees a SCSI command or a vring.

mod error;
mod io;

use std::sync::Arc;

pub use error::DiskError;
pub use io::{Event, Io, Request};

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
        /// Done only when the data is on stable storage (SBC: force unit access).
        fua: bool,
    },
    /// Done when every write completed before it is on stable storage.
    Flush,
}

/// A disk, as the layers above it see it.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// What the disk is like.
    fn geometry(&self) -> Geometry;
    /// The file on which [`Io`] carries `op` out, or why the disk refuses it.
    ///
    /// # Errors
    /// Whatever the operation shall end with.
    fn file_for(&self, op: &Op) -> Result<Arc<OpenFile>, DiskError>;
}

/// An open, locked file.
#[derive(Debug)]
pub struct OpenFile {}
