mod random;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::disk::io::{Inbox, Place};
use crate::disk::{Event, FileDisk, FileOptions, Io, Reply, Request};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;

const BLOCK: usize = 512;
const TYPE_1: Protection = Protection::Type1;

/// A file with a disk of this kind in it, and a loop.
struct Bench {
    file: TempFile,
    disk: Arc<dyn Disk>,
    io: Io,
}

fn open(file: &TempFile, protection: Protection) -> Result<ProtectedDisk, HeaderError> {
    let options = FileOptions::new(file.as_path());
    ProtectedDisk::open(Arc::new(FileDisk::open(&options).unwrap()), protection)
}

/// A blank file in the build directory, where O_DIRECT works.
fn blank() -> TempFile {
    let file = TempFile::new_in(&std::env::current_dir().unwrap()).unwrap();
    file.as_file().set_len(2 << 20).unwrap();
    file
}

impl Bench {
    fn new(protection: Protection) -> Self {
        let file = blank();
        Self {
            disk: Arc::new(open(&file, protection).unwrap()),
            file,
            io: Io::new().unwrap(),
        }
    }

    /// Does `op` with a buffer that holds `buffer`; what is in it then.
    fn run(
        &mut self,
        op: Op,
        checks: Checks,
        prefix: usize,
        buffer: &[u8],
    ) -> Result<Vec<u8>, DiskError> {
        let op = Protected {
            checks,
            prefix,
            ..Protected::new(op)
        };
        self.carry_out(op, buffer)
    }

    /// The same with an operation as a whole.
    fn carry_out(&mut self, op: Protected, buffer: &[u8]) -> Result<Vec<u8>, DiskError> {
        let mut data = Segments::new(shared_memory(buffer.len().max(1)));
        data.push(0, buffer.len()).unwrap();
        data.write_at(0, buffer);
        let request = Request {
            tag: 7,
            op: Op::Protected(Box::new(op)),
            data: Some(data.clone()),
        };
        self.io.submit(&self.disk, request);
        let mut events = Vec::new();
        while events.is_empty() {
            self.io
                .wait(Some(Duration::from_secs(20)), &mut events)
                .unwrap();
        }
        let [Event::Done { tag: 7, result }] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!(result.clone()?, Reply::Done);
        let mut after = vec![0; buffer.len()];
        data.read_at(0, &mut after);
        Ok(after)
    }

    /// Writes blocks with made tags.
    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.run(write(lba, data.len()), Checks::ALL, 0, data)
            .map(drop)
    }

    /// Reads blocks, all checked.
    fn read(&mut self, lba: u64, blocks: usize) -> Result<Vec<u8>, DiskError> {
        let len = blocks * BLOCK;
        self.run(read(lba, len), Checks::ALL, 0, &vec![0xee; len])
    }

    /// Turns the bits of a byte of a block on the medium.
    fn damage(&self, lba: u64) {
        let at = Layout { block_size: 512 }.block_at(lba) + 100;
        let mut byte = [0];
        let file = self.file.as_file();
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
}

fn at(lba: u64) -> u64 {
    lba * BLOCK as u64
}

fn read(lba: u64, len: usize) -> Op {
    Op::Read {
        offset: at(lba),
        len,
    }
}

fn write(lba: u64, len: usize) -> Op {
    Op::Write {
        offset: at(lba),
        len,
        fua: false,
        atomic: false,
    }
}

fn wrong(block: usize, bad: BadTag) -> DiskError {
    DiskError::Protection {
        at: (block * BLOCK) as u64,
        bad,
    }
}

fn pattern(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK)
        .map(|at| u8::try_from((at / BLOCK + at) % 251).unwrap())
        .collect()
}

#[test]
fn a_blank_disk_reads_as_zeros_and_has_room_beside_its_tags() {
    let mut bench = Bench::new(TYPE_1);
    let geometry = bench.disk.geometry();
    // Fifteen groups of 132 KiB, and what is left.
    assert_eq!(geometry.blocks, 15 * 256 + 120);
    assert_eq!(bench.read(geometry.blocks - 1, 1), Ok(vec![0; BLOCK]));
    assert_eq!(bench.read(geometry.blocks, 1), Err(DiskError::OutOfRange));
}

