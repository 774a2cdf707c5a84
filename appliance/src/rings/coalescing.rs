//! Holding calls back for a while, so that one tells of more.

use std::time::Instant;

use spec::virtio_scsi::FIRST_REQUEST_QUEUE;

use super::Rings;
use crate::config::Coalesce;

/// A call that is held back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owed {
    /// When the first request that it is for went back.
    since: Instant,
}

impl Rings {
    /// Holds calls back like this from now on; those that are held back are asked for again.
    pub fn set_coalesce(&mut self, coalesce: Coalesce) {
        self.coalesce = coalesce;
    }

    /// Until when the first call that is held back has to be made, if there is one.
    #[inline]
    pub fn calls_by(&self) -> Option<Instant> {
        if self.owed.is_empty() {
            return None;
        }
        let owed = self.owed.filter_map(|index| self.slot(index)?.owed);
        let first = owed.map(|owed| owed.since).min()?;
        first.checked_add(self.coalesce.delay)
    }

    /// Whether the call for what was published of a ring is held back: others of its requests are
    /// in flight, which may be back soon, its time is not over, and it is not for too many. The
    /// last one that is in flight is called for at once.
    pub(super) fn holds_back(&mut self, index: u16, now: Instant) -> bool {
        let Coalesce { delay, requests } = self.coalesce;
        if delay.is_zero() || index < FIRST_REQUEST_QUEUE {
            return false;
        }
        let slot = self.slots.get_mut(usize::from(index));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return false;
        };
        let Some(ring) = &slot.ring else {
            return false;
        };
        let Owed { since } = *slot.owed.get_or_insert(Owed { since: now });
        let holds = slot.in_flight.len() > 0
            && ring.unasked() < requests
            && now.saturating_duration_since(since) < delay;
        if holds {
            self.owed.insert(index);
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;
    use spec::mailbox::{Reply, RingSetup};
    use spec::ring::EVENT_IDX;
    use spec::session::MemoryEntry;

    use super::*;
    use crate::front::{Asked, Called, Front, Gone, Request};
    use crate::memory::TenantMemory;
    use crate::memory::testing::shared_memory;
    use crate::ring::Violation;
    use crate::task::Used;

    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const SIZE: u16 = 8;
    const RING: u16 = FIRST_REQUEST_QUEUE;
    const DELAY: Duration = Duration::from_micros(50);
    const REQUESTS: u32 = 5;

    /// Counts calls.
    #[derive(Default)]
    struct Calls(Cell<u32>);

    impl Front for Calls {
        fn hba(&self) -> &str {
            "tested"
        }
        fn request(&mut self) -> Result<Option<(Asked, Request)>, Gone> {
            Ok(None)
        }
        fn reply(&mut self, _: Asked, _: Reply) -> Result<(), Gone> {
            Ok(())
        }
        fn call(&self, ring: u16) -> Called {
            assert_eq!(ring, RING);
            self.0.set(self.0.get() + 1);
            Called::Signalled
        }
        fn retired(&self, ring: u16, violation: Violation) {
            panic!("ring {ring} was retired: {violation}");
        }
    }

    /// A driver with one ring, and the device's side of it.
    struct Bench {
        rings: Rings,
        calls: Calls,
        memory: Arc<TenantMemory>,
        now: Instant,
        /// Requests that were made available.
        made: u16,
        /// Heads that were fetched and have not ended.
        under_way: Vec<u16>,
        /// Used index up to which the driver has looked.
        seen: u16,
        /// When the first element that it has not seen was published.
        unseen_since: Option<Instant>,
    }

    impl Bench {
        fn new(features: u64, coalesce: Coalesce) -> Self {
            let entry = MemoryEntry {
                guest_address: 0,
                len: 0x4000,
                bar_offset: 0,
            };
            let memory = Arc::new(TenantMemory::new(shared_memory(0x4000), vec![entry]).unwrap());
            let calls = Calls::default();
            let mut rings = Rings::default();
            rings.set_memory(Some(Arc::clone(&memory)), &calls);
            let setup = RingSetup {
                ring: RING,
                size: SIZE,
                base: Some(0),
                inflight: None,
                descriptor_table: 0,
                avail_ring: AVAIL,
                used_ring: USED,
            };
            rings.start(&setup, features, None, &calls).unwrap();
            rings.set_coalesce(coalesce);
            let bench = Self {
                rings,
                calls,
                memory,
                now: Instant::now(),
                made: 0,
                under_way: Vec::new(),
                seen: 0,
                unseen_since: None,
            };
            for head in 0..SIZE {
                // 16 bytes at 0x3000, which the device writes (virtio 1.3 §2.7.5).
                let mut descriptor = [0; 16];
                descriptor[..2].copy_from_slice(&[0, 0x30]);
                (descriptor[8], descriptor[12]) = (16, 2);
                bench.store(16 * u64::from(head), &descriptor);
            }
            bench
        }

        fn store(&self, at: u64, bytes: &[u8]) {
            let slice = self.memory.mapping().slice(at, bytes.len()).unwrap();
            slice.copy_from(bytes);
        }

        fn used(&self) -> u16 {
            let mut bytes = [0; 2];
            let slice = self.memory.mapping().slice(USED + 2, 2).unwrap();
            slice.copy_to(&mut bytes);
            u16::from_le_bytes(bytes)
        }

        /// The driver makes requests available, and the device fetches them.
        fn submit(&mut self, count: u16) {
            let open = self.made.wrapping_sub(self.seen);
            for _ in 0..count.min(SIZE - open) {
                let place = u64::from(self.made % SIZE);
                // In this ring a request has the head of its place: the one before it is back.
                let head = (self.made % SIZE).to_le_bytes();
                self.store(AVAIL + 4 + 2 * place, &head);
                self.made = self.made.wrapping_add(1);
            }
            self.store(AVAIL + 2, &self.made.to_le_bytes());
            let mut chains = Vec::new();
            let limit = usize::from(SIZE);
            let _ = self.rings.fetch(RING, limit, &mut chains, &self.calls);
            self.under_way.extend(chains.iter().map(|chain| chain.head));
        }

        /// A turn of the worker in which the oldest requests end; whether it calls.
        fn turn(&mut self, ended: usize) -> bool {
            let before = self.calls.0.get();
            for head in self.under_way.drain(..ended.min(self.under_way.len())) {
                let chain = Used { head, written: 0 };
                let waiters = Vec::new();
                let _ = self.rings.complete(RING, chain, None, waiters, &self.calls);
            }
            self.rings.call(self.now, &self.calls);
            let calls = self.calls.0.get() - before;
            assert!(calls <= 1);
            if self.used() != self.seen {
                self.unseen_since = self.unseen_since.or(Some(self.now));
            }
            calls == 1
        }

        /// The driver looks at what is there, and sleeps until the next (virtio 1.3 §2.7.7.1).
        fn look(&mut self) {
            self.seen = self.used();
            self.unseen_since = None;
            self.store(AVAIL + 4 + 2 * u64::from(SIZE), &self.seen.to_le_bytes());
        }
    }

    fn coalesce() -> Coalesce {
        Coalesce {
            delay: DELAY,
            requests: REQUESTS,
        }
    }

    #[test]
    fn a_call_waits_for_its_time_while_others_are_in_flight_and_the_last_calls_at_once() {
        for features in [EVENT_IDX, 0] {
            let mut bench = Bench::new(features, coalesce());
            bench.submit(3);
            assert!(!bench.turn(1));
            assert_eq!(bench.used(), 1, "it can be seen all the same");
            assert_eq!(bench.rings.calls_by(), Some(bench.now + DELAY));
            bench.now += DELAY - Duration::from_nanos(1);
            assert!(!bench.turn(1), "its time is not over");
            bench.now += Duration::from_nanos(1);
            assert!(bench.turn(0));
            assert_eq!(bench.rings.calls_by(), None);
            bench.look();
            assert!(bench.turn(1), "nothing else is in flight");
            assert_eq!(bench.rings.calls_by(), None);
        }
    }

    #[test]
    fn a_call_is_held_back_for_no_more_than_so_many_requests() {
        for features in [EVENT_IDX, 0] {
            let mut bench = Bench::new(features, coalesce());
            for _ in 0..2 {
                bench.submit(8);
                for _ in 1..REQUESTS {
                    assert!(!bench.turn(1));
                }
                assert!(bench.turn(1));
                bench.look();
                assert!(bench.turn(3));
                bench.look();
            }
        }
    }

    #[test]
    fn nothing_is_held_back_once_it_is_switched_off_or_everyone_is_called_for() {
        let mut bench = Bench::new(EVENT_IDX, coalesce());
        bench.submit(4);
        assert!(!bench.turn(1));
        bench.rings.set_coalesce(Coalesce::default());
        assert!(bench.turn(0));
        bench.look();
        assert!(bench.turn(1));
        bench.look();
        bench.rings.set_coalesce(coalesce());
        assert!(!bench.turn(1));
        let calls = bench.calls.0.get();
        bench.rings.call_for_all(&bench.calls);
        assert_eq!(bench.calls.0.get(), calls + 1);
        assert_eq!(bench.rings.calls_by(), None);
    }

    #[test]
    fn what_is_shown_before_the_end_of_a_turn_is_called_for_once() {
        let mut bench = Bench::new(EVENT_IDX, Coalesce::default());
        bench.submit(4);
        for head in bench.under_way.drain(..2) {
            let chain = Used { head, written: 0 };
            let waiters = Vec::new();
            let _ = bench
                .rings
                .complete(RING, chain, None, waiters, &bench.calls);
        }
        bench.rings.show(RING, true, &bench.calls);
        assert_eq!((bench.used(), bench.calls.0.get()), (2, 1));
        // The driver sleeps no more, and has not asked for another call.
        assert!(!bench.turn(2));
        assert_eq!(bench.used(), 4);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Submit(u16),
        Turn(usize),
        Pass(u64),
        Look,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (1..=SIZE).prop_map(Event::Submit),
            (0..6_usize).prop_map(Event::Turn),
            (0..80_u64).prop_map(Event::Pass),
            Just(Event::Look),
        ];
        proptest::collection::vec(event, 1..200)
    }

    proptest! {
        #[test]
        fn a_driver_that_sleeps_is_called_in_time_and_always_for_the_last(events in events()) {
            let mut bench = Bench::new(EVENT_IDX, coalesce());
            for event in events {
                match event {
                    Event::Submit(count) => bench.submit(count),
                    Event::Pass(micros) => bench.now += Duration::from_micros(micros),
                    // Whoever has nothing to see looks no sooner than it is called.
                    Event::Look => bench.look(),
                    Event::Turn(ended) => {
                        let asleep = bench.unseen_since;
                        if bench.turn(ended) {
                            bench.look();
                        }
                        let unseen = bench.used().wrapping_sub(bench.seen);
                        if unseen > 0 {
                            prop_assert!(!bench.under_way.is_empty(), "the last was not called for");
                            prop_assert!(u32::from(unseen) < REQUESTS);
                            let since = asleep.unwrap_or(bench.now);
                            prop_assert!(bench.now - since < DELAY, "a call came too late");
                            let by = bench.rings.calls_by();
                            prop_assert!(by.is_some_and(|by| by <= since + DELAY));
                        }
                    }
                }
            }
        }
    }
}
