//! The driver's side of a split virtqueue (virtio 1.3 §2.7), with cached indices.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::error::{Error, Result};
use super::memory::{Memory, Pages};

/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;
/// Descriptor flags (virtio 1.3 §2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// In the avail ring: the driver wants no interrupts. In the used ring: the device wants no kicks.
const NO_EVENTS: u16 = 1;
/// Used chains after which a polling driver puts its event index out of reach again.
const REFRESH: u16 = 1 << 14;

/// Where the parts of a ring are, in guest addresses.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub size: u16,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

impl Place {
    /// Takes the pages of a ring of `size` entries.
    pub fn take(pages: &mut Pages, size: u16) -> Self {
        let entries = u64::from(size);
        Self {
            size,
            descriptors: pages.take(DESCRIPTOR * entries),
            avail: pages.take(6 + 2 * entries),
            used: pages.take(6 + 8 * entries),
        }
    }

    pub fn avail_index(&self) -> u64 {
        self.avail + 2
    }

    pub fn avail_entry(&self, index: u16) -> u64 {
        self.avail + 4 + 2 * u64::from(index % self.size)
    }

    /// Where the driver says at which used index it wants an interrupt.
    pub fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    pub fn used_index(&self) -> u64 {
        self.used + 2
    }

    pub fn used_entry(&self, index: u16) -> u64 {
        self.used + 4 + 8 * u64::from(index % self.size)
    }

    /// Where the device says at which avail index it wants a kick.
    pub fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }
}

/// A descriptor as it stands in a table.
pub fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..16].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Whether going from `old` to `new` passed `event` (virtio 1.3 §2.7.10.1).
pub fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// One ring, as its driver has it.
pub struct Ring {
    memory: Arc<Memory>,
    place: Place,
    event_idx: bool,
    /// Next avail index to be filled.
    next: u16,
    /// The avail index that the device was told last.
    told: u16,
    /// Next used index to be taken.
    taken: u16,
    /// The used index as it was read last.
    used: u16,
    /// The used index at which interrupts were last put out of reach, if they were.
    refreshed: Option<u16>,
}

impl Ring {
    /// The ring at `place` as it stands there, with nothing under way.
    pub fn new(memory: Arc<Memory>, place: Place, event_idx: bool) -> Self {
        let next = memory.load(place.avail_index(), Ordering::Relaxed);
        let taken = memory.load(place.used_index(), Ordering::Relaxed);
        Self {
            memory,
            place,
            event_idx,
            next,
            told: next,
            taken,
            used: taken,
            refreshed: None,
        }
    }

