use std::cell::RefCell;

use super::super::layout::HEADER;
use super::super::tag::{BadTag, Checks};
use super::*;

const BLOCK: usize = 512;
/// The last block of the first group, and the first of the second.
const LBA: u64 = 255;
const LAYOUT: Layout = Layout { block_size: 512 };
const TYPE_1: Protection = Protection::Type1;

/// What was done to a medium.
#[derive(Debug, Clone)]
enum Event {
    Write(u64, Vec<u8>),
    Sync,
}

/// A medium in memory that knows what was done to it.
#[derive(Debug)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    events: RefCell<Vec<Event>>,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RefCell::new(bytes),
            events: RefCell::default(),
        }
    }

    fn blank() -> Self {
        Self::new(vec![0; HEADER + 2 * (PAGE + 256 * BLOCK)])
    }
}

impl Medium for &Memory {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), DiskError> {
        to.copy_from_slice(&self.bytes.borrow()[small(at)..][..to.len()]);
        Ok(())
    }

    fn write(&self, at: u64, from: &[u8]) -> Result<(), DiskError> {
        self.bytes.borrow_mut()[small(at)..][..from.len()].copy_from_slice(from);
        self.events
            .borrow_mut()
            .push(Event::Write(at, from.to_vec()));
        Ok(())
    }

    fn give_back(&self, at: u64, len: u64) -> Result<bool, DiskError> {
        self.write(at, &vec![0; small(len)]).map(|()| true)
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.events.borrow_mut().push(Event::Sync);
        Ok(())
    }
}

fn store(memory: &Memory) -> Store<&Memory> {
    Store::new(memory, LAYOUT, TYPE_1)
}

/// Writes two blocks of this byte.
fn write(memory: &Memory, byte: u8) {
    let data = [byte; 2 * BLOCK];
    let tags = [LBA, LBA + 1].map(|lba| Tag::of(&data[..BLOCK], lba, TYPE_1));
    let (mut pages, mut block) = ([0; 3 * PAGE], [0; BLOCK]);
    store(memory)
        .write(LBA, &data, &tags, &mut pages, &mut block)
        .unwrap();
}

/// Reads and checks the two blocks; the byte of each.
fn read(memory: &Memory) -> [Result<u8, BadTag>; 2] {
    let mut data = [0; 2 * BLOCK];
    let tags = store(memory)
        .read(LBA, &mut data, &mut [0; 3 * PAGE])
        .unwrap();
    [0, 1].map(|index| {
        let block = &data[index * BLOCK..][..BLOCK];
        assert!(block.iter().all(|&byte| byte == block[0]), "torn");
        let tag = tags[index];
        if !tag.is_unchecked(TYPE_1) {
            tag.check(block, LBA + index as u64, TYPE_1, Checks::ALL)?;
        }
        Ok(block[0])
    })
}

