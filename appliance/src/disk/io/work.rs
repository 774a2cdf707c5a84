//! What an operation does.

use std::sync::Arc;

use super::offload::Offer;
use super::operation::index;
use super::protected::Tagged;
use crate::disk::ranges::Mode;
use crate::disk::{Cache, Disk, Op, Watch};
use crate::memory::Segments;

/// Most bytes that are read ahead for one operation; it is no use to fill the page cache.
const MAX_PREFETCH: u64 = 64 << 20;
/// Most extents that are told at once.
const MAX_EXTENTS: usize = 4096;

/// What to do, as far as it has come.
#[derive(Debug)]
pub enum Work {
    Read,
    Write {
        atomic: bool,
    },
    /// An atomic write of a part of what the disk writes at once.
    Patch {
        /// Bytes before the part.
        skip: u64,
        /// Bytes of the part.
        len: u64,
    },
    /// With a copy of the block.
    WriteSame(Box<[u8]>),
    WriteVerify,
    Compare,
    /// With a copy of the block.
    CompareSame(Box<[u8]>),
    Check,
    CompareAndWrite(Half),
    Or,
    Zero(Zeroing),
    Mend(Mending),
    Unmap {
        ranges: Arc<[(u64, u64)]>,
        /// Ranges that were begun.
        begun: usize,
    },
    Prefetch,
    Allocation {
        /// End of the disk and size of a block in bytes.
        end: u64,
        block: u64,
        limit: usize,
        /// Whether the question is on its way.
        asked: bool,
    },
    /// Its first byte on the source, which is not always where the next piece is read.
    Copy {
        from: u64,
        order: Order,
        /// What the filesystem may do of it.
        offer: Option<Offer>,
    },
    /// `None` if the disk has no protection information: it fails then.
    Protected(Option<Box<Tagged>>),
    Flush,
    Barrier,
    Watch(Watch),
}

/// In which order blocks may be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In any, several at a time.
    Any,
    /// One after the other from the first: what is copied lies before its source, and overlaps.
    Forwards,
    /// One after the other from the last: what is copied lies behind its source, and overlaps.
    Backwards,
}

impl Order {
    /// The order in which `len` bytes can be copied on a disk.
    pub fn on_one_disk(from: u64, to: u64, len: u64) -> Self {
        if from.abs_diff(to) >= len {
            Self::Any
        } else if to < from {
            Self::Forwards
        } else {
            Self::Backwards
        }
    }
}

/// Which half of the buffer it is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Compare,
    Write,
}

/// How to make blocks zero; each way is tried when the one before it is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroing {
    Punch,
    Range,
    Write,
}

/// How far a mend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mending {
    /// Whether the blocks can be read is not known yet.
    Read,
    /// They cannot.
    Write,
}

/// The first block of a buffer, read once.
fn block(data: Option<&Segments>, len: u32) -> Box<[u8]> {
    let mut block = vec![0; index(len.into())].into_boxed_slice();
    if let Some(data) = data {
        data.read_at(0, &mut block);
    }
    block
}

impl Work {
    /// What `op` does, the first byte of its first stage, and how many it has.
    pub fn of(op: Op, disk: &dyn Disk, cache: Cache, data: Option<&Segments>) -> (Self, u64, u64) {
        let geometry = disk.geometry();
        let block_size = geometry.block_size;
        match op {
            Op::Read { offset, len } => (Work::Read, offset, len as u64),
            Op::Write {
                offset,
                len,
                atomic,
                ..
            } => {
                let limits = disk.abilities().atomic.filter(|_| atomic);
                let window = limits.and_then(|limits| limits.window(offset, len as u64));
                match window {
                    Some((start, whole)) if whole != len as u64 => {
                        let patch = Work::Patch {
                            skip: offset - start,
                            len: len as u64,
                        };
                        (patch, start, whole)
                    }
                    _ => (Work::Write { atomic }, offset, len as u64),
                }
            }
            Op::WriteSame { offset, len, .. } => {
                let block = block(data, block_size);
                (Work::WriteSame(block), offset, len)
            }
            Op::WriteVerify { offset, len } => (Work::WriteVerify, offset, len as u64),
            Op::Compare {
                offset,
                len,
                same: false,
            } => (Work::Compare, offset, len),
            Op::Compare { offset, len, .. } => {
                let block = block(data, block_size);
                (Work::CompareSame(block), offset, len)
            }
            Op::Check { offset, len } => (Work::Check, offset, len),
            Op::CompareAndWrite { offset, len, .. } => {
                (Work::CompareAndWrite(Half::Compare), offset, len as u64)
            }
            Op::Or { offset, len, .. } => (Work::Or, offset, len as u64),
            Op::Zero {
                offset, len, unmap, ..
            } => {
                let first = if unmap && disk.abilities().thin.is_some() {
                    Zeroing::Punch
                } else {
                    Zeroing::Range
                };
                (Work::Zero(first), offset, len)
            }
            Op::Mend { offset, len } => (Work::Mend(Mending::Read), offset, len),
            Op::Unmap { ranges, .. } => (Work::Unmap { ranges, begun: 0 }, 0, 0),
            Op::Prefetch { offset, len } => {
                // A direct disk has no cache that it could go to.
                let len = match cache {
                    Cache::WriteBack => len.min(MAX_PREFETCH),
                    Cache::Direct => 0,
                };
                (Work::Prefetch, offset, len)
            }
            Op::Allocation { offset, limit } => {
                let block = u64::from(block_size);
                let work = Work::Allocation {
                    end: geometry.blocks.saturating_mul(block).max(offset + block),
                    block,
                    limit: limit.clamp(1, MAX_EXTENTS),
                    asked: false,
                };
                (work, offset, 0)
            }
            Op::Copy {
                from, offset, len, ..
            } => {
                let (order, offer) = (Order::Any, None);
                (Work::Copy { from, order, offer }, offset, len)
            }
            Op::Protected(what) => match Tagged::new(*what, disk) {
                Some((tagged, offset, len)) => {
                    (Work::Protected(Some(Box::new(tagged))), offset, len)
                }
                None => (Work::Protected(None), 0, 1),
            },
            Op::Flush => (Work::Flush, 0, 0),
            // Whatever its size was when they began.
            Op::Barrier => (Work::Barrier, 0, u64::MAX),
            Op::Watch(watch) => (Work::Watch(watch), 0, u64::MAX),
        }
    }

