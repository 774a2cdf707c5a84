use std::sync::Arc;

use proptest::prelude::*;
use spec::session::MemoryEntry;

use super::*;
use crate::memory::testing::shared_memory;

impl Ring {
    /// Gives a chain back so that the driver sees it at once.
    pub(super) fn push(
        &mut self,
        memory: &TenantMemory,
        head: u16,
        written: u32,
    ) -> Result<(), Violation> {
        self.put(head, written)?;
        self.publish(memory)
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const SIZE: u16 = 4;
const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
/// Guest addresses from here on are in no table.
const END: u64 = 0x8000;

/// The driver's side of one ring.
struct Driver {
    memory: Arc<TenantMemory>,
    avail: u16,
}

impl Driver {
    fn new() -> Self {
        let entry = MemoryEntry {
            guest_address: 0,
            len: END,
            bar_offset: 0,
        };
        let memory = TenantMemory::new(shared_memory(0x8000), vec![entry]).unwrap();
        Self {
            memory: Arc::new(memory),
            avail: 0,
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let to = self.memory.mapping().slice(address, bytes.len()).unwrap();
        to.copy_from(bytes);
    }

    fn u16_at(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory
            .mapping()
            .slice(address, 2)
            .unwrap()
            .copy_to(&mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn descriptor(
        &self,
        table: u64,
        index: u64,
        (address, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = table + 16 * index;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    fn offer(&mut self, head: u16) {
        self.put(
            AVAIL + 4 + 2 * u64::from(self.avail % SIZE),
            &head.to_le_bytes(),
        );
        self.avail = self.avail.wrapping_add(1);
        self.put(AVAIL + 2, &self.avail.to_le_bytes());
    }

    fn ring(&self, features: u64) -> Ring {
        Ring::new(&setup(Some(0)), features, &self.memory).unwrap()
    }
}

fn setup(base: Option<u16>) -> RingSetup {
    RingSetup {
        ring: 2,
        size: SIZE,
        base,
        inflight: None,
        descriptor_table: DESCRIPTORS,
        avail_ring: AVAIL,
        used_ring: USED,
    }
}

/// What a ring makes of one chain of these descriptors, the first at index 0.
fn pop(descriptors: &[(u64, u32, u16, u16)]) -> Result<Vec<Chain>, Violation> {
    let mut driver = Driver::new();
    for (index, descriptor) in (0..).zip(descriptors) {
        driver.descriptor(DESCRIPTORS, index, *descriptor);
    }
    driver.offer(0);
    let mut chains = Vec::new();
    driver
        .ring(INDIRECT_DESC)
        .pop(&driver.memory, 8, &mut chains)
        .map(|()| chains)
}

#[test]
fn a_chain_is_split_into_what_is_readable_and_what_is_writable() {
    let chains = pop(&[
        (BUFFERS, 3, NEXT, 2),
        (0, 0, 0, 0),
        (BUFFERS + 16, 5, NEXT | WRITE, 3),
        (BUFFERS + 32, 7, WRITE, 0),
    ])
    .unwrap();
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0].head, 0);
    assert_eq!(chains[0].readable.len(), 3);
    assert_eq!(chains[0].writable.len(), 12);
}

#[test]
fn an_indirect_table_is_followed() {
    let mut driver = Driver::new();
    let table = BUFFERS + 0x100;
    driver.descriptor(DESCRIPTORS, 3, (table, 32, INDIRECT, 0));
    driver.descriptor(table, 0, (BUFFERS, 8, NEXT, 1));
    driver.descriptor(table, 1, (BUFFERS, 9, WRITE, 0));
    driver.offer(3);
    let mut chains = Vec::new();
    let mut ring = driver.ring(INDIRECT_DESC);
    ring.pop(&driver.memory, 8, &mut chains).unwrap();
    assert_eq!(chains[0].head, 3);
    assert_eq!([chains[0].readable.len(), chains[0].writable.len()], [8, 9]);
}

#[test]
fn an_indirect_table_that_was_not_negotiated_is_a_violation() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 0, (BUFFERS, 16, INDIRECT, 0));
    driver.offer(0);
    let popped = driver.ring(0).pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(popped, Err(Violation::Indirect));
}

#[test]
fn an_indirect_table_inside_another_is_a_violation() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 0, (BUFFERS, 16, INDIRECT, 0));
    driver.descriptor(BUFFERS, 0, (BUFFERS, 16, INDIRECT, 0));
    driver.offer(0);
    let mut ring = driver.ring(INDIRECT_DESC);
    let popped = ring.pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(popped, Err(Violation::Indirect));
}

#[test]
fn an_indirect_table_of_bad_length_is_a_violation() {
    for len in [0, 15, 17, 16 * 1025] {
        let popped = pop(&[(BUFFERS, len, INDIRECT, 0)]);
        assert_eq!(popped.unwrap_err(), Violation::Indirect, "length {len}");
    }
    let popped = pop(&[(BUFFERS, 16, INDIRECT | NEXT, 1), (BUFFERS, 1, 0, 0)]);
    assert_eq!(popped.unwrap_err(), Violation::Indirect);
}

#[test]
fn a_descriptor_index_outside_the_table_is_a_violation() {
    let popped = pop(&[(BUFFERS, 1, NEXT, 4)]);
    assert_eq!(
        popped.unwrap_err(),
        Violation::DescriptorIndex { index: 4, len: 4 }
    );
    let mut driver = Driver::new();
    driver.offer(0xffff);
    let popped = driver.ring(0).pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(
        popped,
        Err(Violation::DescriptorIndex {
            index: 0xffff,
            len: 4
        })
    );
}

#[test]
fn a_loop_is_a_violation() {
    let popped = pop(&[(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)]);
    assert_eq!(popped.unwrap_err(), Violation::ChainLength(4));
}

#[test]
fn a_zero_length_buffer_is_a_violation() {
    assert_eq!(
        pop(&[(BUFFERS, 0, WRITE, 0)]).unwrap_err(),
        Violation::ZeroLength
    );
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_a_violation() {
    let popped = pop(&[(BUFFERS, 1, WRITE | NEXT, 1), (BUFFERS, 1, 0, 0)]);
    assert_eq!(popped.unwrap_err(), Violation::Order);
}

#[test]
fn a_buffer_that_runs_out_of_memory_is_a_violation() {
    assert_eq!(
        pop(&[(END - 1, 2, 0, 0)]).unwrap_err(),
        Violation::Unmapped(END)
    );
    assert_eq!(
        pop(&[(u64::MAX - 7, 16, INDIRECT, 0)]).unwrap_err(),
        Violation::Unmapped(u64::MAX - 7)
    );
}

#[test]
fn an_avail_index_too_far_ahead_is_a_violation() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    driver.put(AVAIL + 2, &(SIZE + 1).to_le_bytes());
    let waiting = ring.waiting(&driver.memory, 0);
    assert_eq!(waiting, Err(Violation::AvailIndex));
    let popped = ring.pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(popped, Err(Violation::AvailIndex));
}

#[test]
fn more_requests_in_flight_than_the_ring_has_entries_are_a_violation() {
    let driver = Driver::new();
    let ring = driver.ring(0);
    driver.put(AVAIL + 2, &2u16.to_le_bytes());
    assert_eq!(ring.waiting(&driver.memory, 2), Ok(2));
    let waiting = ring.waiting(&driver.memory, 3);
    assert_eq!(waiting, Err(Violation::AvailIndex));
}

#[test]
fn the_good_chains_before_a_bad_one_are_still_returned() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 1, (BUFFERS, 1, 0, 0));
    driver.offer(1);
    driver.offer(9);
    let mut chains = Vec::new();
    assert!(driver.ring(0).pop(&driver.memory, 8, &mut chains).is_err());
    assert_eq!(chains.len(), 1);
}

