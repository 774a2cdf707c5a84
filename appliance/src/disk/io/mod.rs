//! The loop of a worker: io_uring for disks and wake-ups.

mod check;
mod content;
mod extents;
mod files;
mod held;
mod inbox;
mod offload;
mod operation;
mod piece;
mod pieces;
mod plan;
mod pool;
mod protected;
mod ring;
mod shares;
mod through;
mod transfers;
mod work;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub(super) use inbox::{Inbox, Message, Place};
pub(super) use offload::CopyJob;
pub(super) use plan::MAX_ATOMIC_WRITE;
pub(super) use pool::{Pool, Run};
pub use ring::SetupError;
use ring::{Completion, Ring};
use transfers::Transfers;
use vmm_sys_util::eventfd::EventFd;

use super::table::Table;
use super::{Disk, DiskError, Op, Reply, sys};
use crate::memory::Segments;

/// An operation to carry out.
#[derive(Debug)]
pub struct Request {
    /// The caller's name for it, unique among those not yet done.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// The tenant's buffer, at least as long as [`Op::data_out`] and [`Op::data_in`] say; may be
    /// `None` where they say 0.
    pub data: Option<Segments>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A watched eventfd was written to.
    Wake(u64),
    /// A request is over; each request gets exactly one of these.
    Done {
        /// Its tag.
        tag: u64,
        /// How it ended.
        result: Result<Reply, DiskError>,
    },
}

/// The loop of one worker; made on the worker's thread and never sent to another, since the
/// kernel binds the ring to the thread.
///
/// Its ring has cached files open that it moved data of, until it waits for the first time after
/// everybody else has closed them; their locks are given up by then.
///
/// Dropping it cancels what is in flight and waits up to [`Self::DROP_DEADLINE`] for the kernel
/// to let go; memory that the kernel still uses then is leaked rather than freed under it, and
/// blocks that it may still change stay locked.
#[derive(Debug)]
pub struct Io {
    // Before `transfers`, so that the kernel lets go of the pool before it is unmapped.
    ring: Ring,
    transfers: Transfers,
    watches: Table<Watch>,
    inbox: Arc<Inbox>,
    /// Events for the next `wait`.
    ready: VecDeque<Event>,
    /// Kept between calls for its capacity.
    completions: Vec<Completion>,
    _thread: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Watch {
    fd: EventFd,
    token: u64,
    /// Unwatched; the entry waits for the kernel's last word.
    ended: bool,
}

/// What a completion belongs to, as its user data says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Piece(usize),
    Watch(usize),
    /// The bell of the inbox.
    Inbox,
    /// A request to cancel something.
    Cancel,
}

impl Source {
    const KINDS: u64 = 4;

    fn user_data(self) -> u64 {
        let (kind, index) = match self {
            Self::Cancel => (0, 0),
            Self::Piece(index) => (1, index),
            Self::Watch(index) => (2, index),
            Self::Inbox => (3, 0),
        };
        index as u64 * Self::KINDS + kind
    }

    fn of(user_data: u64) -> Self {
        // An index was a usize before it became user data.
        let index = usize::try_from(user_data / Self::KINDS).unwrap_or(usize::MAX);
        match user_data % Self::KINDS {
            1 => Self::Piece(index),
            2 => Self::Watch(index),
            3 => Self::Inbox,
            _ => Self::Cancel,
        }
    }
}

impl Io {
    /// Bytes of the bounce pool unless told otherwise. A file holds at most as much of it as it
    /// leaves free: half of it, a quarter if another file holds half, and so on, so that disks
    /// which hang do not use it up.
    pub const DEFAULT_POOL: usize = 4 << 20;
    /// What is written and what is read back need a granule each.
    const MIN_POOL: usize = 2 * Pool::GRANULE;
    /// How long dropping waits for the kernel.
    pub const DROP_DEADLINE: Duration = Duration::from_secs(5);

    /// A loop with a bounce pool of [`Self::DEFAULT_POOL`] bytes.
    ///
    /// # Errors
    /// [`SetupError`], which names the mend.
    pub fn new() -> Result<Self, SetupError> {
        Self::with_pool(Self::DEFAULT_POOL)
    }

