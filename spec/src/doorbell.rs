//! The doorbell page's protocol, as both sides carry it out (`vhost-pci.md` §10).
//!
//! A call must not be lost between a shim that goes to sleep and an appliance that counts it. Each
//! side stores, fences, and then loads what the other stores, so at least one of them sees the
//! other. The code is here once, over [`Words`], so that a model checker runs just what the two
//! programs run.

use std::sync::atomic::Ordering;

use crate::session::{NEED_WAKEUP, call_counter};

/// The words of session memory, as one side reaches them; offsets are those of
/// [`crate::session`], values in the order of the machine.
pub trait Words {
    /// Loads the word at byte `offset`.
    fn load(&self, offset: u64, order: Ordering) -> u32;
    /// Stores the word at byte `offset`.
    fn store(&self, offset: u64, value: u32, order: Ordering);
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// The appliance counts one more call of `ring`; returns whether the shim sleeps, so that the
/// trapped doorbell must be rung as well (VPCI-BEL-1). A ring is called for by one thread at a
/// time.
#[inline]
pub fn call(words: &impl Words, ring: u16) -> bool {
    // One writer: a load and a store do, where a locked addition would lock the bus on an
    // uncached mapping.
    let counter = call_counter(ring);
    let calls = words.load(counter, Ordering::Relaxed).wrapping_add(1);
    words.store(counter, calls, Ordering::Release);
    // The counter must be seen by a shim that goes to sleep after we have looked.
    words.fence();
    words.load(NEED_WAKEUP, Ordering::Acquire) != 0
}

/// The shim says that a call must ring the trapped doorbell from now on; returns whether a counter
/// is another than `seen`, that of ring 0 first: then the shim must not sleep (VPCI-BEL-2).
#[inline]
#[must_use = "a call that came before must be collected"]
pub fn arm(words: &impl Words, seen: &[u32]) -> bool {
    words.store(NEED_WAKEUP, 1, Ordering::Relaxed);
    // Pairs with the appliance's fence between counting a call and reading the flag: either it
    // sees 1, or we see its call.
    words.fence();
    (0..)
        .zip(seen)
        .any(|(ring, &seen)| counted(words, ring) != seen)
}

/// The shim says that it looks at the counters, so that no doorbell is needed.
#[inline]
pub fn disarm(words: &impl Words) {
    words.store(NEED_WAKEUP, 0, Ordering::Relaxed);
}

/// Calls `called` with each ring whose counter is another than `seen`, and brings that up to date.
#[inline]
pub fn collect(words: &impl Words, seen: &mut [u32], mut called: impl FnMut(u16)) {
    for (ring, seen) in (0..).zip(seen) {
        let counter = counted(words, ring);
        if counter != *seen {
            *seen = counter;
            called(ring);
        }
    }
}

fn counted(words: &impl Words, ring: u16) -> u32 {
    words.load(call_counter(ring), Ordering::Acquire)
}