/// Everything that may be on the medium after a crash somewhere in `events`: what was synced is,
/// and of the rest, which began with `before`, any sectors are.
fn after_a_crash(before: &[u8], events: &[Event]) -> Vec<Vec<u8>> {
    let mut stable = before.to_vec();
    let mut found = Vec::new();
    let mut loose: Vec<(usize, Vec<u8>)> = Vec::new();
    for event in events {
        match event {
            Event::Write(at, bytes) => {
                for (sector, bytes) in bytes.chunks(BLOCK).enumerate() {
                    let at = small(*at) + sector * BLOCK;
                    if stable[at..][..BLOCK] != *bytes {
                        loose.push((at, bytes.to_vec()));
                    }
                }
                // All there are so far; those of a longer list come with the next write.
                for which in 0..1_u32 << loose.len() {
                    let mut image = stable.clone();
                    for (bit, (at, bytes)) in loose.iter().enumerate() {
                        if which & 1 << bit != 0 {
                            image[*at..][..BLOCK].copy_from_slice(bytes);
                        }
                    }
                    found.push(image);
                }
            }
            Event::Sync => {
                for (at, bytes) in loose.drain(..) {
                    stable[at..][..BLOCK].copy_from_slice(&bytes);
                }
                found.push(stable.clone());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Does `what` to a medium with this on it; what may be there after a crash on the way.
fn crashes(before: &[u8], what: impl FnOnce(&Memory)) -> Vec<Vec<u8>> {
    let memory = Memory::new(before.to_vec());
    what(&memory);
    let events = memory.events.take();
    after_a_crash(before, &events)
}

#[test]
fn what_was_never_written_is_zero_and_not_checked() {
    assert_eq!(read(&Memory::blank()), [Ok(0), Ok(0)]);
}

#[test]
fn a_crash_anywhere_leaves_each_block_as_it_was_or_as_it_was_to_be() {
    let memory = Memory::blank();
    write(&memory, 1);
    let first = memory.bytes.take();
    let second = crashes(&first, |memory| write(memory, 2));
    // Either page, either block, either page: four, three more, three more.
    assert_eq!(second.len(), 10);
    for image in second {
        let before = read(&Memory::new(image.clone())).map(|byte| byte.unwrap());
        assert!(before.iter().all(|byte| [1, 2].contains(byte)));
        // And once more, from whatever is there now.
        for image in crashes(&image, |memory| write(memory, 3)) {
            let after = read(&Memory::new(image)).map(|byte| byte.unwrap());
            for (before, after) in before.into_iter().zip(after) {
                assert!(after == before || after == 3, "{before} became {after}");
            }
        }
    }
}

/// Makes the two blocks blank.
fn erase(memory: &Memory) {
    let (mut page, mut block) = ([0; PAGE], [0; BLOCK]);
    let mut room = Room {
        page: &mut page,
        block: &mut block,
        zeros: &[0; BLOCK],
    };
    store(memory).erase(LBA, 2, true, &mut room).unwrap();
}

/// The bytes that are not zero, the header's aside.
fn left(memory: &Memory) -> usize {
    let bytes = memory.bytes.borrow();
    bytes.iter().filter(|&&byte| byte != 0).count()
}

#[test]
fn what_is_erased_is_as_if_it_had_never_been_written() {
    let memory = Memory::blank();
    write(&memory, 1);
    erase(&memory);
    assert_eq!(read(&memory), [Ok(0), Ok(0)]);
    assert_eq!(left(&memory), 0, "neither data nor tags");
}

#[test]
fn a_crash_while_blocks_are_erased_leaves_each_as_it_was_with_its_tags_or_zeros() {
    let memory = Memory::blank();
    write(&memory, 1);
    let first = memory.bytes.take();
    let images = crashes(&first, erase);
    assert!(images.len() > 8);
    for image in images {
        let memory = Memory::new(image.clone());
        let there = read(&memory).map(|byte| byte.unwrap());
        assert!(there.iter().all(|byte| [0, 1].contains(byte)), "{there:?}");
        // What was not erased is checked as before.
        for (lba, byte) in (LBA..).zip(there) {
            let mut data = [0; BLOCK];
            let tags = store(&memory)
                .read(lba, &mut data, &mut [0; 3 * PAGE])
                .unwrap();
            assert!(byte == 0 || tags[0] == Tag::of(&data, lba, TYPE_1));
        }
        // And whatever is there can be written, and erased again.
        for image in crashes(&image, |memory| write(memory, 3)) {
            let after = read(&Memory::new(image)).map(|byte| byte.unwrap());
            for (before, after) in there.into_iter().zip(after) {
                assert!(after == before || after == 3, "{before} became {after}");
            }
        }
        erase(&memory);
        assert_eq!(left(&memory), 0);
    }
}

#[test]
fn erasing_a_block_leaves_the_tags_of_its_neighbours() {
    let memory = Memory::blank();
    write(&memory, 1);
    let (mut page, mut block) = ([0; PAGE], [0; BLOCK]);
    let mut room = Room {
        page: &mut page,
        block: &mut block,
        zeros: &[0; BLOCK],
    };
    store(&memory).erase(LBA, 1, false, &mut room).unwrap();
    assert_eq!(read(&memory), [Ok(0), Ok(1)]);
    let at = small(LAYOUT.block_at(LBA + 1));
    memory.bytes.borrow_mut()[at] = 9;
    let mut data = [0; BLOCK];
    let tags = store(&memory).read(LBA + 1, &mut data, &mut [0; 3 * PAGE]);
    let checked = tags.unwrap()[0].check(&data, LBA + 1, TYPE_1, Checks::ALL);
    assert_eq!(checked, Err(BadTag::Guard));
}

/// A medium of which what is at these places cannot be read until the first is written.
#[derive(Debug)]
struct Broken<'a> {
    memory: &'a Memory,
    places: &'a [u64],
    is_well: RefCell<bool>,
}

impl Medium for &Broken<'_> {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), DiskError> {
        if self.places.contains(&at) && !*self.is_well.borrow() {
            return Err(DiskError::Io(5));
        }
        self.memory.read(at, to)
    }

    fn write(&self, at: u64, from: &[u8]) -> Result<(), DiskError> {
        if self.places.first() == Some(&at) {
            *self.is_well.borrow_mut() = true;
        }
        self.memory.write(at, from)
    }

    fn give_back(&self, _: u64, _: u64) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.memory.sync()
    }
}

