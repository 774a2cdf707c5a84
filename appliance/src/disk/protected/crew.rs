//! The threads that work on one disk with protection information.
//!
//! Their number bounds what is under way on the disk, and so the memory that it takes: who wants
//! something done has a seat first, or waits for one in the order of coming.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::chunk::{Chunk, Scratch, Worked};
use super::layout::Layout;
use super::store::Store;
use super::{FileMedium, Protection, Tag};
use crate::disk::io::{Inbox, Message, Place};
use crate::disk::ranges::Hold;
use crate::disk::{DiskError, OpenFile};
use crate::pinning;

/// How much is under way at a time on one disk.
const SEATS: usize = 4;

/// The threads of one disk; they end when the disk and the last job are gone.
pub struct Crew {
    state: Mutex<State>,
    work: Condvar,
    layout: Layout,
    protection: Protection,
}

#[derive(Default)]
struct State {
    taken: usize,
    waiting: VecDeque<(Arc<Inbox>, Place)>,
    jobs: VecDeque<Job>,
    threads: usize,
    closed: bool,
}

/// Leave to have one job done at a time; given up by dropping it.
#[must_use = "dropping it gives the seat up"]
pub struct Seat(Arc<Crew>);

/// Something to do, with what nobody else may have meanwhile.
pub struct Job {
    pub chunk: Chunk,
    pub file: Arc<OpenFile>,
    pub hold: Hold,
    pub seat: Seat,
    /// Who is told.
    pub inbox: Arc<Inbox>,
    pub place: Place,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crew")
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seat")
    }
}

impl Crew {
    pub fn new(layout: Layout, protection: Protection) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            layout,
            protection,
        }
    }

    /// The tag of the block so many after one that has `tag`, with the same data.
    pub fn following(&self, tag: Tag, blocks: u64) -> Tag {
        tag.following(blocks, self.protection)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat, or `None`: then [`Message::Seat`] for `place` comes to `inbox` with one.
    pub fn seat(self: &Arc<Self>, inbox: &Arc<Inbox>, place: Place) -> Option<Seat> {
        let mut state = self.state();
        if state.taken < SEATS {
            state.taken += 1;
            return Some(Seat(Arc::clone(self)));
        }
        state.waiting.push_back((Arc::clone(inbox), place));
        None
    }

    /// Gives up waiting for a seat. One that is on its way already goes to the next when its
    /// message is dropped.
    pub fn leave(&self, inbox: &Arc<Inbox>, place: Place) {
        let mut state = self.state();
        let at = state
            .waiting
            .iter()
            .position(|(of, at)| Arc::ptr_eq(of, inbox) && *at == place);
        let left = at.and_then(|at| state.waiting.remove(at));
        drop(state);
        // Without the lock: it may be the last of its inbox, with seats in it.
        drop(left);
    }

    /// How many wait for a seat.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Has a job done; [`Message::Worked`] comes to its inbox.
    ///
    /// # Errors
    /// [`DiskError::Busy`] if there is no thread for it.
    pub fn give(self: &Arc<Self>, job: Job) -> Result<(), DiskError> {
        let mut state = self.state();
        if state.threads < state.taken {
            let scratch = Scratch::new(self.layout.block_size).map_err(|_| DiskError::Busy);
            let spawned = scratch.and_then(|scratch| {
                let crew = Arc::clone(self);
                pinning::spawn_free("protected", move || crew.work(scratch))
                    .map_err(|_| DiskError::Busy)
            });
            match spawned {
                Ok(_) => state.threads += 1,
                // Fewer do it as well, only slower.
                Err(error) if state.threads == 0 => {
                    drop(state);
                    drop(job);
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Lets the threads end when nothing is left to do.
    pub fn close(&self) {
        self.state().closed = true;
        self.work.notify_all();
    }

    fn work(&self, mut scratch: Scratch) {
        loop {
            let mut state = self.state();
            let job = loop {
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                if state.closed {
                    // Whoever still comes starts another one.
                    state.threads -= 1;
                    return;
                }
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let Job {
                chunk,
                file,
                hold,
                seat,
                inbox,
                place,
            } = job;
            let blocks = chunk.blocks;
            let store = Store::new(FileMedium(file), self.layout, self.protection);
            let result = chunk.carry_out(&store, self.protection, &mut scratch);
            // The file, and its lock, before the answer: it may be the last use of both.
            drop(store);
            drop(seat);
            let worked = Worked {
                hold,
                blocks,
                result,
            };
            inbox.post(Message::Worked(place, worked));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.state();
            let next = state.waiting.pop_front();
            if next.is_none() {
                state.taken -= 1;
            }
            next
        };
        if let Some((inbox, place)) = next {
            inbox.post(Message::Seat(place, Seat(Arc::clone(&self.0))));
        }
    }
}
