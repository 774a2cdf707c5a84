use std::sync::Arc;

use proptest::prelude::*;
use spec::session::MemoryEntry;

use super::*;
use crate::memory::testing::shared_memory;

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
