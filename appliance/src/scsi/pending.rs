//! A command on which a disk works.

use std::sync::Arc;
use std::time::Duration;

use super::copy::{Copying, Problem};
use super::erase::{Ended, Errand, Launched, Ticket};
use super::fault::{Fault, SenseFormat, Work};
use super::lba_status::Ask;
use super::statistics::{Deed, Tally};
use super::{Answer, LogicalUnit, Room, Scope};
use crate::disk::{Disk, DiskError, Op, Reply};
use crate::memory::Segments;

/// What a command answers when its disk has done its part.
#[derive(Debug)]
pub enum Then {
    /// GOOD; this many bytes of the buffers were moved.
    Moved(usize),
    /// GOOD with LBA status data.
    LbaStatus(Ask),
    /// All blocks are erased now; this many bytes of the buffers were moved.
    Erase { ticket: Ticket, moved: usize },
    /// As something in the background has ended; likewise.
    Ended {
        ended: Ended,
        /// If that is to end with the command.
        errand: Option<Errand>,
        moved: usize,
    },
}

/// What a command does once the commands of others have ended.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub enum Begun {
    /// It is over.
    Answer(Answer),
    /// It waits: carry [`Op::Barrier`] out on this disk, then call [`Pending::finish`].
    Wait(Arc<dyn Disk>, Pending),
}

/// A command whose disk operation is under way.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub struct Pending {
    pub(super) work: Work,
    pub(super) then: Then,
    pub(super) room: Room,
    pub(super) format: SenseFormat,
    pub(super) own: Arc<Own>,
    /// It relies on the unit's write cache.
    pub(super) caches: bool,
    /// The fence that is through when the disk has done its part.
    pub(super) fence: Option<u64>,
    /// What it copies.
    pub(super) copying: Option<Box<Copying>>,
    /// How it is counted, if it is.
    pub(super) counted: Option<Counted>,
}

/// What a command needs of where it was sent to, in one hold, as each takes one. Each worker has its
/// own, in cache lines of its own: its count changes with every command.
#[derive(Debug)]
#[repr(align(128))]
pub struct Own {
    pub unit: Arc<LogicalUnit>,
    /// Where the worker counts its initiator's commands.
    pub tally: Arc<Tally>,
    /// Whether the unit's disk may do something at once.
    pub at_once: bool,
}

/// How a command is counted when it is done.
#[derive(Debug)]
pub struct Counted {
    pub deed: Deed,
    pub blocks: u64,
}

impl Pending {
    /// The unit that it is for.
    #[inline]
    pub fn unit(&self) -> &Arc<LogicalUnit> {
        &self.own.unit
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

    /// Whether it changes blocks otherwise than by what its disk is asked: by copying, or in the
    /// background, where that ends with it.
    pub fn changes_blocks(&self) -> bool {
        let errand = matches!(
            self.then,
            Then::Ended {
                errand: Some(_),
                ..
            }
        );
        errand || self.is_copy()
    }

    /// Whether it copies from or to a unit of `scope`.
    pub fn copies_at(&self, scope: Scope) -> bool {
        let mut copying = self.copying.iter();
        copying.any(|copying| copying.works_at(scope))
    }

    /// The units that it may change, if it changes blocks at all.
    pub fn changed(&self) -> impl Iterator<Item = &Arc<LogicalUnit>> {
        let copies = self.copying.iter();
        std::iter::once(&self.own.unit).chain(copies.flat_map(|copying| copying.destinations()))
    }

    /// The buffer of what the disk is to do, where it is not the command's.
    pub fn buffer(&self) -> Option<Segments> {
        self.copying.as_ref()?.buffer()
    }

    /// What a disk has to do next for it, now that the operation before ended with `result`;
    /// `None` if [`Self::finish`] comes next.
    pub fn go_on(&mut self, result: &Result<Reply, DiskError>) -> Option<(Arc<dyn Disk>, Op)> {
        self.copying.as_mut()?.go_on(result)
    }

    /// Whether a copy may still do what its disk is to do next; if not, it ends with why.
    pub fn may_go_on(&mut self) -> bool {
        let copying = self.copying.as_mut();
        copying.is_none_or(|copying| copying.may_go_on())
    }

    /// It is not gone on with, but may come again: a copy that has copied something must not be
    /// repeated unseen, as it may have changed what it copies from.
    pub fn interrupt(&mut self) {
        if let Some(copying) = &mut self.copying {
            copying.interrupt();
        }
    }

    /// It was done, and took so long.
    #[inline]
    pub fn took(&self, time: Duration) {
        if let Some(Counted { deed, blocks }) = &self.counted {
            self.own.tally.count(*deed, *blocks, time);
        }
    }

    /// Goes on, now that the commands of others have ended.
    pub fn begin(self) -> Begun {
        let disk = Arc::clone(self.unit().disk());
        let Then::Erase { ticket, moved } = self.then else {
            return Begun::Wait(disk, self);
        };
        let (room, format) = (self.room, self.format);
        match ticket.launch(&disk) {
            Ok(Launched::Immediate) => Begun::Answer(Answer::done(moved, room)),
            Ok(Launched::Wait(gate, ended)) => {
                let errand = None;
                let then = Then::Ended {
                    ended,
                    errand,
                    moved,
                };
                Begun::Wait(gate, Self { then, ..self })
            }
            Err(fault) => Begun::Answer(Answer::failed(fault, format, room)),
        }
    }

    /// The answer, now that the operation ended with `result`. It is GOOD only if the disk did,
    /// or answered, just what it was asked.
    pub fn finish(mut self, result: Result<Reply, DiskError>) -> Answer {
        self.end(result)
    }

    /// As [`Self::finish`], where it is; it is of no more use then.
    pub fn end(&mut self, result: Result<Reply, DiskError>) -> Answer {
        if let Some(copying) = self.copying.take() {
            return copying.answer(result, self.room, self.format);
        }
        // MODE SELECT flushed when it ended caching, maybe before this was done.
        let is_lost = self.caches && !self.unit().write_cache();
        if let (Ok(_), Some(fence)) = (&result, self.fence) {
            self.unit().fence_is_through(fence);
        }
        match (result, &self.then) {
            (Ok(Reply::Done), _) if is_lost => self.failed(Fault::CacheEnded),
            (Ok(Reply::Done), Then::Moved(moved)) => Answer::done(*moved, self.room),
            (Ok(Reply::Done), Then::Ended { ended, moved, .. }) => match ended.result() {
                Some(Ok(())) => Answer::done(*moved, self.room),
                Some(Err(fault)) => self.failed(fault),
                None => self.failed(Fault::NoUnit),
            },
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
    pub fn expired(&self) -> Answer {
        // What goes on in the background goes on, and can be asked after.
        let goes_on = match self.then {
            Then::Ended { .. } => self.unit().erasing(),
            _ => None,
        };
        self.failed(goes_on.unwrap_or(Fault::Expired))
    }

    /// The answer to a command that is in conflict with a reservation.
    pub fn reserved(&self) -> Answer {
        self.failed(Fault::Reserved)
    }

    /// The answer to a command whose logical unit was taken away meanwhile, or one of a copy's.
    pub fn gone(&self) -> Answer {
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
#[inline]
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