#[test]
fn what_is_written_across_groups_and_parts_is_read() {
    let mut bench = Bench::new(TYPE_1);
    let data = pattern(1500);
    bench.write(200, &data).unwrap();
    assert_eq!(bench.read(200, 1500), Ok(data));
    assert_eq!(bench.read(199, 1), Ok(vec![0; BLOCK]));
}

#[test]
fn it_is_still_there_when_the_disk_is_opened_again() {
    let mut bench = Bench::new(TYPE_1);
    bench.write(3, &pattern(2)).unwrap();
    let Bench { file, disk, io } = bench;
    drop((disk, io));
    let mut bench = Bench {
        disk: Arc::new(open(&file, TYPE_1).unwrap()),
        file,
        io: Io::new().unwrap(),
    };
    assert_eq!(bench.read(3, 2), Ok(pattern(2)));
}

#[test]
fn damage_is_found_by_the_block_wherever_it_is_read() {
    let mut bench = Bench::new(TYPE_1);
    bench.write(0, &pattern(1200)).unwrap();
    bench.damage(1100);
    let guard = |block| Err(wrong(block, BadTag::Guard));
    assert_eq!(bench.read(0, 1100), Ok(pattern(1100)));
    assert_eq!(bench.read(0, 1200), guard(1100));
    let none = Checks::default();
    let unchecked = bench.run(read(1100, BLOCK), none, 0, &[0; BLOCK]);
    assert_eq!(unchecked.unwrap()[100], !pattern(1101)[1100 * BLOCK + 100]);
    let one = (at(1100), BLOCK as u64);
    let check = Op::Check {
        offset: one.0,
        len: one.1,
    };
    assert_eq!(
        bench.run(check, Checks::ALL, 0, &[]).map(drop),
        guard(0).map(drop::<Vec<u8>>)
    );
    for op in [
        Op::Compare {
            offset: one.0,
            len: one.1,
            same: false,
        },
        Op::CompareAndWrite {
            offset: one.0,
            len: BLOCK,
            fua: false,
        },
        Op::Or {
            offset: one.0,
            len: BLOCK,
            fua: false,
        },
    ] {
        let result = bench.run(op, Checks::ALL, 0, &[0; 2 * BLOCK]);
        assert_eq!(result, guard(0));
    }
    bench.write(1100, &[9; BLOCK]).unwrap();
    assert_eq!(bench.read(1100, 1), Ok(vec![9; BLOCK]));
}

/// Blocks of FFh with these tags before them.
fn tagged(tags: &[[u8; 8]]) -> Vec<u8> {
    let mut buffer = tags.concat();
    buffer.resize(buffer.len() + tags.len() * BLOCK, 0xff);
    buffer
}

/// The guard of 512 bytes of FFh.
fn ones() -> [u8; 2] {
    tag::guard(&[0xff; BLOCK]).to_be_bytes()
}

#[test]
fn tags_that_are_given_are_checked_kept_and_told() {
    let mut bench = Bench::new(TYPE_1);
    let [a, b] = ones();
    let good = tagged(&[[a, b, 1, 2, 0, 0, 0, 9], [a, b, 3, 4, 0, 0, 0, 10]]);
    bench
        .run(write(9, 2 * BLOCK), Checks::ALL, 16, &good)
        .unwrap();
    let told = bench.run(read(9, 2 * BLOCK), Checks::ALL, 16, &[0; 16 + 2 * BLOCK]);
    assert_eq!(told, Ok(good));

    let other_lba = tagged(&[[a, b, 1, 2, 0, 0, 0, 9], [a, b, 3, 4, 0, 0, 0, 9]]);
    let refused = bench.run(write(9, 2 * BLOCK), Checks::ALL, 16, &other_lba);
    assert_eq!(refused, Err(wrong(1, BadTag::Reference)));
    let bad_guard = tagged(&[[a, !b, 1, 2, 0, 0, 0, 9]]);
    let refused = bench.run(write(9, BLOCK), Checks::ALL, 8, &bad_guard);
    assert_eq!(refused, Err(wrong(0, BadTag::Guard)));

    // Unless nobody wants to know; then whoever reads finds out.
    bench
        .run(write(9, BLOCK), Checks::default(), 8, &bad_guard)
        .unwrap();
    assert_eq!(bench.read(9, 1), Err(wrong(0, BadTag::Guard)));
}

