use std::sync::Arc;

use super::{
    Address, Answer, Attention, BadLun, BadName, Buffers, Host, LogicalUnit, Place, Scope, Step,
};
use crate::disk::{Abilities, Atomic, Disk, DiskError, Geometry, Op, OpenFile, Thin};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;

mod atomic;
mod cache;
mod capacity;
mod compare;
mod endings;
mod erase;
mod logs;
mod moving;
mod opcodes;
mod ports;
mod protected;
mod read_only;
mod same;
mod thin;
mod upkeep;
mod whatever;

/// A disk that is never read or written.
#[derive(Debug)]
struct Shape(Geometry, Abilities);

impl Disk for Shape {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn abilities(&self) -> Abilities {
        self.1
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Gone)
    }
}

const GEOMETRY: Geometry = Geometry {
    block_size: 512,
    blocks: 0x1000,
    physical_block_size: 4096,
    read_only: false,
};

const READ_ONLY: Geometry = Geometry {
    read_only: true,
    ..GEOMETRY
};

/// A disk that can do all there is: it knows what is allocated, and writes 8 to 128 blocks at once.
const ABLE: Abilities = Abilities {
    thin: Some(Thin {
        granularity: 4096,
        mapped: true,
    }),
    atomic: Some(Atomic {
        min: 4096,
        max: 65536,
    }),
    optimal: None,
};

fn unit(name: &str, geometry: Geometry) -> Arc<LogicalUnit> {
    unit_with(name, geometry, Abilities::default())
}

fn unit_with(name: &str, geometry: Geometry, abilities: Abilities) -> Arc<LogicalUnit> {
    let disk = Arc::new(Shape(geometry, abilities));
    Arc::new(LogicalUnit::new(name, disk).unwrap())
}

/// A host whose target 0 has these logical units.
fn host(units: impl IntoIterator<Item = (u16, Arc<LogicalUnit>)>) -> Host {
    let units = units.into_iter();
    Host::new(
        crate::scsi::testing::initiator(1),
        units.map(|(lun, unit)| (Address { target: 0, lun }, unit)),
    )
    .unwrap()
}

/// A host with `geometry` as LUN 0, whose power-on attention was taken.
fn target(geometry: Geometry) -> Host {
    target_with(geometry, Abilities::default())
}

/// The same with these abilities.
fn target_with(geometry: Geometry, abilities: Abilities) -> Host {
    let target = host([(0, unit_with("root", geometry, abilities))]);
    let attention = answer(&target, 0, &[0], 0);
    assert_eq!(attention.sense[12..14], [0x29, 0x00]);
    target
}

fn field(lun: u8) -> [u8; 8] {
    [1, 0, 0x40, lun, 0, 0, 0, 0]
}

fn start(target: &Host, lun: [u8; 8], cdb: &[u8], data_out: usize, data_in: usize) -> Step {
    let mut padded = [0; 32];
    padded[..cdb.len()].copy_from_slice(cdb);
    start_with(target, lun, &padded, &vec![0; data_out], data_in)
}

/// The same with these bytes as data-out.
fn start_with(
    target: &Host,
    lun: [u8; 8],
    cdb: &[u8; 32],
    data_out: &[u8],
    data_in: usize,
) -> Step {
    let mut segments = Segments::new(shared_memory(data_out.len().max(1)));
    segments.push(0, data_out.len()).unwrap();
    segments.write_at(0, data_out);
    let buffers = Buffers {
        data_out: &segments,
        data_in,
        tags: crate::scsi::Tags::default(),
    };
    target.start(lun, 0, cdb, buffers)
}

