//! The rings of one HBA: which run, which are retired, and what of each is in flight.

use std::sync::Arc;

use spec::device::MAX_RINGS;
use spec::mailbox::RingSetup;

use crate::memory::TenantMemory;
use crate::ring::{Chain, Ring, Violation};
use crate::shim::Shim;

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
    /// Requests fetched and not completed.
    in_flight: usize,
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
            in_flight: 0,
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
        if slot.running || slot.in_flight > 0 {
            return None;
        }
        let base = slot.ring.as_ref().map_or(slot.base, Ring::next_avail);
        self.slots[usize::from(ring)] = None;
        Some(base)
    }

    /// Forgets every ring; what is in flight must not be completed.
    pub fn forget(&mut self) {
        self.slots.clear();
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
        let fetched = chains.len() - before;
        if let Some(slot) = self.slot_mut(ring) {
            slot.in_flight += fetched;
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
        let Some((ring, memory)) = self.running(index) else {
            return Ok(Left::Nothing);
        };
        let full = chains.len() + limit;
        ring.disable_kicks(memory)?;
        ring.pop(memory, limit, chains)?;
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
        let looked = ring.peek(memory).and_then(|()| ring.disable_kicks(memory));
        if let Err(violation) = looked {
            self.retire(index, violation, shim);
        }
    }

    /// Completes a request: the chain at `head` goes back with `written` bytes in it.
    pub fn complete(&mut self, index: u16, head: u16, written: u32, shim: &Shim) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        let Some(slot) = self.slot_mut(index) else {
            return;
        };
        slot.in_flight = slot.in_flight.saturating_sub(1);
        slot.completed = true;
        let pushed = match &mut slot.ring {
            Some(ring) => ring.push(&memory, head, written),
            None => Ok(()),
        };
        if let Err(violation) = pushed {
            self.retire(index, violation, shim);
        }
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

    /// Retires a ring because of a request that was fetched and cannot be completed.
    pub fn reject(&mut self, index: u16, violation: Violation, shim: &Shim) {
        if let Some(slot) = self.slot_mut(index) {
            slot.in_flight = slot.in_flight.saturating_sub(1);
        }
        self.retire(index, violation, shim);
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
