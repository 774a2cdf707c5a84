//! The rings of one HBA: which run, which are retired, and what is fetched from them.

mod coalescing;
mod completion;
mod polling;

use std::collections::VecDeque;
use std::sync::Arc;

use spec::device::MAX_RINGS;
use spec::mailbox::RingSetup;
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;

use self::coalescing::Owed;
use crate::config::Coalesce;
use crate::dirty::{Buffers, Logging};
use crate::front::Front;
use crate::in_flight::{InFlight, Waiters};
use crate::journal::Journal;
use crate::memory::{Mapping, TenantMemory};
use crate::ring::{Chain, Ring, Violation};
use crate::ring_set::RingSet;

/// Who is told of retired rings, and calls the tenant.
type Shim = dyn Front;

/// Most requests of a ring that is not tracked that are fetched and not given back, most of which
/// wait for a slow one: as many as QEMU's longest ring has.
const MAX_ORDERED: usize = 1024;

/// Every ring that the shim has started, and the memory that they are in.
#[derive(Default)]
pub(crate) struct Rings {
    slots: Vec<Option<Slot>>,
    memory: Option<Arc<TenantMemory>>,
    /// Where writes to the memory are marked, if they are.
    log: Option<Arc<Logging>>,
    /// Buffers of rings that are gone, which may still be written to.
    orphans: Vec<Buffers>,
    /// Request rings are looked at without kicks.
    polled: bool,
    /// Rings with completions of which the driver has not been told.
    completed: RingSet,
    tally: Tally,
    /// For how long a call may be held back.
    coalesce: Coalesce,
    /// Rings whose call is held back.
    owed: RingSet,
}

/// What was counted about the rings of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Calls that trapped into the shim.
    pub trapped: u64,
    /// Calls that the shim saw without.
    pub seen: u64,
    /// Calls by an eventfd.
    pub signalled: u64,
    /// Rings that were retired for what their driver did.
    pub retired: u64,
}

struct Slot {
    /// `None` if its configuration was unusable; retired then.
    ring: Option<Ring>,
    /// What StopRing answers when there is no ring.
    base: u16,
    /// Whether requests are fetched from it.
    running: bool,
    /// Requests fetched and not given back.
    in_flight: InFlight,
    /// Heads of a tracked ring that are put into its used ring and not published.
    batch: Vec<u16>,
    /// Buffers of what is in flight, while writes are marked.
    buffers: Buffers,
    /// The call that is held back.
    owed: Option<Owed>,
}

impl Slot {
    /// Requests that were fetched and that the driver does not know to be back.
    fn not_returned(&self) -> usize {
        let put = match &self.in_flight {
            InFlight::Ordered(_) => self.ring.as_ref().map_or(0, Ring::unpublished),
            InFlight::Tracked(_) => 0,
        };
        self.in_flight.len() + put
    }

    /// Marks its used ring.
    fn mark_used(&self, index: u16, logging: &Logging) {
        if let Some(ring) = &self.ring {
            logging.mark_used(index, ring.size());
        }
    }
}

/// What [`Rings::fetch`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing; the tenant will kick.
    Nothing,
    /// Perhaps more requests.
    More,
}

impl Rings {
    /// Exchanges the memory; a ring that is not all in the new one is retired.
    pub fn set_memory(&mut self, memory: Option<Arc<TenantMemory>>, shim: &Shim) {
        // Into the memory in which they were fetched; the control ring last, as in `call`.
        let mut completed = self.completed;
        while let Some(index) = completed.pop_last() {
            self.publish(index, shim);
        }
        self.memory.clone_from(&memory);
        for index in self.started() {
            let Some(ring) = self.slot_mut(index).and_then(|slot| slot.ring.as_mut()) else {
                continue;
            };
            let checked = match &memory {
                Some(memory) => ring.check(memory),
                None => Err(Violation::Configuration),
            };
            if let Err(violation) = checked {
                self.retire(index, violation, shim);
                // Nothing may touch it any more, not even to complete a request.
                if let Some(slot) = self.slot_mut(index) {
                    slot.base = slot.ring.take().map_or(slot.base, |ring| ring.next_avail());
                }
            }
        }
    }

    /// Marks writes there from now on. Where none were marked before, nothing is in flight: of
    /// older requests nobody has taken note.
    pub fn set_log(&mut self, log: Option<Arc<Logging>>) {
        self.log = log;
        if self.log.is_none() {
            self.orphans.clear();
            for slot in self.slots.iter_mut().flatten() {
                slot.buffers = Buffers::default();
            }
        }
    }

    /// Marks what is left of rings that were forgotten, now that nothing writes to it any more.
    pub fn mark_orphans(&mut self) {
        for buffers in std::mem::take(&mut self.orphans) {
            if let Some(logging) = &self.log {
                buffers.mark_all(&logging.log);
            }
        }
    }

