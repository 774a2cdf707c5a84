//! Disks: bounded arrays of blocks, and the loop that reads and writes them.
//!
//! Above this module stand `scsi`, which decides what to do with which disk, and the worker,
//! which owns one [`Io`]. A disk never sees a SCSI command or a vring.

mod closing;
mod error;
mod file;
mod gate;
mod io;
mod known;
mod memory_disk;
mod open_error;
mod open_file;
mod probe;
mod protected;
mod ranges;
mod reflink;
mod settled;
mod sharing;
mod snapshot;
mod sys;
mod table;
mod watch;

use std::sync::Arc;

use crate::memory::Segments;

pub use error::DiskError;
pub use file::{Cache, FileDisk, FileOptions};
pub use gate::{Closed, Gate};
pub use io::{Event, Io, Request, SetupError};
pub use memory_disk::{NullDisk, RamDisk};
pub use open_error::{OpenError, OpenProblem};
pub use open_file::{Deed, OpenFile, Witness};
pub use protected::{BadTag, Checks, HeaderError, Protected, ProtectedDisk, Protection, Tag};
pub use reflink::{Kernel, Reflink};
pub use sharing::Copied;
pub use snapshot::{RolledBack, Snapshot, SnapshotError, Snapshots};
pub use watch::Watch;

/// How large a disk is and how it is cut; the number of blocks may change while it is open.
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

/// What a disk can do beyond reading and writing; it stays so while the disk is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Blocks can be given back and read as zeros from then on; `None` if not.
    pub thin: Option<Thin>,
    /// Writes that are torn by nothing; `None` if there are none.
    pub atomic: Option<Atomic>,
    /// Bytes that the disk likes best in one piece; `None` if it does not say.
    pub optimal: Option<u32>,
}

/// How blocks are given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thin {
    /// Bytes that are given back together; smaller or unaligned pieces may stay allocated.
    pub granularity: u32,
    /// Whether it can be told which blocks are allocated.
    pub mapped: bool,
}

/// Limits of an atomic write in bytes, as statx(2) reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Atomic {
    /// Shortest; a power of two. Offsets are multiples of the length, which is a power of two.
    pub min: u32,
    /// Longest; a power of two.
    pub max: u32,
}

impl Atomic {
    /// The bytes that the disk writes at once so that `len` bytes at `offset` are written whole or
    /// not at all, as (offset, length): the smallest power of two, at a multiple of itself, that
    /// they are inside. `None` if there are no bytes, or the smallest is longer than the longest.
    pub fn window(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let last = offset.checked_add(len.checked_sub(1)?)?;
        // Above the highest bit in which the first and the last byte differ, they are one.
        let shared = u64::BITS - (offset ^ last).leading_zeros();
        let window = 1_u64.checked_shl(shared)?.max(self.min.into());
        (window <= self.max.into()).then(|| (offset - offset % window, window))
    }
}

/// How full what is under a thin disk is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// That the disk occupies.
    pub used: u64,
    /// That it, or its neighbours, can still occupy.
    pub available: u64,
}

