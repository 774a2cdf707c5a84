//! The loop of a worker: io_uring for disks and wake-ups.

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Disk, DiskError, Op};
use crate::memory::Segments;

/// An operation to carry out.
#[derive(Debug)]
pub struct Request {
    /// The caller's name for it, unique among those not yet done.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// The tenant's buffer, at least as long as the operation; `None` for a flush.
    pub data: Option<Segments>,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A watched eventfd was written to.
    Wake(u64),
    /// A request is over; each request gets exactly one of these.
    Done {
        /// Its tag.
        tag: u64,
        /// How it ended.
        result: Result<(), DiskError>,
    },
}

/// The loop of one worker; made on the worker's thread and never sent to another.
#[derive(Debug)]
pub struct Io {
    _thread: PhantomData<*const ()>,
}

impl Io {
    /// A loop with a bounce pool of the default size ([`Self::DEFAULT_POOL`] bytes).
    ///
    /// # Errors
    /// What io_uring_setup(2) and mmap(2) report.
    pub fn new() -> io::Result<Self> {
        todo!()
    }
    /// A loop with a bounce pool of `pool` bytes (rounded up to pages).
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_pool(_pool: usize) -> io::Result<Self> {
        todo!()
    }
    /// Reports [`Event::Wake`] with `token` whenever the eventfd `fd` is written to, and drains
    /// it. The loop keeps its own duplicate of `fd`.
    ///
    /// # Errors
    /// What dup(2) reports.
    pub fn watch(&mut self, _fd: BorrowedFd<'_>, _token: u64) -> io::Result<()> {
        todo!()
    }
    /// Ends [`Self::watch`]; no event with this token follows.
    pub fn unwatch(&mut self, _token: u64) {
        todo!()
    }
    /// Takes a request; it is submitted by the next [`Self::wait`] and ends in exactly one
    /// [`Event::Done`], whatever happens. Never blocks, never fails.
    pub fn submit(&mut self, _disk: &Arc<dyn Disk>, _request: Request) {
        todo!()
    }
    /// Cancels the request with this tag, if it is not over. It still gets its one
    /// [`Event::Done`], with [`DiskError::Cancelled`]: when the tenant's memory will not be
    /// touched for it again and, for a write, the disk will not change because of it. On a direct
    /// disk the tenant's memory is let go at once, and a read is over at the next `wait`.
    pub fn cancel(&mut self, _tag: u64) {
        todo!()
    }
    /// Requests that have not had their `Done`.
    pub fn in_flight(&self) -> usize {
        todo!()
    }
    /// Submits what was taken and appends what happened to `events`; waits until something did or
    /// `timeout` is over (`None`: for ever, zero: not at all).
    ///
    /// # Errors
    /// What io_uring_enter(2) reports, except interruptions; the loop is unusable then.
    pub fn wait(&mut self, _timeout: Option<Duration>, _events: &mut Vec<Event>) -> io::Result<()> {
        todo!()
    }
}
