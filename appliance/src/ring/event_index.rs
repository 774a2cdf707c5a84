//! EVENT_IDX in both directions, for every place of the 16-bit indexes that makes a difference.

use spec::session::MemoryEntry;

use super::*;
use crate::memory::testing::shared_memory;

const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Entries: small enough for its memory, and a divisor of 65536 as any size is.
const SIZE: u16 = 8;
/// Indexes beside which arithmetic in 16 bits, or in signed ones, goes wrong first.
const CORNERS: [u16; 9] = [0, 1, 7, 8, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff];

/// A ring with EVENT_IDX, and its memory as the driver sees it.
fn ring_at(index: u16) -> (Ring, TenantMemory) {
    let entry = MemoryEntry {
        guest_address: 0,
        len: 0x4000,
        bar_offset: 0,
    };
    let memory = TenantMemory::new(shared_memory(0x4000), vec![entry]).unwrap();
    put(&memory, AVAIL + 2, index);
    put(&memory, USED + 2, index);
    let setup = RingSetup {
        ring: 2,
        size: SIZE,
        base: Some(index),
        inflight: None,
        descriptor_table: 0,
        avail_ring: AVAIL,
        used_ring: USED,
    };
    let ring = Ring::new(&setup, EVENT_IDX, &memory).unwrap();
    (ring, memory)
}

fn put(memory: &TenantMemory, at: u64, value: u16) {
    let to = memory.mapping().slice(at, 2).unwrap();
    to.copy_from(&value.to_le_bytes());
}

fn get(memory: &TenantMemory, at: u64) -> u16 {
    let mut bytes = [0; 2];
    memory.mapping().slice(at, 2).unwrap().copy_to(&mut bytes);
    u16::from_le_bytes(bytes)
}

/// Whether an event was passed, told in steps: the element at index `event` is one of the `count`
/// from `old` on (virtio 1.3 §2.7.7.2, §2.7.10.1).
fn is_passed(event: u16, old: u16, count: u16) -> bool {
    let mut index = old;
    for _ in 0..count {
        if index == event {
            return true;
        }
        index = index.wrapping_add(1);
    }
    false
}

/// The rule as the standard has it in C: `(u16)(new - event - 1) < (u16)(new - old)`.
fn vring_need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[test]
fn the_standards_formula_is_what_counting_says_wherever_the_indexes_are() {
    for old in CORNERS {
        for count in 0..=SIZE {
            let new = old.wrapping_add(count);
            for event in 0..=u16::MAX {
                let is_passed = is_passed(event, old, count);
                assert_eq!(
                    vring_need_event(event, new, old),
                    is_passed,
                    "{event} {old} {count}"
                );
            }
        }
    }
}

#[test]
fn the_driver_is_called_for_just_the_used_event_that_was_passed_wherever_the_index_is() {
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    for old in CORNERS {
        for count in 0..=SIZE {
            let (mut ring, memory) = ring_at(old);
            for event in 0..=u16::MAX {
                // As if nothing had been asked since `old`.
                (ring.next_used, ring.unasked) = (old.wrapping_add(count), count.into());
                put(&memory, used_event, event);
                let wants = ring.wants_call(&memory).unwrap();
                assert_eq!(wants, is_passed(event, old, count), "{event} {old} {count}");
            }
        }
    }
}

#[test]
fn a_question_is_about_what_came_since_the_last_one_at_every_index() {
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    let (mut ring, memory) = ring_at(0);
    // Twice round: the driver asks for each third element.
    let mut event = 2_u16;
    for index in (0..=u16::MAX).chain(0..=u16::MAX) {
        put(&memory, used_event, event);
        ring.push(&memory, 0, 0).unwrap();
        assert_eq!(ring.wants_call(&memory).unwrap(), index == event, "{index}");
        if index == event {
            event = event.wrapping_add(3);
        }
        assert!(!ring.wants_call(&memory).unwrap(), "asked twice at {index}");
    }
}

#[test]
fn the_driver_kicks_for_the_next_request_wherever_the_index_is() {
    let avail_event = USED + 4 + 8 * u64::from(SIZE);
    let (mut ring, memory) = ring_at(0);
    // Twice round.
    for _ in 0..2 {
        for index in 0..=u16::MAX {
            assert!(!ring.enable_kicks(&memory).unwrap());
            let event = get(&memory, avail_event);
            for count in 1..=SIZE {
                // All that the driver adds at once.
                let new = index.wrapping_add(count);
                assert!(
                    vring_need_event(event, new, index),
                    "no kick for {count} at {index}"
                );
            }
            // What came before is no reason to kick again.
            assert!(!vring_need_event(event, index, index.wrapping_sub(SIZE)));
            // The next one is there already: it is told, whether it kicked or not.
            put(&memory, AVAIL + 2, index.wrapping_add(1));
            assert!(ring.enable_kicks(&memory).unwrap());
            ring.next_avail = index.wrapping_add(1);
        }
    }
}
