//! An operation on its way, from stage to stage.

use std::sync::Arc;

use super::Request;
use super::inbox::{Inbox, Place};
use super::piece::Step;
use crate::disk::ranges::{Hold, Mode};
use crate::disk::{Cache, Disk, DiskError, Op, OpenFile, Reply};
use crate::memory::Segments;

/// Most bytes of a piece that goes through the bounce pool.
const MAX_POOL_PIECE: usize = 256 << 10;
/// Most bytes of an atomic write, which is one piece.
pub const MAX_ATOMIC_WRITE: u32 = 256 << 10;
/// Most bytes of a piece in the tenant's memory.
const MAX_TENANT_PIECE: usize = 1 << 20;
/// Most bytes that are given back or made zero in one piece, so that others have their turn and
/// cancelling works in between.
const MAX_ALLOCATION: u64 = 1 << 30;
/// Most bytes that are read ahead in one piece.
const MAX_ADVICE: u64 = 8 << 20;
/// Most bytes that are read ahead for one operation; it is no use to fill the page cache.
const MAX_PREFETCH: u64 = 64 << 20;
/// Most pieces of one operation in the kernel at a time, so that a large one leaves room in the
/// pool for others.
const MAX_PIECES: usize = 4;

// What the kernel reports as moved is an i32.
const _: () = assert!(MAX_POOL_PIECE <= i32::MAX as usize);
const _: () = assert!(MAX_ATOMIC_WRITE as usize <= MAX_POOL_PIECE);
const _: () = assert!(MAX_TENANT_PIECE <= i32::MAX as usize);
const _: () = assert!(MAX_ADVICE <= u32::MAX as u64);

#[derive(Debug)]
pub struct Operation {
    pub tag: u64,
    /// Told apart from all others by this.
    pub serial: u64,
    pub file: Arc<OpenFile>,
    /// The file's share of the bounce pool; `None` if it takes nothing from there.
    pub share: Option<usize>,
    pub work: Work,
    /// First byte on the disk, and bytes, of the present stage.
    pub offset: u64,
    pub len: u64,
    /// The tenant's buffer; `None` if it needs none, or once nothing may touch it.
    pub data: Option<Segments>,
    /// Bytes of the stage that pieces were made for.
    pub issued: u64,
    /// Pieces in the kernel.
    pub pieces: usize,
    pub failure: Option<Failure>,
    /// Queued for room in the pool.
    pub waiting: bool,
    pub lock: Lock,
    /// It ends with a sync, which is still to come.
    pub sync: bool,
    /// Had its `Done` though the kernel is still at it.
    pub reported: bool,
    /// What it ends with, if well.
    pub reply: Reply,
}

/// What to do, as far as it has come.
#[derive(Debug)]
pub enum Work {
    Read,
    Write {
        atomic: bool,
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
    Unmap {
        ranges: Arc<[(u64, u64)]>,
        /// Ranges that were begun.
        begun: usize,
        /// Bytes of a granule.
        granularity: u64,
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
    Flush,
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

/// The failure that an operation ends with: of all that happen, the one nearest to its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    at: u64,
    pub error: DiskError,
}

/// The range of an operation that changes blocks.
#[derive(Debug)]
pub enum Lock {
    /// Not needed, or not yet, or no more.
    None,
    Waiting(Hold),
    Held(Hold),
}

/// A piece to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub step: Step,
    pub at: u64,
    /// Bytes, fewer if there is less memory; all of them for a [`Wanted::Whole`].
    pub len: usize,
    pub memory: Wanted,
}

/// Memory for a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The tenant's own.
    Tenant,
    Pool,
    /// From the pool, in one run.
    Whole,
    /// Twice from the pool.
    Pair,
    None,
}

/// What comes after a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The next stage has begun.
    Stage,
    Sync,
    /// A question to the surveyor.
    Ask,
    /// Something that is under way already.
    Wait,
    End,
}

/// An index into a buffer; what is inside one has an index that is a usize.
pub fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// The first block of a buffer, read once.
fn block(data: Option<&Segments>, len: u32) -> Box<[u8]> {
    let mut block = vec![0; index(len.into())].into_boxed_slice();
    if let Some(data) = data {
        data.read_at(0, &mut block);
    }
    block
}