#[test]
fn no_more_is_popped_than_asked_for() {
    let mut driver = Driver::new();
    for head in 0..3 {
        driver.descriptor(DESCRIPTORS, u64::from(head), (BUFFERS, 1, 0, 0));
        driver.offer(head);
    }
    let mut ring = driver.ring(0);
    let mut chains = Vec::new();
    ring.pop(&driver.memory, 2, &mut chains).unwrap();
    assert_eq!((chains.len(), ring.next_avail()), (2, 2));
}

#[test]
fn without_a_base_a_ring_goes_on_from_its_used_index() {
    let driver = Driver::new();
    driver.put(USED + 2, &7u16.to_le_bytes());
    let ring = Ring::new(&setup(None), 0, &driver.memory).unwrap();
    assert_eq!(ring.next_avail(), 7);
    let ring = Ring::new(&setup(Some(9)), 0, &driver.memory).unwrap();
    assert_eq!(ring.next_avail(), 9);
}

#[test]
fn a_ring_outside_memory_or_misaligned_is_not_started() {
    let driver = Driver::new();
    let outside = RingSetup {
        used_ring: END - 8,
        ..setup(None)
    };
    let misaligned = RingSetup {
        descriptor_table: DESCRIPTORS + 8,
        ..setup(None)
    };
    let nowhere = RingSetup {
        avail_ring: 0,
        ..setup(None)
    };
    for setup in [outside, misaligned, nowhere] {
        let ring = Ring::new(&setup, 0, &driver.memory);
        assert_eq!(ring.unwrap_err(), Violation::Configuration);
    }
}

