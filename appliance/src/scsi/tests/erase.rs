//! FORMAT UNIT, SANITIZE and REASSIGN BLOCKS.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::disk::{Cache, Event, Io, OpenFile, RamDisk, Reply, Request};
use crate::scsi::Begun;
use crate::scsi::testing::{self, Bench, READY, Scratch, told};

const SIZE: u64 = 1 << 20;
const GOOD: (u8, [u8; 2]) = (0, [0, 0]);
/// LOGICAL UNIT NOT READY, FORMAT IN PROGRESS and SANITIZE IN PROGRESS.
const FORMATTING: (u8, [u8; 2]) = (2, [0x04, 0x04]);
const SANITIZING: (u8, [u8; 2]) = (2, [0x04, 0x1b]);
/// SANITIZE COMMAND FAILED.
const FAILED: (u8, [u8; 2]) = (2, [0x31, 0x03]);

/// SANITIZE, BLOCK ERASE with IMMED.
const ERASE_NOW: [u8; 10] = [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];
/// SANITIZE, EXIT FAILURE MODE.
const EXIT: [u8; 10] = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn ram() -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(RamDisk::new(SIZE, 512, false).unwrap().unwrap());
    carry_out(
        &disk,
        Op::WriteSame {
            offset: 0,
            len: SIZE,
            fua: false,
        },
        &[0x77; 512],
    );
    disk
}

/// Carries `op` out and returns the buffer.
fn carry_out(disk: &Arc<dyn Disk>, op: Op, bytes: &[u8]) -> Vec<u8> {
    let mut data = Segments::new(shared_memory(bytes.len()));
    data.push(0, bytes.len()).unwrap();
    data.write_at(0, bytes);
    let (mut io, mut events) = (Io::new().unwrap(), Vec::new());
    let request = Request {
        tag: 1,
        op,
        data: Some(data.clone()),
    };
    io.submit(disk, request);
    io.wait(None, &mut events).unwrap();
    let result = Ok(Reply::Done);
    assert_eq!(events, [Event::Done { tag: 1, result }]);
    let mut bytes = vec![0; bytes.len()];
    data.read_at(0, &mut bytes);
    bytes
}

/// First and last block.
fn ends(disk: &Arc<dyn Disk>) -> [Vec<u8>; 2] {
    [0, SIZE - 512].map(|offset| carry_out(disk, Op::Read { offset, len: 512 }, &[0; 512]))
}

fn unit_on(disk: &Arc<dyn Disk>, state: Option<&Path>) -> Arc<LogicalUnit> {
    let unit = LogicalUnit::new("root", Arc::clone(disk)).unwrap();
    Arc::new(match state {
        Some(at) => unit
            .with_upkeep(at.join("information"), at.join("erasing"))
            .unwrap(),
        None => unit,
    })
}

/// Begins what a command comes to, and waits for it as long as that takes.
fn wait(step: Step) -> Answer {
    let (disk, pending) = match step {
        Step::Answer(answer) => return answer,
        Step::Disk { disk, pending, .. } => {
            let own = || Arc::clone(pending.unit().disk());
            (disk.unwrap_or_else(own), pending)
        }
        Step::Preempt { preempted, pending } => {
            assert_eq!(preempted, None, "everyone");
            match pending.begin() {
                Begun::Answer(answer) => return answer,
                Begun::Wait(disk, pending) => (disk, pending),
            }
        }
        other => panic!("{other:?}"),
    };
    let (mut io, mut events) = (Io::new().unwrap(), Vec::new());
    let (op, data) = (Op::Barrier, None);
    io.submit(&disk, Request { tag: 1, op, data });
    io.wait(Some(Duration::from_secs(20)), &mut events).unwrap();
    match events.pop() {
        Some(Event::Done { result, .. }) => pending.finish(result),
        other => panic!("{other:?}"),
    }
}

/// The answer to a command that may wait.
fn sent(bench: &Bench, cdb: &[u8], data_out: &[u8]) -> (u8, [u8; 2]) {
    told(&wait(bench.start(cdb, data_out, 0)))
}

