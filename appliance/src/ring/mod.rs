//! A split virtqueue of the tenant (virtio 1.3 §2.7), read as hostile input.

mod chain;
mod violation;

use std::sync::atomic::Ordering;

use spec::mailbox::RingSetup;
use spec::ring::{EVENT_IDX, INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

pub use chain::Chain;
pub use violation::Violation;

use crate::memory::TenantMemory;

/// Largest ring (virtio 1.3 §2.7: the maximum queue size value is 32768).
const MAX_SIZE: u16 = 32768;
/// Bit of the avail ring's flags: the driver wants no interrupts (virtio 1.3 §2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// A running ring. Nothing of it is kept that the tenant could rewrite, but our own two indexes
/// and what the shim said about it.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    indirect: bool,
}

impl Ring {
    /// The ring of `setup` in `memory`, with the tenant's accepted `features`.
    ///
    /// It goes on from its base, or from the used index where the setup has none.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if its parts are not aligned or not all in memory.
    pub fn new(setup: &RingSetup, features: u64, memory: &TenantMemory) -> Result<Self, Violation> {
        let configuration = |_| Violation::Configuration;
        let mut queue = Queue::new(MAX_SIZE).map_err(configuration)?;
        queue.try_set_size(setup.size).map_err(configuration)?;
        queue
            .try_set_desc_table_address(GuestAddress(setup.descriptor_table))
            .map_err(configuration)?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.avail_ring))
            .map_err(configuration)?;
        queue
            .try_set_used_ring_address(GuestAddress(setup.used_ring))
            .map_err(configuration)?;
        queue.set_event_idx(features & EVENT_IDX != 0);
        queue.set_ready(true);
        let mut ring = Self {
            queue,
            indirect: features & INDIRECT_DESC != 0,
        };
        ring.check(memory)?;
        let used = ring
            .queue
            .used_idx(memory.regions(), Ordering::Acquire)
            .map_err(configuration)?
            .0;
        ring.queue.set_next_used(used);
        ring.queue.set_next_avail(setup.base.unwrap_or(used));
        Ok(ring)
    }

    /// Checks that all parts of the ring are in `memory`; needed once for each new snapshot,
    /// before it is given to any other method.
    ///
    /// # Errors
    /// [`Violation::Configuration`] if they are not.
    pub fn check(&self, memory: &TenantMemory) -> Result<(), Violation> {
        // An avail ring at address 0 is what virtio-queue takes for none.
        if self.queue.avail_ring() != 0 && self.queue.is_valid(memory.regions()) {
            Ok(())
        } else {
            Err(Violation::Configuration)
        }
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Avail index of the next request to fetch.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Fetches up to `limit` requests into `chains`.
    ///
    /// # Errors
    /// [`Violation`] if the ring or a chain breaks the rules; `chains` then has those before it.
    pub fn pop(
        &mut self,
        memory: &TenantMemory,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> Result<(), Violation> {
        let heads: Vec<u16> = self
            .queue
            .iter(memory.regions())
            .map_err(Violation::from_fetch)?
            .take(limit)
            .map(|chain| chain.head_index())
            .collect();
        for head in heads {
            chains.push(chain::walk(
                memory,
                self.queue.desc_table(),
                self.queue.size(),
                head,
                self.indirect,
            )?);
        }
        Ok(())
    }

    /// How many requests there are to be fetched.
    ///
    /// # Errors
    /// [`Violation::AvailIndex`] if these and the `in_flight` ones, which were fetched and not
    /// given back, are more than the ring has entries.
    pub fn waiting(&self, memory: &TenantMemory, in_flight: usize) -> Result<u16, Violation> {
        let avail = self
            .queue
            .avail_idx(memory.regions(), Ordering::Acquire)
            .map_err(Violation::from_fetch)?;
        let waiting = avail.0.wrapping_sub(self.next_avail());
        if usize::from(waiting).saturating_add(in_flight) > usize::from(self.size()) {
            return Err(Violation::AvailIndex);
        }
        Ok(waiting)
    }

    /// Gives the chain at `head` back to the driver, with `written` bytes in its buffers.
    ///
    /// # Errors
    /// [`Violation::Unmapped`] if the used ring is not in `memory`.
    pub fn push(
        &mut self,
        memory: &TenantMemory,
        head: u16,
        written: u32,
    ) -> Result<(), Violation> {
        self.queue
            .add_used(memory.regions(), head, written)
            .map_err(|_| Violation::Unmapped(self.queue.used_ring()))
    }

    /// Whether the driver wants an interrupt for what was pushed since the last question.
    ///
    /// # Errors
    /// [`Violation::Unmapped`] if the ring is not in `memory`.
    pub fn wants_call(&mut self, memory: &TenantMemory) -> Result<bool, Violation> {
        let unmapped = Violation::Unmapped(self.queue.avail_ring());
        // Includes the fence between our used index and the driver's wish.
        let wanted = self
            .queue
            .needs_notification(memory.regions())
            .map_err(|_| unmapped)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .regions()
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| unmapped)?;
        Ok(u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver for a kick with its next request; returns whether there is one already.
    ///
    /// # Errors
    /// [`Violation::Unmapped`] if the ring is not in `memory`.
    pub fn enable_kicks(&mut self, memory: &TenantMemory) -> Result<bool, Violation> {
        self.queue
            .enable_notification(memory.regions())
            .map_err(|_| Violation::Unmapped(self.queue.used_ring()))
    }

    /// Tells the driver that it need not kick.
    ///
    /// # Errors
    /// [`Violation::Unmapped`] if the ring is not in `memory`.
    pub fn disable_kicks(&mut self, memory: &TenantMemory) -> Result<(), Violation> {
        self.queue
            .disable_notification(memory.regions())
            .map_err(|_| Violation::Unmapped(self.queue.used_ring()))
    }
}

#[cfg(test)]
mod tests;