/// An operation on a disk; offset and length in bytes, multiples of the block size.
///
/// Of operations that are under way together, each block is as if they came one after the other;
/// those that read what they change ([`Self::CompareAndWrite`], [`Self::Or`],
/// [`Self::WriteVerify`], [`Self::Mend`], an atomic [`Self::Write`] of a part of its window) keep
/// all others that change these blocks away meanwhile. Reads are kept away by nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        /// Done only when the data is on stable storage (SBC-4: force unit access).
        fua: bool,
        /// All or nothing, whatever happens; [`DiskError::Unsupported`] where
        /// [`Atomic::window`] has none, or the disk ends inside it. Where the window is more than
        /// is to be written, it is read and written as a whole, and nothing comes in between.
        atomic: bool,
    },
    /// The first block of the tenant's buffer, again and again.
    WriteSame {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to write.
        len: u64,
        /// As for a write.
        fua: bool,
    },
    /// Writes, then reads back from the disk and compares: [`DiskError::Miscompare`] where they
    /// differ. Done only when the data is on stable storage.
    WriteVerify {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to move.
        len: usize,
    },
    /// Compares blocks with the tenant's buffer: [`DiskError::Miscompare`] where they differ.
    Compare {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to compare.
        len: u64,
        /// The buffer is one block, with which each is compared.
        same: bool,
    },
    /// Reads blocks, for the sake of the errors that come of it.
    Check {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to read.
        len: u64,
    },
    /// Compares blocks with the first half of the tenant's buffer, and writes the second half
    /// if they are equal; nothing comes in between.
    CompareAndWrite {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to compare, and to write: half of the buffer.
        len: usize,
        /// As for a write.
        fua: bool,
    },
    /// Puts the OR of blocks and buffer in their place; nothing comes in between.
    Or {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to change.
        len: usize,
        /// As for a write.
        fua: bool,
    },
    /// Makes blocks zero.
    Zero {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to change.
        len: u64,
        /// They may be given back.
        unmap: bool,
        /// As for a write.
        fua: bool,
    },
    /// Reads blocks, and makes all of them zero if one cannot be read; nothing comes in between.
    /// Done only when the zeros are on stable storage.
    Mend {
        /// First byte on the disk.
        offset: u64,
        /// Bytes to read, and perhaps to write.
        len: u64,
    },
    /// Gives blocks back; they read as zeros from then on. What is no whole granule at either end
    /// of a range stays allocated. [`DiskError::Unsupported`] if the disk is not thin.
    Unmap {
        /// First byte and length of each range.
        ranges: Arc<[(u64, u64)]>,
        /// As for a write.
        fua: bool,
    },
    /// Tells the disk what will be read soon. Done when it has heard; a direct disk has no use
    /// for it, a write-back disk reads a part of limited length.
    Prefetch {
        /// First byte on the disk.
        offset: u64,
        /// Bytes that will be read.
        len: u64,
    },
    /// Asks which blocks are allocated; answered by [`Reply::Allocation`].
    Allocation {
        /// First byte on the disk, before its end.
        offset: u64,
        /// Most extents to be told; fewer may be, but at least one.
        limit: usize,
    },
    /// Puts blocks of a disk into the place of others, as if all were read before any is written;
    /// the tenant's memory has no part in it. Of the two block sizes, offsets and length are
    /// multiples of the one that concerns them. [`DiskError::SourceFailed`] where the blocks to be
    /// copied cannot be read.
    Copy {
        /// Where they come from; may be the same disk.
        source: Source,
        /// First byte on the source.
        from: u64,
        /// First byte on the disk.
        offset: u64,
        /// Bytes to copy.
        len: u64,
        /// As for a write.
        fua: bool,
    },
    /// Another one, on a disk with protection information, which does no other to its blocks.
    /// Done only when what it writes is on stable storage. Reads wait for what changes the blocks.
    Protected(Box<Protected>),
    /// Done when every write that was done before it is on stable storage.
    Flush,
    /// Done when nothing that changes blocks and came before it is under way, here or in another
    /// loop; what was cancelled while the kernel was at it counts until it can land no more.
    /// Changes that come later wait for it.
    Barrier,
    /// As [`Self::Barrier`]; and every change that comes later, in whichever loop of this program,
    /// is heard of by the watch. [`DiskError::Unsupported`] where nobody would hear.
    Watch(Watch),
}

/// The disk that blocks are copied from.
#[derive(Debug, Clone)]
pub struct Source(pub Arc<dyn Disk>);

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Source {}

