//! A command on which a disk works.

use std::sync::Arc;

use super::copy::{Copying, Problem};
use super::fault::{Fault, SenseFormat, Work};
use super::lba_status::Ask;
use super::{Answer, LogicalUnit, Room, Scope};
use crate::disk::{Disk, DiskError, Op, Reply};

/// What a command answers when its disk has done its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// GOOD; this many bytes of the buffers were moved.
    Moved(usize),
    /// GOOD with LBA status data.
    LbaStatus(Ask),
}

/// A command whose disk operation is under way.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub struct Pending {
    pub(super) work: Work,
    pub(super) then: Then,
    pub(super) room: Room,
    pub(super) format: SenseFormat,
    pub(super) unit: Arc<LogicalUnit>,
    /// It relies on the unit's write cache.
    pub(super) caches: bool,
    /// The fence that is through when the disk has done its part.
    pub(super) fence: Option<u64>,
    /// What it copies.
    pub(super) copying: Option<Box<Copying>>,
}

impl Pending {
    /// The unit that it is for.
    pub fn unit(&self) -> &Arc<LogicalUnit> {
        &self.unit
    }

    /// Whether what was written may be in a cache when it is done.
    pub fn relies_on_cache(&self) -> bool {
        self.caches
    }

    /// It was made to be on stable storage when it is done.
    pub fn rely_on_nothing(&mut self) {
        self.caches = false;
    }

    /// Whether it is a third-party copy, the operations of which may be on disks of other units.
    pub fn is_copy(&self) -> bool {
        self.copying.is_some()
    }

    /// Whether it copies from or to a unit of `scope`.
    pub fn copies_at(&self, scope: Scope) -> bool {
        let mut copying = self.copying.iter();
        copying.any(|copying| copying.works_at(scope))
    }

    /// The units that it may change, if it changes blocks at all.
    pub fn changed(&self) -> impl Iterator<Item = &Arc<LogicalUnit>> {
        let copies = self.copying.iter();
        std::iter::once(&self.unit).chain(copies.flat_map(|copying| copying.destinations()))
    }

    /// What a disk has to do next for it, now that the operation before ended with `result`;
    /// `None` if [`Self::finish`] comes next.
    pub fn go_on(&mut self, result: &Result<Reply, DiskError>) -> Option<(Arc<dyn Disk>, Op)> {
        self.copying.as_mut()?.go_on(result)
    }

    /// The answer, now that the operation ended with `result`. It is GOOD only if the disk did,
    /// or answered, just what it was asked.
    pub fn finish(mut self, result: Result<Reply, DiskError>) -> Answer {
        if let Some(copying) = self.copying.take() {
            return copying.answer(result, self.room, self.format);
        }
        // MODE SELECT flushed when it ended caching, maybe before this was done.
        let is_lost = self.caches && !self.unit.write_cache();
        if let (Ok(_), Some(fence)) = (&result, self.fence) {
            self.unit.fence_is_through(fence);
        }
        match (result, self.then) {
            (Ok(Reply::Done), _) if is_lost => self.failed(Fault::CacheEnded),
            (Ok(Reply::Done), Then::Moved(moved)) => Answer::done(moved, self.room),
            (Ok(Reply::Allocation(extents)), Then::LbaStatus(ask)) => match ask.data(&extents) {
                Some(data) => Answer::good(data, self.room),
                None => self.failed(Fault::BadReply),
            },
            (Ok(_), _) => self.failed(Fault::BadReply),
            (Err(error), _) => self.failed(Fault::Disk {
                error,
                work: self.work,
            }),
        }
    }

    /// The answer to a command that took longer than [`patience`](super::Step::Disk::patience).
    /// The disk may yet carry it out, so nothing is said about the blocks.
    pub fn expired(self) -> Answer {
        self.failed(Fault::Expired)
    }

    /// The answer to a command whose logical unit was taken away meanwhile, or one of a copy's.
    pub fn gone(self) -> Answer {
        self.failed(if self.is_copy() {
            Fault::Copy(Problem::Gone)
        } else {
            Fault::NoUnit
        })
    }

    fn failed(&self, fault: Fault) -> Answer {
        Answer::failed(fault, self.format, self.room)
    }
}

/// Whether what `op` writes may be in a cache when it is done. COMPARE AND WRITE never relies on
/// that.
pub fn relies_on_cache(op: &Op) -> bool {
    matches!(
        op,
        Op::Write { fua: false, .. }
            | Op::WriteSame { fua: false, .. }
            | Op::Or { fua: false, .. }
            | Op::Zero { fua: false, .. }
            | Op::Copy { fua: false, .. }
            | Op::Unmap { fua: false, .. }
    )
}
