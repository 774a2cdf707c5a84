//! Which piece of an operation is next.

use super::operation::{Operation, index};
use super::piece::Step;
use super::work::{Half, Mending, Order, Work, Zeroing};

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
/// Most pieces of one operation in the kernel at a time, so that a large one leaves room in the
/// pool for others.
const MAX_PIECES: usize = 4;

// What the kernel reports as moved is an i32.
const _: () = assert!(MAX_POOL_PIECE <= i32::MAX as usize);
const _: () = assert!(MAX_ATOMIC_WRITE as usize <= MAX_POOL_PIECE);
const _: () = assert!(MAX_TENANT_PIECE <= i32::MAX as usize);
const _: () = assert!(MAX_ADVICE <= u32::MAX as u64);

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

impl Operation {
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
            Work::Read | Work::Write { atomic: false } if self.in_tenant_memory => Plan {
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
            Work::Patch { .. } => Plan {
                step: Step::Read,
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
            | Work::Or
            | Work::Mend(Mending::Read)
            | Work::Copy { offer: None, .. } => pooled(Step::Read),
            Work::Copy {
                offer: Some(ref offer),
                ..
            } => {
                // Up to what the filesystem does.
                let before = offer.start.saturating_sub(at);
                if before == 0 {
                    return None;
                }
                Plan {
                    len: index(before).min(MAX_POOL_PIECE),
                    ..pooled(Step::Read)
                }
            }
            Work::Write { atomic: false }
            | Work::WriteSame(_)
            | Work::CompareAndWrite(Half::Write)
            | Work::Mend(Mending::Write)
            | Work::Zero(Zeroing::Write) => pooled(Step::Write),
            Work::Zero(_) | Work::Unmap { .. } => {
                let step = match self.work {
                    Work::Zero(Zeroing::Range) => Step::ZeroRange,
                    _ => Step::Punch,
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
            Work::Prefetch => bare(Step::Advise, left.min(MAX_ADVICE)),
            Work::Allocation { .. }
            | Work::Protected(_)
            | Work::Flush
            | Work::Barrier
            | Work::Watch(_) => {
                return None;
            }
        })
    }
}

impl Work {
    /// Most pieces in the kernel at a time.
    fn most_pieces(&self) -> usize {
        match self {
            // The next piece may be written over what this one has to read.
            Self::Copy {
                order: Order::Forwards | Order::Backwards,
                ..
            } => 1,
            // If one cannot be read, all are written.
            Self::Mend(_) => 1,
            // Whether a way is possible, the first piece shows; and a filesystem does them one
            // after the other anyway.
            Self::Zero(Zeroing::Punch | Zeroing::Range) | Self::Unmap { .. } | Self::Prefetch => 1,
            _ => MAX_PIECES,
        }
    }
}