impl Op {
    /// Bytes that it takes from the tenant's buffer; `None` if no buffer has room for them.
    /// `block` is the disk's block size.
    pub fn data_out(&self, block: u32) -> Option<usize> {
        match *self {
            Self::Write { len, .. } | Self::WriteVerify { len, .. } | Self::Or { len, .. } => {
                Some(len)
            }
            Self::CompareAndWrite { len, .. } => len.checked_mul(2),
            Self::WriteSame { .. } | Self::Compare { same: true, .. } => {
                usize::try_from(block).ok()
            }
            Self::Compare { len, .. } => usize::try_from(len).ok(),
            Self::Protected(ref what) if what.op.data_in() == 0 => {
                what.op.data_out(block)?.checked_add(what.prefix)
            }
            Self::Protected(_) => Some(0),
            Self::Read { .. }
            | Self::Check { .. }
            | Self::Zero { .. }
            | Self::Mend { .. }
            | Self::Unmap { .. }
            | Self::Prefetch { .. }
            | Self::Allocation { .. }
            | Self::Copy { .. }
            | Self::Flush
            | Self::Barrier
            | Self::Watch(_) => Some(0),
        }
    }

    /// Bytes that it takes from the tenant's buffer, as [`Self::data_out`] has it, and those that it
    /// puts there.
    #[inline]
    pub fn moves(&self, block: u32) -> (Option<usize>, usize) {
        match *self {
            Self::Read { len, .. } => (Some(0), len),
            Self::Write { len, .. } => (Some(len), 0),
            ref other => (other.data_out(block), other.data_in()),
        }
    }

    /// Bytes that it puts into the tenant's buffer.
    #[inline]
    pub fn data_in(&self) -> usize {
        match *self {
            Self::Read { len, .. } => len,
            Self::Protected(ref what) => match what.op.data_in() {
                0 => 0,
                len => len.saturating_add(what.prefix),
            },
            _ => 0,
        }
    }

    /// Bytes for tags before the data in the tenant's buffer.
    #[inline]
    pub fn prefix(&self) -> usize {
        match self {
            Self::Protected(what) => what.prefix,
            _ => 0,
        }
    }

    /// The operation without its tags.
    #[inline]
    pub const fn plain(&self) -> &Self {
        match self {
            Self::Protected(what) => &what.op,
            other => other,
        }
    }

    /// The same, as a disk carries it out that may have protection information.
    #[must_use]
    pub fn on(self, disk: &dyn Disk) -> Self {
        match disk.protected() {
            Some(_) => Self::Protected(Box::new(Protected::new(self))),
            None => self,
        }
    }

    /// The same, but what it writes is on stable storage when it is done.
    #[must_use]
    pub fn stable(mut self) -> Self {
        match &mut self {
            Self::Write { fua, .. }
            | Self::WriteSame { fua, .. }
            | Self::CompareAndWrite { fua, .. }
            | Self::Or { fua, .. }
            | Self::Zero { fua, .. }
            | Self::Copy { fua, .. }
            | Self::Unmap { fua, .. } => *fua = true,
            Self::Read { .. }
            | Self::WriteVerify { .. }
            | Self::Compare { .. }
            | Self::Check { .. }
            | Self::Mend { .. }
            | Self::Prefetch { .. }
            | Self::Allocation { .. }
            | Self::Protected(_)
            | Self::Flush
            | Self::Barrier
            | Self::Watch(_) => {}
        }
        self
    }

    /// Whether it may change what the disk holds.
    #[inline]
    pub fn changes_blocks(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::WriteSame { .. }
            | Self::WriteVerify { .. }
            | Self::CompareAndWrite { .. }
            | Self::Or { .. }
            | Self::Zero { .. }
            | Self::Mend { .. }
            | Self::Copy { .. }
            | Self::Unmap { .. } => true,
            Self::Protected(what) => what.op.changes_blocks(),
            Self::Read { .. }
            | Self::Compare { .. }
            | Self::Check { .. }
            | Self::Prefetch { .. }
            | Self::Allocation { .. }
            | Self::Flush
            | Self::Barrier
            | Self::Watch(_) => false,
        }
    }
}