fn answer(target: &Host, lun: u8, cdb: &[u8], data_in: usize) -> Answer {
    match start(target, field(lun), cdb, 0, data_in) {
        Step::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// Data of a command that must be GOOD.
fn data(target: &Host, cdb: &[u8]) -> Vec<u8> {
    let answer = answer(target, 0, cdb, 4096);
    assert_eq!((answer.status, answer.sense), (0, vec![]));
    answer.data
}

/// Key, additional sense code and qualifier of a command that must fail.
fn sense(target: &Host, cdb: &[u8]) -> [u8; 3] {
    let answer = answer(target, 0, cdb, 4096);
    assert_eq!(answer.status, 0x02);
    assert_eq!((answer.sense.len(), answer.sense[7]), (18, 10));
    [answer.sense[2], answer.sense[12], answer.sense[13]]
}

/// Starts a command on LUN 0 with these bytes as data-out, and room for as many data-in bytes.
fn send(target: &Host, cdb: &[u8], data_out: &[u8], data_in: usize) -> Step {
    let mut padded = [0; 32];
    padded[..cdb.len()].copy_from_slice(cdb);
    start_with(target, field(0), &padded, data_out, data_in)
}

/// What a command with this data-out is answered without the disk.
fn answered(target: &Host, cdb: &[u8], data_out: &[u8]) -> Answer {
    match send(target, cdb, data_out, 0) {
        Step::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

/// Sense data of a command with this data-out, which must fail without the disk.
fn refused(target: &Host, cdb: &[u8], data_out: &[u8]) -> Vec<u8> {
    let answer = answered(target, cdb, data_out);
    assert_eq!(answer.status, 0x02);
    answer.sense
}

/// Key, additional sense code and qualifier in fixed-format sense data.
fn code(sense: &[u8]) -> [u8; 3] {
    [sense[2], sense[12], sense[13]]
}

/// ILLEGAL REQUEST, INVALID FIELD IN CDB, at this byte and bit.
fn invalid_field(byte: u8, bit: u8) -> Vec<u8> {
    let pointer = 0xc8 | bit;
    vec![
        0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, pointer, 0, byte,
    ]
}

/// ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE.
const OUT_OF_RANGE: [u8; 3] = [5, 0x21, 0];
/// ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
const INVALID_OPCODE: [u8; 3] = [5, 0x20, 0];

/// A command of 16 bytes: operation code, flags, LBA and number of blocks.
fn cdb_16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn disk_op(step: Step) -> Op {
    match step {
        Step::Disk { op, .. } => op,
        other => panic!("{other:?}"),
    }
}

#[test]
fn power_on_is_reported_once_to_each_lun() {
    let target = host([(0, unit("a", GEOMETRY)), (5, unit("b", GEOMETRY))]);
    for lun in [0, 5] {
        let first = answer(&target, lun, &[0], 0);
        assert_eq!(
            first.sense,
            [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]
        );
        assert_eq!(answer(&target, lun, &[0], 0).status, 0);
    }
    target.establish(
        Scope::Unit(Address { target: 0, lun: 5 }),
        Attention::LogicalUnitReset,
    );
    assert_eq!(answer(&target, 0, &[0], 0).status, 0);
    assert_eq!(answer(&target, 5, &[0], 0).sense[12..14], [0x29, 0x03]);
}

#[test]
fn inquiry_and_report_luns_leave_the_unit_attention_and_request_sense_takes_it() {
    let target = host([(0, unit("a", GEOMETRY))]);
    assert_eq!(answer(&target, 0, &[0x12, 0, 0, 0, 36, 0], 36).status, 0);
    let report_luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    assert_eq!(answer(&target, 0, &report_luns, 16).status, 0);
    let told = data(&target, &[0x03, 0, 0, 0, 18, 0]);
    assert_eq!(
        told,
        [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]
    );
    let nothing = data(&target, &[0x03, 1, 0, 0, 18, 0]);
    assert_eq!(nothing, [0x72, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(answer(&target, 0, &[0], 0).status, 0);
}

#[test]
fn inquiry_is_cut_at_the_allocation_length_and_the_rest_is_residual() {
    let target = target(GEOMETRY);
    let short = answer(&target, 0, &[0x12, 0, 0, 0, 36, 0], 255);
    assert_eq!((short.data.len(), short.residual), (36, 219));
    assert!(matches!(
        start(&target, field(0), &[0x12, 0, 0, 0, 96, 0], 0, 36),
        Step::Overrun
    ));
}

#[test]
fn a_report_without_room_for_it_leaves_the_unit_attention() {
    let target = host([(0, unit("a", GEOMETRY))]);
    for cdb in [[0x03, 0, 0, 0, 18, 0], [0x03, 1, 0, 0, 8, 0]] {
        let room = usize::from(cdb[4]) - 1;
        let step = start(&target, field(0), &cdb, 0, room);
        assert!(matches!(step, Step::Overrun));
    }
    assert_eq!(answer(&target, 0, &[0], 0).sense[12..14], [0x29, 0x00]);
    target.establish(Scope::Host, Attention::ReportedLunsChanged);
    let report_luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    let step = start(&target, field(0), &report_luns, 0, 15);
    assert!(matches!(step, Step::Overrun));
    assert_eq!(answer(&target, 0, &[0], 0).sense[12..14], [0x3f, 0x0e]);
}

#[test]
fn report_luns_lists_what_there_is() {
    let target = host([(0, unit("a", GEOMETRY)), (0x123, unit("b", GEOMETRY))]);
    let report = |select| [0xa0, 0, select, 0, 0, 0, 0, 0, 255, 0, 0, 0];
    let luns = data(&target, &report(0));
    assert_eq!(luns[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
    assert_eq!(luns[8..16], [0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(luns[16..], [0x41, 0x23, 0, 0, 0, 0, 0, 0]);
    let well_known = [0, 0, 0, 8, 0, 0, 0, 0, 0xc1, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(data(&target, &report(1)), well_known);
    assert_eq!(data(&target, &report(2)).len(), 32);
    // There are no administrative units, and none that are subsidiary to one.
    assert_eq!(data(&target, &report(0x10)), [0; 8]);
    assert_eq!(data(&target, &report(0x11)), luns);
    for unknown in [0x03, 0x12, 0xff] {
        assert_eq!(sense(&target, &report(unknown)), [5, 0x24, 0]);
    }
    // At the well-known logical unit itself, as virtio addresses it.
    match start(&target, [0xc1, 1, 0, 0, 0, 0, 0, 0], &report(1), 0, 255) {
        Step::Answer(answer) => assert_eq!(answer.data, well_known),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_lun_at_the_target_says_so() {
    let target = host([(3, unit("a", GEOMETRY))]);
    let inquiry = answer(&target, 0, &[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!((inquiry.status, inquiry.data[0]), (0, 0x7f));
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0];
    assert_eq!(answer(&target, 0, &report, 255).data[8..10], [0, 3]);
    let ready = answer(&target, 1, &[0], 0);
    assert_eq!(
        ready.sense,
        [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        answer(&target, 1, &[3, 0, 0, 0, 18, 0], 18).data[12..14],
        [0x25, 0]
    );
}

#[test]
fn another_target_is_no_target() {
    let target = target(GEOMETRY);
    for lun in [[1, 1, 0x40, 0, 0, 0, 0, 0], [0; 8], [0xff; 8]] {
        assert!(matches!(start(&target, lun, &[0], 0, 0), Step::NoTarget));
    }
}

#[test]
fn a_lun_field_is_understood_in_flat_and_peripheral_form() {
    let target = host([(1, unit("a", GEOMETRY)), (0x123, unit("b", GEOMETRY))]);
    let place = |bytes: [u8; 4]| {
        let [a, b, c, d] = bytes;
        target.place([a, b, c, d, 0, 0, 0, 0])
    };
    assert_eq!(
        place([1, 0, 0x40, 1]),
        Place::Unit(Address { target: 0, lun: 1 })
    );
    assert_eq!(
        place([1, 0, 0, 1]),
        Place::Unit(Address { target: 0, lun: 1 })
    );
    assert_eq!(
        place([1, 0, 0x41, 0x23]),
        Place::Unit(Address {
            target: 0,
            lun: 0x123
        })
    );
    assert_eq!(place([1, 0, 0x40, 2]), Place::NoUnit(0));
    assert_eq!(place([1, 0, 0x01, 0x23]), Place::NoUnit(0), "another bus");
    assert_eq!(place([1, 0, 0x80, 1]), Place::NoUnit(0));
    assert_eq!(place([1, 0, 0xc1, 1]), Place::ReportLuns(0));
    assert_eq!(target.place([1, 0, 0x40, 1, 0, 0, 0, 1]), Place::NoUnit(0));
}

#[test]
fn names_and_luns_that_cannot_be_are_refused() {
    for name in ["", "two words", "größe", &"x".repeat(65)] {
        let disk = Arc::new(Shape(GEOMETRY, Abilities::default()));
        let error = LogicalUnit::new(name, disk).unwrap_err();
        assert_eq!(error, BadName(name.to_owned()));
    }
    let lun = 0x4000;
    let too_far = Host::new(
        crate::scsi::testing::initiator(1),
        [(Address { target: 0, lun }, unit("a", GEOMETRY))],
    )
    .unwrap_err();
    assert_eq!(too_far, BadLun(0x4000));
}
