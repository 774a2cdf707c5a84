//! The thread that erases: piece by piece, one at a time, on a loop of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::errand::Runner;
use super::job::{Fill, Job};
use super::progress::Progress;
use crate::disk::{Disk, DiskError, Event, Io, Op, Protected, Reply, Request};
use crate::memory::{Segments, own};

/// Bytes of a piece of zeros: a disk that has to write them lets others in between.
const ZEROS: u64 = 16 << 20;
/// Bytes of a piece of a pattern.
const PATTERN: u64 = 4 << 20;
/// Bytes of the loop's bounce pool.
const POOL: usize = 1 << 20;
/// How often it looks whether it is still wanted while the disk works.
const LOOK: Duration = Duration::from_millis(200);

/// Why it ended too early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody wants it any more: the unit is gone, or the command that it was done for.
    #[error("nobody wants it any more")]
    Unwanted,
    #[error("the disk fails: {0}")]
    Disk(#[from] DiskError),
    #[error("{what}: {error}")]
    Io {
        what: &'static str,
        error: io::Error,
    },
}

/// Does all of `job` to `disk`; when it returns, it is on stable storage.
///
/// # Errors
/// [`Failure`]; some blocks may have been erased, and some not.
pub fn erase(disk: &Arc<dyn Disk>, job: &Job, progress: &Progress) -> Result<(), Failure> {
    let mut eraser = Eraser::new(disk, progress, None)?;
    // Writes that came before, in any loop, land before the first block is erased.
    eraser.carry_out(Op::Barrier, None)?;
    let passes = job.passes();
    for pass in 0..passes {
        eraser.pass(&job.fill, pass, passes)?;
    }
    eraser.carry_out(Op::Flush, None)
}

/// Writes zeros to those of `blocks` that cannot be read, until its command is over. A disk may try
/// for long to read a block, and a write to it may do meanwhile: so nobody may write a block between
/// the failed read and the zeros.
///
/// # Errors
/// The block at which it failed, and why.
pub fn mend(
    disk: &Arc<dyn Disk>,
    blocks: &[u64],
    (progress, runner): (&Progress, &Runner),
) -> Result<(), (u64, Failure)> {
    let at = |lba| move |failure| (lba, failure);
    let mut eraser = Eraser::new(disk, progress, Some(runner)).map_err(at(0))?;
    let len = u64::from(disk.geometry().block_size);
    for &lba in blocks {
        let offset = lba.saturating_mul(len);
        let mended = eraser.carry_out(Op::Mend { offset, len }, None);
        mended.map_err(at(lba))?;
    }
    Ok(())
}

struct Eraser<'a> {
    /// `None` once it is dropped.
    io: Option<Io>,
    disk: &'a Arc<dyn Disk>,
    progress: &'a Progress,
    /// If it is done for a command, and only as long as that is there.
    runner: Option<&'a Runner>,
}

impl<'a> Eraser<'a> {
    fn new(
        disk: &'a Arc<dyn Disk>,
        progress: &'a Progress,
        runner: Option<&'a Runner>,
    ) -> Result<Self, Failure> {
        let io = Io::with_pool(POOL).map_err(|error| Failure::Io {
            what: "setting io_uring up",
            error: io::Error::other(error),
        })?;
        Ok(Self {
            io: Some(io),
            disk,
            progress,
            runner,
        })
    }

    /// Writes all blocks once.
    fn pass(&mut self, fill: &Fill, pass: u8, passes: u8) -> Result<(), Failure> {
        let block_size = self.disk.geometry().block_size;
        let (data, piece) = match fill {
            Fill::Pattern {
                pattern, invert, ..
            } => {
                let size = usize::try_from(block_size).unwrap_or(usize::MAX);
                let block = pattern.block(size, *invert && pass % 2 == 1);
                (Some(buffer(&block)?), PATTERN)
            }
            Fill::Nothing | Fill::Zeros => (None, ZEROS),
        };
        let mut offset = 0;
        loop {
            // It may have become larger, or smaller, meanwhile.
            let size = self
                .disk
                .geometry()
                .blocks
                .saturating_mul(block_size.into());
            let len = size.saturating_sub(offset).min(piece);
            if len == 0 {
                return Ok(());
            }
            let fua = false;
            let op = match data {
                Some(_) => Op::WriteSame { offset, len, fua },
                None => Op::Zero {
                    offset,
                    len,
                    unmap: true,
                    fua,
                },
            };
            self.carry_out(op, data.clone())?;
            offset += len;
            self.progress.set((pass, passes), offset, size);
        }
    }

    fn is_unwanted(&self) -> bool {
        self.progress.is_unwanted() || self.runner.is_some_and(Runner::is_over)
    }

    fn carry_out(&mut self, op: Op, data: Option<Segments>) -> Result<(), Failure> {
        if self.is_unwanted() {
            return Err(Failure::Unwanted);
        }
        let Some(io) = self.io.as_mut() else {
            return Err(Failure::Unwanted);
        };
        let op = match self.disk.protected() {
            Some(_) if op.changes_blocks() => unchecked(op),
            _ => op,
        };
        let submit = || io.submit(self.disk, Request { tag: 0, op, data });
        // Its blocks are locked, or wait for that, when this returns.
        let is_begun = match self.runner {
            Some(runner) => runner.begin(submit),
            None => {
                submit();
                true
            }
        };
        if !is_begun {
            return Err(Failure::Unwanted);
        }
        let mut events = Vec::new();
        loop {
            let Some(io) = self.io.as_mut() else {
                return Err(Failure::Unwanted);
            };
            io.wait(Some(LOOK), &mut events)
                .map_err(|error| Failure::Io {
                    what: "waiting for the disk",
                    error,
                })?;
            if let Some(Event::Done { result, .. }) = events.pop() {
                return match result? {
                    Reply::Done => Ok(()),
                    Reply::Allocation(_) => Err(DiskError::Unsupported.into()),
                };
            }
            if self.is_unwanted() {
                return Err(Failure::Unwanted);
            }
        }
    }
}

impl Drop for Eraser<'_> {
    fn drop(&mut self) {
        // This thread has nothing else to do than to wait for a disk that hangs.
        if let Some(rest) = self.io.take().and_then(Io::close) {
            rest.drain();
        }
    }
}

/// What is erased has tags that check nothing (SBC-4 §4.33.3.2.2 and SANITIZE's: FFFF_FFFF_FFFF_FFFFh).
fn unchecked(op: Op) -> Op {
    Op::Protected(Box::new(Protected {
        unchecked: true,
        ..Protected::new(op)
    }))
}

/// A buffer with these bytes.
fn buffer(bytes: &[u8]) -> Result<Segments, Failure> {
    let try_buffer = || -> io::Result<Segments> {
        let mut segments = Segments::new(own(bytes.len())?);
        segments.push(0, bytes.len()).map_err(io::Error::other)?;
        segments.write_at(0, bytes);
        Ok(segments)
    };
    try_buffer().map_err(|error| Failure::Io {
        what: "memory for the pattern",
        error,
    })
}
