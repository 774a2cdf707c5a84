//! An operation on its way, from stage to stage.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Request;
use super::held::Held;
use super::inbox::{Inbox, Place};
use super::piece::Step;
use super::work::{Half, Mending, Order, Work, Zeroing};
use crate::disk::ranges::{Calm, Hold, Mode};
use crate::disk::{Disk, DiskError, Reply};
use crate::memory::Segments;

#[derive(Debug)]
pub struct Operation {
    pub tag: u64,
    /// Told apart from all others by this.
    pub serial: u64,
    pub file: Held,
    /// What a copy reads from.
    pub source: Option<Held>,
    /// That of the source of a copy, unless its locks keep the source as it is, too.
    pub calm: Option<Calm>,
    /// The file's share of the bounce pool; `None` if it takes nothing from there.
    pub share: Option<usize>,
    pub work: Work,
    /// First byte on the disk, and bytes, of the present stage.
    pub offset: u64,
    pub len: u64,
    /// The tenant's buffer; `None` if it needs none, or once nothing may touch it.
    pub data: Option<Segments>,
    /// Whether the kernel has the tenant's memory for it.
    pub in_tenant_memory: bool,
    /// Bytes of the stage that pieces were made for.
    pub issued: u64,
    /// Pieces in the kernel.
    pub pieces: usize,
    pub failure: Option<Failure>,
    /// Queued for room in the pool.
    pub waiting: bool,
    /// It was not begun when it came: its first piece is to be told of.
    pub late: bool,
    pub lock: Lock,
    /// It ends with a sync, which is still to come.
    pub sync: bool,
    /// Had its `Done` though the kernel may be still at it.
    pub reported: bool,
    /// Counted among those that the kernel is still at.
    abandoned: bool,
    /// What it ends with, if well.
    pub reply: Reply,
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

/// What comes after a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The next stage has begun.
    Stage,
    Sync,
    /// A question to the surveyor.
    Ask,
    /// A part for the threads of a disk with protection information.
    HandOver,
    /// A part for the filesystem.
    Offer,
    /// Something that is under way already.
    Wait,
    End,
}

