use std::sync::Arc;

use proptest::prelude::*;

use super::{
    Address, Answer, Attention, BadLun, BadName, Buffers, Host, LogicalUnit, Place, Scope, Step,
};
use crate::disk::{Disk, DiskError, Geometry, Op, OpenFile, Reply};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;

/// A disk that is never read or written.
#[derive(Debug)]
struct Shape(Geometry);

impl Disk for Shape {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn file_for(&self, _: &Op) -> Result<Arc<OpenFile>, DiskError> {
        Err(DiskError::Gone)
    }
}

const GEOMETRY: Geometry = Geometry {
    block_size: 512,
    blocks: 0x1000,
    physical_block_size: 4096,
    read_only: false,
};

fn unit(name: &str, geometry: Geometry) -> Arc<LogicalUnit> {
    Arc::new(LogicalUnit::new(name, Arc::new(Shape(geometry))).unwrap())
}

/// A host whose target 0 has these logical units.
fn host(units: impl IntoIterator<Item = (u16, Arc<LogicalUnit>)>) -> Host {
    let units = units.into_iter();
    Host::new(units.map(|(lun, unit)| (Address { target: 0, lun }, unit))).unwrap()
}

/// A host with `geometry` as LUN 0, whose power-on attention was taken.
fn target(geometry: Geometry) -> Host {
    let target = host([(0, unit("root", geometry))]);
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
    let data_out = &segments;
    target.start(lun, 0, cdb, Buffers { data_out, data_in })
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
fn capacity_is_the_last_block() {
    let small = target(GEOMETRY);
    let capacity_10 = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capacity_16 = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    assert_eq!(data(&small, &capacity_10), [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
    let long = data(&small, &capacity_16);
    assert_eq!(
        long[..16],
        [0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0, 0, 3, 0, 0]
    );
    assert_eq!(long.len(), 32);

    let large = target(Geometry {
        blocks: 0x1_0000_0001,
        block_size: 4096,
        ..GEOMETRY
    });
    assert_eq!(
        data(&large, &capacity_10),
        [0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0]
    );
    assert_eq!(
        data(&large, &capacity_16)[..14],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]
    );
}

#[test]
fn a_read_only_unit_is_write_protected() {
    let target = target(Geometry {
        read_only: true,
        ..GEOMETRY
    });
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(sense(&target, &write), [7, 0x27, 0]);
    assert_eq!(data(&target, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), []);
}

#[test]
fn a_read_becomes_an_operation_in_bytes_and_then_good() {
    let target = target(GEOMETRY);
    let read = [0x28, 0, 0, 0, 0, 0x10, 0, 0, 8, 0];
    let Step::Disk { op, pending, .. } = start(&target, field(0), &read, 0, 5000) else {
        panic!("no operation")
    };
    assert_eq!(
        op,
        Op::Read {
            offset: 0x2000,
            len: 4096
        }
    );
    let good = pending.finish(Ok(Reply::Done));
    assert_eq!((good.status, good.residual), (0, 904));
    assert!(good.data.is_empty() && good.sense.is_empty());
}

#[test]
fn a_write_with_fua_asks_for_stable_storage() {
    let write = [0x8a, 0x08, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0];
    assert_eq!(
        disk_op(start(&target(GEOMETRY), field(0), &write, 512, 0)),
        Op::Write {
            offset: 1024,
            len: 512,
            fua: true,
            atomic: false
        }
    );
}

#[test]
fn synchronize_cache_and_stop_flush() {
    let target = target(GEOMETRY);
    for cdb in [
        [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(),
        &[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x1b, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(disk_op(start(&target, field(0), cdb, 0, 0)), Op::Flush);
    }
    assert_eq!(data(&target, &[0x1b, 0, 0, 0, 1, 0]), []);
    assert_eq!(sense(&target, &[0x1b, 0, 0, 0, 2, 0]), [5, 0x24, 0]);
}

#[test]
fn read_past_end_reports_lba_out_of_range() {
    let target = target(GEOMETRY);
    let across = [0x28, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0];
    let answer = answer(&target, 0, &across, 1024);
    assert_eq!(
        answer.sense,
        [
            0xf0, 0, 5, 0, 0, 0x10, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0
        ]
    );
    assert_eq!(answer.residual, 1024);
    // Not even nothing can be read there.
    let nothing = [0x28, 0, 0, 0, 0x10, 0, 0, 0, 0, 0];
    assert_eq!(sense(&target, &nothing), [5, 0x21, 0]);
    let wrapping = [
        0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0,
    ];
    assert_eq!(sense(&target, &wrapping), [5, 0x21, 0]);
}

#[test]
fn buffers_smaller_than_the_transfer_are_an_overrun() {
    let target = target(GEOMETRY);
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    assert!(matches!(
        start(&target, field(0), &read, 8192, 4095),
        Step::Overrun
    ));
    assert!(matches!(
        start(&target, field(0), &write, 4095, 8192),
        Step::Overrun
    ));
}

#[test]
fn a_disk_failure_becomes_sense_or_a_status() {
    let target = target(GEOMETRY);
    let read = [0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0];
    let write = [0x2a, 0, 0, 0, 0, 7, 0, 0, 1, 0];
    let outcome = |cdb: &[u8], error| match start(&target, field(0), cdb, 512, 512) {
        Step::Disk { pending, .. } => pending.finish(Err(error)),
        other => panic!("{other:?}"),
    };
    let medium = outcome(&read, DiskError::Io(libc::EIO));
    assert_eq!((medium.status, medium.residual), (2, 1024));
    assert_eq!(
        medium.sense,
        [0xf0, 0, 3, 0, 0, 0, 7, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
    );
    let full = outcome(&write, DiskError::NoSpace);
    assert_eq!(
        [full.sense[2], full.sense[12], full.sense[13]],
        [7, 0x27, 7]
    );
    assert_eq!(outcome(&write, DiskError::Busy).status, 0x08);
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
fn supported_operation_codes_come_from_the_table() {
    let target = target(GEOMETRY);
    let all = data(&target, &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(all[..4], [0, 0, 0, 21 * 8]);
    assert_eq!(all[4..12], [0x00, 0, 0, 0, 0, 0, 0, 6]);
    let one = |options, opcode, action| {
        let cdb = [0xa3, 0x0c, options, opcode, 0, action, 0, 0, 1, 0, 0, 0];
        answer(&target, 0, &cdb, 256)
    };
    assert_eq!(
        one(1, 0x28, 0).data,
        [
            0, 3, 0, 10, 0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0
        ]
    );
    assert_eq!(one(2, 0x9e, 0x10).data[..6], [0, 3, 0, 16, 0x9e, 0x10]);
    assert_eq!(one(3, 0x9e, 0x10).data[..4], [0, 3, 0, 16]);
    assert_eq!(one(1, 0x42, 0).data, [0, 1, 0, 0]);
    assert_eq!(one(3, 0xa3, 0x0a).data, [0, 1, 0, 0]);
    assert_eq!(one(1, 0x9e, 0).sense[12], 0x24);
    assert_eq!(one(2, 0x28, 0).sense[12], 0x24);
    assert_eq!(one(4, 0x28, 0).sense[12], 0x24);
    let timed = one(0x81, 0x00, 0).data;
    assert_eq!(timed[..4], [0, 0x83, 0, 6]);
    assert_eq!(timed[10..12], [0, 10]);
}

#[test]
fn names_and_luns_that_cannot_be_are_refused() {
    for name in ["", "two words", "größe", &"x".repeat(65)] {
        let disk = Arc::new(Shape(GEOMETRY));
        let error = LogicalUnit::new(name, disk).unwrap_err();
        assert_eq!(error, BadName(name.to_owned()));
    }
    let lun = 0x4000;
    let too_far = Host::new([(Address { target: 0, lun }, unit("a", GEOMETRY))]).unwrap_err();
    assert_eq!(too_far, BadLun(0x4000));
}

proptest! {
    #[test]
    fn whatever_a_tenant_sends_stays_inside_its_buffers_and_the_disk(
        lun: [u8; 2],
        mut cdb: [u8; 32],
        known in 0..super::table::TABLE.len(),
        plain: bool,
        data_out in 0..70_000usize,
        data_in in 0..70_000usize,
    ) {
        let target = host([(0, unit("a", GEOMETRY))]);
        let _ = start(&target, field(0), &[0], 0, 0);
        cdb[0] = super::table::TABLE[known].code;
        if plain {
            cdb[1] = super::table::TABLE[known].service_action.unwrap_or(0).to_be_bytes()[1];
            cdb[2..9].fill(0);
            cdb[9..].fill(0);
            cdb[8] = lun[0];
        }
        let address = if plain { [1, 0, 0x40, 0] } else { [1, lun[0] & 1, lun[1], 0] };
        let address = [address[0], address[1], address[2], address[3], 0, 0, 0, 0];
        match start_with(&target, address, &cdb, &vec![0; data_out], data_in) {
            Step::Answer(answer) => prop_assert!(answer.data.len() <= data_in),
            Step::Disk { op: Op::Read { offset, len }, .. } => {
                prop_assert!(len <= data_in && offset + len as u64 <= 0x1000 * 512);
            }
            Step::Disk { op: Op::Write { offset, len, .. }, .. } => {
                prop_assert!(len <= data_out && offset + len as u64 <= 0x1000 * 512);
            }
            Step::Disk { .. } | Step::NoTarget | Step::Overrun => {}
        }
    }
}