#[test]
fn without_event_idx_the_no_interrupt_flag_is_honoured() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    ring.push(&driver.memory, 1, 5).unwrap();
    assert_eq!(driver.u16_at(USED + 2), 1);
    assert!(ring.wants_call(&driver.memory).unwrap());
    driver.put(AVAIL, &1u16.to_le_bytes());
    assert!(!ring.wants_call(&driver.memory).unwrap());
}

#[test]
fn with_event_idx_the_driver_is_called_when_its_used_event_is_passed() {
    let driver = Driver::new();
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    let mut ring = driver.ring(EVENT_IDX);
    driver.put(AVAIL, &1u16.to_le_bytes());
    driver.put(used_event, &1u16.to_le_bytes());
    ring.push(&driver.memory, 0, 0).unwrap();
    assert!(!ring.wants_call(&driver.memory).unwrap());
    ring.push(&driver.memory, 0, 0).unwrap();
    assert!(ring.wants_call(&driver.memory).unwrap());
}

#[test]
fn enabling_kicks_reports_what_came_in_the_meantime() {
    let mut driver = Driver::new();
    for features in [0, EVENT_IDX] {
        let mut ring = Ring::new(&setup(Some(driver.avail)), features, &driver.memory).unwrap();
        assert!(!ring.enable_kicks(&driver.memory).unwrap());
        driver.offer(0);
        assert!(ring.enable_kicks(&driver.memory).unwrap());
    }
}

#[test]
fn a_chain_in_thousands_of_pieces_is_a_violation() {
    // Each buffer of 8 bytes is in 8 pieces: a memory table may have that many ranges, and a chain
    // that many such buffers.
    let backwards = |at: u64| MemoryEntry {
        guest_address: END + at,
        len: 1,
        bar_offset: 0x7000 - at,
    };
    let low = MemoryEntry {
        guest_address: 0,
        len: END,
        bar_offset: 0,
    };
    let entries = std::iter::once(low).chain((0..8).map(backwards)).collect();
    let mut driver = Driver {
        memory: Arc::new(TenantMemory::new(shared_memory(0x8000), entries).unwrap()),
        avail: 0,
    };
    let table = |count: u64| (BUFFERS, u32::try_from(16 * count).unwrap(), INDIRECT, 0);
    for index in 0..600 {
        let flags = if index == 512 { 0 } else { NEXT };
        let next = u16::try_from(index + 1).unwrap();
        driver.descriptor(BUFFERS, index, (END, 8, flags, next));
    }
    driver.descriptor(DESCRIPTORS, 0, table(600));
    driver.descriptor(DESCRIPTORS, 1, table(600));
    driver.offer(0);
    let mut ring = driver.ring(INDIRECT_DESC);
    let popped = ring.pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(popped, Err(Violation::TooManyPieces(4096)));
    driver.descriptor(BUFFERS, 511, (END, 8, 0, 0));
    driver.offer(1);
    let mut chains = Vec::new();
    ring.pop(&driver.memory, 8, &mut chains).unwrap();
    assert_eq!(chains[0].readable.pieces(), 4096);
}

#[test]
fn a_chain_of_more_than_1024_descriptors_is_a_violation_however_long_the_ring() {
    let mut driver = Driver {
        memory: {
            let entry = MemoryEntry {
                guest_address: 0,
                len: 0x20_0000,
                bar_offset: 0,
            };
            Arc::new(TenantMemory::new(shared_memory(0x20_0000), vec![entry]).unwrap())
        },
        avail: 0,
    };
    for index in 0..1025 {
        let next = u16::try_from(index + 1).unwrap();
        driver.descriptor(0x10_0000, index, (BUFFERS, 1, NEXT, next));
    }
    driver.offer(0);
    let setup = RingSetup {
        size: MAX_SIZE,
        descriptor_table: 0x10_0000,
        used_ring: 0x4_0000,
        ..setup(Some(0))
    };
    let mut ring = Ring::new(&setup, 0, &driver.memory).unwrap();
    let popped = ring.pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(popped, Err(Violation::ChainLength(1024)));
}

