//! Limits of operations and bytes a second, which LUNs, HBAs and groups of HBAs may have.
//!
//! A command is held back before its disk (`worker/limits.rs`), so what waits is what the worker
//! knows of anyway. Whoever shares a [`Meter`] has a [`Seat`] at it: the seats take turns there, by
//! their weights.

mod bucket;
mod meter;

use std::time::Duration;

use crate::disk::Op;

pub(crate) use self::meter::{Meter, Seat, pass};

/// What may be saved up while nothing comes, unless it is said otherwise: worth so long. Longer than
/// a worker may come late, and little beside what is measured over a second.
pub(crate) const DEFAULT_BURST: Duration = Duration::from_millis(50);

/// How much there may be in a second; everything where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Operations a second, at least 1.
    pub iops: Option<u64>,
    /// Bytes a second, at least 1.
    pub bytes_per_second: Option<u64>,
    /// How long it takes to save up as much as there may be at once.
    pub burst: Duration,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            iops: None,
            bytes_per_second: None,
            burst: DEFAULT_BURST,
        }
    }
}

impl Limit {
    /// Whether it limits anything.
    pub fn is_set(&self) -> bool {
        self.iops.is_some() || self.bytes_per_second.is_some()
    }
}

/// What one operation takes of a limit, beside that it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Bytes that are read or written.
    pub bytes: u64,
}

impl Cost {
    /// That of `op`; `None` for one that reads and changes no blocks, which is not limited.
    pub fn of(op: &Op) -> Option<Self> {
        let bytes = match op.plain() {
            Op::Read { len, .. }
            | Op::Write { len, .. }
            | Op::WriteVerify { len, .. }
            | Op::CompareAndWrite { len, .. }
            | Op::Or { len, .. } => *len as u64,
            Op::WriteSame { len, .. }
            | Op::Compare { len, .. }
            | Op::Check { len, .. }
            | Op::Copy { len, .. } => *len,
            // Each block is read.
            Op::Mend { len, .. } => *len,
            // Blocks that are not given back are written, as their tags are.
            Op::Zero {
                len, unmap: false, ..
            } if matches!(op, Op::Protected(_)) => *len,
            // The disk makes blocks zero, or gives them back, without their bytes.
            Op::Zero { .. } | Op::Unmap { .. } => 0,
            Op::Prefetch { .. }
            | Op::Allocation { .. }
            | Op::Protected(_)
            | Op::Flush
            | Op::Barrier
            | Op::Watch(_) => return None,
        };
        Some(Self { bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Protected;

    #[test]
    fn what_moves_blocks_is_limited_by_their_bytes_and_what_moves_none_is_not() {
        let bytes = |op: &Op| Cost::of(op).map(|cost| cost.bytes);
        let (offset, len, fua) = (0, 4096, false);
        assert_eq!(bytes(&Op::Read { offset, len }), Some(4096));
        let write = Op::WriteSame {
            offset,
            len: 1 << 20,
            fua,
        };
        assert_eq!(bytes(&write), Some(1 << 20));
        let unmap = Op::Unmap {
            ranges: [(0, 1 << 30)].into(),
            fua,
        };
        assert_eq!(bytes(&unmap), Some(0));
        let mut zero = Op::Zero {
            offset,
            len: 1 << 20,
            unmap: false,
            fua,
        };
        assert_eq!(bytes(&zero), Some(0));
        let protected = |op: &Op| Op::Protected(Box::new(Protected::new(op.clone())));
        assert_eq!(bytes(&protected(&zero)), Some(1 << 20));
        if let Op::Zero { unmap, .. } = &mut zero {
            *unmap = true;
        }
        assert_eq!(bytes(&protected(&zero)), Some(0));
        assert_eq!(bytes(&Op::Flush), None);
        assert_eq!(bytes(&Op::Barrier), None);
    }
}
