use std::sync::Arc;

use proptest::prelude::*;

use crate::disk::{DiskError, Geometry, Op, Reply};
use crate::scsi::testing::{
    Bench, READY, Scratch, Shape, ShapedDisk, answered, operated, told, unit,
};
use crate::scsi::{LogicalUnit, Scope, Step};

/// MODE SENSE(6) data without block descriptors.
fn sense_6(bench: &Bench, control: u8, page: u8, subpage: u8) -> Vec<u8> {
    bench.data(&[0x1a, 0x08, control << 6 | page, subpage, 255, 0])
}

/// A MODE SELECT(6) with PF and this parameter list.
fn select_6(bench: &Bench, list: &[u8]) -> (u8, Vec<u8>) {
    let len = u8::try_from(list.len()).unwrap();
    let answer = bench.answer(&[0x15, 0x10, 0, 0, len, 0], list);
    (answer.status, answer.sense)
}

/// Sense of an invalid field in the parameter list.
fn invalid(byte: u16, bit: u8) -> (u8, Vec<u8>) {
    let [high, low] = byte.to_be_bytes();
    let sense = [
        0x70,
        0,
        5,
        0,
        0,
        0,
        0,
        10,
        0,
        0,
        0,
        0,
        0x26,
        0,
        0,
        0x88 | bit,
        high,
        low,
    ];
    (2, sense.to_vec())
}

const LENGTH_ERROR: [u8; 18] = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x1a, 0, 0, 0, 0, 0];

/// A caching page after a short header without block descriptors.
fn caching(wce: bool) -> Vec<u8> {
    let mut list = vec![0, 0, 0, 0, 0x08, 18, if wce { 0x04 } else { 0 }];
    list.resize(4 + 20, 0);
    list
}