impl Operation {
    /// The operation of a request that was checked.
    pub fn new(disk: &dyn Disk, file: Arc<OpenFile>, request: Request, serial: u64) -> Self {
        let Request { tag, op, data } = request;
        let block_size = disk.geometry().block_size;
        let sync = match op {
            Op::Write { fua, .. }
            | Op::WriteSame { fua, .. }
            | Op::CompareAndWrite { fua, .. }
            | Op::Or { fua, .. }
            | Op::Zero { fua, .. } => fua,
            // What is verified is to be on the medium.
            Op::WriteVerify { .. } | Op::Flush => true,
            _ => false,
        };
        let (work, offset, len) = match op {
            Op::Read { offset, len } => (Work::Read, offset, len as u64),
            Op::Write {
                offset,
                len,
                atomic,
                ..
            } => (Work::Write { atomic }, offset, len as u64),
            Op::WriteSame { offset, len, .. } => {
                let block = block(data.as_ref(), block_size);
                (Work::WriteSame(block), offset, len)
            }
            Op::WriteVerify { offset, len } => (Work::WriteVerify, offset, len as u64),
            Op::Compare {
                offset,
                len,
                same: false,
            } => (Work::Compare, offset, len),
            Op::Compare { offset, len, .. } => {
                let block = block(data.as_ref(), block_size);
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
            Op::Unmap { ranges } => {
                let thin = disk.abilities().thin;
                let granularity = thin.map_or(block_size, |thin| thin.granularity);
                let work = Work::Unmap {
                    ranges,
                    begun: 0,
                    granularity: u64::from(granularity.max(1)),
                };
                (work, 0, 0)
            }
            Op::Prefetch { offset, len } => {
                // A direct disk has no cache that it could go to.
                let len = match file.cache() {
                    Cache::WriteBack => len.min(MAX_PREFETCH),
                    Cache::Direct => 0,
                };
                (Work::Prefetch, offset, len)
            }
            Op::Allocation { offset, limit } => {
                let geometry = disk.geometry();
                let block = u64::from(block_size);
                let work = Work::Allocation {
                    end: geometry.blocks.saturating_mul(block).max(offset + block),
                    block,
                    limit: limit.max(1),
                    asked: false,
                };
                (work, offset, 0)
            }
            Op::Flush => (Work::Flush, 0, 0),
        };
        Self {
            tag,
            serial,
            file,
            share: None,
            data: data.filter(|_| work.needs_data()),
            work,
            offset,
            len,
            issued: 0,
            pieces: 0,
            failure: None,
            waiting: false,
            lock: Lock::None,
            sync,
            reported: false,
            reply: Reply::Done,
        }
    }

    /// Whether pieces of it may be in the tenant's memory.
    pub fn is_in_tenant_memory(&self) -> bool {
        self.file.cache() == Cache::WriteBack
            && matches!(self.work, Work::Read | Work::Write { atomic: false })
    }

    /// Whether it may take memory from the pool.
    pub fn uses_pool(&self) -> bool {
        match self.work {
            Work::Read | Work::Write { .. } => !self.is_in_tenant_memory(),
            Work::WriteSame(_)
            | Work::WriteVerify
            | Work::Compare
            | Work::CompareSame(_)
            | Work::Check
            | Work::CompareAndWrite(_)
            | Work::Or
            | Work::Zero(_) => true,
            Work::Unmap { .. } | Work::Prefetch | Work::Allocation { .. } | Work::Flush => false,
        }
    }

    /// Whether something at this byte of the stage is still of interest.
    pub fn wants(&self, at: u64) -> bool {
        self.failure.is_none_or(|failure| at < failure.at)
    }

    /// Takes note of a failure, unless there is one nearer to the start.
    pub fn fail(&mut self, at: u64, error: DiskError) {
        if self.wants(at) {
            self.failure = Some(Failure { at, error });
        }
    }

    /// Fails as cancelled, whatever happened before or happens later.
    pub fn cancel(&mut self) {
        self.failure = Some(Failure {
            at: 0,
            error: DiskError::Cancelled,
        });
    }

    /// The next piece, if there is one and it may be made now.
    pub fn next(&self) -> Option<Plan> {
        let at = self.issued;
        let left = self.len - at;
        if left == 0 || self.failure.is_some() || self.pieces >= self.work.most_pieces() {
            return None;
        }
        let pooled = |step| Plan {
            step,
            at,
            len: index(left).min(MAX_POOL_PIECE),
            memory: Wanted::Pool,
        };
        let bare = |step, len| Plan {
            step,
            at,
            len: index(len),
            memory: Wanted::None,
        };
        Some(match self.work {
            Work::Read | Work::Write { atomic: false } if self.is_in_tenant_memory() => Plan {
                step: match self.work {
                    Work::Read => Step::Read,
                    _ => Step::Write,
                },
                at,
                len: index(left).min(MAX_TENANT_PIECE),
                memory: Wanted::Tenant,
            },
            Work::Write { atomic: true } => Plan {
                step: Step::WriteAtomic,
                at,
                len: index(left),
                memory: Wanted::Whole,
            },
            Work::WriteVerify => Plan {
                memory: Wanted::Pair,
                ..pooled(Step::Write)
            },
            Work::Read
            | Work::Compare
            | Work::CompareSame(_)
            | Work::Check
            | Work::CompareAndWrite(Half::Compare)
            | Work::Or => pooled(Step::Read),
            Work::Write { atomic: false }
            | Work::WriteSame(_)
            | Work::CompareAndWrite(Half::Write)
            | Work::Zero(Zeroing::Write) => pooled(Step::Write),
            Work::Zero(zeroing) => {
                let step = match zeroing {
                    Zeroing::Punch => Step::Punch,
                    _ => Step::ZeroRange,
                };
                // What is no whole granule would become zero in the page cache only, even on a
                // direct disk.
                let granule = self.file.granule();
                let ahead = (self.offset + at).next_multiple_of(granule) - (self.offset + at);
                if ahead == 0 && left >= granule {
                    bare(
                        step,
                        (left - left % granule).min(MAX_ALLOCATION.max(granule)),
                    )
                } else {
                    let len = if ahead == 0 { left } else { left.min(ahead) };
                    Plan {
                        len: index(len).min(MAX_POOL_PIECE),
                        ..pooled(Step::Write)
                    }
                }
            }
            Work::Unmap { granularity, .. } => {
                let most = MAX_ALLOCATION - MAX_ALLOCATION % granularity;
                bare(Step::Punch, left.min(most.max(granularity)))
            }
            Work::Prefetch => bare(Step::Advise, left.min(MAX_ADVICE)),
            Work::Allocation { .. } | Work::Flush => return None,
        })
    }

    /// Goes over to another way to do what a piece at this byte could not; whether there is one.
    pub fn try_otherwise(&mut self, at: u64) -> bool {
        let Work::Zero(zeroing) = &mut self.work else {
            return false;
        };
        *zeroing = match zeroing {
            Zeroing::Punch => Zeroing::Range,
            Zeroing::Range | Zeroing::Write => Zeroing::Write,
        };
        self.issued = at;
        true
    }

    /// Has its range locked, if it has something to change there; whether it may go on.
    pub fn has_range(&mut self, operation: usize, inbox: &Arc<Inbox>) -> bool {
        match self.lock {
            Lock::Held(_) => return true,
            Lock::Waiting(_) => return false,
            Lock::None => {}
        }
        let Some(mode) = self.work.lock_mode() else {
            return true;
        };
        if self.issued == self.len {
            return true;
        }
        let place = Place {
            operation,
            serial: self.serial,
        };
        let ranges = self.file.ranges();
        let (hold, granted) = ranges.lock((self.offset, self.len), mode, inbox, place);
        self.lock = if granted {
            Lock::Held(hold)
        } else {
            Lock::Waiting(hold)
        };
        granted
    }

    /// Takes the range that it waited for.
    pub fn take_range(&mut self) {
        self.lock = match std::mem::replace(&mut self.lock, Lock::None) {
            Lock::Waiting(hold) => Lock::Held(hold),
            other => other,
        };
    }

    /// Goes on, now that the kernel has done every piece of the present stage.
    pub fn turn(&mut self) -> Turn {
        match &mut self.work {
            Work::CompareAndWrite(half @ Half::Compare) => {
                // Still under the lock.
                *half = Half::Write;
                self.issued = 0;
                return Turn::Stage;
            }
            Work::Unmap {
                ranges,
                begun,
                granularity,
            } => {
                self.lock = Lock::None;
                while let Some(&(offset, len)) = ranges.get(*begun) {
                    *begun += 1;
                    let end = offset + len;
                    let end = end - end % *granularity;
                    let start = offset.checked_next_multiple_of(*granularity);
                    if let Some(start) = start.filter(|&start| start < end) {
                        (self.offset, self.len, self.issued) = (start, end - start, 0);
                        return Turn::Stage;
                    }
                }
            }
            Work::Allocation { asked, .. } => {
                return if std::mem::replace(asked, true) {
                    Turn::Wait
                } else {
                    Turn::Ask
                };
            }
            _ => {}
        }
        // Nothing changes any more.
        self.lock = Lock::None;
        if std::mem::replace(&mut self.sync, false) {
            Turn::Sync
        } else {
            Turn::End
        }
    }
}

impl Work {
    /// Whether it needs the tenant's buffer after it was taken.
    fn needs_data(&self) -> bool {
        match self {
            Self::Read
            | Self::Write { .. }
            | Self::WriteVerify
            | Self::Compare
            | Self::CompareAndWrite(_)
            | Self::Or => true,
            Self::WriteSame(_)
            | Self::CompareSame(_)
            | Self::Check
            | Self::Zero(_)
            | Self::Unmap { .. }
            | Self::Prefetch
            | Self::Allocation { .. }
            | Self::Flush => false,
        }
    }

    /// The lock that it needs.
    fn lock_mode(&self) -> Option<Mode> {
        match self {
            Self::Write { .. } | Self::WriteSame(_) | Self::Zero(_) | Self::Unmap { .. } => {
                Some(Mode::Shared)
            }
            Self::WriteVerify | Self::CompareAndWrite(_) | Self::Or => Some(Mode::Exclusive),
            Self::Read
            | Self::Compare
            | Self::CompareSame(_)
            | Self::Check
            | Self::Prefetch
            | Self::Allocation { .. }
            | Self::Flush => None,
        }
    }

    /// Most pieces in the kernel at a time.
    fn most_pieces(&self) -> usize {
        match self {
            // Whether a way is possible, the first piece shows; and a filesystem does them one
            // after the other anyway.
            Self::Zero(Zeroing::Punch | Zeroing::Range) | Self::Unmap { .. } | Self::Prefetch => 1,
            _ => MAX_PIECES,
        }
    }
}