#[test]
fn data_begins_behind_all_of_the_room_for_tags() {
    let mut bench = Bench::new(TYPE_1);
    let [a, b] = ones();
    let mut buffer = vec![a, b, 0, 0, 0, 0, 0, 5];
    buffer.resize(24, 0x77);
    buffer.resize(24 + BLOCK, 0xff);
    bench
        .run(write(5, BLOCK), Checks::ALL, 24, &buffer)
        .unwrap();
    assert_eq!(bench.read(5, 1), Ok(vec![0xff; BLOCK]));
    let told = bench.run(read(5, BLOCK), Checks::ALL, 24, &[0x77; 24 + BLOCK]);
    assert_eq!(told, Ok(buffer));
}

#[test]
fn too_few_tags_are_refused() {
    let mut bench = Bench::new(TYPE_1);
    for op in [read(0, 2 * BLOCK), write(0, 2 * BLOCK)] {
        let refused = bench.run(op, Checks::ALL, 15, &[0; 15 + 2 * BLOCK]);
        assert_eq!(refused, Err(DiskError::OutOfRange));
    }
}

#[test]
fn type_3_keeps_whatever_reference_tag_it_is_given() {
    let mut bench = Bench::new(Protection::Type3);
    let [a, b] = ones();
    let buffer = tagged(&[[a, b, 1, 2, 0xca, 0xfe, 0, 1]]);
    bench.run(write(9, BLOCK), Checks::ALL, 8, &buffer).unwrap();
    let told = bench.run(read(9, BLOCK), Checks::ALL, 8, &[0; 8 + BLOCK]);
    assert_eq!(told, Ok(buffer));
    bench.write(9, &[1; BLOCK]).unwrap();
    bench.damage(9);
    assert_eq!(bench.read(9, 1), Err(wrong(0, BadTag::Guard)));
}

#[test]
fn write_same_counts_the_reference_tag_up_from_the_one_it_is_given() {
    let mut bench = Bench::new(TYPE_1);
    let [a, b] = ones();
    let same = Op::WriteSame {
        offset: at(100),
        len: 3000 * BLOCK as u64,
        fua: false,
    };
    let buffer = tagged(&[[a, b, 7, 7, 0, 0, 0, 100]]);
    bench.run(same.clone(), Checks::ALL, 8, &buffer).unwrap();
    // Block 3099, in another part of it.
    let told = bench.run(read(3099, BLOCK), Checks::ALL, 8, &[0; 8 + BLOCK]);
    assert_eq!(told.unwrap()[..8], [a, b, 7, 7, 0, 0, 0x0c, 0x1b]);
    assert_eq!(bench.read(100, 3000), Ok(vec![0xff; 3000 * BLOCK]));

    let other = tagged(&[[a, b, 7, 7, 0, 0, 0, 101]]);
    let refused = bench.run(same, Checks::ALL, 8, &other);
    assert_eq!(refused, Err(wrong(0, BadTag::Reference)));
}