/// A control page after a short header without block descriptors.
fn control(d_sense: bool, swp: bool) -> Vec<u8> {
    let mut list = vec![0, 0, 0, 0, 0x0a, 10, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    list[6] |= if d_sense { 0x04 } else { 0 };
    list[8] |= if swp { 0x08 } else { 0 };
    list
}

#[test]
fn every_page_has_its_bytes() {
    let bench = Bench::new(Shape::THIN);
    let page = |code, subpage| sense_6(&bench, 0, code, subpage)[4..].to_vec();
    let padded = |start: &[u8], len| {
        let mut page = start.to_vec();
        page.resize(len, 0);
        page
    };
    assert_eq!(
        page(0x01, 0),
        padded(&[0x01, 0x0a, 0, 0, 0, 0, 0, 0x80], 12)
    );
    assert_eq!(page(0x08, 0), padded(&[0x08, 0x12, 0x04], 20));
    assert_eq!(page(0x0a, 0), padded(&[0x0a, 0x0a, 0x02, 0x10], 12));
    assert_eq!(page(0x0a, 1), padded(&[0x4a, 0x01, 0, 0x1c], 32));
    assert_eq!(page(0x1a, 0), padded(&[0x1a, 0x26], 40));
    assert_eq!(page(0x1c, 0), padded(&[0x1c, 0x0a, 0x08], 12));
    assert_eq!(page(0x1c, 1), padded(&[0x5c, 0x01, 0, 0x0c], 16));
    let mut provisioning = padded(&[0x5c, 0x02, 0, 0x14], 24);
    provisioning[17] = 0x01;
    assert_eq!(page(0x1c, 2), provisioning);
}

#[test]
fn all_pages_come_in_order_and_subpages_only_when_asked_for() {
    let bench = Bench::new(Shape::THIN);
    let plain = sense_6(&bench, 0, 0x3f, 0);
    assert_eq!(plain[..4], [99, 0, 0x10, 0]);
    assert_eq!(plain.len(), 4 + 12 + 20 + 12 + 40 + 12);
    assert_eq!(
        [plain[4], plain[16], plain[36], plain[48], plain[88]],
        [0x01, 0x08, 0x0a, 0x1a, 0x1c]
    );
    let all = sense_6(&bench, 0, 0x3f, 0xff);
    assert_eq!(all.len(), plain.len() + 32 + 16 + 24);
    assert_eq!([all[36], all[48], all[49]], [0x0a, 0x4a, 0x01]);
    let of_control = sense_6(&bench, 0, 0x0a, 0xff);
    assert_eq!(of_control.len(), 4 + 12 + 32);
    // A thick unit has no thresholds.
    let thick = Bench::new(Shape::PLAIN);
    assert_eq!(sense_6(&thick, 0, 0x3f, 0xff).len(), plain.len() + 32 + 16);
}

#[test]
fn pages_that_there_are_not_are_invalid_fields() {
    let bench = Bench::new(Shape::PLAIN);
    let pointer = |cdb: &[u8]| bench.sense(cdb)[12..].to_vec();
    for page in [0x02, 0x04, 0x19] {
        let cdb = [0x1a, 0x08, page, 0, 255, 0];
        assert_eq!(pointer(&cdb), [0x24, 0, 0, 0xcd, 0, 2]);
    }
    for (page, subpage) in [(0x08, 1), (0x0a, 2), (0x1c, 2), (0x3f, 1)] {
        let cdb = [0x1a, 0x08, page, subpage, 255, 0];
        assert_eq!(pointer(&cdb), [0x24, 0, 0, 0xcf, 0, 3]);
    }
}

#[test]
fn page_0_is_the_header_alone() {
    let bench = Bench::new(Shape::PLAIN);
    assert_eq!(sense_6(&bench, 0, 0, 0), [3, 0, 0x10, 0]);
    assert_eq!(
        bench.sense(&[0x1a, 0x08, 0x40, 0, 255, 0])[12..14],
        [0x24, 0]
    );
}

#[test]
fn block_descriptors_are_short_long_or_left_out() {
    let bench = Bench::new(Shape::PLAIN);
    let short = bench.data(&[0x1a, 0, 0x0a, 0, 255, 0]);
    assert_eq!(short[..4], [23, 0, 0x10, 8]);
    assert_eq!(short[4..12], [0, 0, 0x10, 0, 0, 0, 2, 0]);
    let long_header = bench.data(&[0x5a, 0, 0x0a, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!(long_header[..8], [0, 26, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(long_header[8..16], [0, 0, 0x10, 0, 0, 0, 2, 0]);
    let long = bench.data(&[0x5a, 0x10, 0x0a, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!(long[..8], [0, 34, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(
        long[8..24],
        [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 2, 0]
    );
    let none = bench.data(&[0x5a, 0x18, 0x0a, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!(none[..8], [0, 18, 0, 0x10, 0, 0, 0, 0]);
    // It is cut where the initiator says.
    assert_eq!(bench.data(&[0x1a, 0, 0x0a, 0, 4, 0]), [23, 0, 0x10, 8]);
}

#[test]
fn a_large_unit_has_all_ones_in_a_short_block_descriptor() {
    let bench = Bench::new(Shape {
        geometry: Geometry {
            block_size: 4096,
            blocks: 0x1_0000_0000,
            physical_block_size: 4096,
            read_only: false,
        },
        ..Shape::PLAIN
    });
    let short = bench.data(&[0x1a, 0, 0x0a, 0, 255, 0]);
    assert_eq!(short[4..12], [0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0]);
}

#[test]
fn a_read_only_unit_is_write_protected() {
    let bench = Bench::new(Shape {
        geometry: Geometry {
            read_only: true,
            ..Shape::PLAIN.geometry
        },
        ..Shape::PLAIN
    });
    assert_eq!(sense_6(&bench, 0, 0x08, 0)[2], 0x90);
}

#[test]
fn what_can_be_changed_is_a_mask() {
    let bench = Bench::new(Shape::THIN);
    let mask = |code, subpage| sense_6(&bench, 1, code, subpage)[4..].to_vec();
    let ones = |page: Vec<u8>, header: usize| {
        let parameters = page.into_iter().enumerate().skip(header);
        parameters
            .filter(|(_, mask)| *mask != 0)
            .collect::<Vec<_>>()
    };
    assert_eq!(ones(mask(0x01, 0), 2), []);
    assert_eq!(ones(mask(0x08, 0), 2), [(2, 0x04)]);
    assert_eq!(ones(mask(0x0a, 0), 2), [(2, 0x04), (4, 0x08)]);
    assert_eq!(ones(mask(0x0a, 1), 4), []);
    assert_eq!(
        ones(mask(0x1c, 2), 4),
        [(16, 0x80), (20, 0xff), (21, 0xff), (22, 0xff), (23, 0xff)]
    );
    assert_eq!(mask(0x0a, 0)[..2], [0x0a, 0x0a], "the header is no mask");
}

#[test]
fn d_sense_turns_sense_into_descriptors() {
    let bench = Bench::new(Shape::PLAIN);
    assert_eq!(select_6(&bench, &control(true, false)), (0, vec![]));
    assert_eq!(sense_6(&bench, 0, 0x0a, 0)[6], 0x06);
    assert_eq!(sense_6(&bench, 2, 0x0a, 0)[6], 0x02, "the default");
    // An operation code that there is not, and a block.
    assert_eq!(bench.sense(&[0xff]), [0x72, 5, 0x20, 0, 0, 0, 0, 0]);
    let past_end = [0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0];
    assert_eq!(
        bench.sense(&past_end),
        [
            0x72, 5, 0x21, 0, 0, 0, 0, 12, 0x00, 0x0a, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x10, 0
        ]
    );
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let Step::Disk { pending, .. } = bench.start(&read, &[], 512) else {
        panic!("no operation")
    };
    let failed = pending.finish(Err(crate::disk::DiskError::Gone));
    assert_eq!(failed.sense[..4], [0x72, 2, 0x3a, 0]);
    assert_eq!(select_6(&bench, &control(false, false)), (0, vec![]));
    assert_eq!(bench.sense(&[0xff])[0], 0x70);
}

#[test]
fn software_write_protection_refuses_writes_until_it_is_taken_away() {
    let bench = Bench::new(Shape::THIN);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let select = [0x15, 0x10, 0, 0, 16, 0];
    // What was written before is written for good.
    let (op, answer) = operated(bench.start(&select, &control(false, true), 0));
    assert_eq!((op, answer.status), (Op::Flush, 0));
    assert_eq!(sense_6(&bench, 0, 0x0a, 0)[2], 0x90, "WP");
    assert_eq!(sense_6(&bench, 0, 0x0a, 0)[8], 0x08, "SWP");
    let refused = bench.answer(&write, &[0; 512]);
    assert_eq!(
        refused.sense,
        [
            0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0x02, 0, 0, 0, 0
        ]
    );
    assert_eq!(refused.residual, 512 + 4096);
    for cdb in [
        [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0].as_slice(),
        &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
    ] {
        let answer = answered(bench.start(cdb, &[0; 4096], 0));
        assert_eq!(told(&answer), (2, [0x27, 0x02]), "{cdb:x?}");
    }
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(operated(bench.start(&read, &[], 512)).1.status, 0);
    assert_eq!(select_6(&bench, &control(false, false)), (0, vec![]));
    assert_eq!(operated(bench.start(&write, &[0; 512], 0)).1.status, 0);
}

const UNMAP: [u8; 10] = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
/// Its parameter list with one descriptor: 1 block from LBA 0 on.
const FIRST_BLOCK: [u8; 24] = [
    0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
];

#[test]
fn without_a_write_cache_every_write_is_to_stable_storage() {
    let bench = Bench::new(Shape::THIN);
    let fua = || {
        let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        let written = match operated(bench.start(&write, &[0; 512], 0)).0 {
            Op::Write { fua, .. } => fua,
            other => panic!("{other:?}"),
        };
        match operated(bench.start(&UNMAP, &FIRST_BLOCK, 0)).0 {
            Op::Unmap { fua, .. } => assert_eq!(fua, written),
            other => panic!("{other:?}"),
        }
        written
    };
    assert!(!fua());
    let select = [0x15, 0x10, 0, 0, 24, 0];
    // Initiators send no more SYNCHRONIZE CACHE from now on.
    let (op, answer) = operated(bench.start(&select, &caching(false), 0));
    assert_eq!((op, answer.status, answer.residual), (Op::Flush, 0, 0));
    assert!(fua());
    assert_eq!(sense_6(&bench, 0, 0x08, 0)[6], 0);
    assert_eq!(select_6(&bench, &caching(true)), (0, vec![]));
    assert!(!fua());
}

#[test]
fn a_write_that_the_end_of_the_write_cache_overtakes_is_to_be_tried_again() {
    let bench = Bench::new(Shape::THIN);
    let begun = |cdb: &[u8], data_out: &[u8]| match bench.start(cdb, data_out, 512) {
        Step::Disk { pending, .. } => pending,
        other => panic!("{other:?}"),
    };
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let write_fua = [0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0];
    let or = [0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let same = [0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let done = begun(&write, &[0; 512]).finish(Ok(Reply::Done));
    assert_eq!(done.status, 0x00);
    let volatile = [&write[..], &or, &same].map(|cdb| begun(cdb, &[1; 512]));
    let zeros = begun(&same, &[0; 512]);
    let given_back = begun(&UNMAP, &FIRST_BLOCK);
    let lasting = [&write_fua, &read].map(|cdb| begun(cdb, &[0; 512]));
    let failing = begun(&write, &[0; 512]);
    let select = [0x15, 0x10, 0, 0, 24, 0];
    let (op, answer) = operated(bench.start(&select, &caching(false), 0));
    assert_eq!((op, answer.status), (Op::Flush, 0));
    // The flush came before they were done, and there will be no other: not GOOD, but BUSY.
    for pending in volatile.into_iter().chain([zeros]) {
        let answer = pending.finish(Ok(Reply::Done));
        assert_eq!((answer.status, answer.sense), (0x08, vec![]));
        assert_eq!(answer.residual, 1024);
    }
    assert_eq!(given_back.finish(Ok(Reply::Done)).status, 0x08);
    for pending in lasting {
        assert_eq!(pending.finish(Ok(Reply::Done)).status, 0x00);
    }
    let answer = failing.finish(Err(DiskError::Io(5)));
    assert_eq!(told(&answer), (0x02, [0x0c, 0x00]), "what is worse is told");
    assert_eq!(operated(bench.start(&write, &[0; 512], 0)).1.status, 0x00);
}

#[test]
fn mode_select_10_takes_long_headers_and_block_descriptors_that_change_nothing() {
    let bench = Bench::new(Shape::PLAIN);
    let select = |list: &[u8]| {
        let len = u8::try_from(list.len()).unwrap();
        let answer = bench.answer(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, len, 0], list);
        (answer.status, answer.sense)
    };
    let page = &control(true, false)[4..];
    let long = |blocks: [u8; 8], size: [u8; 4]| {
        let mut list = vec![0, 0, 0, 0, 1, 0, 0, 16];
        list.extend(blocks);
        list.extend([0; 4]);
        list.extend(size);
        list.extend(page);
        select(&list)
    };
    let good = (0, vec![]);
    let blocks = [0, 0, 0, 0, 0, 0, 0x10, 0];
    assert_eq!(long(blocks, [0, 0, 2, 0]), good);
    assert_eq!(long([0; 8], [0, 0, 2, 0]), good);
    assert_eq!(long([0xff; 8], [0, 0, 2, 0]), good);
    assert_eq!(
        long([0, 0, 0, 0, 0, 0, 0x10, 1], [0, 0, 2, 0]),
        invalid(8, 7).in_descriptors()
    );
    assert_eq!(
        long(blocks, [0, 0, 0x10, 0]),
        invalid(20, 7).in_descriptors()
    );
    let short = |blocks: [u8; 4], size: [u8; 4]| {
        let mut list = vec![0, 0, 0, 0, 0, 0, 0, 8];
        list.extend(blocks);
        list.extend(size);
        list.extend(page);
        select(&list)
    };
    assert_eq!(short([0, 0, 0x10, 0], [0, 0, 2, 0]), good);
    assert_eq!(short([0, 0, 0, 0], [0, 0, 2, 0]), good);
    assert_eq!(
        short([0, 0, 0, 9], [0, 0, 2, 0]),
        invalid(8, 7).in_descriptors()
    );
    // A long descriptor without LONGLBA.
    let mut list = vec![0, 0, 0, 0, 0, 0, 0, 16];
    list.resize(24, 0);
    assert_eq!(select(&list), invalid(6, 7).in_descriptors());
}

/// The same in descriptor format.
trait InDescriptors {
    fn in_descriptors(self) -> Self;
}

impl InDescriptors for (u8, Vec<u8>) {
    fn in_descriptors(self) -> Self {
        let (status, fixed) = self;
        let mut sense = vec![0x72, 5, 0x26, 0, 0, 0, 0, 8, 0x02, 0x06, 0, 0];
        sense.extend(&fixed[15..18]);
        sense.push(0);
        (status, sense)
    }
}

#[test]
fn a_parameter_list_is_good_as_a_whole_or_changes_nothing() {
    let bench = Bench::new(Shape::THIN);
    let before = sense_6(&bench, 0, 0x3f, 0xff);
    let with = |at: usize, value: u8| {
        // D_SENSE first, which must not come into effect, then a caching page that is wrong.
        let mut list = control(true, false);
        list.extend(&caching(true)[4..]);
        list[at] = value;
        select_6(&bench, &list)
    };
    for (at, value, expected) in [
        (1, 0x01, invalid(1, 7)),   // MEDIUM TYPE
        (3, 4, invalid(3, 7)),      // BLOCK DESCRIPTOR LENGTH
        (4, 0x0b, invalid(4, 5)),   // no such page
        (4, 0x4a, invalid(5, 7)),   // no such subpage
        (5, 11, invalid(5, 7)),     // PAGE LENGTH
        (6, 0x26, invalid(6, 5)),   // TST
        (7, 0x12, invalid(7, 1)),   // QERR
        (9, 0x40, invalid(9, 6)),   // TAS
        (16, 0x3f, invalid(16, 5)), // "all pages" is none
        (18, 0x05, invalid(18, 0)), // RCD
        (20, 0x01, invalid(20, 0)), // a reserved byte
        (35, 0x80, invalid(35, 7)), // the last byte
    ] {
        assert_eq!(with(at, value), expected, "byte {at}");
        assert_eq!(sense_6(&bench, 0, 0x3f, 0xff), before, "byte {at}");
    }
}

#[test]
fn a_parameter_list_that_ends_too_early_is_a_length_error() {
    let bench = Bench::new(Shape::PLAIN);
    let list = caching(false);
    for len in 1..list.len() {
        // A header alone is a list without pages.
        let expected = if len == 4 {
            (0, vec![])
        } else {
            (2, LENGTH_ERROR.to_vec())
        };
        assert_eq!(select_6(&bench, &list[..len]), expected, "{len} bytes");
    }
    let descriptor = [0, 0, 0, 8, 0, 0, 0];
    assert_eq!(select_6(&bench, &descriptor), (2, LENGTH_ERROR.to_vec()));
    assert_eq!(select_6(&bench, &[]), (0, vec![]), "nothing to change");
    assert_eq!(sense_6(&bench, 0, 0x08, 0)[6], 0x04);
}

#[test]
fn data_out_that_is_shorter_than_the_list_is_an_overrun() {
    let bench = Bench::new(Shape::PLAIN);
    let step = bench.start(&[0x15, 0x10, 0, 0, 24, 0], &caching(false)[..23], 0);
    assert!(matches!(step, Step::Overrun));
    assert_eq!(sense_6(&bench, 0, 0x08, 0)[6], 0x04);
}

#[test]
fn what_is_left_of_data_out_is_residual() {
    let bench = Bench::new(Shape::PLAIN);
    let mut data_out = control(true, false);
    data_out.resize(100, 0xff);
    let answer = answered(bench.start(&[0x15, 0x10, 0, 0, 16, 0], &data_out, 0));
    assert_eq!((answer.status, answer.residual), (0, 84));
}

#[test]
fn what_mode_sense_told_can_be_sent_back() {
    let bench = Bench::new(Shape::THIN);
    // With PS, MODE DATA LENGTH and the device-specific parameter as they came.
    let scratch = Scratch::new();
    let saving = Arc::new(unit(Shape::THIN).with_state(scratch.path().join("state")));
    for bench in [bench, Bench::of(&saving)] {
        let list = bench.data(&[0x1a, 0, 0x3f, 0xff, 255, 0]);
        assert_eq!(select_6(&bench, &list), (0, vec![]));
    }
}

#[test]
fn pages_of_a_vendor_are_an_invalid_field_in_the_cdb() {
    let bench = Bench::new(Shape::PLAIN);
    let answer = bench.answer(&[0x15, 0, 0, 0, 24, 0], &caching(true));
    assert_eq!(answer.sense[12..], [0x24, 0, 0, 0xcc, 0, 1]);
}

#[test]
fn without_a_file_nothing_is_saved() {
    let bench = Bench::new(Shape::PLAIN);
    let save = bench.answer(&[0x15, 0x11, 0, 0, 24, 0], &caching(true));
    assert_eq!(save.sense[12..], [0x24, 0, 0, 0xc8, 0, 1]);
    let saved = bench.sense(&[0x1a, 0x08, 0xc8, 0, 255, 0]);
    assert_eq!(saved[12..14], [0x39, 0]);
    assert_eq!(sense_6(&bench, 0, 0x08, 0)[4], 0x08, "PS");
}

#[test]
fn saved_values_outlive_resets_and_the_appliance() {
    let scratch = Scratch::new();
    let path = scratch.path().join("root");
    let shown = Arc::new(unit(Shape::PLAIN).with_state(&path));
    let bench = Bench::of(&shown);
    let d_sense = |bench: &Bench, control| sense_6(bench, control, 0x0a, 0)[6] & 0x04;
    assert_eq!(sense_6(&bench, 0, 0x0a, 0)[4], 0x8a, "PS");
    assert_eq!(d_sense(&bench, 3), 0, "saved is the default");
    let save = bench.answer(&[0x15, 0x11, 0, 0, 16, 0], &control(true, false));
    assert_eq!(save.status, 0);
    assert_eq!(select_6(&bench, &control(false, false)), (0, vec![]));
    assert_eq!([0, 2, 3].map(|pc| d_sense(&bench, pc)), [0, 0, 4]);
    bench
        .host
        .reset(Scope::Host, crate::scsi::Attention::LogicalUnitReset);
    assert_eq!(bench.sense(&[0])[..4], [0x72, 6, 0x29, 0x03]);
    assert_eq!([0, 2, 3].map(|pc| d_sense(&bench, pc)), [4, 0, 4]);
    drop(bench);
    let again = Arc::new(unit(Shape::PLAIN).with_state(&path));
    let bench = Bench::fresh([(0, again)]);
    assert_eq!(bench.sense(&[0])[0], 0x72);
    assert_eq!(d_sense(&bench, 0), 4);
}

#[test]
fn a_reset_that_ends_caching_is_told_when_all_is_on_stable_storage() {
    let scratch = Scratch::new();
    let path = scratch.path().join("root");
    let disk = ShapedDisk::new(Shape::PLAIN);
    let new = || LogicalUnit::new("root", Arc::clone(&disk) as _).unwrap();
    let shown = Arc::new(new().with_state(&path));
    let bench = Bench::of(&shown);
    let wce = |bench: &Bench| sense_6(bench, 0, 0x08, 0)[6] & 0x04;
    let save = operated(bench.start(&[0x15, 0x11, 0, 0, 24, 0], &caching(false), 0));
    assert_eq!((save.0, wce(&bench)), (Op::Flush, 0));
    assert_eq!(select_6(&bench, &caching(true)), (0, vec![]));
    let before = disk.flushes();

    let lun = crate::scsi::Attention::LogicalUnitReset;
    bench.host.reset(Scope::Host, lun);

    assert_eq!(bench.sense(&[0])[12..14], [0x29, 0x03]);
    assert_eq!(wce(&bench), 0x04, "not yet");
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    match operated(bench.start(&write, &[0; 512], 0)).0 {
        Op::Write { fua, .. } => assert!(fua, "nobody flushes it later"),
        other => panic!("{other:?}"),
    }
    // Who ends caching before that has it flushed.
    let select = [0x15, 0x10, 0, 0, 24, 0];
    assert_eq!(
        operated(bench.start(&select, &caching(false), 0)).0,
        Op::Flush
    );
    assert_eq!(shown.look(), [crate::scsi::Attention::ModeChanged]);
    assert_eq!(disk.flushes(), before + 1);
    assert_eq!(bench.sense(&[0])[12..14], [0x2a, 0x01]);
    assert_eq!(wce(&bench), 0);
    assert_eq!(shown.look(), []);
    assert_eq!(disk.flushes(), before + 1);

    // A new appliance knows nothing of what the one before it cached.
    let again = Bench::of(&Arc::new(new().with_state(&path)));
    assert_eq!((disk.flushes(), wce(&again)), (before + 2, 0));
}

#[test]
fn a_damaged_file_leaves_the_defaults_until_something_is_saved() {
    let scratch = Scratch::new();
    let path = scratch.path().join("root");
    std::fs::write(&path, "nonsense").unwrap();
    let bench = Bench::of(&Arc::new(unit(Shape::PLAIN).with_state(&path)));
    assert_eq!(sense_6(&bench, 0, 0x08, 0)[6], 0x04);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "nonsense");
    let save = bench.answer(&[0x15, 0x11, 0, 0, 16, 0], &control(true, false));
    assert_eq!(save.status, 0);
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .contains("\nversion = 1\n")
    );
}

#[test]
fn what_cannot_be_saved_is_not_in_effect_either() {
    let scratch = Scratch::new();
    let path = scratch.path().join("no-directory").join("root");
    let bench = Bench::of(&Arc::new(unit(Shape::PLAIN).with_state(path)));
    let save = bench.answer(&[0x15, 0x11, 0, 0, 16, 0], &control(true, false));
    assert_eq!(
        save.sense,
        [0x70, 0, 4, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x44, 0, 0, 0, 0, 0]
    );
    assert_eq!(sense_6(&bench, 0, 0x0a, 0)[6], 0x02);
}

#[test]
fn others_are_told_of_a_change_and_whoever_made_it_is_not() {
    let shared = Arc::new(unit(Shape::PLAIN));
    let (one, other) = (Bench::of(&shared), Bench::of(&shared));
    assert_eq!(select_6(&one, &control(false, false)), (0, vec![]));
    assert_eq!(other.ready(), READY, "nothing has changed");
    assert_eq!(select_6(&one, &control(true, false)), (0, vec![]));
    assert_eq!(one.ready(), READY);
    // Parameters are shared: sense is in descriptor format for the other too.
    assert_eq!(other.sense(&[0]), [0x72, 6, 0x2a, 0x01, 0, 0, 0, 0]);
    assert_eq!(other.ready(), READY);
}

proptest! {
    #[test]
    fn no_parameter_list_makes_a_unit_panic_or_changes_what_cannot_be_changed(
        list in proptest::collection::vec(any::<u8>(), 0..80),
        start in 0..5usize,
        long: bool,
    ) {
        // Half of them start as good ones do.
        let good: [&[u8]; 5] = [
            &[],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0, 0x0a, 10, 0x06, 0x10],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0x08, 18],
        ];
        let bench = Bench::new(Shape::THIN);
        let list = [good[start], &list].concat();
        let len = u8::try_from(list.len()).unwrap();
        let cdb: &[u8] = if long {
            &[0x55, 0x10, 0, 0, 0, 0, 0, 0, len, 0]
        } else {
            &[0x15, 0x10, 0, 0, len, 0]
        };
        let before = sense_6(&bench, 0, 0x3f, 0xff);
        let mask = sense_6(&bench, 1, 0x3f, 0xff);
        let _ = bench.start(cdb, &list, 0);
        let after = sense_6(&bench, 0, 0x3f, 0xff);
        for (at, (before, after)) in before.iter().zip(&after).enumerate().skip(4) {
            let fixed = if at < 4 { 0xff } else { !mask[at] };
            prop_assert_eq!(before & fixed, after & fixed, "byte {}", at);
        }
    }
}