/// An index into a buffer; what is inside one has an index that is a usize.
pub fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Operation {
    /// The operation of a request that was checked.
    pub fn new(disk: &dyn Disk, file: Held, request: Request, serial: u64) -> Self {
        let Request { tag, op, data } = request;
        let sync = Work::ends_with_sync(&op);
        let (work, offset, len) = Work::of(op, disk, file.cache(), data.as_ref());
        let in_tenant_memory = work.is_plain() && file.moves_in_place(data.as_ref());
        Self {
            tag,
            serial,
            file,
            source: None,
            calm: None,
            share: None,
            data: data.filter(|_| work.needs_data()),
            work,
            offset,
            len,
            in_tenant_memory,
            issued: 0,
            pieces: 0,
            failure: None,
            waiting: false,
            late: false,
            lock: Lock::None,
            sync,
            reported: false,
            abandoned: false,
            reply: Reply::Done,
        }
    }

    /// Fails if the source of a copy had to be quiet since it began: what was read of it may be of
    /// two moments.
    pub fn check_source(&mut self) {
        if self.calm.as_ref().is_some_and(Calm::is_over) {
            self.fail(0, DiskError::SourceFailed);
        }
    }

    /// Copies from `source`, if it is a copy.
    pub fn copy_from(&mut self, source: Held) {
        let Work::Copy { from, .. } = self.work else {
            return;
        };
        let ordered = if Arc::ptr_eq(source.ranges(), self.file.ranges()) {
            Order::on_one_disk(from, self.offset, self.len)
        } else {
            Order::Any
        };
        self.source = Some(source);
        let offered = self.offer(from, ordered);
        if let Work::Copy { order, offer, .. } = &mut self.work {
            (*order, *offer) = (ordered, offered);
        }
    }

    /// The file that a step at byte `at` of the stage goes to, and where in it.
    pub fn target(&self, step: Step, at: u64) -> (&Held, u64) {
        match (&self.source, &self.work) {
            (Some(source), Work::Copy { from, .. }) if step == Step::Read => (source, from + at),
            _ => (&self.file, self.offset + at),
        }
    }

    /// Where a piece of `len` bytes begins that is next at `at`, when counted from the first one.
    pub fn place(&self, at: u64, len: usize) -> u64 {
        match self.work {
            Work::Copy {
                order: Order::Backwards,
                ..
            } => self.len - at - len as u64,
            _ => at,
        }
    }

    /// Whether it may take memory from the pool.
    pub fn uses_pool(&self) -> bool {
        !self.in_tenant_memory && self.work.uses_pool()
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
        if let Work::Copy {
            offer: Some(offer), ..
        } = &self.work
        {
            offer.cancel();
        }
        self.failure = Some(Failure {
            at: 0,
            error: DiskError::Cancelled,
        });
    }

    /// Counts it among those that were reported though the kernel is still at them, until it is
    /// dropped.
    pub fn abandon(&mut self) {
        if !std::mem::replace(&mut self.abandoned, true) {
            self.file.abandoned().fetch_add(1, Ordering::Relaxed);
        }
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

    /// Goes over to writing zeros, if it is to mend blocks and just failed to read them; whether it
    /// does. It keeps its range meanwhile.
    pub fn mend(&mut self, error: DiskError) -> bool {
        let Work::Mend(mending @ Mending::Read) = &mut self.work else {
            return false;
        };
        // One that is cancelled begins nothing.
        if self.failure.is_some() || !matches!(error, DiskError::Io(_)) {
            return false;
        }
        *mending = Mending::Write;
        self.issued = 0;
        self.sync = true;
        true
    }

    /// Has its range locked, if it has something to change there; whether it may go on.
    pub fn has_range(&mut self, operation: usize, inbox: &Arc<Inbox>) -> bool {
        match self.lock {
            Lock::Held(_) => return true,
            Lock::Waiting(_) => return false,
            Lock::None => {}
        }
        let mode = match self.work.lock_mode() {
            Some(mode) => mode,
            None if self.file.ranges().is_quiet() && self.work.reads_blocks() => Mode::Shared,
            None => return true,
        };
        if self.issued == self.len {
            return true;
        }
        let place = Place {
            operation,
            serial: self.serial,
        };
        let range = match &self.work {
            Work::Protected(Some(tagged)) => tagged.range(self.offset, self.len),
            _ => self.range(),
        };
        let ranges = self.file.ranges();
        // Whole groups may be kept from others for the sake of a block.
        let changed = self.work.changes_blocks().then_some(self.range());
        let (hold, granted) = ranges.lock(range, (mode, changed), inbox, place);
        self.lock = if granted {
            Lock::Held(hold)
        } else {
            Lock::Waiting(hold)
        };
        granted
    }

    /// First byte and length of what the present stage is about.
    fn range(&self) -> (u64, u64) {
        (self.offset, self.len)
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
            Work::Unmap { ranges, begun } => {
                self.lock = Lock::None;
                if let Some(&(offset, len)) = ranges.get(*begun) {
                    *begun += 1;
                    (self.offset, self.len, self.issued) = (offset, len, 0);
                    return Turn::Stage;
                }
            }
            Work::Allocation { asked, .. } => {
                return if std::mem::replace(asked, true) {
                    Turn::Wait
                } else {
                    Turn::Ask
                };
            }
            Work::Watch(watch) => self.file.ranges().watch(watch),
            Work::Protected(_) if self.issued < self.len => return Turn::HandOver,
            Work::Copy { offer: Some(_), .. } => return Turn::Offer,
            Work::Protected(Some(tagged)) => {
                if let Some((offset, len)) = tagged.next_range() {
                    self.lock = Lock::None;
                    (self.offset, self.len, self.issued) = (offset, len, 0);
                    return Turn::Stage;
                }
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

impl Drop for Operation {
    fn drop(&mut self) {
        if self.abandoned {
            self.file.abandoned().fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::piece::Step;
    use super::super::plan::Wanted;
    use super::*;
    use crate::disk::{Cache, Geometry, Op, OpenFile};

    #[derive(Debug)]
    struct Blocks;

    impl Disk for Blocks {
        fn geometry(&self) -> Geometry {
            Geometry {
                block_size: 512,
                blocks: 1 << 40,
                physical_block_size: 4096,
                read_only: false,
            }
        }

        fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
            Err(DiskError::Gone)
        }
    }

    fn operation(op: Op) -> Operation {
        let null = File::open("/dev/null").unwrap();
        let file = Held::new(Arc::new(OpenFile::new(null, Cache::Direct)));
        let request = Request {
            tag: 1,
            op,
            data: None,
        };
        Operation::new(&Blocks, file, request, 1)
    }

    #[test]
    fn the_failure_nearest_to_the_start_is_the_one_that_counts() {
        let mut operation = operation(Op::Check {
            offset: 0,
            len: 1 << 20,
        });
        let miscompare = |at| DiskError::Miscompare { at };
        let mut after = |at, error| {
            operation.fail(at, error);
            operation.failure.map(|failure| failure.error)
        };
        assert_eq!(
            after(700_000, miscompare(700_000)),
            Some(miscompare(700_000))
        );
        assert_eq!(after(300_000, DiskError::Gone), Some(DiskError::Gone));
        assert_eq!(after(400_000, miscompare(400_000)), Some(DiskError::Gone));
        assert_eq!(
            after(299_999, miscompare(299_999)),
            Some(miscompare(299_999))
        );
        assert!(operation.wants(299_998) && !operation.wants(299_999));
        operation.cancel();
        operation.fail(0, DiskError::Gone);
        let error = operation.failure.map(|failure| failure.error);
        assert_eq!(error, Some(DiskError::Cancelled));
    }

    /// The pieces of a Zero that begins with fallocate(2), as (length, whether it writes).
    fn zero_pieces(offset: u64, len: u64) -> Vec<(u64, bool)> {
        let mut operation = operation(Op::Zero {
            offset,
            len,
            unmap: false,
            fua: false,
        });
        std::iter::from_fn(|| {
            let plan = operation.next()?;
            operation.issued += plan.len as u64;
            Some((plan.len as u64, plan.memory == Wanted::Pool))
        })
        .collect()
    }

    #[test]
    fn only_whole_granules_are_made_zero_without_writing_and_not_too_many_at_once() {
        assert_eq!(zero_pieces(512, 512), [(512, true)]);
        assert_eq!(zero_pieces(4096, 8192), [(8192, false)]);
        assert_eq!(
            zero_pieces(3584, 512 + 4096 + 1024),
            [(512, true), (4096, false), (1024, true)]
        );
        assert_eq!(
            zero_pieces(0, (2 << 30) + 4096),
            [(1 << 30, false), (1 << 30, false), (4096, false)]
        );
    }

    #[test]
    fn zeros_are_written_where_no_other_way_is_possible() {
        let mut operation = operation(Op::Zero {
            offset: 0,
            len: 8192,
            unmap: true,
            fua: false,
        });
        operation.work = Work::Zero(Zeroing::Punch);
        for step in [Step::Punch, Step::ZeroRange, Step::Write] {
            let plan = operation.next().unwrap();
            assert_eq!((plan.step, plan.at, plan.len), (step, 0, 8192));
            operation.issued = 8192;
            assert!(operation.try_otherwise(0));
        }
    }
}