#[test]
fn what_changes_blocks_gives_them_tags_that_fit() {
    let mut bench = Bench::new(TYPE_1);
    bench.write(300, &[0x0f; BLOCK]).unwrap();
    let or = Op::Or {
        offset: at(300),
        len: BLOCK,
        fua: false,
    };
    bench.run(or, Checks::ALL, 0, &[0xf0; BLOCK]).unwrap();
    assert_eq!(bench.read(300, 1), Ok(vec![0xff; BLOCK]));

    let compare_and_write = Op::CompareAndWrite {
        offset: at(300),
        len: BLOCK,
        fua: true,
    };
    let both = [[0xff; BLOCK], [3; BLOCK]].concat();
    bench
        .run(compare_and_write.clone(), Checks::ALL, 0, &both)
        .unwrap();
    assert_eq!(bench.read(300, 1), Ok(vec![3; BLOCK]));
    let differs = bench.run(compare_and_write, Checks::ALL, 0, &both);
    assert_eq!(differs, Err(DiskError::Miscompare { at: 0 }));

    let zero = Op::Zero {
        offset: at(299),
        len: 2 * BLOCK as u64,
        unmap: false,
        fua: false,
    };
    bench.run(zero, Checks::ALL, 0, &[]).unwrap();
    bench.damage(299);
    assert_eq!(bench.read(299, 1), Err(wrong(0, BadTag::Guard)));
    assert_eq!(bench.read(300, 1), Ok(vec![0; BLOCK]));

    let verify = Op::WriteVerify {
        offset: at(299),
        len: BLOCK,
    };
    bench.run(verify, Checks::ALL, 0, &[4; BLOCK]).unwrap();
    let compare = Op::Compare {
        offset: at(298),
        len: 2 * BLOCK as u64,
        same: true,
    };
    let differs = bench.run(compare, Checks::ALL, 0, &[0; BLOCK]);
    assert_eq!(differs, Err(DiskError::Miscompare { at: 512 }));
}

#[test]
fn blocks_that_are_given_back_are_zeros_that_nothing_checks_and_take_no_space() {
    let mut bench = Bench::new(TYPE_1);
    let blocks = bench.disk.geometry().blocks;
    let allocated = |bench: &Bench| {
        use std::os::unix::fs::MetadataExt;
        bench.file.as_file().metadata().unwrap().blocks()
    };
    let before = allocated(&bench);
    bench.write(0, &pattern(15 * 256 + 120)).unwrap();
    let full = allocated(&bench);
    let ranges: Arc<[_]> = [(at(1), at(300)), (at(400), 0), (at(600), at(blocks - 600))].into();
    let unmap = Op::Unmap { ranges, fua: false };
    bench.run(unmap, Checks::ALL, 0, &[]).unwrap();
    let told = bench.run(read(255, 2 * BLOCK), Checks::ALL, 16, &[0; 16 + 2 * BLOCK]);
    assert_eq!(told, Ok([vec![0xff; 16], vec![0; 2 * BLOCK]].concat()));
    for lba in [0, 301, 599] {
        let block = &pattern(600)[lba * BLOCK..][..BLOCK];
        assert_eq!(bench.read(lba as u64, 1).unwrap(), block, "{lba}");
    }
    assert!(allocated(&bench) < before + (full - before) / 4);
    let everything = Op::Zero {
        offset: 0,
        len: at(blocks),
        unmap: true,
        fua: false,
    };
    bench.run(everything, Checks::ALL, 0, &[]).unwrap();
    // The header; and what the filesystem itself may keep for the many extents that there were.
    assert!(allocated(&bench) <= before + 8);
}

#[test]
fn a_disk_that_is_not_thin_gives_nothing_back() {
    let file = blank();
    let inner = FileDisk::open(&FileOptions::new(file.as_path())).unwrap();
    let disk = ProtectedDisk::open(Arc::new(inner.thick()), TYPE_1).unwrap();
    assert_eq!(disk.abilities().thin, None);
    let mut bench = Bench {
        disk: Arc::new(disk),
        file,
        io: Io::new().unwrap(),
    };
    bench.write(5, &[1; BLOCK]).unwrap();
    let unmap = Op::Unmap {
        ranges: [(at(5), at(1))].into(),
        fua: false,
    };
    let refused = bench.run(unmap, Checks::ALL, 0, &[]);
    assert_eq!(refused, Err(DiskError::Unsupported));
    let zero = Op::Zero {
        offset: at(5),
        len: at(1),
        unmap: true,
        fua: false,
    };
    bench.run(zero, Checks::ALL, 0, &[]).unwrap();
    assert_eq!(bench.read(5, 1), Ok(vec![0; BLOCK]));
}

