use super::*;
use crate::disk::{DiskError, Geometry, Op, Reply};
use crate::scsi::testing::{Bench, READY, Shape, ShapedDisk, field, told};
use crate::scsi::{Address, Answer, Pending, Scope, Step};

const DONE: Result<Reply, DiskError> = Ok(Reply::Done);
const MIB: u64 = 1 << 20;

/// A disk of 64 MiB.
const LARGE: Shape = Shape {
    geometry: Geometry {
        blocks: 0x2_0000,
        ..Shape::PLAIN.geometry
    },
    ..Shape::PLAIN
};

fn named(name: &str, shape: Shape) -> Arc<LogicalUnit> {
    Arc::new(LogicalUnit::new(name, ShapedDisk::new(shape)).unwrap())
}

/// An HBA that sees "source" as LUN 0 and "destination" as LUN 1.
struct Two {
    bench: Bench,
    units: [Arc<LogicalUnit>; 2],
}

impl Two {
    fn new() -> Self {
        Self::of([LARGE, LARGE])
    }

    fn of(shapes: [Shape; 2]) -> Self {
        Self::show([named("source", shapes[0]), named("destination", shapes[1])])
    }

    /// A source with protection information, and its file.
    fn with_tags() -> (Self, vmm_sys_util::tempfile::TempFile) {
        let (source, file) = protected("source");
        (Self::show([source, named("destination", LARGE)]), file)
    }

    fn show(units: [Arc<LogicalUnit>; 2]) -> Self {
        let shown = [0_u16, 1].map(|lun| (lun, Arc::clone(&units[usize::from(lun)])));
        let bench = Bench::fresh(shown);
        for lun in [0, 1] {
            assert_eq!(bench.ready_at(lun).1, [0x29, 0x00]);
        }
        Self { bench, units }
    }

    /// The parameter list with these segments, of the first unit to the second.
    fn list(&self, segments: &[Vec<u8>]) -> Vec<u8> {
        let sizes = [0, 1].map(|n: usize| self.units[n].disk().geometry().block_size);
        let cscds = [0, 1].map(|n: usize| cscd(self.units[n].naa(), sizes[n]));
        list(&cscds.concat(), segments)
    }

    /// EXTENDED COPY, sent to this LUN.
    fn extended(&self, lun: u16, list: &[u8]) -> Step {
        let cdb = cdb(0x00, 0, list.len());
        self.bench.start_at(field(lun), 0, &cdb, list, 0)
    }

    /// A THIRD-PARTY COPY IN command to this LUN.
    fn receive(&self, lun: u16, action: u8, id: u32) -> Answer {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[12]) = (0x84, action, 0x08);
        if matches!(action, 5..) {
            cdb[2..6].copy_from_slice(&id.to_be_bytes());
        } else {
            cdb[2] = u8::try_from(id).unwrap();
        }
        self.bench.answer_at(lun, &cdb)
    }
}

/// A THIRD-PARTY COPY OUT command.
fn cdb(action: u8, id: u32, len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, action);
    cdb[6..10].copy_from_slice(&id.to_be_bytes());
    cdb[10..14].copy_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
    cdb
}

fn cscd(naa: u64, block_size: u32) -> Vec<u8> {
    let mut cscd = vec![0xe4, 0, 0, 0, 0x01, 0x03, 0, 8];
    cscd.extend(naa.to_be_bytes());
    cscd.extend([0; 12]);
    cscd.extend(block_size.to_be_bytes());
    cscd
}

/// From the CSCD 0 to the CSCD 1.
fn segment(from: u64, to: u64, blocks: u16) -> Vec<u8> {
    between(0, 1, from, to, blocks)
}