    /// Puts the chain at `head` into the avail ring; [`Self::publish`] shows it to the device.
    #[inline]
    pub fn offer(&mut self, head: u16) {
        let at = self.place.avail_entry(self.next);
        self.memory.store(at, head, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the device what was offered, and says whether it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let index = self.place.avail_index();
        self.memory.store(index, self.next, Ordering::Release);
        // The device arms its wish for a kick, then looks at the index; we the other way round.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.told, self.next);
        if self.event_idx {
            let event = self
                .memory
                .load(self.place.avail_event(), Ordering::Relaxed);
            passed(event, self.next, old)
        } else {
            let flags: u16 = self.memory.load(self.place.used, Ordering::Relaxed);
            flags & NO_EVENTS == 0
        }
    }

    /// Reads the used index, and says how many chains can be taken.
    ///
    /// # Errors
    /// The device claims more than it has been given.
    #[inline]
    pub fn look(&mut self) -> Result<u16> {
        self.used = self.memory.load(self.place.used_index(), Ordering::Acquire);
        let waiting = self.used.wrapping_sub(self.taken);
        let under_way = self.told.wrapping_sub(self.taken);
        if waiting > under_way {
            return Err(Error::UsedTooMuch {
                used: waiting,
                given: under_way,
            });
        }
        Ok(waiting)
    }

    /// Takes the head of one of the chains that [`Self::look`] found.
    #[inline]
    pub fn take(&mut self) -> u32 {
        debug_assert_ne!(self.taken, self.used, "look says how many there are");
        let at = self.place.used_entry(self.taken);
        self.taken = self.taken.wrapping_add(1);
        self.memory.load(at, Ordering::Relaxed)
    }

    /// Asks for no interrupts, while this side polls; to be repeated as chains are taken.
    #[inline]
    pub fn unwant_calls(&mut self) {
        if !self.event_idx {
            self.memory
                .store(self.place.avail, NO_EVENTS, Ordering::Relaxed);
        } else if self
            .refreshed
            .is_none_or(|at| self.taken.wrapping_sub(at) >= REFRESH)
        {
            self.refreshed = Some(self.taken);
            let passed_long_ago = self.taken.wrapping_sub(1);
            let at = self.place.used_event();
            self.memory.store(at, passed_long_ago, Ordering::Relaxed);
        }
    }

    /// Asks for an interrupt with the next used chain, and says whether there is one already.
    pub fn want_call(&mut self) -> bool {
        if self.event_idx {
            let at = self.place.used_event();
            self.memory.store(at, self.taken, Ordering::Relaxed);
        } else {
            // Whoever polled here before may have asked for none.
            self.memory.store(self.place.avail, 0u16, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        let used: u16 = self.memory.load(self.place.used_index(), Ordering::Relaxed);
        used != self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(event_idx: bool) -> (Arc<Memory>, Place, Ring) {
        let mut pages = Pages::new();
        let place = Place::take(&mut pages, 4);
        let memory = Arc::new(Memory::new(pages.total()).unwrap());
        let ring = Ring::new(Arc::clone(&memory), place, event_idx);
        (memory, place, ring)
    }

    #[test]
    fn a_kick_is_wanted_when_the_event_index_is_passed() {
        let (memory, place, mut ring) = ring(true);
        memory.store(place.avail_event(), 1u16, Ordering::Relaxed);
        ring.offer(0);
        assert!(!ring.publish());
        ring.offer(1);
        assert!(ring.publish());
        ring.offer(2);
        assert!(!ring.publish());
    }

    #[test]
    fn without_event_index_the_flag_decides() {
        let (memory, place, mut ring) = ring(false);
        ring.offer(0);
        assert!(ring.publish());
        memory.store(place.used, 1u16, Ordering::Relaxed);
        ring.offer(1);
        assert!(!ring.publish());
    }

    #[test]
    fn a_used_index_beyond_what_was_given_is_an_error() {
        let (memory, place, mut ring) = ring(true);
        ring.offer(3);
        ring.publish();
        memory.store(place.used_index(), 1u16, Ordering::Relaxed);
        memory.store(place.used_entry(0), 3u32, Ordering::Relaxed);
        assert_eq!(ring.look().unwrap(), 1);
        assert_eq!(ring.take(), 3);
        memory.store(place.used_index(), 2u16, Ordering::Relaxed);
        assert!(matches!(
            ring.look(),
            Err(Error::UsedTooMuch { used: 1, given: 0 })
        ));
    }

    #[test]
    fn without_event_index_interrupts_can_be_wanted_after_polling() {
        let (memory, place, mut ring) = ring(false);
        ring.unwant_calls();
        assert_eq!(memory.load::<u16>(place.avail, Ordering::Relaxed), 1);
        ring.want_call();
        assert_eq!(memory.load::<u16>(place.avail, Ordering::Relaxed), 0);
    }

    #[test]
    fn a_polling_driver_is_not_called_for_16384_chains() {
        let (memory, place, mut ring) = ring(true);
        ring.unwant_calls();
        let event: u16 = memory.load(place.used_event(), Ordering::Relaxed);
        assert!((1..=16384).all(|used: u16| !passed(event, used, used - 1)));
    }
}