    /// A loop with a bounce pool of `pool` bytes (rounded up to pages, two at least).
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_pool(pool: usize) -> Result<Self, SetupError> {
        let mut ring = Ring::new()?;
        let pool = Pool::new(pool.max(Self::MIN_POOL))?;
        let inbox = Arc::new(Inbox::new()?);
        ring.poll(Source::Inbox.user_data(), inbox.bell().as_raw_fd());
        let transfers = Transfers::new(pool, Arc::clone(&inbox), &mut ring);
        Ok(Self {
            ring,
            transfers,
            inbox,
            watches: Table::new(),
            ready: VecDeque::new(),
            completions: Vec::new(),
            _thread: PhantomData,
        })
    }

    /// Reports [`Event::Wake`] with `token` whenever the eventfd `fd` is written to; at once if it
    /// was written to before, and perhaps once more for that when it is watched again. Its counter
    /// is of no use to others. The loop keeps a duplicate of `fd`.
    ///
    /// # Errors
    /// What dup(2) reports.
    pub fn watch(&mut self, fd: &EventFd, token: u64) -> io::Result<()> {
        let fd = fd.try_clone()?;
        let raw = fd.as_raw_fd();
        let index = self.watches.insert(Watch {
            fd,
            token,
            ended: false,
        });
        self.ring.poll(Source::Watch(index).user_data(), raw);
        Ok(())
    }

    /// Ends [`Self::watch`]; no event with this token follows.
    pub fn unwatch(&mut self, token: u64) {
        for (index, watch) in self.watches.iter_mut() {
            if watch.token == token && !watch.ended {
                watch.ended = true;
                self.ring
                    .cancel(Source::Cancel.user_data(), Source::Watch(index).user_data());
            }
        }
        self.ready.retain(|event| *event != Event::Wake(token));
    }

    /// Carries out an operation that its disk can do at once, and tells how it ended; there is no
    /// event for it. `None` if it is to be [submitted](Self::submit).
    #[inline]
    pub fn at_once(
        &self,
        disk: &dyn Disk,
        op: &Op,
        data: Option<&Segments>,
    ) -> Option<Result<Reply, DiskError>> {
        self.transfers.at_once(disk, op, data)
    }

    /// Takes a request. It is submitted by the next [`Self::wait`] and ends in exactly one
    /// [`Event::Done`], whatever happens. Never blocks, never fails.
    pub fn submit(&mut self, disk: &Arc<dyn Disk>, request: Request) {
        self.transfers
            .submit(disk, request, &mut self.ring, &mut self.ready);
    }

    /// Cancels the request with this tag, if it is not over. It still gets its one
    /// [`Event::Done`], with [`DiskError::Cancelled`], when the tenant's memory will not be
    /// touched for it again: at the next `wait` even if the disk hangs, except that a read or
    /// write for which the kernel uses the tenant's memory (of a write-back disk, or one without
    /// bounce buffers) takes until the kernel is done.
    ///
    /// The kernel may change the disk because of it even later, but nobody's newer changes: those
    /// of the same blocks wait until it is done. Reads do not wait. [`Op::Barrier`] tells when it
    /// can no more.
    pub fn cancel(&mut self, tag: u64) {
        self.transfers.cancel(tag, &mut self.ring, &mut self.ready);
    }

    /// Requests that have not had their `Done`, those that the next `wait` reports excepted.
    pub fn in_flight(&self) -> usize {
        self.transfers.in_flight()
    }

    /// Tags of the requests that had to wait, for others of their blocks or for memory, and were
    /// given to the kernel since this was last called. Those that did not wait are none of them.
    pub fn take_begun(&mut self) -> Vec<u64> {
        self.transfers.take_begun()
    }

