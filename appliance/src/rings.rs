//! The rings of one HBA: which run, which are retired, and what of each is in flight.
//!
//! Requests end in any order but are given back in the order in which they were fetched. So the
//! used index alone says which requests a next appliance has to carry out, if this one dies: all
//! from there on. Without that order it would repeat some that the tenant has back already, and
//! never see others.

use std::collections::VecDeque;
use std::sync::Arc;

use spec::device::MAX_RINGS;
use spec::mailbox::RingSetup;

use crate::memory::TenantMemory;
use crate::ring::{Chain, Ring, Violation};
use crate::shim::Shim;
use crate::task::{Finished, Name};

/// Every ring that the shim has started, and the memory that they are in.
#[derive(Default)]
pub(crate) struct Rings {
    slots: Vec<Option<Slot>>,
    memory: Option<Arc<TenantMemory>>,
}

struct Slot {
    /// `None` if its configuration was unusable; retired then.
    ring: Option<Ring>,
    /// What StopRing answers when there is no ring.
    base: u16,
    /// Whether requests are fetched from it.
    running: bool,
    /// Requests fetched and not given back, in the order of the avail ring.
    in_flight: VecDeque<InFlight>,
    /// Whether something was completed since the tenant was last considered for a call.
    completed: bool,
}

/// A request that was fetched and not given back.
struct InFlight {
    head: u16,
    /// How it ended, once it has.
    end: Option<End>,
}

struct End {
    /// Bytes written to its buffers.
    written: u32,
    /// What task management knows it by; a control request has no name.
    name: Option<Name>,
    waiters: Waiters,
}

/// Numbers of the functions that wait for a request to go back.
pub(crate) type Waiters = Vec<u64>;

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
        self.memory = memory;
        for index in self.started() {
            let Some(ring) = self.slot(index).and_then(|slot| slot.ring.as_ref()) else {
                continue;
            };
            let checked = match &self.memory {
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

    /// Starts a ring; one whose configuration is unusable is retired at once.
    ///
    /// # Errors
    /// The errno for the shim: EBUSY if the ring was started before, ENODEV if the tenant has no
    /// memory.
    pub fn start(&mut self, setup: &RingSetup, features: u64, shim: &Shim) -> Result<(), i32> {
        let memory = self.memory.as_ref().ok_or(libc::ENODEV)?;
        if self.slot(setup.ring).is_some() {
            return Err(libc::EBUSY);
        }
        let made = Ring::new(setup, features, memory);
        let violation = made.as_ref().err().copied();
        self.slots.resize_with(MAX_RINGS, || None);
        let slot = self
            .slots
            .get_mut(usize::from(setup.ring))
            .ok_or(libc::EINVAL)?;
        *slot = Some(Slot {
            ring: made.ok(),
            base: setup.base.unwrap_or(0),
            running: true,
            in_flight: VecDeque::new(),
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

    /// Takes a stopped ring away, if nothing of it is in flight; returns its next avail index.
    pub fn take_stopped(&mut self, ring: u16) -> Option<u16> {
        let slot = self.slot(ring)?;
        if slot.running || !slot.in_flight.is_empty() {
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

    /// Fetches up to `limit` requests of a ring into `chains`, all of them in flight from now on.
    pub fn fetch(&mut self, ring: u16, limit: usize, chains: &mut Vec<Chain>, shim: &Shim) -> Left {
        let before = chains.len();
        let result = self.try_fetch(ring, limit, chains);
        if let Some(slot) = self.slot_mut(ring) {
            let fetched = chains.iter().skip(before);
            slot.in_flight.extend(fetched.map(|chain| InFlight {
                head: chain.head,
                end: None,
            }));
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
        let Some((ring, memory)) = self.running(index) else {
            return Ok(Left::Nothing);
        };
        let full = chains.len() + limit;
        ring.disable_kicks(memory)?;
        // A driver cannot have more requests open than the ring has entries; one that offers
        // more while old ones hang would have us remember them all.
        ring.waiting(memory, in_flight)?;
        let room = usize::from(ring.size()).saturating_sub(in_flight);
        ring.pop(memory, limit.min(room), chains)?;
        if chains.len() == full || ring.enable_kicks(memory)? {
            Ok(Left::More)
        } else {
            Ok(Left::Nothing)
        }
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

    /// Completes a request: its chain goes back when all that were fetched before it have gone
    /// back. Returns who waited for what has gone back now.
    pub fn complete(
        &mut self,
        index: u16,
        finished: Finished,
        name: Option<Name>,
        waiters: Waiters,
        shim: &Shim,
    ) -> Waiters {
        let Finished { head, written } = finished;
        let open = self.slot_mut(index).and_then(|slot| {
            let mut open = slot.in_flight.iter_mut();
            open.find(|open| open.head == head && open.end.is_none())
        });
        let Some(request) = open else {
            return waiters;
        };
        request.end = Some(End {
            written,
            name,
            waiters,
        });
        self.give_back(index, shim)
    }

    /// The commands that have ended but wait for others to go back, and who waits for each.
    pub fn held(&mut self) -> impl Iterator<Item = (Name, &mut Waiters)> {
        let slots = self.slots.iter_mut().flatten();
        slots
            .flat_map(|slot| &mut slot.in_flight)
            .filter_map(|open| open.end.as_mut())
            .filter_map(|end| Some((end.name?, &mut end.waiters)))
    }

    /// Gives back what is completed, up to the first request that is not; returns who waited for
    /// that.
    fn give_back(&mut self, index: u16, shim: &Shim) -> Waiters {
        let mut released = Waiters::new();
        let memory = self.memory.clone();
        let Some(slot) = self.slot_mut(index) else {
            return released;
        };
        let mut result = Ok(());
        while let Some(InFlight {
            head,
            end: Some(end),
        }) = slot.in_flight.front_mut()
        {
            released.append(&mut end.waiters);
            // Without memory, or in memory that the ring is not in, nobody can be told; but the
            // ring must be able to stop.
            if let (Some(ring), Some(memory)) = (&mut slot.ring, &memory) {
                result = result.and(ring.push(memory, *head, end.written));
            }
            slot.in_flight.pop_front();
            slot.completed = true;
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
    }

    /// Retires a ring because of the request at `head`, which was fetched and cannot be completed.
    /// Returns who waited for what has gone back now.
    pub fn reject(&mut self, index: u16, head: u16, violation: Violation, shim: &Shim) -> Waiters {
        if let Some(slot) = self.slot_mut(index) {
            let mut open = slot.in_flight.iter();
            if let Some(at) = open.position(|open| open.head == head && open.end.is_none()) {
                slot.in_flight.remove(at);
            }
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