#[test]
fn a_chain_of_more_than_4_gib_is_a_violation() {
    let entry = MemoryEntry {
        guest_address: 0,
        len: 5 << 30,
        bar_offset: 0,
    };
    let memory = TenantMemory::new(shared_memory(5 << 30), vec![entry]).unwrap();
    let driver = Driver {
        memory: Arc::new(memory),
        avail: 0,
    };
    let mut ring = driver.ring(0);
    driver.descriptor(DESCRIPTORS, 0, (BUFFERS, u32::MAX, NEXT, 1));
    driver.descriptor(DESCRIPTORS, 1, (BUFFERS, 2, WRITE, 0));
    driver.put(AVAIL + 2, &1u16.to_le_bytes());
    let popped = ring.pop(&driver.memory, 8, &mut Vec::new());
    assert_eq!(popped, Err(Violation::TooManyBytes));
}

/// Descriptors that a fuzzer would write: mostly near what is right.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![DESCRIPTORS..END + 64, Just(u64::MAX - 8), any::<u64>()];
    let len = prop_oneof![0..64u32, Just(16), Just(u32::MAX), any::<u32>()];
    (address, len, 0..8u16, 0..SIZE + 1)
}

proptest! {
    #[test]
    fn whatever_a_driver_writes_is_chains_inside_its_memory_or_a_violation(
        descriptors in prop::collection::vec(descriptor(), 64),
        avail in prop::collection::vec(any::<u16>(), 2 + usize::from(SIZE)),
        noise in any::<u64>(),
    ) {
        let driver = Driver::new();
        for (index, descriptor) in (0..).zip(&descriptors[..4]) {
            driver.descriptor(DESCRIPTORS, index, *descriptor);
        }
        // Indirect tables, should something point there.
        for (index, descriptor) in (0..).zip(&descriptors[4..]) {
            driver.descriptor(BUFFERS + noise % 0x100, index, *descriptor);
        }
        for (index, value) in (0..).zip(&avail) {
            let value = if index < 2 { *value % 8 } else { *value % (SIZE + 1) };
            driver.put(AVAIL + 2 * index, &value.to_le_bytes());
        }
        let mut ring = driver.ring(INDIRECT_DESC | EVENT_IDX);
        let mut chains = Vec::new();
        let popped = ring.pop(&driver.memory, 64, &mut chains);
        prop_assert!(chains.len() <= usize::from(SIZE));
        prop_assert_ne!(popped.map_err(Violation::reason), Err(0));
        for chain in chains {
            prop_assert!(chain.head < SIZE);
            let limit = usize::try_from(END).unwrap() * 1024;
            prop_assert!(chain.readable.len() + chain.writable.len() <= limit);
        }
    }
}

#[test]
fn what_is_put_is_seen_when_it_is_published() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    for (head, written) in [(3, 7), (0, 0x0102_0304)] {
        ring.put(head, written).unwrap();
    }
    assert_eq!(driver.u16_at(USED + 2), 0);
    ring.publish(&driver.memory).unwrap();
    assert_eq!(driver.u16_at(USED + 2), 2);
    let mut elements = [0u8; 16];
    let used = driver.memory.mapping().slice(USED + 4, 16).unwrap();
    used.copy_to(&mut elements);
    assert_eq!(elements, [3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1]);
}

#[test]
fn a_head_that_the_ring_does_not_have_is_not_given_back() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    let refused = Err(Violation::DescriptorIndex { index: 4, len: 4 });
    assert_eq!(ring.push(&driver.memory, 4, 0), refused);
    ring.publish(&driver.memory).unwrap();
    assert_eq!(driver.u16_at(USED + 2), 0);
}

#[test]
fn a_batch_goes_on_at_the_start_of_the_used_ring_and_of_its_index() {
    let driver = Driver::new();
    driver.put(USED + 2, &0xfffe_u16.to_le_bytes());
    let mut ring = Ring::new(&setup(None), 0, &driver.memory).unwrap();
    for head in [3, 2, 1] {
        ring.put(head, 0).unwrap();
    }
    ring.publish(&driver.memory).unwrap();
    assert_eq!(driver.u16_at(USED + 2), 1);
    let head_at = |place: u64| driver.u16_at(USED + 4 + 8 * place);
    assert_eq!([head_at(2), head_at(3), head_at(0)], [3, 2, 1]);
}