#[test]
fn a_block_that_can_be_read_is_not_mended() {
    let mut bench = Bench::new(TYPE_1);
    bench.write(5, &[1; BLOCK]).unwrap();
    let mend = Op::Mend {
        offset: at(5),
        len: at(1),
    };
    bench.run(mend, Checks::ALL, 0, &[]).unwrap();
    assert_eq!(bench.read(5, 1), Ok(vec![1; BLOCK]));
}

#[test]
fn a_watch_hears_of_its_blocks_and_not_of_those_beside_them() {
    let mut bench = Bench::new(TYPE_1);
    let watch = crate::disk::Watch::new([(at(8), at(8))]);
    let request = Request {
        tag: 7,
        op: Op::Watch(watch.clone()),
        data: None,
    };
    bench.io.submit(&bench.disk, request);
    let mut events = Vec::new();
    bench
        .io
        .wait(Some(Duration::from_secs(20)), &mut events)
        .unwrap();
    let result = Ok(Reply::Done);
    assert_eq!(events, [Event::Done { tag: 7, result }]);
    // In the same group, with tags in the same page.
    bench.write(7, &[1; BLOCK]).unwrap();
    bench.write(16, &[1; BLOCK]).unwrap();
    bench.read(8, 8).unwrap();
    assert!(!watch.is_changed());
    bench.write(15, &[1; BLOCK]).unwrap();
    assert!(watch.is_changed());
}

#[test]
fn nothing_gets_past_the_tags() {
    let bench = Bench::new(TYPE_1);
    for op in [read(0, BLOCK), write(0, BLOCK)] {
        let error = bench.disk.file_for(&op).unwrap_err();
        assert_eq!(error, DiskError::Unsupported);
    }
}

#[test]
fn many_at_a_time_are_all_done() {
    let mut bench = Bench::new(TYPE_1);
    let memory = shared_memory(64 * BLOCK);
    for tag in 0..64 {
        let mut data = Segments::new(Arc::clone(&memory));
        data.push(tag * BLOCK as u64, BLOCK).unwrap();
        data.write_at(0, &[u8::try_from(tag).unwrap(); BLOCK]);
        let op = Op::Protected(Box::new(Protected::new(write(tag * 10, BLOCK))));
        let data = Some(data);
        bench.io.submit(&bench.disk, Request { tag, op, data });
    }
    // Some are cancelled while they wait, or while they are done.
    for tag in [3, 40, 63] {
        bench.io.cancel(tag);
    }
    let mut events = Vec::new();
    while events.len() < 64 {
        bench
            .io
            .wait(Some(Duration::from_secs(20)), &mut events)
            .unwrap();
    }
    // What still works on them is waited for.
    bench.io.submit(
        &bench.disk,
        Request {
            tag: 64,
            op: Op::Barrier,
            data: None,
        },
    );
    bench
        .io
        .wait(Some(Duration::from_secs(20)), &mut events)
        .unwrap();
    assert_eq!(bench.io.unfinished(), 0);
    for tag in (0..64).filter(|tag| ![3, 40, 63].contains(tag)) {
        let byte = u8::try_from(tag).unwrap();
        assert_eq!(bench.read(tag * 10, 1), Ok(vec![byte; BLOCK]));
    }
    for tag in [3, 40, 63] {
        let there = bench.read(tag * 10, 1).unwrap();
        let byte = u8::try_from(tag).unwrap();
        assert!(there == [0; BLOCK] || there == [byte; BLOCK]);
    }
}

#[test]
fn only_a_blank_file_or_one_made_for_this_is_taken() {
    let refused = |file: &TempFile, protection| open(file, protection).err();
    let file = blank();
    // A filesystem whose first superblock is at 64 KiB.
    file.as_file().write_all_at(&[1], 65536 + 64).unwrap();
    assert_eq!(refused(&file, TYPE_1), Some(HeaderError::NotBlank));
    file.as_file().write_all_at(&[0], 65536 + 64).unwrap();
    assert_eq!(refused(&file, TYPE_1), None);
    assert_eq!(refused(&file, TYPE_1), None);
    let mut magic = [0; 13];
    file.as_file().read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(magic, *b"VPCI-PI\x01\0\0\x02\0\x01");
    assert_eq!(
        refused(&file, Protection::Type3),
        Some(HeaderError::Other {
            protection: TYPE_1,
            block_size: 512
        })
    );
    file.as_file().write_all_at(&[2], 7).unwrap();
    assert_eq!(refused(&file, TYPE_1), Some(HeaderError::Unknown));
    file.as_file().write_all_at(b"\xeb\x3c", 0).unwrap();
    assert_eq!(refused(&file, TYPE_1), Some(HeaderError::NotBlank));
    file.as_file().set_len(8192).unwrap();
    assert_eq!(refused(&file, TYPE_1), Some(HeaderError::TooSmall));
}

