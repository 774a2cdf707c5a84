//! A part of an operation that the kernel carries out on its own.

use super::operation::{Operation, index};
use super::pool::Run;
use super::through::Through;
use super::work::Work;
use crate::disk::{Cache, DiskError};

/// How often a piece that the kernel could not take for the moment is tried again.
const MAX_RETRIES: u8 = 8;
/// Bytes from which O_DIRECT can go on; a transfer that stops elsewhere met the file's end.
const SECTOR: usize = 512;

#[derive(Debug)]
pub struct Piece {
    /// Index of the operation.
    pub operation: usize,
    /// First byte and length within the stage of the operation.
    pub at: u64,
    pub len: usize,
    /// Bytes that the kernel has moved in this step.
    pub done: usize,
    pub step: Step,
    pub memory: Memory,
    /// If it writes.
    pub through: Through,
    retries: u8,
}

/// What the kernel is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Read,
    Write,
    WriteAtomic,
    /// Reads what was written, into the second run of a pair.
    ReadBack,
    /// Gives blocks back.
    Punch,
    /// Makes blocks zeros without writing them.
    ZeroRange,
    /// Says what will be read.
    Advise,
    Sync,
}

#[derive(Debug)]
pub enum Memory {
    Pool(Run),
    /// What is written, and what is read back.
    Pair(Run, Run),
    /// Vectors into the operation's `data`, which stays there while pieces are in the kernel.
    Tenant(Vec<libc::iovec>),
    None,
}

/// What a completion means for a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The rest has to be issued.
    Again,
    Over(Result<(), DiskError>),
    /// This file cannot do the step.
    Impossible,
}

impl Step {
    /// Whether it may change what the disk holds.
    pub fn changes_blocks(self) -> bool {
        match self {
            Self::Write | Self::WriteAtomic | Self::Punch | Self::ZeroRange => true,
            Self::Read | Self::ReadBack | Self::Advise | Self::Sync => false,
        }
    }

    /// Whether blocks may have no place on the disk from then on.
    pub fn gives_back(self) -> bool {
        matches!(self, Self::Punch | Self::ZeroRange)
    }

    fn moves_data(self) -> bool {
        match self {
            Self::Read | Self::Write | Self::WriteAtomic | Self::ReadBack => true,
            Self::Punch | Self::ZeroRange | Self::Advise | Self::Sync => false,
        }
    }
}

impl Piece {
    pub fn new(operation: usize, at: u64, len: usize, step: Step, memory: Memory) -> Self {
        Self {
            operation,
            at,
            len,
            done: 0,
            step,
            memory,
            through: Through::No,
            retries: 0,
        }
    }

    /// Begins another step with the same memory.
    pub fn begin(&mut self, step: Step) {
        self.step = step;
        self.done = 0;
        self.retries = 0;
    }

    /// What `result` (bytes, or a negated errno) means.
    pub fn progress(&mut self, operation: &Operation, result: i32) -> Progress {
        match usize::try_from(result) {
            Ok(moved) if self.step.moves_data() => self.moved(operation, moved),
            Ok(_) if self.step == Step::Sync => Progress::Over(operation.file.flushed(Ok(()))),
            Ok(_) => Progress::Over(Ok(())),
            Err(_) => self.failed(operation, result.saturating_neg()),
        }
    }

    fn moved(&mut self, operation: &Operation, moved: usize) -> Progress {
        self.done += moved;
        // No more of it, if it failed or was cancelled meanwhile.
        if self.done >= self.len || !operation.wants(self.at) {
            return Progress::Over(match self.step {
                Step::Write => self.through.done(&operation.file),
                _ => Ok(()),
            });
        }
        let stuck = operation.file.cache() == Cache::Direct && !moved.is_multiple_of(SECTOR);
        // The rest of an atomic write would be another write.
        if moved == 0 || stuck || self.step == Step::WriteAtomic {
            if self.step == Step::Write {
                self.through.undecided(&operation.file);
            }
            return Progress::Over(Err(match self.step {
                Step::Read | Step::ReadBack => DiskError::Truncated,
                _ => DiskError::Io(libc::EIO),
            }));
        }
        if let (Memory::Tenant(vectors), Some(data)) = (&mut self.memory, &operation.data) {
            vectors.clear();
            vectors.extend(data.iovecs(index(self.at) + self.done, self.len - self.done));
        }
        Progress::Again
    }

    fn failed(&mut self, operation: &Operation, errno: i32) -> Progress {
        let transient = matches!(errno, libc::EAGAIN | libc::EINTR);
        if transient && operation.wants(self.at) && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Progress::Again;
        }
        if self.step == Step::Write {
            let next = self.through.after(errno);
            // What is cancelled is written once more for the sake of others, if they may have lost
            // something, and for no other reason.
            if let Some(next) = next
                && (operation.wants(self.at) || next == Through::Doubted)
            {
                self.through = next;
                self.retries = 0;
                return Progress::Again;
            }
            self.through.failed(&operation.file, errno);
        }
        let error = Err(DiskError::from_errno(errno));
        match (self.step, errno) {
            (Step::Punch | Step::ZeroRange, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => {
                Progress::Impossible
            }
            (Step::WriteAtomic, libc::EOPNOTSUPP | libc::EINVAL) => {
                Progress::Over(Err(DiskError::Unsupported))
            }
            // It was a hint.
            (Step::Advise, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::ESPIPE) => {
                Progress::Over(Ok(()))
            }
            // It did not come to an end, and says nothing about what was written.
            (Step::Sync, _) if transient => Progress::Over(error),
            // What is no whole granule, on a full disk: a hole, or space that only a copy can
            // change. The kernel makes it zero without more space, but in its cache.
            (Step::Write, _)
                if error == Err(DiskError::NoSpace)
                    && matches!(operation.work, Work::Unmap { .. })
                    && operation.wants(self.at) =>
            {
                // The piece began as one that gives nothing back, but ends as one that does.
                operation.file.settled().begin_change();
                self.begin(Step::Punch);
                Progress::Again
            }
            (Step::Sync, _) => Progress::Over(operation.file.flushed(error)),
            _ => Progress::Over(error),
        }
    }
}