    /// Takes note of chains that were fetched, while writes are marked.
    fn note(&mut self, index: u16, chains: &[Chain]) {
        let (Some(logging), Some(memory)) = (self.log.clone(), self.memory.clone()) else {
            return;
        };
        if let Some(slot) = self.slot_mut(index) {
            for chain in chains {
                slot.buffers.note(chain, &memory);
            }
            slot.mark_used(index, &logging);
        }
    }

    /// Marks the used ring, while writes are marked.
    fn mark_used(&mut self, index: u16) {
        if let Some(logging) = self.log.clone()
            && let Some(slot) = self.slot(index)
        {
            slot.mark_used(index, &logging);
        }
    }

    /// Starts a ring, with a record in in-flight memory if there is that and the setup says where;
    /// one whose configuration is unusable is retired at once.
    ///
    /// # Errors
    /// The errno for the shim: EBUSY if the ring was started before, ENODEV if the tenant has no
    /// memory, EINVAL if the record has no room.
    pub fn start(
        &mut self,
        setup: &RingSetup,
        features: u64,
        inflight: Option<Arc<Mapping>>,
        shim: &Shim,
    ) -> Result<(), i32> {
        let memory = self.memory.as_ref().ok_or(libc::ENODEV)?;
        if self.slot(setup.ring).is_some() {
            return Err(libc::EBUSY);
        }
        let mut made = Ring::new(setup, features, memory);
        let in_flight = match (&mut made, setup.inflight.zip(inflight)) {
            (Ok(ring), Some((offset, mapping))) => {
                let used = ring.used_index();
                let journal =
                    Journal::open(mapping, offset, setup.size, used).ok_or(libc::EINVAL)?;
                // What was fetched before and not given back follows the used index.
                if let Ok(fetched @ 1..) = u16::try_from(journal.len()) {
                    ring.go_on_at(used.wrapping_add(fetched));
                }
                InFlight::Tracked(journal)
            }
            _ => InFlight::Ordered(VecDeque::new()),
        };
        let violation = made.as_ref().err().copied();
        let index = usize::from(setup.ring);
        if index >= MAX_RINGS {
            return Err(libc::EINVAL);
        }
        if index >= self.slots.len() {
            // No more than are used: all are looked at in each turn of the loop.
            self.slots.resize_with(index + 1, || None);
        }
        let slot = self.slots.get_mut(index).ok_or(libc::EINVAL)?;
        *slot = Some(Slot {
            ring: made.ok(),
            base: setup.base.unwrap_or(0),
            running: true,
            in_flight,
            batch: Vec::new(),
            buffers: Buffers::default(),
            owed: None,
        });
        if let Some(violation) = violation {
            self.retire(setup.ring, violation, shim);
        }
        Ok(())
    }

    /// Ends fetching from a ring. Returns whether it was started.
    pub fn stop(&mut self, ring: u16) -> bool {
        self.slot_mut(ring)
            .map(|slot| slot.running = false)
            .is_some()
    }