#[test]
fn a_batch_longer_than_the_ring_stays_inside_it() {
    let driver = Driver::new();
    let mut ring = driver.ring(EVENT_IDX);
    for head in (0..SIZE).cycle().take(9) {
        ring.put(head, 0).unwrap();
    }
    ring.publish(&driver.memory).unwrap();
    assert_eq!(driver.u16_at(USED + 2), 9);
    let behind = USED + 4 + 8 * u64::from(SIZE);
    assert_eq!([driver.u16_at(behind), driver.u16_at(behind + 2)], [0, 0]);
}

#[test]
fn a_used_event_is_passed_once_also_where_the_index_wraps() {
    let driver = Driver::new();
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    for event in [0xfffe_u16, 0xffff, 0, 1] {
        driver.put(USED + 2, &0xfffe_u16.to_le_bytes());
        driver.put(used_event, &event.to_le_bytes());
        let mut ring = Ring::new(&setup(None), EVENT_IDX, &driver.memory).unwrap();
        let calls: Vec<bool> = (0..4)
            .map(|_| {
                ring.push(&driver.memory, 0, 0).unwrap();
                ring.wants_call(&driver.memory).unwrap()
            })
            .collect();
        let passed = usize::from(event.wrapping_sub(0xfffe));
        let expected: Vec<bool> = (0..4).map(|push| push == passed).collect();
        assert_eq!(calls, expected, "used event {event:#x}");
        assert!(!ring.wants_call(&driver.memory).unwrap(), "nothing new");
    }
}

#[test]
fn after_65536_pushes_without_a_question_the_used_event_was_passed() {
    let driver = Driver::new();
    let mut ring = driver.ring(EVENT_IDX);
    driver.put(AVAIL + 4 + 2 * u64::from(SIZE), &9u16.to_le_bytes());
    for _ in 0..1 << 16 {
        ring.push(&driver.memory, 0, 0).unwrap();
    }
    assert!(ring.wants_call(&driver.memory).unwrap());
}

#[test]
fn with_event_idx_the_avail_event_is_the_next_request() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 0, (BUFFERS, 1, 0, 0));
    driver.offer(0);
    let avail_event = USED + 4 + 8 * u64::from(SIZE);
    let mut ring = driver.ring(EVENT_IDX);
    ring.pop(&driver.memory, 8, &mut Vec::new()).unwrap();
    ring.disable_kicks(&driver.memory).unwrap();
    assert_eq!(driver.u16_at(avail_event), 0);
    ring.enable_kicks(&driver.memory).unwrap();
    assert_eq!(driver.u16_at(avail_event), 1);
    assert_eq!(driver.u16_at(USED), 0, "flags are not used");
}

#[test]
fn without_event_idx_the_no_notify_flag_says_whether_to_kick() {
    let driver = Driver::new();
    let mut ring = driver.ring(0);
    for _ in 0..2 {
        ring.disable_kicks(&driver.memory).unwrap();
        assert_eq!(driver.u16_at(USED), 1);
        ring.enable_kicks(&driver.memory).unwrap();
        assert_eq!(driver.u16_at(USED), 0);
    }
}

#[test]
fn heads_are_fetched_in_order_across_the_end_of_a_long_ring() {
    let mut driver = Driver::new();
    let setup = RingSetup {
        size: 256,
        avail_ring: 0x2002,
        base: Some(0xffb0),
        inflight: None,
        ..setup(None)
    };
    driver.avail = 0xffb0;
    for head in 0..200u16 {
        driver.descriptor(DESCRIPTORS, u64::from(head), (BUFFERS, 1, 0, 0));
        let place = u64::from(driver.avail % 256);
        driver.put(0x2002 + 4 + 2 * place, &head.to_le_bytes());
        driver.avail = driver.avail.wrapping_add(1);
    }
    driver.put(0x2002 + 2, &driver.avail.to_le_bytes());
    let mut ring = Ring::new(&setup, 0, &driver.memory).unwrap();
    let mut chains = Vec::new();
    ring.pop(&driver.memory, usize::MAX, &mut chains).unwrap();
    let heads: Vec<u16> = chains.iter().map(|chain| chain.head).collect();
    assert_eq!(heads, (0..200).collect::<Vec<u16>>());
    assert_eq!(ring.next_avail(), 0x78);
}