/// Waits until TEST UNIT READY says this.
fn becomes(bench: &Bench, end: (u8, [u8; 2])) {
    let start = Instant::now();
    while bench.ready() != end {
        assert!(start.elapsed() < Duration::from_secs(20), "{end:x?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A list for OVERWRITE with so many passes of this pattern.
fn overwrite(flags: u8, pattern: &[u8]) -> ([u8; 10], Vec<u8>) {
    let len = u16::try_from(pattern.len()).unwrap();
    let mut list = vec![flags, 0];
    list.extend(len.to_be_bytes());
    list.extend(pattern);
    let [high, low] = (len + 4).to_be_bytes();
    ([0x48, 0x01, 0, 0, 0, 0, 0, high, low, 0], list)
}

#[test]
fn an_overwritten_unit_has_the_pattern_in_each_block() {
    let (scratch, disk) = (Scratch::new(), ram());
    let bench = Bench::of(&unit_on(&disk, Some(scratch.path())));
    let (cdb, list) = overwrite(0x01, &[1, 2, 3]);
    assert_eq!(sent(&bench, &cdb, &list), GOOD);
    let block: Vec<u8> = [1, 2, 3].into_iter().cycle().take(512).collect();
    assert_eq!(ends(&disk), [block.clone(), block]);
    assert_eq!(bench.ready(), READY);
    // The second of two passes is inverted, and stays.
    let (cdb, list) = overwrite(0x82, &[0x0f]);
    assert_eq!(sent(&bench, &cdb, &list), GOOD);
    assert_eq!(ends(&disk), [vec![0xf0; 512], vec![0xf0; 512]]);
}

#[test]
fn an_erased_and_a_formatted_unit_have_zeros() {
    for cdb in [
        &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[0x04, 0, 0, 0, 0, 0],
    ] {
        let (scratch, disk) = (Scratch::new(), ram());
        let bench = Bench::of(&unit_on(&disk, Some(scratch.path())));
        assert_eq!(sent(&bench, cdb, &[]), GOOD);
        assert_eq!(ends(&disk), [vec![0; 512], vec![0; 512]]);
    }
}

#[test]
fn a_unit_is_formatted_with_a_pattern_or_fast() {
    let disk = ram();
    let bench = Bench::of(&unit_on(&disk, None));
    // FFMT 01b: a disk that is not thin keeps what it has.
    assert_eq!(sent(&bench, &[0x04, 0, 0, 0, 1, 0], &[]), GOOD);
    assert_eq!(ends(&disk)[0], [0x77; 512]);
    let list = [0, 0x88, 0, 0, 0, 1, 0, 1, 0x5a];
    let answer = wait(bench.start(&[0x04, 0x10, 0, 0, 0, 0], &list, 0));
    assert_eq!((told(&answer), answer.residual), (GOOD, 0));
    assert_eq!(ends(&disk), [vec![0x5a; 512], vec![0x5a; 512]]);
    let cut = bench.start(&[0x04, 0x10, 0, 0, 0, 0], &list[..8], 0);
    assert!(matches!(cut, Step::Overrun));
    let protected = bench.sense(&[0x04, 0x80, 0, 0, 0, 0]);
    assert_eq!(protected, invalid_field(1, 7));
    assert_eq!(bench.ready(), READY);
}

#[test]
fn while_blocks_are_erased_nobody_gets_at_them_and_the_progress_is_told() {
    let (scratch, disk) = (Scratch::new(), ram());
    let unit = unit_on(&disk, Some(scratch.path()));
    let (one, other) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
    let Step::Preempt { pending, .. } = one.start(&ERASE_NOW, &[], 0) else {
        panic!("everyone's commands have to end")
    };
    for bench in [&one, &other] {
        assert_eq!(bench.ready(), SANITIZING);
        for cdb in [
            &READ[..],
            &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0x35],
            &[0x1b, 0, 0, 0, 1, 0],
            &[0x04, 0, 0, 0, 0, 0],
            &ERASE_NOW,
            &EXIT,
        ] {
            let answer = bench.answer(cdb, &[0; 512]);
            assert_eq!(told(&answer), SANITIZING, "{cdb:x?}");
            // SKSV, and no progress yet.
            assert_eq!(answer.sense[15..], [0x80, 0, 0]);
        }
        let polled = bench.data(&[0x03, 0, 0, 0, 18, 0]);
        assert_eq!((polled[2], &polled[12..14]), (2, &[0x04, 0x1b][..]));
        assert_eq!(polled[15..], [0x80, 0, 0]);
        let polled = bench.data(&[0x03, 1, 0, 0, 18, 0]);
        assert_eq!(
            polled,
            [0x72, 2, 4, 0x1b, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0, 0, 0]
        );
        let _ = bench.data(&[0x12, 0, 0, 0, 36, 0]);
        let _ = bench.data(&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0]);
    }
    one.host.reset(Scope::Host, Attention::LogicalUnitReset);
    assert_eq!(one.ready(), (2, [0x29, 0x03]));
    assert_eq!(one.ready(), SANITIZING, "a reset does not end it");
    assert!(matches!(pending.begin(), Begun::Answer(answer) if answer.status == 0));
    becomes(&one, READY);
    assert_eq!(ends(&disk), [vec![0; 512], vec![0; 512]]);
}

#[test]
fn a_command_that_is_ended_before_it_began_erases_nothing() {
    let (scratch, disk) = (Scratch::new(), ram());
    let unit = unit_on(&disk, Some(scratch.path()));
    let bench = Bench::of(&unit);
    let step = bench.start(&ERASE_NOW, &[], 0);
    assert_eq!(bench.ready(), SANITIZING);
    drop(step);
    assert_eq!(bench.ready(), READY);
    assert_eq!(ends(&disk)[0], [0x77; 512]);
    assert!(!scratch.path().join("erasing").exists());
}

#[test]
fn a_command_whose_time_is_over_hears_that_it_goes_on() {
    let disk = ram();
    let bench = Bench::of(&unit_on(&disk, None));
    let Step::Preempt { pending, .. } = bench.start(&[0x04, 0, 0, 0, 0, 0], &[], 0) else {
        panic!("everyone's commands have to end")
    };
    assert_eq!(bench.ready(), FORMATTING);
    // Before it has begun, nothing goes on.
    assert_eq!(told(&pending.expired()), (2, [0x08, 0x01]));
    drop(pending);
    assert_eq!(bench.ready(), READY);
}

/// A unit whose disk fails everything, which was to be sanitized so.
fn failed(state: &Path, flags: u8) -> Arc<LogicalUnit> {
    let disk: Arc<dyn Disk> = Arc::new(Shape(GEOMETRY, Abilities::default()));
    let unit = unit_on(&disk, Some(state));
    let bench = Bench::of(&unit);
    assert_eq!(
        sent(&bench, &[0x48, flags, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
        FAILED
    );
    assert_eq!(bench.ready(), FAILED);
    unit
}

#[test]
fn a_disk_that_fails_leaves_the_unit_failed_until_that_is_ended() {
    let scratch = Scratch::new();
    let unit = failed(scratch.path(), 0x22);
    let bench = Bench::of(&unit);
    assert_eq!(told(&bench.answer(&READ, &[])), FAILED);
    assert_eq!(sent(&bench, &[0x04, 0, 0, 0, 0, 0], &[]), FAILED);
    drop((bench, unit));
    // It is so for the next appliance, too.
    let disk = ram();
    let bench = Bench::of(&unit_on(&disk, Some(scratch.path())));
    assert_eq!(bench.ready(), FAILED);
    assert_eq!(
        bench.sense(&[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 8, 0]),
        invalid_field(7, 7)
    );
    assert_eq!(sent(&bench, &EXIT, &[]), GOOD);
    assert_eq!(
        (bench.ready(), &ends(&disk)[0][..]),
        (READY, &[0x77; 512][..])
    );
    let again = Bench::of(&unit_on(&disk, Some(scratch.path())));
    assert_eq!(again.ready(), READY);
}

#[test]
fn a_failure_without_ause_is_ended_by_another_sanitize_alone() {
    let scratch = Scratch::new();
    drop(failed(scratch.path(), 0x02));
    let disk = ram();
    let bench = Bench::of(&unit_on(&disk, Some(scratch.path())));
    assert_eq!(bench.sense(&EXIT), invalid_field(1, 4));
    assert_eq!(
        sent(&bench, &[0x48, 0x22, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
        FAILED
    );
    assert_eq!(bench.ready(), FAILED);
    assert_eq!(
        sent(&bench, &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
        GOOD
    );
    assert_eq!(bench.ready(), READY);
}

#[test]
fn a_format_that_fails_leaves_a_corrupted_unit_that_can_be_formatted_again() {
    let disk: Arc<dyn Disk> = Arc::new(Shape(GEOMETRY, Abilities::default()));
    let bench = Bench::of(&unit_on(&disk, None));
    for _ in 0..2 {
        assert_eq!(sent(&bench, &[0x04, 0, 0, 0, 0, 0], &[]), (2, [0x31, 0x01]));
        assert_eq!(told(&bench.answer(&READ, &[])), (2, [0x31, 0x00]));
    }
}

#[test]
fn what_an_appliance_had_begun_the_next_one_does() {
    let (scratch, disk) = (Scratch::new(), ram());
    let begun = "version = 1\nunit = \"root\"\nfailed = false\n[job]\nkind = \"sanitize\"\n\
                 fill = \"zeros\"\n";
    std::fs::write(scratch.path().join("erasing"), begun).unwrap();
    let bench = Bench::fresh([(0, unit_on(&disk, Some(scratch.path())))]);
    becomes(&bench, READY);
    assert_eq!(ends(&disk), [vec![0; 512], vec![0; 512]]);
    let saved = std::fs::read_to_string(scratch.path().join("erasing")).unwrap();
    let done = "version = 1\nunit = \"root\"\n\nfailed = false\n";
    assert_eq!(saved.split_once('\n').unwrap().1, done);
}

#[test]
fn a_damaged_file_is_not_taken_for_none() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path().join(name);
    std::fs::write(at("erasing"), "version = 1\nunit = \"root\"\nfailed = 3\n").unwrap();
    let unit = testing::unit(testing::Shape::PLAIN);
    let error = unit.with_upkeep(at("information"), at("erasing"));
    assert!(error.unwrap_err().to_string().contains("makes no sense"));
}

#[test]
fn what_cannot_be_written_down_is_not_begun() {
    let disk = ram();
    let bench = Bench::of(&unit_on(&disk, Some(Path::new("/does/not/exist"))));
    // Nor can it be said for certain that it was not written down.
    assert_eq!(sent(&bench, &ERASE_NOW, &[]), (2, [0x44, 0x00]));
    assert_eq!(bench.ready(), FAILED);
    assert_eq!(ends(&disk)[0], [0x77; 512]);
}

#[test]
fn a_unit_that_must_not_be_written_is_not_erased() {
    let scratch = Scratch::new();
    let disk: Arc<dyn Disk> = Arc::new(Shape(READ_ONLY, Abilities::default()));
    let bench = Bench::of(&unit_on(&disk, Some(scratch.path())));
    for cdb in [
        &ERASE_NOW[..],
        &[0x04, 0, 0, 0, 0, 0],
        &[0x07, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(told(&bench.answer(cdb, &[0; 4])), (2, [0x27, 0x00]));
    }
    let disk: Arc<dyn Disk> = Arc::new(Shape(GEOMETRY, Abilities::default()));
    let bench = Bench::of(&unit_on(&disk, Some(scratch.path())));
    let protect = [0, 0, 0, 0, 0x0a, 10, 2, 0x10, 8, 0, 0, 0, 0, 0, 0, 0];
    let step = bench.start(&[0x15, 0x10, 0, 0, 16, 0], &protect, 0);
    drop(step);
    assert_eq!(told(&bench.answer(&ERASE_NOW, &[])), (2, [0x27, 0x02]));
}

#[test]
fn blocks_that_can_be_read_are_left_when_they_are_reassigned() {
    let disk = ram();
    let bench = Bench::of(&unit_on(&disk, None));
    let list = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 7, 0xff];
    let answer = wait(bench.start(&[0x07, 0, 0, 0, 0, 0], &list, 0));
    assert_eq!((told(&answer), answer.residual), (GOOD, 0));
    assert_eq!(ends(&disk)[0], [0x77; 512]);
    let beyond = [0, 0, 0, 4, 0, 0, 8, 0];
    let sense = bench.answer(&[0x07, 0, 0, 0, 0, 0], &beyond).sense;
    assert_eq!((sense[12], &sense[3..7]), (0x21, &[0, 0, 8, 0][..]));
}

/// A disk that tries without end to read the blocks that are to be mended.
#[derive(Debug)]
struct Trying(Arc<OpenFile>);

impl Disk for Trying {
    fn geometry(&self) -> Geometry {
        GEOMETRY
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        match op {
            Op::Mend { .. } => Ok(&self.0),
            _ => Err(DiskError::Gone),
        }
    }
}

#[test]
fn no_block_is_reassigned_any_more_once_the_command_is_over() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(reader));
    let disk = Trying(Arc::new(OpenFile::new(file, Cache::WriteBack)));
    let bench = Bench::of(&unit_on(&(Arc::new(disk) as Arc<dyn Disk>), None));
    let list = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1];
    let reassign = || bench.start(&[0x07, 0, 0, 0, 0, 0], &list, 0);
    let Step::Disk { pending, .. } = reassign() else {
        panic!("it waits for the disk")
    };
    assert!(pending.changes_blocks(), "who ends it waits for the disk");
    let refused = |step| matches!(step, Step::Answer(answer) if answer.status == 8);
    assert!(refused(reassign()), "one list at a time");
    drop(pending);
    let start = Instant::now();
    while refused(reassign()) {
        assert!(start.elapsed() < Duration::from_secs(20), "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