/// How an operation ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// As it was to.
    Done,
    /// Extents from the offset on, without gaps; at least one, neighbours different.
    Allocation(Vec<Extent>),
}

/// Consecutive blocks of the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, a multiple of the block size.
    pub len: u64,
    /// Whether space is allocated for them.
    pub allocated: bool,
}

/// A disk, as the layers above it see it.
///
/// Whoever calls checks nothing: [`Io::submit`] refuses what is outside the geometry or larger
/// than its buffer. An implementation decides which file an operation goes to, or that it fails.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// How large the disk is now.
    fn geometry(&self) -> Geometry;
    /// What else it can do.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }
    /// How full what is under it is; `None` if that cannot be told.
    fn usage(&self) -> Option<Usage> {
        None
    }
    /// Makes it `bytes` long, a whole number of blocks and no less than it has; it does not become
    /// shorter.
    ///
    /// # Errors
    /// What the kernel reports; [`std::io::ErrorKind::Unsupported`] where it is not for us to make
    /// it longer.
    fn grow(&self, _bytes: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    /// Looks at the size of what is under it again; whether the geometry is another now.
    ///
    /// # Errors
    /// What the kernel reports.
    fn refresh(&self) -> std::io::Result<bool> {
        Ok(false)
    }
    /// The same, if it has protection information: all but a flush, a barrier and a watch is to be
    /// [`Op::Protected`] then.
    fn protected(&self) -> Option<&ProtectedDisk> {
        None
    }
    /// Its snapshots.
    ///
    /// # Errors
    /// [`SnapshotError::NoFile`] or [`SnapshotError::BlockDevice`].
    fn snapshots(&self) -> Result<Snapshots<'_>, SnapshotError> {
        Err(SnapshotError::NoFile)
    }
    /// What was copied to it from disks, by the way that it came; `None` if it is no file.
    fn copied(&self) -> Option<Copied> {
        None
    }
    /// Whether what was written may be in the memory of this machine only, until a flush.
    fn caches_writes(&self) -> bool {
        false
    }
    /// Puts on stable storage what was written; waits for as long as that takes.
    ///
    /// # Errors
    /// As for [`Op::Flush`].
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    /// Whether [`Self::at_once`] does any operation.
    fn answers_at_once(&self) -> bool {
        false
    }
    /// Carries `op` out at once, which [`Io`] has checked, from or to the tenant's buffer `data`;
    /// `None` if that takes [a file](Self::file_for).
    fn at_once(&self, op: &Op, data: Option<&Segments>) -> Option<Result<Reply, DiskError>> {
        let _ = (op, data);
        None
    }
    /// The file on which [`Io`] carries `op` out; offsets are the same in both.
    ///
    /// # Errors
    /// What the operation shall end with instead.
    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_is_inside_the_smallest_aligned_power_of_two() {
        let disk = Atomic {
            min: 4096,
            max: 65536,
        };
        for (offset, len, window) in [
            (0, 4096, Some((0, 4096))),
            (65536, 65536, Some((65536, 65536))),
            // Shorter than the shortest.
            (512, 512, Some((0, 4096))),
            (8191, 1, Some((4096, 4096))),
            // No power of two, or not aligned.
            (4096, 8192, Some((0, 16384))),
            (8192, 12288, Some((0, 32768))),
            (4096, 12288, Some((0, 16384))),
            (61440, 4096, Some((61440, 4096))),
            (4096, 61440, Some((0, 65536))),
            // Longer than the longest, or across the end of one.
            (0, 69632, None),
            (0, 131_072, None),
            (65535, 2, None),
            (61440, 8192, None),
            (u64::MAX, 2, None),
            (0, u64::MAX, None),
            (4096, 0, None),
        ] {
            assert_eq!(disk.window(offset, len), window, "{len} at {offset}");
        }
        let end = u64::MAX - 4095;
        assert_eq!(disk.window(end, 4096), Some((end, 4096)));
    }
}
