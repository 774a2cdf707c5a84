//! A driver ready to run: memory, queues and requests, before anybody serves them.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::error::{Context, Error, Result};
use super::load::Load;
use super::memory::{Memory, Pages};
use super::ring::{Place, Ring};
use super::session::Vring;
use super::slots::{Kind, Layout, SECTOR, Slots};
use super::source::Source;
use super::verify::Blocks;
use super::worker::{Board, Worker};

/// Blocks that each queue writes and checks where data is verified; more than requests under way.
const VERIFIED: u64 = 1 << 11;

/// A queue, and how each side wakes the other.
pub struct Queue {
    pub place: Place,
    pub kick: Arc<EventFd>,
    pub call: Arc<EventFd>,
}

/// Memory with all queues of a device in it.
pub struct Rig {
    pub memory: Arc<Memory>,
    /// All queues of the device, in its order.
    pub queues: Vec<Queue>,
    /// The requests of each queue that has some.
    pub layouts: Vec<Layout>,
    event_idx: bool,
}

impl Rig {
    /// Lays out what `load` needs of a device of `kind`.
    ///
    /// # Errors
    /// A ring is too small, or the machine has no memory or descriptors left.
    pub fn new(kind: Kind, load: &Load) -> Result<Self> {
        // As QEMU's: a server may read a kick that it has read already.
        Self::with_kicks(kind, load, libc::EFD_NONBLOCK)
    }

    /// As [`Self::new`], for a server in this process, which sleeps by reading kicks.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_process(kind: Kind, load: &Load) -> Result<Self> {
        Self::with_kicks(kind, load, 0)
    }

    fn with_kicks(kind: Kind, load: &Load, kick_flags: i32) -> Result<Self> {
        let mut pages = Pages::new();
        let first = kind.first_queue();
        let (mut queues, mut layouts) = (Vec::new(), Vec::new());
        for index in 0..first + load.queues {
            let place = Place::take(&mut pages, load.ring_size);
            let event = |flags| EventFd::new(flags).doing("make an eventfd").map(Arc::new);
            queues.push(Queue {
                place,
                kick: event(kick_flags)?,
                call: event(libc::EFD_NONBLOCK)?,
            });
            if index >= first {
                layouts.push(Layout::take(
                    &mut pages,
                    kind,
                    place,
                    load.depth,
                    load.block_bytes,
                    load.indirect,
                )?);
            }
        }
        let memory = Memory::new(pages.total()).doing("make the driver's memory")?;
        Ok(Self {
            memory: Arc::new(memory),
            queues,
            layouts,
            event_idx: load.event_idx,
        })
    }

    /// The queues, for the server.
    pub fn vrings(&self) -> Vec<Vring<'_>> {
        self.queues
            .iter()
            .map(|queue| Vring {
                place: queue.place,
                kick: &queue.kick,
                call: &queue.call,
            })
            .collect()
    }

    /// Queues that have requests.
    pub fn request_queues(&self) -> &[Queue] {
        &self.queues[self.queues.len() - self.layouts.len()..]
    }

    /// The driver of each queue, for a disk of `capacity` bytes.
    ///
    /// # Errors
    /// The disk is too small.
    pub fn workers(
        &self,
        load: &Load,
        capacity: u64,
        boards: &[Arc<Board>],
    ) -> Result<Vec<Worker>> {
        let block = u64::from(load.block_bytes);
        let needed = if load.verify {
            block * VERIFIED * u64::from(load.queues)
        } else {
            block
        };
        if capacity < needed {
            return Err(Error::TooSmall { capacity, needed });
        }
        // READ (10) reaches 2 TiB.
        let blocks = capacity.min(SECTOR << 32) / block;
        let queues = self.request_queues().iter().zip(&self.layouts);
        let workers = (0u64..).zip(queues).zip(boards);
        Ok(workers
            .map(|((index, (queue, layout)), board)| {
                let count = usize::try_from(VERIFIED).unwrap_or(usize::MAX);
                let own = || Blocks::new(index * VERIFIED, count, load.block_bytes);
                let own = load.verify.then(own);
                Worker {
                    ring: Ring::new(Arc::clone(&self.memory), queue.place, self.event_idx),
                    slots: Slots::new(Arc::clone(&self.memory), *layout, load.lun),
                    source: Source::new(index + 1, load, blocks, own),
                    kick: Arc::clone(&queue.kick),
                    call: Arc::clone(&queue.call),
                    board: Arc::clone(board),
                    polled: load.polled,
                }
            })
            .collect())
    }
}