/// Mends the first block of a medium of which what is at these places cannot be read.
fn mend(memory: &Memory, places: &[u64]) -> Result<(), DiskError> {
    let broken = Broken {
        memory,
        places,
        is_well: RefCell::new(false),
    };
    let (mut page, mut block) = ([0; PAGE], [0; BLOCK]);
    let mut room = Room {
        page: &mut page,
        block: &mut block,
        zeros: &[0; BLOCK],
    };
    Store::new(&broken, LAYOUT, TYPE_1).mend(LBA, &mut room)
}

#[test]
fn a_block_that_cannot_be_read_becomes_blank_and_its_neighbour_stays() {
    let memory = Memory::blank();
    write(&memory, 1);
    mend(&memory, &[LAYOUT.block_at(LBA)]).unwrap();
    assert_eq!(read(&memory), [Ok(0), Ok(1)]);
    // With a write that was cut short, of which nobody can tell any more.
    for image in crashes(&memory.bytes.take(), |memory| write(memory, 2)) {
        let memory = Memory::new(image);
        mend(&memory, &[LAYOUT.block_at(LBA)]).unwrap();
        assert_eq!(read(&memory)[0], Ok(0));
    }
}

#[test]
fn a_block_that_cannot_be_read_after_a_write_that_was_cut_short_can_be_written() {
    let memory = Memory::blank();
    write(&memory, 1);
    let images = crashes(&memory.bytes.take(), |memory| write(memory, 2));
    let two_tags = |image: &Vec<u8>| {
        let page = &image[small(LAYOUT.page_at(LBA / GROUP))..][..PAGE];
        Slots::read(page, small(LBA % GROUP)).are_two()
    };
    let images: Vec<_> = images.into_iter().filter(two_tags).collect();
    assert!(!images.is_empty());
    for image in images {
        let memory = Memory::new(image);
        let broken = Broken {
            memory: &memory,
            places: &[LAYOUT.block_at(LBA)],
            is_well: RefCell::new(false),
        };
        let data = [3; BLOCK];
        let tags = [Tag::of(&data, LBA, TYPE_1)];
        let (mut pages, mut block) = ([0; 3 * PAGE], [0; BLOCK]);
        let store = Store::new(&broken, LAYOUT, TYPE_1);
        let mut write = || store.write(LBA, &data, &tags, &mut pages, &mut block);
        assert_eq!(write(), Ok(()));
        let [first, second] = read(&memory);
        assert_eq!(first, Ok(3));
        assert!(matches!(second, Ok(1 | 2)), "its neighbour is as it was");
    }
}

