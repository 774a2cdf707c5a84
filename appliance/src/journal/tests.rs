use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::memory::testing::shared_memory;

const SIZE: u16 = 8;
const REGION: u32 = 4096;
const REGION_AT: usize = 4096;

fn memory() -> Arc<Mapping> {
    shared_memory(0x2000)
}

fn open(memory: &Arc<Mapping>, used: u16) -> Journal {
    Journal::open(memory.clone(), REGION, SIZE, used).unwrap()
}

fn bytes<const N: usize>(memory: &Mapping, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(REGION_AT + at, &mut bytes);
    bytes
}

fn again(journal: &mut Journal) -> Vec<u16> {
    std::iter::from_fn(|| journal.next_again()).collect()
}

// covers: VPCI-INF-6
#[test]
fn a_chain_is_marked_with_its_number_and_the_mark_cleared_when_it_is_back() {
    let memory = memory();
    let mut journal = open(&memory, 0xffff);
    // Version 1, 8 entries, no head, used index.
    assert_eq!(bytes(&memory, 8), [1, 0, 8, 0, 0, 0, 0xff, 0xff]);
    journal.fetched(3).unwrap();
    journal.fetched(5).unwrap();
    let entry_of_5 = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(bytes(&memory, 16 + 16 * 5), entry_of_5);
    assert_eq!(journal.len(), 2);

    journal.before_used(&[5]);
    assert_eq!(bytes(&memory, 12), [5, 0, 0xff, 0xff]);
    assert_eq!(bytes(&memory, 16 + 16 * 5), entry_of_5);
    journal.after_used(&[5], 0);
    assert_eq!(bytes(&memory, 12), [5, 0, 0, 0]);
    assert_eq!(bytes(&memory, 16 + 16 * 5), [0; 2]);

    journal.before_used(&[3]);
    journal.after_used(&[3], 1);
    // Next of head 3: the one before it.
    assert_eq!(bytes(&memory, 16 + 16 * 3), [0, 0, 0, 0, 0, 0, 5, 0]);
    assert_eq!(journal.len(), 0);
}

// covers: VPCI-INF-6
#[test]
fn the_first_chain_given_back_after_a_restart_names_the_last_one_before_it() {
    let memory = memory();
    let mut journal = open(&memory, 0);
    journal.fetched(3).unwrap();
    journal.fetched(5).unwrap();
    journal.before_used(&[5]);
    journal.after_used(&[5], 1);

    open(&memory, 1).before_used(&[3]);

    // Next of head 3.
    assert_eq!(bytes(&memory, 16 + 16 * 3 + 6), [5, 0]);
}

// covers: VPCI-INF-8
#[test]
fn a_chain_cannot_be_in_flight_twice_but_again() {
    let memory = memory();
    let mut journal = open(&memory, 0);
    journal.fetched(3).unwrap();
    assert_eq!(journal.fetched(3), Err(Violation::InFlight(3)));
    assert_eq!(journal.len(), 1);
    journal.before_used(&[3]);
    journal.after_used(&[3], 1);
    assert_eq!(journal.fetched(3), Ok(()));
}

// covers: VPCI-INF-7
#[test]
fn what_is_marked_is_taken_up_in_the_order_in_which_it_was_fetched() {
    let memory = memory();
    let mut journal = open(&memory, 0);
    for head in [6, 2, 7, 0] {
        journal.fetched(head).unwrap();
    }
    journal.before_used(&[2]);
    journal.after_used(&[2], 1);

    let mut next = open(&memory, 1);

    assert_eq!(next.len(), 3);
    assert!(next.is_open(7) && !next.is_open(2));
    assert_eq!(again(&mut next), [6, 7, 0]);
    // What is fetched from now on comes after them, if this one dies as well.
    next.fetched(1).unwrap();
    assert_eq!(again(&mut open(&memory, 1)), [6, 7, 0, 1]);
}

// covers: VPCI-INF-7
#[test]
fn chains_that_the_driver_has_back_are_not_taken_up_though_they_are_marked() {
    let memory = memory();
    let mut journal = open(&memory, 0xfffe);
    for head in 0..4 {
        journal.fetched(head).unwrap();
    }
    // Several were published at once.
    journal.before_used(&[1, 3, 2]);
    assert_eq!(again(&mut open(&memory, 1)), [0]);
    assert_eq!(bytes(&memory, 14), [1, 0]);
}

// covers: VPCI-INF-7
#[test]
fn a_region_of_another_version_or_ring_is_begun_anew() {
    let memory = memory();
    open(&memory, 0).fetched(3).unwrap();
    let half = Journal::open(memory.clone(), REGION, SIZE / 2, 9).unwrap();
    assert_eq!(half.len(), 0);
    open(&memory, 0).fetched(3).unwrap();
    memory.write(REGION_AT + 8, &[2, 0]);
    let journal = open(&memory, 7);
    assert_eq!(journal.len(), 0);
    assert_eq!(bytes(&memory, 8), [1, 0, 8, 0, 0, 0, 7, 0]);
    assert_eq!(bytes(&memory, 16), [0; 128]);
}

#[test]
fn a_region_outside_in_flight_memory_is_refused() {
    let memory = memory();
    for (offset, size) in [(0, 8), (64, 8), (4097, 8), (0x2000 - 64, 8), (0x2000, 8)] {
        assert!(Journal::open(memory.clone(), offset, size, 0).is_none());
    }
    assert!(Journal::open(memory.clone(), REGION, 32768, 0).is_none());
}