#[test]
fn fetching_beside_requests_in_flight_counts_them() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 0, (BUFFERS, 1, 0, 0));
    driver.offer(0);
    driver.offer(0);
    let mut ring = driver.ring(0);
    let mut chains = Vec::new();
    let fetched = ring.fetch(&driver.memory, 3, 8, &mut chains);
    assert_eq!((fetched, chains.len()), (Err(Violation::AvailIndex), 0));
    ring.fetch(&driver.memory, 2, 8, &mut chains).unwrap();
    assert_eq!(chains.len(), 2);
}

#[test]
fn an_indirect_table_in_two_places_is_followed() {
    // Guest pages 4 and 5 are the other way round in the mapping.
    let entries = [
        (0, 0x4000, 0),
        (0x4000, 0x1000, 0x5000),
        (0x5000, 0x1000, 0x4000),
    ];
    let entries = entries.map(|(guest_address, len, bar_offset)| MemoryEntry {
        guest_address,
        len,
        bar_offset,
    });
    let memory = TenantMemory::new(shared_memory(0x8000), entries.into()).unwrap();
    let mut driver = Driver {
        memory: Arc::new(memory),
        avail: 0,
    };
    // Its second descriptor is cut in the middle.
    driver.descriptor(DESCRIPTORS, 0, (0x4fe8, 48, INDIRECT, 0));
    driver.descriptor(0x5fe8, 0, (0x4000, 1, NEXT, 1));
    let second = [0, 0x40, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 2, 0];
    driver.put(0x5ff8, &second[..8]);
    driver.put(0x4000, &second[8..]);
    driver.descriptor(0x4008, 0, (0x4000, 4, WRITE, 0));
    driver.offer(0);
    let mut chains = Vec::new();
    let mut ring = driver.ring(INDIRECT_DESC);
    ring.pop(&driver.memory, 8, &mut chains).unwrap();
    assert_eq!([chains[0].readable.len(), chains[0].writable.len()], [3, 4]);
}

#[test]
fn a_ring_part_in_two_places_is_not_started_but_one_in_two_entries_is() {
    for (bar_offset, started) in [(0x3010, true), (0x3020, false)] {
        let entries = [(0, 0x3010, 0), (0x3010, 0xff0, bar_offset)];
        let entries = entries.map(|(guest_address, len, bar_offset)| MemoryEntry {
            guest_address,
            len,
            bar_offset,
        });
        let memory = TenantMemory::new(shared_memory(0x8000), entries.into()).unwrap();
        let made = Ring::new(&setup(None), 0, &memory);
        assert_eq!(made.err(), (!started).then_some(Violation::Configuration));
    }
}

#[test]
fn a_new_snapshot_is_refused_until_checked_and_then_nothing_of_the_old_is_touched() {
    let old = Driver::new();
    let mut new = Driver::new();
    new.descriptor(DESCRIPTORS, 0, (BUFFERS, 1, 0, 0));
    new.offer(0);
    let mut ring = old.ring(0);
    ring.put(2, 0).unwrap();
    let refused = Err(Violation::Configuration);
    assert_eq!(ring.pop(&new.memory, 8, &mut Vec::new()), refused);
    assert_eq!(ring.push(&new.memory, 0, 0), refused);
    assert_eq!(ring.wants_call(&new.memory).map(|_| ()), refused);
    assert_eq!(ring.enable_kicks(&new.memory).map(|_| ()), refused);
    assert_eq!(ring.disable_kicks(&new.memory), refused);

    ring.check(&new.memory).unwrap();
    assert_eq!(Arc::strong_count(old.memory.mapping()), 1, "it is let go");
    let mut chains = Vec::new();
    ring.pop(&new.memory, 8, &mut chains).unwrap();
    assert_eq!(chains.len(), 1);
    ring.publish(&new.memory).unwrap();
    assert_eq!([new.u16_at(USED + 2), old.u16_at(USED + 2)], [2, 0]);
    assert_eq!(ring.waiting(&old.memory, 0), Err(Violation::Configuration));
}