#[test]
fn a_block_is_not_mended_at_the_cost_of_the_tags_of_others() {
    let memory = Memory::blank();
    write(&memory, 1);
    let before = memory.bytes.borrow().clone();
    let places = [LAYOUT.block_at(LBA), LAYOUT.page_at(LBA / GROUP)];
    assert_eq!(mend(&memory, &places), Err(DiskError::Io(5)));
    assert!(*memory.bytes.borrow() == before);
}

#[test]
fn a_write_is_on_stable_storage_when_it_is_done() {
    let memory = Memory::blank();
    write(&memory, 1);
    let events = memory.events.take();
    let last = events
        .iter()
        .rposition(|event| matches!(event, Event::Sync));
    // Whatever becomes of what comes after the last sync.
    let mut stable = Memory::blank().bytes.take();
    for event in &events[..last.unwrap()] {
        if let Event::Write(at, bytes) = event {
            stable[small(*at)..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    let rest = &events[last.unwrap()..];
    for image in after_a_crash(&stable, rest) {
        assert_eq!(read(&Memory::new(image)), [Ok(1), Ok(1)]);
    }
}

/// The tags of the two blocks in every image that a crash after the last of `events` may leave.
fn tags_after(before: &[u8], events: &[Event]) -> Vec<Vec<Tag>> {
    let last = events
        .iter()
        .rposition(|event| matches!(event, Event::Sync));
    let (synced, rest) = events.split_at(last.unwrap());
    let mut stable = before.to_vec();
    for event in synced {
        if let Event::Write(at, bytes) = event {
            stable[small(*at)..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    let tags = |image| {
        let memory = Memory::new(image);
        let mut data = [0; 2 * BLOCK];
        store(&memory).read(LBA, &mut data, &mut [0; 3 * PAGE])
    };
    let images = after_a_crash(&stable, rest).into_iter();
    images.map(|image| tags(image).unwrap()).collect()
}

#[test]
fn tags_that_check_nothing_are_on_stable_storage_when_zeros_were_there_before() {
    let memory = Memory::blank();
    write(&memory, 0);
    let before = memory.bytes.borrow().clone();
    memory.events.take();
    erase(&memory);
    let tags = tags_after(&before, &memory.events.take());
    assert!(tags.iter().flatten().all(|tag| *tag == Tag::UNCHECKED));

    // Written, not erased.
    let memory = Memory::new(before.clone());
    let (mut pages, mut block) = ([0; 3 * PAGE], [0; BLOCK]);
    let data = [0; 2 * BLOCK];
    let ones = [Tag::UNCHECKED; 2];
    store(&memory)
        .write(LBA, &data, &ones, &mut pages, &mut block)
        .unwrap();
    let tags = tags_after(&before, &memory.events.take());
    assert!(tags.iter().flatten().all(|tag| *tag == Tag::UNCHECKED));
}

#[test]
fn old_data_that_comes_back_is_found_out() {
    let memory = Memory::blank();
    write(&memory, 1);
    let at = small(LAYOUT.block_at(LBA));
    let old = memory.bytes.borrow()[at..][..BLOCK].to_vec();
    write(&memory, 2);
    memory.bytes.borrow_mut()[at..][..BLOCK].copy_from_slice(&old);
    assert_eq!(read(&memory), [Err(BadTag::Guard), Ok(2)]);
}

#[test]
fn data_that_went_to_another_block_is_found_out() {
    let memory = Memory::blank();
    write(&memory, 1);
    // With its tags, so that the guard is right.
    let place = |lba| small(LAYOUT.block_at(lba));
    let entry = |lba: u64| small(LAYOUT.page_at(lba / GROUP)) + small(lba % GROUP) * 16;
    let mut bytes = memory.bytes.borrow_mut();
    bytes.copy_within(place(LBA)..place(LBA) + BLOCK, place(LBA + 1));
    bytes.copy_within(entry(LBA)..entry(LBA) + 16, entry(LBA + 1));
    drop(bytes);
    assert_eq!(read(&memory), [Ok(1), Err(BadTag::Reference)]);
}