#[test]
fn what_is_given_up_stays_marked_for_the_next_appliance() {
    let memory = memory();
    open(&memory, 0).fetched(3).unwrap();
    let mut journal = open(&memory, 0);
    journal.give_up_again();
    assert_eq!(journal.len(), 0);
    assert_eq!(again(&mut open(&memory, 0)), [3]);
}

/// A driver and its ring, as far as a record is about them.
#[derive(Default)]
struct Driver {
    /// Heads in the order in which they were made available.
    avail: Vec<u16>,
    /// Heads in the order in which they came back.
    used: Vec<u16>,
}

impl Driver {
    /// Makes a chain available whose head is free.
    fn offer(&mut self, head: u16) {
        let made = |list: &[u16]| list.iter().filter(|made| **made == head).count();
        if made(&self.avail) == made(&self.used) {
            self.avail.push(head);
        }
    }

    fn used_index(&self) -> u16 {
        u16::try_from(self.used.len()).unwrap()
    }
}

/// What a driver or a next appliance can see of giving a request back, bit by bit.
type Store<'a> = Box<dyn FnOnce(&mut Journal, &mut Driver) + 'a>;

/// An appliance that serves it.
struct Device {
    journal: Journal,
    next_avail: usize,
    /// Fetched and not given back.
    at_work: VecDeque<u16>,
}

impl Device {
    fn start(memory: &Arc<Mapping>, driver: &Driver) -> Self {
        let mut journal = open(memory, driver.used_index());
        let next_avail = driver.used.len() + journal.len();
        let at_work = again(&mut journal).into();
        Self {
            journal,
            next_avail,
            at_work,
        }
    }

    fn fetch(&mut self, driver: &Driver) {
        if let Some(&head) = driver.avail.get(self.next_avail) {
            self.next_avail += 1;
            self.journal.fetched(head).unwrap();
            self.at_work.push_back(head);
        }
    }

    /// Gives up to `count` requests from the `which`-th on back together, but dies after so many
    /// steps.
    fn give_back(&mut self, driver: &mut Driver, (which, count): (usize, usize), steps: usize) {
        if self.at_work.is_empty() {
            return;
        }
        let first = which % self.at_work.len();
        let end = self.at_work.len().min(first + count);
        let heads: Vec<u16> = self.at_work.drain(first..end).collect();
        // One after the other here, as the record is written.
        let mut all: Vec<Store<'_>> = Vec::new();
        for &head in &heads {
            all.push(Box::new(move |journal, _| journal.before_used(&[head])));
        }
        // The used elements are stores, too, which nobody reads before the used index says so.
        all.push(Box::new(|_, driver| driver.used.extend(&heads)));
        for &head in &heads {
            all.push(Box::new(move |journal, _| journal.mark(head, false)));
        }
        all.push(Box::new(|journal, driver| {
            journal.after_used(&heads, driver.used_index());
        }));
        for step in all.into_iter().take(steps) {
            step(&mut self.journal, driver);
        }
    }
}

proptest! {
    // covers: VPCI-INF-6, VPCI-INF-7
    #[test]
    fn wherever_an_appliance_dies_each_request_comes_back_once(
        lives in vec((vec((0..SIZE, 0..3usize, any::<usize>(), 1..5usize), 0..40), 0..5usize, 0..10usize), 1..20),
    ) {
        let memory = memory();
        let mut driver = Driver::default();
        for (work, count, steps) in lives {
            let mut device = Device::start(&memory, &driver);
            for (head, what, which, count) in work {
                match what {
                    0 => driver.offer(head),
                    1 => device.fetch(&driver),
                    _ => device.give_back(&mut driver, (which, count), usize::MAX),
                }
            }
            device.give_back(&mut driver, (0, count), steps);
        }
        let mut device = Device::start(&memory, &driver);
        for _ in 0..2 * SIZE {
            device.fetch(&driver);
            device.give_back(&mut driver, (0, 1), usize::MAX);
        }
        // As often as it was made available, and never before it was.
        let (mut avail, mut used) = (driver.avail.clone(), driver.used.clone());
        avail.sort_unstable();
        used.sort_unstable();
        prop_assert_eq!(avail, used);
        prop_assert_eq!(device.journal.len(), 0);
    }

    // covers: VPCI-INF-8
    #[test]
    fn a_region_of_random_bytes_yields_each_head_at_most_once(
        region in vec(any::<u8>(), 16 + 16 * usize::from(SIZE)),
        plausible: bool,
        used: u16,
    ) {
        let memory = memory();
        memory.write(REGION_AT, &region);
        if plausible {
            memory.write(REGION_AT + 8, &[1, 0, 8, 0]);
        }
        let mut journal = open(&memory, used);
        let count = journal.len();
        let mut heads = again(&mut journal);
        prop_assert_eq!(count, heads.len());
        for &head in &heads {
            prop_assert_eq!(journal.fetched(head), Err(Violation::InFlight(head)));
            journal.before_used(&[head]);
            journal.after_used(&[head], used);
        }
        prop_assert_eq!(journal.len(), 0);
        heads.sort_unstable();
        heads.dedup();
        prop_assert_eq!(count, heads.len());
        prop_assert!(heads.iter().all(|head| *head < SIZE));
        prop_assert_eq!(open(&memory, used).len(), 0);
    }
}
