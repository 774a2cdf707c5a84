//! Copies that a filesystem does by itself, on threads of the file's own: io_uring has no call for
//! that, and it may take long.
//!
//! The blocks are locked against everybody meanwhile, so that a copy that was cancelled cannot land
//! on newer writes, and a barrier waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use super::inbox::{Inbox, Message, Place};
use super::operation::{Lock, Operation};
use super::work::{Order, Work};
use crate::disk::OpenFile;
use crate::disk::ranges::{Calm, Hold};
use crate::disk::reflink::is_impossible;
use crate::disk::sharing::Way;
use crate::pinning;

/// Most threads that copy to one file: a filesystem has them wait for each other anyway.
const MAX_THREADS: usize = 2;
/// Most bytes that copy_file_range(2) is asked for before it is looked whether they are still
/// wanted.
const MAX_STEP: u64 = 4 << 20;

/// Blocks that the filesystem is to copy, while an operation has not come to them.
#[derive(Debug)]
pub struct Offer {
    /// Where they begin and end, counted from the operation's first byte.
    pub start: u64,
    pub end: u64,
    /// Set when nobody wants them any more.
    cancelled: Arc<AtomicBool>,
}

impl Offer {
    /// The thread may leave what it has not begun.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Something to copy.
#[derive(Debug)]
pub struct CopyJob {
    source: Arc<OpenFile>,
    file: Arc<OpenFile>,
    from: u64,
    offset: u64,
    len: u64,
    cancelled: Arc<AtomicBool>,
    /// That of the operation.
    calm: Option<Calm>,
    hold: Hold,
    inbox: Arc<Inbox>,
    place: Place,
}

/// What became of it.
#[derive(Debug)]
pub struct Landed {
    hold: Hold,
    /// Bytes from its first one on that are copied.
    done: u64,
}

impl Operation {
    /// Which blocks of a copy the filesystem may do: whole blocks of it, as far as those of source
    /// and destination begin together.
    pub fn offer(&self, from: u64, order: Order) -> Option<Offer> {
        let source = self.source.as_ref()?.sharing()?;
        let sharing = self.file.sharing()?;
        if order != Order::Any || sharing.way_from(source) == Way::Pool {
            return None;
        }
        let block = sharing.block().max(source.block());
        if from % block != self.offset % block {
            return None;
        }
        let end = self.offset.checked_add(self.len)?;
        let start = self.offset.checked_next_multiple_of(block)?;
        let end = end - end % block;
        (start < end).then(|| Offer {
            start: start - self.offset,
            end: end - self.offset,
            cancelled: Arc::default(),
        })
    }

    /// Has the filesystem copy what it was offered, if there is a thread for it; the bounce pool
    /// does it otherwise.
    pub fn hand_copy_over(&mut self, place: Place, inbox: &Arc<Inbox>) -> bool {
        let (Work::Copy { from, offer, .. }, Some(source)) = (&mut self.work, &self.source) else {
            return false;
        };
        let Some(given) = offer else { return false };
        let hold = match std::mem::replace(&mut self.lock, Lock::None) {
            Lock::Held(hold) => hold,
            other => {
                self.lock = other;
                *offer = None;
                return false;
            }
        };
        // Those that are there already come in between in any order, as always.
        hold.fence();
        let job = CopyJob {
            source: Arc::clone(source),
            file: Arc::clone(&self.file),
            from: *from + given.start,
            offset: self.offset + given.start,
            len: given.end - given.start,
            cancelled: Arc::clone(&given.cancelled),
            calm: self.calm.clone(),
            hold,
            inbox: Arc::clone(inbox),
            place,
        };
        match give(job) {
            Ok(()) => {
                // As a piece in the kernel would be.
                self.pieces += 1;
                true
            }
            Err(job) => {
                self.lock = Lock::Held(job.hold);
                *offer = None;
                false
            }
        }
    }

    /// Counts bytes that a copy has written from the pool.
    pub fn count_copied(&self, len: u64) {
        if let (Work::Copy { .. }, Some(sharing)) = (&self.work, self.file.sharing()) {
            sharing.count(Way::Pool, len);
        }
    }

