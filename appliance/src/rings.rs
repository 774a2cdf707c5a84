//! The rings of one HBA: which run, which are retired, and how requests come from them and go back.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use spec::device::MAX_RINGS;
use spec::mailbox::RingSetup;
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;

use crate::front::Front;
use crate::in_flight::{self, End, InFlight, Waiters};
use crate::journal::Journal;
use crate::memory::{Mapping, TenantMemory};
use crate::ring::{Chain, Ring, Violation};
use crate::task::{Finished, Name};

/// Who is told of retired rings, and calls the tenant.
type Shim = dyn Front;

/// Every ring that the shim has started, and the memory that they are in.
#[derive(Default)]
pub(crate) struct Rings {
    slots: Vec<Option<Slot>>,
    memory: Option<Arc<TenantMemory>>,
    /// Request rings are looked at without kicks.
    polled: bool,
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
    /// Whether something was completed since the tenant was last considered for a call.
    completed: bool,
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
            completed: false,
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
        if slot.running || slot.in_flight.len() > 0 {
            return None;
        }
        let base = slot.ring.as_ref().map_or(slot.base, Ring::next_avail);
        self.slots[usize::from(ring)] = None;
        Some(base)
    }

    /// Forgets every ring; what is in flight must not be completed. Returns who waited for what had
    /// ended.
    pub fn forget(&mut self) -> Waiters {
        let waiters = self.held().flat_map(|(_, waiters)| std::mem::take(waiters));
        let waiters = waiters.collect();
        self.slots.clear();
        waiters
    }

    /// Every ring that was started.
    pub fn started(&self) -> Vec<u16> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| slot.as_ref().map(|_| index))
            .collect()
    }

    /// Whether requests of a ring go back in the order in which they were fetched.
    pub fn keeps_order(&self, ring: u16) -> bool {
        self.slot(ring)
            .is_some_and(|slot| matches!(slot.in_flight, InFlight::Ordered(_)))
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
        result.unwrap_or_else(|violation| {
            self.retire(ring, violation, shim);
            Left::Nothing
        })
    }

    fn try_fetch(
        &mut self,
        index: u16,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> Result<Left, Violation> {
        let in_flight = self.slot(index).map_or(0, |slot| slot.in_flight.len());
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

    /// Whether request rings are looked at without kicks.
    #[inline]
    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// Whether there are request rings from which requests are fetched.
    pub fn has_requests(&self) -> bool {
        let requests = self.slots.iter().skip(FIRST_REQUEST_QUEUE.into());
        requests.flatten().any(|slot| slot.running)
    }

    /// Adds the request rings with new requests to `ready`; from now on no kicks are asked for.
    pub fn poll(&mut self, ready: &mut BTreeSet<u16>) {
        self.polled = true;
        let Some(memory) = self.memory.as_deref() else {
            return;
        };
        let slots = (0..).zip(&self.slots).skip(FIRST_REQUEST_QUEUE.into());
        for (index, slot) in slots {
            if let Some(slot) = slot.as_ref().filter(|slot| slot.running)
                && let Some(ring) = &slot.ring
                // What is wrong with a ring is found when it is fetched from.
                && ring.waiting(memory, 0) != Ok(0)
            {
                ready.insert(index);
            }
        }
    }

    /// Asks for kicks again, and adds the request rings that have new requests already to `ready`.
    pub fn await_kicks(&mut self, ready: &mut BTreeSet<u16>, shim: &Shim) {
        self.polled = false;
        for index in self.started() {
            if index < FIRST_REQUEST_QUEUE {
                continue;
            }
            let Some((ring, memory)) = self.running(index) else {
                continue;
            };
            match ring.enable_kicks(memory) {
                Ok(true) => {
                    ready.insert(index);
                }
                Ok(false) => {}
                Err(violation) => self.retire(index, violation, shim),
            }
        }
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
        let full = chains.len() + limit;
        while chains.len() < full
            && let Some(head) = journal.next_again()
        {
            if let Err(violation) = ring.fetch_again(memory, head, chains) {
                journal.forget(head);
                self.retire(index, violation, shim);
                break;
            }
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
    }

    /// Completes a request: its chain goes back, on a ring that is not tracked when all that were
    /// fetched before it have gone back. Returns who waited for what has gone back now.
    pub fn complete(
        &mut self,
        index: u16,
        finished: Finished,
        name: Option<Name>,
        waiters: Waiters,
        shim: &Shim,
    ) -> Waiters {
        let Finished { head, written, .. } = finished;
        let Some(slot) = self.slot_mut(index) else {
            return waiters;
        };
        let end = End {
            written,
            name,
            waiters,
        };
        match &mut slot.in_flight {
            InFlight::Tracked(journal) if journal.is_open(head) => {
                self.give_back_tracked(index, head, written, shim);
                end.waiters
            }
            InFlight::Tracked(_) => end.waiters,
            InFlight::Ordered(open) => match in_flight::end(open, head, end) {
                Ok(()) => self.give_back(index, shim),
                Err(unknown) => unknown.waiters,
            },
        }
    }

    /// The commands that have ended but wait for others to go back, and who waits for each.
    pub fn held(&mut self) -> impl Iterator<Item = (Name, &mut Waiters)> {
        let slots = self.slots.iter_mut().flatten();
        slots
            .flat_map(|slot| slot.in_flight.held())
            .filter_map(|end| Some((end.name?, &mut end.waiters)))
    }

    /// Gives the chain at `head` of a tracked ring back, which is in flight.
    fn give_back_tracked(&mut self, index: u16, head: u16, written: u32, shim: &Shim) {
        let slot = self.slots.get_mut(usize::from(index));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return;
        };
        let Some(journal) = slot.in_flight.journal() else {
            return;
        };
        slot.completed = true;
        let (Some(ring), Some(memory)) = (&mut slot.ring, &self.memory) else {
            // As in `give_back`.
            return journal.forget(head);
        };
        journal.before_used(head);
        match ring.push(memory, head, written) {
            Ok(()) => journal.after_used(head, ring.used_index()),
            Err(violation) => {
                journal.forget(head);
                self.retire(index, violation, shim);
            }
        }
    }

    /// Gives back what is completed of an ordered ring, up to the first request that is not;
    /// returns who waited for that.
    fn give_back(&mut self, index: u16, shim: &Shim) -> Waiters {
        let mut released = Waiters::new();
        let slot = self.slots.get_mut(usize::from(index));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return released;
        };
        let InFlight::Ordered(open) = &mut slot.in_flight else {
            return released;
        };
        let mut result = Ok(());
        while let Some((head, mut end)) = in_flight::next_to_give_back(open) {
            released.append(&mut end.waiters);
            // Without memory, or in memory that the ring is not in, nobody can be told; but the
            // ring must be able to stop.
            if let Some(ring) = &mut slot.ring {
                result = result.and(ring.put(head, end.written));
            }
            slot.completed = true;
        }
        if let (Some(ring), Some(memory)) = (&mut slot.ring, &self.memory) {
            result = result.and(ring.publish(memory));
        }
        if let Err(violation) = result {
            self.retire(index, violation, shim);
        }
        released
    }

    /// Retires a ring: reported once, fetching ends, what is in flight goes on.
    pub fn retire(&mut self, index: u16, violation: Violation, shim: &Shim) {
        if let Some(slot) = self.slot_mut(index)
            && slot.running
        {
            slot.running = false;
            shim.retired(index, violation);
        }
        // Also of a ring that was stopped before: nothing more is fetched from it.
        if let Some(journal) = self
            .slot_mut(index)
            .and_then(|slot| slot.in_flight.journal())
        {
            journal.give_up_again();
        }
    }

    /// Retires a ring because of the request at `head`, which was fetched and cannot be completed.
    /// Returns who waited for what has gone back now.
    pub fn reject(&mut self, index: u16, head: u16, violation: Violation, shim: &Shim) -> Waiters {
        if let Some(slot) = self.slot_mut(index) {
            slot.in_flight.forget(head);
        }
        self.retire(index, violation, shim);
        self.give_back(index, shim)
    }

    /// Calls the tenant for every ring with completions, where it wants that.
    pub fn call(&mut self, shim: &Shim) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        for (index, slot) in (0..).zip(&mut self.slots) {
            let Some(slot) = slot.as_mut().filter(|slot| slot.completed) else {
                continue;
            };
            slot.completed = false;
            if let Some(ring) = &mut slot.ring
                && ring.wants_call(&memory) == Ok(true)
            {
                shim.call(index);
            }
        }
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