/// Requests go round between a driver and a device on two threads, each of which sleeps until it
/// is told. Without the second look after a wish both would sleep; without the fence before it
/// too, but so rarely that this may pass.
#[test]
fn neither_side_sleeps_through_a_notification_with_event_idx() {
    const REQUESTS: u16 = 5_000;
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 0, (BUFFERS, 1, 0, 0));
    let memory = Arc::clone(&driver.memory);
    let mut index = 0;
    let [kick, call] = [(); 2].map(|()| std::sync::mpsc::sync_channel::<()>(1));
    let patience = std::time::Duration::from_secs(20);
    let device = std::thread::spawn({
        let kicked = kick.1;
        let call = call.0;
        move || {
            let mut ring = Ring::new(&setup(Some(0)), EVENT_IDX, &memory).unwrap();
            let mut chains = Vec::new();
            while ring.next_avail() != REQUESTS {
                ring.pop(&memory, 8, &mut chains).unwrap();
                for chain in chains.drain(..) {
                    ring.push(&memory, chain.head, 0).unwrap();
                }
                if ring.wants_call(&memory).unwrap() {
                    let _ = call.try_send(());
                }
                if ring.next_avail() != REQUESTS && !ring.enable_kicks(&memory).unwrap() {
                    kicked.recv_timeout(patience).expect("a kick");
                }
            }
        }
    });
    // The driver's side of virtio 1.3 §2.7.7.1 and §2.7.10.2.
    let mapping = Arc::clone(driver.memory.mapping());
    let word = |address: u64| mapping.atomic_u16(usize::try_from(address).unwrap());
    let used_event = word(AVAIL + 4 + 2 * u64::from(SIZE));
    let avail_event = word(USED + 4 + 8 * u64::from(SIZE));
    while index != REQUESTS {
        used_event.store(index, Ordering::Relaxed);
        driver.offer(0);
        fence(Ordering::SeqCst);
        if avail_event.load(Ordering::Relaxed) == index {
            let _ = kick.0.try_send(());
        }
        index += 1;
        while word(USED + 2).load(Ordering::Acquire) != index {
            call.1.recv_timeout(patience).expect("a call");
        }
    }
    device.join().unwrap();
}

/// A request with a table of its own: the header, the response and a buffer, each at its place.
fn offer_usual(driver: &mut Driver, head: u16, table: u64, places: [u64; 3]) {
    let [header, response, buffer] = places;
    driver.descriptor(DESCRIPTORS, head.into(), (table, 48, INDIRECT, 0));
    driver.descriptor(table, 0, (header, 51, NEXT, 1));
    driver.descriptor(table, 1, (response, 108, WRITE | NEXT, 2));
    driver.descriptor(table, 2, (buffer, 512, WRITE, 0));
    driver.offer(head);
}

#[test]
fn where_the_last_request_was_is_guessed_and_never_believed() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(INDIRECT_DESC);
    for (head, table, places) in [
        (0, BUFFERS, [0x5000, 0x5100, 0x5200]),
        (0, BUFFERS, [0x5000, 0x5100, 0x5200]),
        // All of it is elsewhere, but for what is the same.
        (2, BUFFERS + 0x100, [0x6000, 0x5100, 0x6200]),
        (1, BUFFERS, [0x6000, 0x6100, 0x5200]),
    ] {
        offer_usual(&mut driver, head, table, places);
        let mut chains = Vec::new();
        ring.pop(&driver.memory, 8, &mut chains).unwrap();
        let [chain] = &chains[..] else {
            panic!("{chains:?}")
        };
        let readable: Vec<_> = chain.readable.places().collect();
        let writable: Vec<_> = chain.writable.places().collect();
        assert_eq!(readable, [(places[0], 51)]);
        assert_eq!(writable, [(places[1], 108), (places[2], 512)]);
        let [table, readable, writable] =
            [table, places[0], places[1]].map(|place| usize::try_from(place).unwrap());
        let descriptor = usize::try_from(DESCRIPTORS).unwrap() + 16 * usize::from(head);
        assert_eq!(
            ring.habit,
            Habit {
                descriptor,
                table,
                readable,
                writable
            }
        );
        ring.push(&driver.memory, head, 0).unwrap();
    }
    // Several that come together make no habit.
    let before = ring.next_avail();
    for head in [0, 2] {
        let table = BUFFERS + 0x100 * u64::from(head);
        offer_usual(&mut driver, head, table, [0x7000, 0x7100, 0x7200]);
    }
    let mut chains = Vec::new();
    ring.pop(&driver.memory, 8, &mut chains).unwrap();
    assert_eq!((chains.len(), ring.next_avail()), (2, before + 2));
    assert_eq!(ring.habit.readable, 0x6000);
}