    /// Takes a ring away that was just started; what its record had marked stays marked there.
    pub fn discard(&mut self, ring: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(ring)) {
            *slot = None;
        }
    }

    /// Takes a stopped ring away, if nothing of it is in flight; returns its next avail index.
    pub fn take_stopped(&mut self, ring: u16) -> Option<u16> {
        let slot = self.slot(ring)?;
        if slot.running || slot.not_returned() > 0 {
            return None;
        }
        let base = slot.ring.as_ref().map_or(slot.base, Ring::next_avail);
        if let Some(logging) = &self.log {
            // Of chains that nobody could give back.
            slot.buffers.mark_all(&logging.log);
        }
        self.slots[usize::from(ring)] = None;
        Some(base)
    }

    /// Forgets every ring; what is in flight must not be completed. Returns who waited for what had
    /// ended.
    pub fn forget(&mut self) -> Waiters {
        let waiters = self.held().flat_map(|(_, waiters)| std::mem::take(waiters));
        let waiters = waiters.collect();
        let slots = self.slots.drain(..).flatten();
        self.orphans.extend(slots.map(|slot| slot.buffers));
        if self.log.is_none() {
            self.orphans.clear();
        }
        (self.completed, self.owed) = (RingSet::default(), RingSet::default());
        waiters
    }

    /// Every ring that was started.
    pub fn started(&self) -> RingSet {
        let mut started = RingSet::default();
        for (index, _) in (0..).zip(&self.slots).filter(|(_, slot)| slot.is_some()) {
            started.insert(index);
        }
        started
    }

    /// Whether requests of a ring go back in the order in which they were fetched.
    pub fn keeps_order(&self, ring: u16) -> bool {
        self.slot(ring)
            .is_some_and(|slot| matches!(slot.in_flight, InFlight::Ordered(_)))
    }

    /// How many requests of a ring may be fetched, as far as those in flight are concerned.
    pub fn room(&self, ring: u16) -> usize {
        let Some(slot) = self.slot(ring) else {
            return usize::MAX;
        };
        let room = match &slot.in_flight {
            InFlight::Ordered(open) => MAX_ORDERED.saturating_sub(open.len()),
            // Its record is as long as the ring.
            InFlight::Tracked(_) => usize::MAX,
        };
        if self.log.is_some() {
            room.min(slot.buffers.room())
        } else {
            room
        }
    }

    /// Fetches up to `limit` requests of a ring into `chains`, all of them in flight from now on.
    pub fn fetch(&mut self, ring: u16, limit: usize, chains: &mut Vec<Chain>, shim: &Shim) -> Left {
        let before = chains.len();
        let mut result = self.try_fetch(ring, limit, chains);
        if let Some(slot) = self.slot_mut(ring) {
            for index in before..chains.len() {
                if let Err(violation) = slot.in_flight.fetched(chains[index].head) {
                    chains.truncate(index);
                    result = Err(violation);
                    break;
                }
            }
        }
        let left = result.unwrap_or_else(|violation| {
            self.retire(ring, violation, shim);
            Left::Nothing
        });
        if self.log.is_some() {
            self.note(ring, &chains[before..]);
        }
        left
    }

    fn try_fetch(
        &mut self,
        index: u16,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> Result<Left, Violation> {
        let in_flight = self.slot(index).map_or(0, Slot::not_returned);
        let polled = self.polled && index >= FIRST_REQUEST_QUEUE;
        let Some((ring, memory)) = self.running(index) else {
            return Ok(Left::Nothing);
        };
        let full = chains.len() + limit;
        ring.disable_kicks(memory)?;
        // A driver cannot have more requests open than the ring has entries; one that offers
        // more while old ones hang would have us remember them all.
        ring.fetch(memory, in_flight, limit, chains)?;
        let more = chains.len() == full || !polled && ring.enable_kicks(memory)?;
        Ok(if more { Left::More } else { Left::Nothing })
    }

    /// Fetches up to `limit` requests of a ring into `chains` that an appliance before this one
    /// fetched and did not give back. Returns whether there were any: they come before new ones,
    /// and also after the ring was stopped.
    pub fn fetch_again(
        &mut self,
        index: u16,
        limit: usize,
        chains: &mut Vec<Chain>,
        shim: &Shim,
    ) -> bool {
        let (Some(slot), Some(memory)) = (
            self.slots
                .get_mut(usize::from(index))
                .and_then(Option::as_mut),
            &self.memory,
        ) else {
            return false;
        };
        let (Some(ring), Some(journal)) = (&mut slot.ring, slot.in_flight.journal()) else {
            return false;
        };
        if !journal.has_again() {
            return false;
        }
        let before = chains.len();
        let full = before + limit;
        while chains.len() < full
            && let Some(head) = journal.next_again()
        {
            if let Err(violation) = ring.fetch_again(memory, head, chains) {
                journal.forget(head);
                self.retire(index, violation, shim);
                break;
            }
        }
        if self.log.is_some() {
            self.note(index, &chains[before..]);
        }
        true
    }

    /// Whether there is a request ring with commands to be fetched again.
    pub fn has_commands_again(&mut self) -> bool {
        let requests = self.slots.iter_mut().skip(FIRST_REQUEST_QUEUE.into());
        requests
            .flatten()
            .filter_map(|slot| slot.in_flight.journal())
            .any(|journal| journal.has_again())
    }

    /// What was counted about the rings.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Checks a ring from which nothing is to be fetched now, and asks for no kicks.
    pub fn look_at(&mut self, index: u16, shim: &Shim) {
        let Some((ring, memory)) = self.running(index) else {
            return;
        };
        let looked = ring
            .waiting(memory, 0)
            .and_then(|_| ring.disable_kicks(memory));
        if let Err(violation) = looked {
            self.retire(index, violation, shim);
        }
        self.mark_used(index);
    }

    fn running(&mut self, index: u16) -> Option<(&mut Ring, &TenantMemory)> {
        let memory = self.memory.as_deref()?;
        let slot = self.slots.get_mut(usize::from(index))?.as_mut()?;
        let ring = slot.ring.as_mut().filter(|_| slot.running)?;
        Some((ring, memory))
    }

    fn slot(&self, index: u16) -> Option<&Slot> {
        self.slots.get(usize::from(index))?.as_ref()
    }

    fn slot_mut(&mut self, index: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(index))?.as_mut()
    }
}