    /// Whether `op` is done only after a sync.
    pub fn ends_with_sync(op: &Op) -> bool {
        match *op {
            Op::Write { fua, .. }
            | Op::WriteSame { fua, .. }
            | Op::CompareAndWrite { fua, .. }
            | Op::Or { fua, .. }
            | Op::Zero { fua, .. }
            | Op::Copy { fua, .. }
            | Op::Unmap { fua, .. } => fua,
            // What is verified is to be on the medium.
            Op::WriteVerify { .. } | Op::Flush => true,
            Op::Read { .. }
            | Op::Compare { .. }
            | Op::Check { .. }
            // Only if it has to write.
            | Op::Mend { .. }
            | Op::Prefetch { .. }
            | Op::Allocation { .. }
            // Each part of it is synced.
            | Op::Protected(_)
            | Op::Barrier
            | Op::Watch(_) => false,
        }
    }

    /// Whether it moves data between disk and buffer, and no more.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Read | Self::Write { atomic: false })
    }

    /// Whether it may take memory from the pool, unless the kernel has the tenant's for it.
    pub fn uses_pool(&self) -> bool {
        match self {
            Self::Read
            | Self::Write { .. }
            | Self::Patch { .. }
            | Self::WriteSame(_)
            | Self::WriteVerify
            | Self::Compare
            | Self::CompareSame(_)
            | Self::Check
            | Self::CompareAndWrite(_)
            | Self::Or
            | Self::Zero(_)
            | Self::Mend(_)
            | Self::Copy { .. }
            | Self::Unmap { .. } => true,
            Self::Prefetch
            | Self::Allocation { .. }
            | Self::Protected(_)
            | Self::Flush
            | Self::Barrier
            | Self::Watch(_) => false,
        }
    }

    /// Whether it needs the tenant's buffer after it was taken.
    pub fn needs_data(&self) -> bool {
        match self {
            Self::Read
            | Self::Write { .. }
            | Self::Patch { .. }
            | Self::WriteVerify
            | Self::Compare
            | Self::CompareAndWrite(_)
            | Self::Or
            | Self::Protected(_) => true,
            Self::WriteSame(_)
            | Self::CompareSame(_)
            | Self::Check
            | Self::Zero(_)
            | Self::Mend(_)
            | Self::Unmap { .. }
            | Self::Prefetch
            | Self::Allocation { .. }
            | Self::Copy { .. }
            | Self::Flush
            | Self::Barrier
            | Self::Watch(_) => false,
        }
    }

    /// Whether it locks blocks in order to change them.
    pub fn changes_blocks(&self) -> bool {
        match self {
            Self::Barrier | Self::Watch(_) => false,
            Self::Protected(Some(tagged)) => tagged.changes_blocks(),
            _ => self.lock_mode().is_some(),
        }
    }

    /// Whether it needs the blocks as they are, though it locks none of them.
    pub fn reads_blocks(&self) -> bool {
        matches!(
            self,
            Self::Read | Self::Compare | Self::CompareSame(_) | Self::Check
        )
    }

    /// The lock that it needs.
    pub fn lock_mode(&self) -> Option<Mode> {
        match self {
            Self::Write { .. }
            | Self::WriteSame(_)
            | Self::Zero(_)
            | Self::Copy { .. }
            | Self::Unmap { .. } => Some(Mode::Shared),
            Self::Patch { .. }
            | Self::WriteVerify
            | Self::CompareAndWrite(_)
            | Self::Or
            | Self::Mend(_)
            | Self::Barrier
            | Self::Watch(_) => Some(Mode::Exclusive),
            // A block and its tag are read one after the other.
            Self::Protected(Some(tagged)) if !tagged.changes_blocks() => Some(Mode::Shared),
            Self::Protected(_) => Some(Mode::Exclusive),
            Self::Read
            | Self::Compare
            | Self::CompareSame(_)
            | Self::Check
            | Self::Prefetch
            | Self::Allocation { .. }
            | Self::Flush => None,
        }
    }
}