/// All seats of a disk.
fn all_seats(crew: &Arc<Crew>) -> Vec<Seat> {
    let inbox = Arc::new(Inbox::new().unwrap());
    let seats: Vec<_> = (0..4)
        .map(|_| crew.seat(&inbox, nowhere()).unwrap())
        .collect();
    assert!(crew.seat(&inbox, nowhere()).is_none());
    crew.leave(&inbox, nowhere());
    assert_eq!(crew.waiting(), 0);
    seats
}

fn nowhere() -> Place {
    Place {
        operation: 0,
        serial: 0,
    }
}

/// Has a loop begin to check a block.
fn begin(io: &mut Io, disk: &Arc<dyn Disk>, tag: u64, lba: u64) {
    let op = Op::Check {
        offset: at(lba),
        len: BLOCK as u64,
    };
    let (checks, prefix) = (Checks::ALL, 0);
    let op = Op::Protected(Box::new(Protected {
        checks,
        prefix,
        ..Protected::new(op)
    }));
    io.submit(
        disk,
        Request {
            tag,
            op,
            data: None,
        },
    );
}

#[test]
fn who_is_gone_keeps_no_seat_from_who_is_left() {
    let Bench {
        disk, io, file: _f, ..
    } = Bench::new(TYPE_1);
    let crew = Arc::clone(disk.protected().unwrap().crew());
    let seats = all_seats(&crew);
    let (mut gone, mut left) = (io, Io::new().unwrap());
    // More than there are seats.
    for tag in 0..6 {
        begin(&mut gone, &disk, tag, 256 * tag);
    }
    begin(&mut left, &disk, 7, 256 * 7);
    assert_eq!(crew.waiting(), 7);

    drop(gone);
    assert_eq!(crew.waiting(), 1);
    drop(seats);

    let mut events = Vec::new();
    while events.is_empty() {
        left.wait(Some(Duration::from_secs(20)), &mut events)
            .unwrap();
        assert!(!events.is_empty(), "it hangs");
    }
    let result = Ok(Reply::Done);
    assert_eq!(events, [Event::Done { tag: 7, result }]);
    drop(left);
    drop(all_seats(&crew));
}

#[test]
fn who_begins_and_cancels_without_end_is_not_remembered() {
    let Bench {
        disk,
        mut io,
        file: _f,
        ..
    } = Bench::new(TYPE_1);
    let crew = Arc::clone(disk.protected().unwrap().crew());
    let seats = all_seats(&crew);
    let mut events = Vec::new();
    for tag in 0..100 {
        begin(&mut io, &disk, tag, 0);
        io.cancel(tag);
        io.wait(Some(Duration::from_secs(20)), &mut events).unwrap();
    }
    assert_eq!(events.len(), 100);
    assert_eq!(crew.waiting(), 0);
    drop(seats);
    drop(all_seats(&crew));
}

#[test]
fn a_seat_in_an_inbox_that_nobody_empties_goes_back() {
    let bench = Bench::new(TYPE_1);
    let crew = bench.disk.protected().unwrap().crew();
    let inbox = Arc::new(Inbox::new().unwrap());
    let mut seats = all_seats(crew);
    for closed_before in [false, true] {
        assert!(crew.seat(&inbox, nowhere()).is_none());
        if closed_before {
            inbox.close();
        }
        seats.pop();
        inbox.close();
        let free = crew.seat(&Arc::new(Inbox::new().unwrap()), nowhere());
        seats.push(free.unwrap());
    }
}
