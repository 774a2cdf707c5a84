//! Looking at rings whose driver was asked not to kick.

use spec::virtio_scsi::FIRST_REQUEST_QUEUE;

use super::{Rings, Shim};
use crate::ring_set::RingSet;

impl Rings {
    /// Whether request rings are looked at without kicks.
    #[inline]
    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// How many request rings there are from which requests are fetched.
    pub fn count_requests(&self) -> usize {
        let requests = self.slots.iter().skip(FIRST_REQUEST_QUEUE.into());
        requests.flatten().filter(|slot| slot.running).count()
    }

    /// How many commands are on a request ring that runs, to be fetched. What is wrong with a ring
    /// is found when it is fetched from.
    pub fn waiting_commands(&self, index: u16) -> usize {
        let slot = self.slot(index).filter(|slot| slot.running);
        let ring = slot.and_then(|slot| slot.ring.as_ref());
        match (ring, self.memory.as_deref()) {
            (Some(ring), Some(memory)) if index >= FIRST_REQUEST_QUEUE => {
                ring.waiting(memory, 0).map_or(0, usize::from)
            }
            _ => 0,
        }
    }

    /// Adds the request rings with new requests to `ready`; from now on no kicks are asked for.
    pub fn poll(&mut self, ready: &mut RingSet) {
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
    pub fn await_kicks(&mut self, ready: &mut RingSet, shim: &Shim) {
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
            self.mark_used(index);
        }
    }
}