    /// Submits what was taken and appends what happened to `events`; waits until something did or
    /// `timeout` is over (`None`: for ever, zero: not at all).
    ///
    /// # Errors
    /// What io_uring_enter(2) reports, interruptions excepted; the loop is unusable then.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let deadline = timeout
            .filter(|timeout| !timeout.is_zero())
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let mut remaining = timeout;
        loop {
            if !self.ready.is_empty() {
                remaining = Some(Duration::ZERO);
            }
            // Who only looks need not enter the kernel, unless there is something to give or take.
            if remaining != Some(Duration::ZERO)
                || self.ring.has_unsubmitted()
                || self.ring.has_hidden_completions()
            {
                self.ring.enter(remaining)?;
            }
            if remaining == Some(Duration::ZERO)
                && self.ready.is_empty()
                && self.transfers.has_through()
            {
                // The kernel has a thread of this very CPU do the sync, which would not run before
                // our time is up.
                thread::yield_now();
            }
            self.take_completions();
            if !self.ready.is_empty() {
                break;
            }
            match (timeout, deadline) {
                (Some(Duration::ZERO), _) => break,
                (_, Some(deadline)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    remaining = Some(left);
                }
                (_, None) => {}
            }
        }
        events.extend(self.ready.drain(..));
        // The next parts of what just completed must not wait for the caller to come back.
        if self.ring.has_unsubmitted() {
            self.ring.enter(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Ends the loop as dropping it does, but for what the kernel does not let go in time: that is
    /// returned, for [`Self::drain`].
    #[must_use = "what is still under way may change the disk later"]
    pub fn close(self) -> Option<Self> {
        self.close_within(Self::DROP_DEADLINE)
    }

    fn close_within(mut self, limit: Duration) -> Option<Self> {
        self.settle(limit);
        // A disk that hangs keeps the ring, but not the files that it knows.
        self.transfers.files().forget_all(&self.ring);
        (!self.transfers.is_idle()).then_some(self)
    }

    /// Waits until the kernel has let go of everything that [`Self::close`] left, for as long as
    /// the disk takes.
    pub fn drain(mut self) {
        while !self.transfers.is_idle() && self.ring.enter(None).is_ok() {
            self.take_completions();
            self.ready.clear();
        }
    }

    /// Requests that the kernel still works on.
    pub fn unfinished(&self) -> usize {
        self.transfers.unfinished()
    }

    /// Cancels everything and waits up to `limit` for its end.
    fn settle(&mut self, limit: Duration) {
        self.transfers.cancel_all(&mut self.ring, &mut self.ready);
        let deadline = Instant::now() + limit;
        while !self.transfers.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.ring.enter(Some(left)).is_err() {
                break;
            }
            self.take_completions();
        }
    }

    fn take_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(&mut completions);
        for completion in completions.drain(..) {
            match Source::of(completion.user_data) {
                Source::Piece(index) => self.transfers.complete(
                    index,
                    completion.result,
                    &mut self.ring,
                    &mut self.ready,
                ),
                Source::Watch(index) => self.wake(index, completion),
                Source::Inbox => self.take_messages(completion),
                Source::Cancel => {}
            }
        }
        self.completions = completions;
    }

    fn take_messages(&mut self, completion: Completion) {
        self.transfers
            .take_messages(&mut self.ring, &mut self.ready);
        if completion.more {
            return;
        }
        if completion.result < 0 {
            tracing::error!(
                error = %io::Error::from_raw_os_error(-completion.result),
                "watching the loop's own eventfd failed; trying again"
            );
        }
        let bell = self.inbox.bell().as_raw_fd();
        self.ring.poll(Source::Inbox.user_data(), bell);
    }

    fn wake(&mut self, index: usize, completion: Completion) {
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        if !watch.ended && completion.result >= 0 {
            if !completion.more {
                // Each write to it is told while it is watched, whatever its counter is; but a new
                // watch begins with what the counter says.
                sys::drain_eventfd(&watch.fd);
            }
            self.ready.push_back(Event::Wake(watch.token));
        }
        if completion.more {
            return;
        }
        if watch.ended {
            self.watches.remove(index);
        } else if completion.result >= 0 {
            let raw = watch.fd.as_raw_fd();
            self.ring.poll(Source::Watch(index).user_data(), raw);
        } else {
            tracing::error!(
                token = watch.token,
                error = %io::Error::from_raw_os_error(-completion.result),
                "an eventfd cannot be watched any more"
            );
            self.watches.remove(index);
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.settle(Self::DROP_DEADLINE);
        if !self.transfers.is_idle() {
            tracing::error!(
                requests = self.transfers.unfinished(),
                "the disk does not finish what was begun; leaking its memory"
            );
            self.transfers.leak();
        }
        self.transfers.files().forget_all(&self.ring);
        // Others may hold it for as long as a disk hangs, and what is in it is wanted elsewhere.
        self.inbox.close();
    }
}

#[cfg(test)]
mod tests;