    /// Takes what became of it; what is not copied goes through the pool.
    pub fn take_landed(&mut self, landed: Landed) {
        self.pieces -= 1;
        self.issued += landed.done;
        self.sync |= landed.done > 0 && self.file.syncs_allocation();
        if let Work::Copy { offer, .. } = &mut self.work {
            *offer = None;
        }
        self.lock = Lock::Held(landed.hold);
    }
}

/// Has a job done; [`Message::Landed`] comes to its inbox.
///
/// # Errors
/// The job, if there is no thread for it.
fn give(job: CopyJob) -> Result<(), Box<CopyJob>> {
    let file = Arc::clone(&job.file);
    let Some(sharing) = file.sharing() else {
        return Err(Box::new(job));
    };
    let mut jobs = sharing.jobs.lock().unwrap_or_else(PoisonError::into_inner);
    if jobs.threads < MAX_THREADS {
        let own = Arc::clone(&file);
        let started = pinning::spawn_free("copy", move || work(&own));
        match started {
            Ok(_) => jobs.threads += 1,
            Err(_) if jobs.threads == 0 => return Err(Box::new(job)),
            // Fewer do it as well, only slower.
            Err(_) => {}
        }
    }
    jobs.waiting.push_back(job);
    Ok(())
}

/// Does what there is for a file, until there is nothing.
fn work(file: &OpenFile) {
    let Some(sharing) = file.sharing() else {
        return;
    };
    loop {
        let mut jobs = sharing.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = jobs.waiting.pop_front() else {
            jobs.threads -= 1;
            return;
        };
        drop(jobs);
        let done = job.carry_out();
        let CopyJob {
            source,
            file: own,
            hold,
            inbox,
            place,
            ..
        } = job;
        // The files, and their locks, before the answer: but for that of this thread.
        drop((source, own));
        inbox.post(Message::Landed(place, Landed { hold, done }));
    }
}

impl CopyJob {
    /// Copies; returns how many bytes are, from the first one on: whole blocks, with which the pool
    /// can go on. Whatever goes wrong, the pool
    /// finds out whose fault it is.
    fn carry_out(&self) -> u64 {
        let (Some(source), Some(sharing)) = (self.source.sharing(), self.file.sharing()) else {
            return 0;
        };
        let mut done = 0;
        while done < self.len && self.is_wanted() {
            let way = sharing.way_from(source);
            match self.step(way, done) {
                Ok(0) => break,
                Ok(moved) => {
                    sharing.count(way, moved);
                    self.file.tell(crate::disk::Deed::Written {
                        offset: self.offset + done,
                        len: moved,
                    });
                    done += moved;
                }
                Err(error) if is_impossible(&error) => sharing.cannot(source, way, &error),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(?way, "a filesystem did not copy: {error}");
                    break;
                }
            }
        }
        if done < self.len {
            done - done % sharing.block().max(source.block())
        } else {
            done
        }
    }

    /// Whether the operation still needs it, and does not fail for its source's sake.
    fn is_wanted(&self) -> bool {
        let is_over = self.calm.as_ref().is_some_and(Calm::is_over);
        !is_over && !self.cancelled.load(Ordering::Relaxed)
    }

    /// Has the filesystem copy some of what is left; returns how many bytes it did.
    fn step(&self, way: Way, done: u64) -> std::io::Result<u64> {
        let Some(sharing) = self.file.sharing() else {
            return Ok(0);
        };
        let (from, to) = (self.source.file(), self.file.file());
        let (at, offset, left) = (self.from + done, self.offset + done, self.len - done);
        match way {
            Way::Reflink => {
                // Whoever shares a block writes elsewhere from now on: neither is settled.
                let _changes = [&self.source, &self.file].map(|file| file.settled().change());
                sharing
                    .calls()
                    .clone_range(from, at, to, offset, left)
                    .map(|()| left)
            }
            Way::Filesystem => {
                let _changes = [&self.source, &self.file].map(|file| file.settled().change());
                let len = usize::try_from(left.min(MAX_STEP)).unwrap_or(usize::MAX);
                let moved = sharing.calls().copy_range(from, at, to, offset, len)?;
                Ok(moved as u64)
            }
            Way::Pool => Ok(0),
        }
    }
}