fn between(source: u16, destination: u16, from: u64, to: u64, blocks: u16) -> Vec<u8> {
    let mut segment = vec![0x02, 0, 0, 0x18];
    segment.extend(source.to_be_bytes());
    segment.extend(destination.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(blocks.to_be_bytes());
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment
}

fn list(cscds: &[u8], segments: &[Vec<u8>]) -> Vec<u8> {
    let segments = segments.concat();
    let mut list = vec![0x21, 0, 0, u8::try_from(cscds.len()).unwrap()];
    list.extend([0; 4]);
    list.extend(u32::try_from(segments.len()).unwrap().to_be_bytes());
    list.extend([0; 4]);
    list.extend(cscds);
    list.extend(segments);
    list
}

/// A copy of which the first operation is under way.
struct Going {
    disk: Arc<dyn crate::disk::Disk>,
    op: Op,
    pending: Pending,
}

fn going(step: Step) -> Going {
    match step {
        Step::Disk {
            disk, op, pending, ..
        } => Going {
            disk: disk.expect("it need not be the unit's"),
            op,
            pending,
        },
        other => panic!("{other:?}"),
    }
}

/// From, to and length of a copy.
fn bytes(op: &Op) -> (u64, u64, u64) {
    match *op {
        Op::Copy {
            from,
            offset,
            len,
            fua: true,
            ..
        } => (from, offset, len),
        ref other => panic!("{other:?}"),
    }
}

impl Going {
    /// The operations from this one on, and the answer when all have ended well.
    fn finish(self) -> (Vec<Op>, Answer) {
        let mut pending = self.pending;
        let mut ops = vec![self.op];
        while let Some((_, op)) = pending.go_on(&DONE) {
            ops.push(op);
        }
        (ops, pending.finish(DONE))
    }
}

fn answered(step: Step) -> Answer {
    match step {
        Step::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// Sense key, additional sense code and qualifier of fixed format sense.
fn code(answer: &Answer) -> [u8; 3] {
    assert_eq!(answer.status, 0x02, "{answer:?}");
    [answer.sense[2], answer.sense[12], answer.sense[13]]
}

const NOT_REACHABLE: [u8; 3] = [0xa, 0x0d, 0x02];
const DEVICE_FAILURE: [u8; 3] = [0xa, 0x0d, 0x01];

/// A unit with protection information, and its file.
fn protected(name: &str) -> (Arc<LogicalUnit>, vmm_sys_util::tempfile::TempFile) {
    use crate::disk::{FileDisk, FileOptions, ProtectedDisk, Protection};
    // In the build directory, where O_DIRECT works.
    let directory = std::env::current_dir().unwrap();
    let file = vmm_sys_util::tempfile::TempFile::new_in(&directory).unwrap();
    file.as_file().set_len(2 << 20).unwrap();
    let disk = FileDisk::open(&FileOptions::new(file.as_path())).unwrap();
    let disk = ProtectedDisk::open(Arc::new(disk), Protection::Type1).unwrap();
    let unit = LogicalUnit::new(name, Arc::new(disk)).unwrap();
    (Arc::new(unit), file)
}

/// What a [`Op::Protected`] does.
fn tagged(op: &Op) -> &Op {
    match op {
        Op::Protected(what) => &what.op,
        other => panic!("{other:?}"),
    }
}

// --- EXTENDED COPY -------------------------------------------------------------------------------

#[test]
fn blocks_with_tags_are_read_and_written_by_way_of_our_memory() {
    let (two, _file) = Two::with_tags();
    // 256 KiB and a block.
    let list = two.list(&[segment(8, 16, 513)]);
    let read = |lba: u64, blocks: usize| Op::Read {
        offset: lba * 512,
        len: blocks * 512,
    };
    let write = |lba: u64, blocks: usize| Op::Write {
        offset: lba * 512,
        len: blocks * 512,
        fua: true,
        atomic: false,
    };

    let going = going(two.extended(0, &list));
    assert!(Arc::ptr_eq(&going.disk, two.units[0].disk()));
    assert_eq!(going.pending.buffer().unwrap().len(), 512 * 512);
    let (ops, answer) = going.finish();
    assert_eq!(tagged(&ops[0]), &read(8, 512));
    assert_eq!(ops[1], write(16, 512));
    assert_eq!(tagged(&ops[2]), &read(520, 1));
    assert_eq!(ops[3], write(528, 1));
    assert_eq!((ops.len(), answer.status), (4, 0));

    // What is not as it was written goes no further.
    let Step::Disk { mut pending, .. } = two.extended(0, &list) else {
        panic!("no disk");
    };
    let bad = DiskError::Protection {
        at: 0,
        bad: crate::disk::BadTag::Guard,
    };
    assert!(pending.go_on(&Err(bad)).is_none());
    let answer = pending.finish(Err(bad));
    assert_eq!(code(&answer), DEVICE_FAILURE);
    assert_eq!(answer.sense[3..7], [0; 4], "nothing was written");
}

#[test]
fn an_hba_has_so_much_of_our_memory_for_its_copies_and_no_more() {
    let (two, _file) = Two::with_tags();
    let begin = |lun: u16, id: u8, segments: &[Vec<u8>]| {
        let mut list = two.list(segments);
        list[0] = id;
        two.extended(lun, &list)
    };
    let relayed = segment(8, 16, 1);
    let all =
        (0..64).map(|n: u8| going(begin((n % 2).into(), n / 2, std::slice::from_ref(&relayed))));
    let all: Vec<_> = all.collect();
    let refused = answered(begin(0, 40, std::slice::from_ref(&relayed)));
    assert_eq!(refused.status, 0x08);
    // One that needs none goes on, up to where it does; and is not sent once more then as if
    // nothing had happened.
    let mut copy = going(begin(0, 41, &[between(1, 1, 0, 8, 1), relayed.clone()]));
    assert!(copy.pending.go_on(&DONE).is_none());
    assert_eq!(code(&copy.pending.finish(DONE)), [0xb, 0x08, 0x00]);
    drop(all);
    let (ops, answer) = going(begin(0, 42, &[relayed])).finish();
    assert_eq!((ops.len(), answer.status), (2, 0));
}

#[test]
fn a_segment_is_copied_from_disk_to_disk() {
    let two = Two::new();
    let list = two.list(&[segment(5, 9, 3)]);
    for lun in [0, 1] {
        let going = going(two.extended(lun, &list));
        assert!(Arc::ptr_eq(&going.disk, two.units[1].disk()));
        let Op::Copy { source, .. } = &going.op else {
            panic!("{:?}", going.op);
        };
        assert!(Arc::ptr_eq(&source.0, two.units[0].disk()));
        assert_eq!(bytes(&going.op), (5 * 512, 9 * 512, 3 * 512));
        let (ops, answer) = going.finish();
        assert_eq!((ops.len(), answer.status, answer.residual), (1, 0, 0));
    }
}

#[test]
fn no_list_and_no_blocks_are_no_errors() {
    let two = Two::new();
    assert_eq!(answered(two.extended(0, &[])).status, 0);
    let none = two.list(&[segment(5, 9, 0), segment(u64::MAX, u64::MAX, 0)]);
    assert_eq!(answered(two.extended(0, &none)).status, 0);
    let status = two.receive(0, 0x00, 0x21).data;
    assert_eq!(status, [0, 0, 0, 8, 1, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(answered(two.extended(0, &two.list(&[]))).status, 0);
}

#[test]
fn a_list_that_was_not_sent_is_an_overrun() {
    let two = Two::new();
    let list = two.list(&[segment(5, 9, 3)]);
    let cdb = cdb(0x00, 0, list.len());
    let step = two.bench.start(&cdb, &list[1..], 0);
    assert!(matches!(step, Step::Overrun));
}

#[test]
fn a_long_copy_is_cut_into_parts_in_between_of_which_it_is_looked_who_may() {
    let two = Two::new();
    // 20 MiB.
    let list = two.list(&[segment(0, 0x1000, 0xa000)]);
    let mut copy = going(two.extended(0, &list));
    assert_eq!(bytes(&copy.op), (0, 2 * MIB, 16 * MIB));
    let (_, op) = copy.pending.go_on(&DONE).unwrap();
    assert_eq!(bytes(&op), (16 * MIB, 18 * MIB, 4 * MIB));
    assert!(copy.pending.go_on(&DONE).is_none());
    assert_eq!(copy.pending.finish(DONE).status, 0);

    let mut copy = going(two.extended(0, &list));
    let other = Bench::hba(2, &two.units[1]);
    assert_eq!(told(&other.answer(&[0x16, 0, 0, 0, 0, 0], &[])), READY);
    assert!(copy.pending.go_on(&DONE).is_none(), "it is reserved now");
    let answer = copy.pending.finish(DONE);
    assert_eq!(code(&answer), DEVICE_FAILURE);
    // VALID, and 4 MiB of the segment are left.
    assert_eq!(
        (answer.sense[0], &answer.sense[3..7]),
        (0xf0, [0, 0, 0x20, 0].as_slice())
    );
}

#[test]
fn what_overlaps_behind_its_source_is_copied_from_the_end() {
    let two = Two::new();
    let here = |from, to, blocks| {
        let list = list(&[], &[between(0xffff, 0xffff, from, to, blocks)]);
        let (ops, answer) = going(two.extended(0, &list)).finish();
        assert_eq!(answer.status, 0);
        ops.iter().map(bytes).collect::<Vec<_>>()
    };
    let behind = here(0, 8, 0xa000);
    assert_eq!(
        behind,
        [(4 * MIB, 4 * MIB + 4096, 16 * MIB), (0, 4096, 4 * MIB)]
    );
    let before = here(8, 0, 0xa000);
    assert_eq!(
        before,
        [(4096, 0, 16 * MIB), (16 * MIB + 4096, 16 * MIB, 4 * MIB)]
    );
}

#[test]
fn only_units_that_the_hba_sees_are_reached() {
    let two = Two::new();
    let hidden = named("hidden", LARGE);
    let _other = Bench::hba(2, &hidden);
    let cscds = [cscd(hidden.naa(), 512), cscd(two.units[1].naa(), 512)];
    for segment in [segment(0, 0, 1), between(1, 0, 0, 0, 1)] {
        let list = list(&cscds.concat(), &[segment]);
        assert_eq!(code(&answered(two.extended(0, &list))), NOT_REACHABLE);
    }
    // Whoever does not use it does not miss it.
    let list = list(&cscds.concat(), &[between(1, 1, 0, 8, 1)]);
    assert_eq!(going(two.extended(0, &list)).finish().1.status, 0);
}

#[test]
fn a_unit_is_known_by_its_vendor_based_designator_too() {
    let two = Two::new();
    let mut by_name = vec![0xe4, 0, 0, 0, 0x02, 0x01, 0, 14];
    by_name.extend(b"VHOSTPCIsource");
    by_name.resize(28, 0);
    by_name.extend([0, 0, 2, 0]);
    by_name.extend(cscd(two.units[1].naa(), 512));
    let step = two.extended(0, &list(&by_name, &[segment(0, 0, 1)]));
    assert!(Arc::ptr_eq(&going(step).disk, two.units[1].disk()));
}

#[test]
fn a_segment_that_cannot_be_is_named() {
    let two = Two::new();
    let refused = |bad: Vec<u8>| {
        let list = two.list(&[segment(0, 0, 1), bad]);
        let mut copy = going(two.extended(0, &list));
        assert!(copy.pending.go_on(&DONE).is_none());
        let answer = copy.pending.finish(DONE);
        assert_eq!(answer.sense[8..12], [0, 0, 0, 1], "the second segment");
        (
            code(&answer),
            <[u8; 3]>::try_from(&answer.sense[15..18]).unwrap(),
        )
    };
    // SKSV, SD, BPV; bit 7 of a byte of the segment descriptor.
    let at = |byte| [0xaf, 0, byte];
    let unreachable = [0xa, 0x08, 0x04];
    assert_eq!(refused(between(2, 1, 0, 0, 1)), (unreachable, at(4)));
    assert_eq!(refused(between(0, 2, 0, 0, 1)), (unreachable, at(6)));
    let aborted = [0xa, 0, 0];
    assert_eq!(refused(segment(0x2_0000, 0, 1)), (aborted, at(12)));
    assert_eq!(refused(segment(0x1_ffff, 0, 2)), (aborted, at(12)));
    assert_eq!(refused(segment(0, 0x1_ffff, 2)), (aborted, at(20)));
    assert_eq!(refused(segment(0, u64::MAX, 2)), (aborted, at(20)));
}

#[test]
fn block_sizes_are_those_of_the_units() {
    let shape = Shape {
        geometry: Geometry {
            block_size: 4096,
            ..LARGE.geometry
        },
        ..LARGE
    };
    let two = Two::of([LARGE, shape]);
    let op = going(two.extended(0, &two.list(&[segment(8, 3, 16)]))).op;
    assert_eq!(bytes(&op), (4096, 3 * 4096, 8192));
    let mut counted_there = segment(8, 3, 16);
    counted_there[1] = 0x02;
    let op = going(two.extended(0, &two.list(&[counted_there]))).op;
    assert_eq!(bytes(&op), (4096, 3 * 4096, 16 * 4096));
    let inexact = answered(two.extended(0, &two.list(&[segment(8, 3, 9)])));
    assert_eq!(code(&inexact), [0xa, 0x26, 0x0a]);

    let mut wrong = two.list(&[segment(8, 3, 16)]);
    wrong[16 + 32 + 30] = 2;
    let answer = answered(two.extended(0, &wrong));
    assert_eq!(code(&answer), [5, 0x26, 0]);
    assert_eq!(answer.sense[15..18], [0x8f, 0, 77]);
}

#[test]
fn both_ends_have_to_let_a_read_and_a_write() {
    let protected = Shape {
        geometry: Geometry {
            read_only: true,
            ..LARGE.geometry
        },
        ..LARGE
    };
    let two = Two::of([LARGE, protected]);
    let there = two.list(&[segment(0, 0, 1)]);
    assert_eq!(code(&answered(two.extended(0, &there))), DEVICE_FAILURE);
    let back = two.list(&[between(1, 0, 0, 0, 1)]);
    assert_eq!(going(two.extended(0, &back)).finish().1.status, 0);

    let two = Two::new();
    let list = two.list(&[segment(0, 0, 1)]);
    let stop = two.bench.answer_at(0, &[0x1b, 0, 0, 0, 0x04, 0]);
    assert_eq!(stop.status, 0);
    assert_eq!(code(&answered(two.extended(1, &list))), DEVICE_FAILURE);
    let other = Bench::hba(2, &two.units[0]);
    assert_eq!(two.bench.answer_at(0, &[0x1b, 0, 0, 0, 0x01, 0]).status, 0);
    assert_eq!(going(two.extended(1, &list)).finish().1.status, 0);
    assert_eq!(told(&other.answer(&[0x16, 0, 0, 0, 0, 0], &[])), READY);
    assert_eq!(code(&answered(two.extended(1, &list))), DEVICE_FAILURE);
    // The unit that is asked has the last word about itself.
    assert_eq!(answered(two.extended(0, &list)).status, 0x18);
}

#[test]
fn more_than_a_command_may_copy_takes_more_resources_than_there_are() {
    let shape = Shape {
        geometry: Geometry {
            block_size: 4096,
            blocks: 0x10_0000,
            ..LARGE.geometry
        },
        ..LARGE
    };
    let two = Two::of([shape, shape]);
    let half = || segment(0, 0, 0xffff);
    let fits = two.list(&[half(), half()]);
    assert_eq!(going(two.extended(0, &fits)).finish().1.status, 0);
    let list = two.list(&[half(), half(), segment(0, 0, 3)]);
    assert_eq!(code(&answered(two.extended(0, &list))), [5, 0x55, 0x03]);
}

#[test]
fn a_disk_that_fails_is_told_of_by_its_segment() {
    let two = Two::new();
    let list = two.list(&[segment(0, 0, 1), segment(8, 8, 4)]);
    for error in [
        DiskError::Io(5),
        DiskError::SourceFailed,
        DiskError::NoSpace,
    ] {
        let mut copy = going(two.extended(0, &list));
        copy.pending.go_on(&DONE).unwrap();
        assert!(copy.pending.go_on(&Err(error)).is_none());
        let answer = copy.pending.finish(Err(error));
        assert_eq!(code(&answer), DEVICE_FAILURE);
        assert_eq!(answer.sense[10..12], [0, 1]);
        assert_eq!(answer.sense[0], 0x70, "nothing of it was written");
    }
    let status = two.receive(0, 0x00, 0x21).data;
    assert_eq!(status, [0, 0, 0, 8, 2, 0, 1, 0, 0, 0, 2, 0]);
    let details = two.receive(0, 0x04, 0x21).data;
    assert_eq!(
        (&details[..4], &details[4..56]),
        ([0, 0, 0, 74].as_slice(), [0; 52].as_slice())
    );
    assert_eq!(details[56..60], [0x02, 0, 0, 18]);
    assert_eq!(details[60 + 2], 0xa);
    // A cancelled one, and one for which there is no memory, are not the segment's fault.
    let copy = going(two.extended(0, &list));
    assert_eq!(copy.pending.finish(Err(DiskError::Busy)).status, 0x08);
    // It must not be sent once more as if nothing had happened, when something is copied.
    let mut copy = going(two.extended(0, &list));
    copy.pending.go_on(&DONE).unwrap();
    let answer = copy.pending.finish(Err(DiskError::Busy));
    assert_eq!(code(&answer), [0xb, 0x08, 0x00]);
    let copy = going(two.extended(0, &list));
    assert_eq!(copy.pending.finish(Err(DiskError::Cancelled)).status, 0x40);
}

// --- What became of it ---------------------------------------------------------------------------

#[test]
fn operating_parameters_are_those_of_the_limits() {
    let two = Two::new();
    let data = two.receive(0, 0x03, 0).data;
    #[rustfmt::skip]
    let expected = [
        0, 0, 0, 43, 0x01, 0, 0, 0, 0, 16, 0, 64, 0, 0, 0x0a, 0, 0x10, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 64, 9, 0, 0,
        0, 0, 0, 3, 0x02, 0x0a, 0xe4,
    ];
    assert_eq!(data, expected);
}

#[test]
fn the_status_of_a_copy_can_be_asked_for_by_its_list_identifier() {
    let two = Two::new();
    for action in [0x00, 0x01, 0x04, 0x05, 0x06, 0x07] {
        let answer = two.receive(0, action, 0x21);
        assert_eq!(code(&answer), [5, 0x24, 0]);
        assert_eq!(answer.sense[15..18], [0xcf, 0, 2]);
    }
    let list = two.list(&[segment(0, 0, 1), segment(8, 8, 4)]);
    let mut copy = going(two.extended(0, &list));
    let under_way = two.receive(0, 0x00, 0x21).data;
    assert_eq!(under_way, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    let again = answered(two.extended(0, &list));
    assert_eq!(code(&again), [5, 0x00, 0x16]);
    copy.pending.go_on(&DONE).unwrap();
    let half = two.receive(0, 0x05, 0x21).data;
    #[rustfmt::skip]
    assert_eq!(half, [
        0, 0, 0, 28, 0x00, 0x11, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0x00,
        0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0,
    ]);
    assert_eq!(copy.pending.finish(DONE).status, 0);
    assert_eq!(going(two.extended(0, &list)).finish().1.status, 0);
    let over = two.receive(0, 0x05, 0x21).data;
    assert_eq!(over[4..12], [0x00, 0x01, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    assert_eq!(over[16..26], [0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 2]);
    assert_eq!(two.receive(0, 0x01, 0x21).data, [0; 4]);
    assert_eq!(two.receive(0, 0x04, 0x21).data, [0; 4]);
    // Another unit, and another HBA, have copies of their own.
    assert_eq!(two.receive(1, 0x00, 0x21).status, 0x02);
}

#[test]
fn a_copy_that_nobody_will_ask_for_is_not_remembered() {
    let two = Two::new();
    let mut list = two.list(&[segment(0, 0, 1)]);
    (list[0], list[1]) = (0, 0x18);
    let first = going(two.extended(0, &list));
    assert_eq!(going(two.extended(0, &list)).finish().1.status, 0);
    assert_eq!(first.finish().1.status, 0);
    assert_eq!(two.receive(0, 0x00, 0).status, 0x02);
}

#[test]
fn an_abort_ends_a_copy_before_its_next_part() {
    let two = Two::new();
    let list = two.list(&[segment(0, 0, 1), segment(8, 8, 4)]);
    let mut abort = [0; 16];
    (abort[0], abort[1], abort[5]) = (0x83, 0x1c, 0x21);
    assert_eq!(code(&two.bench.answer_at(0, &abort)), [5, 0x24, 0]);
    let mut copy = going(two.extended(0, &list));
    assert_eq!(two.bench.answer_at(0, &abort).status, 0);
    assert!(copy.pending.go_on(&DONE).is_none());
    assert_eq!(code(&copy.pending.finish(DONE)), [0xa, 0, 0]);
    assert_eq!(two.receive(0, 0x05, 0x21).data[5], 0x60);
    // Task management drops it.
    drop(going(two.extended(0, &list)));
    assert_eq!(two.receive(0, 0x05, 0x21).data[5], 0x60);
}

#[test]
fn a_copy_belongs_to_all_of_its_units_until_it_has_left_them() {
    let two = Two::new();
    let list = two.list(&[segment(0, 0, 1), between(0, 0, 0, 8, 1)]);
    let mut copy = going(two.extended(0, &list));
    let at = |lun| Scope::Unit(Address { target: 0, lun });
    assert!(copy.pending.copies_at(at(0)) && copy.pending.copies_at(at(1)));
    assert!(!copy.pending.copies_at(at(2)) && !copy.pending.copies_at(Scope::Target(1)));
    copy.pending.go_on(&DONE).unwrap();
    assert!(copy.pending.copies_at(at(0)) && !copy.pending.copies_at(at(1)));
}

#[test]
fn what_may_have_been_copied_once_is_not_copied_again() {
    let two = Two::new();
    let none = crate::memory::Segments::new(crate::memory::testing::shared_memory(1));
    let buffers = Buffers {
        data_out: &none,
        data_in: 0,
        tags: crate::scsi::Tags::default(),
    };
    for (action, again) in [
        (0x00, false),
        (0x01, false),
        (0x10, false),
        (0x11, false),
        (0x1c, true),
    ] {
        let mut padded = [0; 32];
        padded[..16].copy_from_slice(&cdb(action, 0, 0));
        if action != 0x10 && action != 0x11 {
            padded[6..10].fill(0);
        }
        let answer = two.bench.host.not_again(field(0), &padded, buffers);
        assert_eq!(answer.is_none(), again, "{action:x}");
        if let Some(answer) = answer {
            assert_eq!(code(&answer), [0xb, 0x08, 0x00]);
        }
    }
}

// --- Tokens --------------------------------------------------------------------------------------

fn descriptors(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (lba, blocks) in ranges {
        bytes.extend(lba.to_be_bytes());
        bytes.extend(blocks.to_be_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

fn token_list(header: usize, ranges: &[(u64, u32)]) -> Vec<u8> {
    let ranges = descriptors(ranges);
    let mut list = vec![0; header];
    list[header - 2..].copy_from_slice(&u16::try_from(ranges.len()).unwrap().to_be_bytes());
    list.extend(ranges);
    let len = u16::try_from(list.len() - 2).unwrap();
    list[..2].copy_from_slice(&len.to_be_bytes());
    list
}

impl Two {
    /// POPULATE TOKEN of these blocks of LUN 0.
    fn populate(&self, id: u32, ranges: &[(u64, u32)]) -> Step {
        let list = token_list(16, ranges);
        let cdb = cdb(0x10, id, list.len());
        self.bench.start_at(field(0), 0, &cdb, &list, 0)
    }

    /// The token of these blocks of LUN 0.
    fn token(&self, ranges: &[(u64, u32)]) -> Vec<u8> {
        let (_, answer) = going(self.populate(1, ranges)).finish();
        assert_eq!(answer.status, 0);
        let data = self.receive(0, 0x07, 1).data;
        assert_eq!(data[32..38], [0, 0, 2, 2, 0, 0]);
        assert_eq!(data.len(), 38 + 512);
        data[38..].to_vec()
    }

    /// WRITE USING TOKEN to this LUN.
    fn write(&self, lun: u16, token: &[u8], offset: u64, flags: u8, ranges: &[(u64, u32)]) -> Step {
        let mut list = token_list(536, ranges);
        list[2] = flags;
        list[8..16].copy_from_slice(&offset.to_be_bytes());
        list[16..528].copy_from_slice(token);
        let cdb = cdb(0x11, 2, list.len());
        self.bench.start_at(field(lun), 0, &cdb, &list, 0)
    }

    /// Status and transfer count of what WRITE USING TOKEN did last at this LUN.
    fn written(&self, lun: u16) -> (u8, u64) {
        let data = self.receive(lun, 0x07, 2).data;
        assert_eq!((data[4], data[15]), (0x11, 0xf1));
        let count = data[16..24].try_into().unwrap();
        (data[5], u64::from_be_bytes(count))
    }
}

#[test]
fn a_token_stands_for_blocks_that_the_disk_watches() {
    let two = Two::new();
    let copy = going(two.populate(1, &[(8, 4), (100, 0), (0, 2)]));
    let Op::Watch(watch) = &copy.op else {
        panic!("{:?}", copy.op);
    };
    assert_eq!(watch.ranges(), [(4096, 2048), (0, 1024)]);
    assert!(Arc::ptr_eq(&copy.disk, two.units[0].disk()));
    let under_way = two.receive(0, 0x07, 1).data;
    assert_eq!((under_way[5], under_way.len()), (0x11, 36));
    assert_eq!(copy.finish().1.status, 0);
    let data = two.receive(0, 0x07, 1).data;
    assert_eq!(data[..4], [0, 0, 2, 34], "28 + 4 + 2 + 512 bytes");
    assert_eq!(data[4..8], [0x10, 0x01, 0, 0]);
    assert_eq!(data[12..16], [0, 0, 0, 0xf1]);
    assert_eq!(data[16..24], [0, 0, 0, 0, 0, 0, 0, 6]);
    assert_eq!(data[38..46], [0x00, 0x80, 0x00, 0x01, 0, 0, 0x01, 0xf8]);
}

#[test]
fn blocks_of_a_token_are_written_in_their_order_from_an_offset_on() {
    let two = Two::new();
    let token = two.token(&[(8, 4), (0, 2), (20, 10)]);
    let copied = |offset, ranges: &[(u64, u32)]| {
        let (ops, answer) = going(two.write(1, &token, offset, 0, ranges)).finish();
        assert_eq!(answer.status, 0);
        let blocks = ops.iter().map(bytes);
        let blocks: Vec<_> = blocks
            .map(|(a, b, c)| (a / 512, b / 512, c / 512))
            .collect();
        blocks
    };
    assert_eq!(copied(0, &[(100, 3)]), [(8, 100, 3)]);
    assert_eq!(two.written(1), (0x01, 3));
    assert_eq!(
        copied(3, &[(100, 2), (50, 3)]),
        [(11, 100, 1), (0, 101, 1), (1, 50, 1), (20, 51, 2)]
    );
    assert_eq!(copied(4, &[(0, 12)]), [(0, 0, 2), (20, 2, 10)]);
}

#[test]
fn a_token_that_stands_for_less_is_an_underrun() {
    let two = Two::new();
    let token = two.token(&[(8, 4)]);
    let (ops, answer) = going(two.write(1, &token, 1, 0, &[(0, 2), (10, 2)])).finish();
    let copied: Vec<_> = ops.iter().map(bytes).collect();
    assert_eq!(copied, [(9 * 512, 0, 1024), (11 * 512, 5120, 512)]);
    assert_eq!(code(&answer), [0xa, 0x0d, 0x04]);
    assert_eq!(answer.sense[..7], [0xf0, 0, 0xa, 0, 0, 0, 3]);
    assert_eq!(two.written(1), (0x03, 3));
    let answer = answered(two.write(1, &token, 4, 0, &[(0, 1)]));
    assert_eq!(
        (code(&answer), &answer.sense[15..18]),
        ([5, 0x26, 0], [0x8f, 0, 8].as_slice())
    );
}

#[test]
fn the_zero_token_writes_zeros() {
    let two = Two::new();
    let mut zero = vec![0; 512];
    zero[..8].copy_from_slice(&[0xff, 0xff, 0x00, 0x01, 0, 0, 0x01, 0xf8]);
    // 20 MiB in two parts.
    let (ops, answer) = going(two.write(1, &zero, 7, 0, &[(8, 0xa000)])).finish();
    assert_eq!(answer.status, 0);
    let zeros = |offset, len| Op::Zero {
        offset,
        len,
        unmap: false,
        fua: true,
    };
    assert_eq!(
        ops,
        [zeros(4096, 16 * MIB), zeros(4096 + 16 * MIB, 4 * MIB)]
    );
    assert_eq!(two.written(1), (0x01, 0xa000));
}

#[test]
fn tokens_that_are_none_are_told_apart() {
    let two = Two::new();
    let token = two.token(&[(8, 4)]);
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut token = token.clone();
        change(&mut token);
        code(&answered(two.write(1, &token, 0, 0, &[(0, 1)])))
    };
    assert_eq!(refused(|token| token[511] ^= 1), [5, 0x23, 0x04]);
    assert_eq!(refused(|token| token[7] = 0), [5, 0x23, 0x0a]);
    assert_eq!(refused(|token| token[3] = 2), [5, 0x23, 0x01]);
    // Another HBA has been told the token, but does not see the unit.
    let stranger = Two {
        bench: Bench::fresh_hba(2, [(1, Arc::clone(&two.units[1]))]),
        units: two.units.clone(),
    };
    assert_eq!(stranger.bench.ready_at(1).1, [0x29, 0x00]);
    let answer = answered(stranger.write(1, &token, 0, 0, &[(0, 1)]));
    assert_eq!(code(&answer), [5, 0x23, 0x04]);
}

#[test]
fn a_token_goes_with_the_unit_and_with_a_power_on_of_the_hba() {
    let mut two = Two::new();
    let token = two.token(&[(8, 4)]);
    two.bench.host.remove(Address { target: 0, lun: 0 });
    let _changed = two.bench.ready_at(1);
    let answer = answered(two.write(1, &token, 0, 0, &[(0, 1)]));
    assert_eq!(code(&answer), [5, 0x23, 0x04]);

    let two = Two::new();
    let token = two.token(&[(8, 4)]);
    two.bench.host.power_on();
    assert_eq!(two.bench.ready_at(1).1, [0x29, 0x00]);
    let answer = answered(two.write(1, &token, 0, 0, &[(0, 1)]));
    assert_eq!(code(&answer), [5, 0x23, 0x04]);
}

#[test]
fn a_token_is_deleted_when_it_was_used_for_the_last_time() {
    let two = Two::new();
    let token = two.token(&[(8, 4)]);
    let (_, answer) = going(two.write(1, &token, 0, 0x02, &[(0, 4)])).finish();
    assert_eq!(answer.status, 0);
    let answer = answered(two.write(1, &token, 0, 0, &[(0, 1)]));
    assert_eq!(code(&answer), [5, 0x23, 0x04]);
}

#[test]
fn blocks_outside_and_more_than_a_token_may_have_are_refused() {
    let two = Two::new();
    let outside = answered(two.populate(1, &[(0, 1), (0x1_ffff, 2)]));
    assert_eq!(code(&outside), [5, 0x21, 0]);
    assert_eq!(outside.sense[3..7], [0, 2, 0, 0]);
    let token = two.token(&[(8, 4)]);
    let outside = answered(two.write(1, &token, 0, 0, &[(0x2_0000, 1)]));
    assert_eq!(code(&outside), [5, 0x21, 0]);
    // What it stands for itself would be changed on the way.
    let same = answered(two.write(0, &token, 0, 0, &[(0, 8), (11, 1)]));
    assert_eq!(
        (code(&same), &same.sense[15..18]),
        ([5, 0x26, 0], [0x8f, 0x02, 0x28].as_slice())
    );
    assert_eq!(
        going(two.write(0, &token, 0, 0, &[(0, 4)]))
            .finish()
            .1
            .status,
        0
    );

    let shape = Shape {
        geometry: Geometry {
            blocks: 0x20_0000,
            ..LARGE.geometry
        },
        ..LARGE
    };
    let two = Two::of([shape, shape]);
    let token = two.token(&[(0, 0x8_0000)]);
    let longer = answered(two.populate(1, &[(0, 0x8_0001)]));
    assert_eq!(
        (code(&longer), &longer.sense[15..18]),
        ([5, 0x26, 0], [0x8f, 0, 14].as_slice())
    );
    let longer = answered(two.write(1, &token, 0, 0, &[(0, 0x8_0001)]));
    assert_eq!(
        (code(&longer), &longer.sense[15..18]),
        ([5, 0x26, 0], [0x8f, 2, 0x16].as_slice())
    );
}

#[test]
fn tokens_meet_reservations_as_a_read_and_a_write_do() {
    let two = Two::new();
    let token = two.token(&[(8, 4)]);
    let reserve = [0x16, 0, 0, 0, 0, 0];
    let other = Bench::hba(2, &two.units[0]);
    assert_eq!(told(&other.answer(&reserve, &[])), READY);
    assert_eq!(answered(two.populate(1, &[(0, 1)])).status, 0x18);
    let source = answered(two.write(1, &token, 0, 0, &[(0, 1)]));
    assert_eq!(code(&source), DEVICE_FAILURE);
    assert_eq!(told(&other.answer(&[0x17, 0, 0, 0, 0, 0], &[])), READY);
    let other = Bench::hba(3, &two.units[1]);
    let mut copy = going(two.write(1, &token, 0, 0, &[(0, 1), (8, 1)]));
    assert_eq!(told(&other.answer(&reserve, &[])), READY);
    assert!(copy.pending.go_on(&DONE).is_none());
    assert_eq!(copy.pending.finish(DONE).status, 0x18);
    assert_eq!(told(&other.answer(&[0x17, 0, 0, 0, 0, 0], &[])), READY);
    assert_eq!(two.written(1), (0x03, 1));
}
