use super::*;
use crate::scsi::fault::{During, Work};

const WORK: Work = Work {
    during: During::Read,
    lba: 8,
    blocks: 2,
    block_size: 512,
};
const READ: Op = Op::Read {
    offset: 4096,
    len: 1024,
};
const ALL: Checks = Checks::ALL;

fn apply_to(op: Op, then: Then, out: usize, back: usize, field: u8) -> Result<Outcome, Fault> {
    let outcome = Outcome::Disk {
        op,
        work: WORK,
        then,
    };
    apply(outcome, Tags { out, back, field })
}

/// The operation with tags that becomes of `op`.
fn tagged(op: Op, out: usize, back: usize, field: u8) -> Protected {
    match apply_to(op, Then::Moved(1024), out, back, field) {
        Ok(Outcome::Disk {
            op: Op::Protected(what),
            ..
        }) => *what,
        other => panic!("{other:?}"),
    }
}

/// An operation that writes.
fn write() -> Op {
    Op::Write {
        offset: 4096,
        len: 1024,
        fua: false,
        atomic: false,
    }
}

#[test]
fn the_field_decides_what_is_moved_and_checked() {
    // SBC-4, RDPROTECT and WRPROTECT: transferred, guard and reference tag checked.
    for (field, prefix, guard, reference) in [
        (0, 0, true, true),
        (1, 16, true, true),
        (2, 16, false, true),
        (3, 16, false, false),
        (4, 16, true, false),
        (5, 16, true, true),
    ] {
        let checks = Checks { guard, reference };
        let read = tagged(READ, 0, 16, field);
        assert_eq!((read.prefix, read.checks), (prefix, checks), "{field}");
        let written = tagged(write(), 16, 0, field);
        assert_eq!((written.prefix, written.checks), (prefix, checks));
    }
    for field in [6, 7] {
        let fault = apply_to(READ, Then::Moved(1024), 0, 16, field).unwrap_err();
        assert_eq!(fault, Fault::InvalidField { byte: 1, bit: 7 });
    }
}

#[test]
fn tags_that_are_asked_for_need_room() {
    for (room, refused) in [(0, true), (15, false)] {
        for outcome in [
            apply_to(READ, Then::Moved(1024), 16, room, 1),
            apply_to(write(), Then::Moved(1024), room, 16, 1),
        ] {
            match outcome {
                Err(Fault::InvalidField { byte: 1, bit: 7 }) => assert!(refused),
                Ok(Outcome::Overrun) => assert!(!refused),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(tagged(READ, 0, 17, 1).prefix, 17);
    assert_eq!(tagged(READ, 0, 17, 0).prefix, 0, "nobody asked");
}

#[test]
fn zeros_with_a_tag_are_written_like_any_block_and_zeros_that_nobody_sent_have_tags_of_ones() {
    let zero = |unmap| Op::Zero {
        offset: 0,
        len: 1024,
        unmap,
        fua: true,
    };
    let same = Op::WriteSame {
        offset: 0,
        len: 1024,
        fua: true,
    };
    for unmap in [false, true] {
        let what = tagged(zero(unmap), 8, 0, 1);
        assert_eq!((what.op, what.prefix), (same.clone(), 8));
        let what = tagged(zero(unmap), 0, 0, 0);
        assert_eq!(
            (what.op, what.prefix, what.unchecked),
            (zero(unmap), 0, false)
        );
        // NDOB: there is no data that a tag could be of.
        let fault = apply_to(zero(unmap), Then::Moved(0), 8, 0, 1).unwrap_err();
        assert_eq!(fault, FIELD);
        let Ok(Outcome::Disk {
            op: Op::Protected(what),
            ..
        }) = apply_to(zero(unmap), Then::Moved(0), 0, 0, 0)
        else {
            panic!("NDOB");
        };
        assert!(what.unchecked && what.prefix == 0);
    }
}

#[test]
fn blocks_are_given_back_without_tags() {
    let unmap = Op::Unmap {
        ranges: [(0, 1024)].into(),
        fua: false,
    };
    let what = tagged(unmap.clone(), 0, 0, 0);
    assert_eq!((what.op, what.prefix), (unmap, 0));
}

#[test]
fn a_verification_of_the_medium_moves_no_tags() {
    let check = Op::Check {
        offset: 0,
        len: 1024,
    };
    let what = tagged(check.clone(), 0, 0, 4);
    assert_eq!((what.op, what.prefix), (check, 0));
    assert!(what.checks.guard && !what.checks.reference);
}

#[test]
fn a_verification_with_data_checks_and_compares_tags_as_the_field_says() {
    let compare = |same| Op::Compare {
        offset: 0,
        len: 1024,
        same,
    };
    let bits = |checks: Checks| (checks.guard, checks.reference);
    // SBC-4, tables 127 and 128: guard and reference tag that are checked, and compared.
    for (field, checked, compared) in [
        (1, (true, true), (true, true)),
        (2, (false, true), (false, true)),
        (3, (false, false), (true, true)),
        (4, (true, false), (true, true)),
        (5, (true, true), (true, false)),
    ] {
        let what = tagged(compare(false), 16, 0, field);
        assert_eq!((what.prefix, bits(what.checks)), (16, checked), "{field}");
        assert_eq!(bits(what.compares), compared, "{field}");
        // One block has one tag.
        assert_eq!(tagged(compare(true), 8, 0, field).prefix, 8);
        let short = apply_to(compare(false), Then::Moved(1024), 15, 0, field);
        assert!(matches!(short, Ok(Outcome::Overrun)));
    }
    let what = tagged(compare(false), 16, 0, 0);
    assert_eq!((what.prefix, what.checks), (0, ALL));
}

#[test]
fn compare_and_write_has_tags_for_both_instances_and_orwrite_for_its_blocks() {
    let compare_and_write = || Op::CompareAndWrite {
        offset: 0,
        len: 1024,
        fua: true,
    };
    assert_eq!(tagged(compare_and_write(), 32, 0, 1).prefix, 32);
    let half = apply_to(compare_and_write(), Then::Moved(2048), 16, 0, 1);
    assert!(matches!(half, Ok(Outcome::Overrun)));
    let or = Op::Or {
        offset: 0,
        len: 1024,
        fua: true,
    };
    assert_eq!(tagged(or, 16, 0, 1).prefix, 16);
}

#[test]
fn only_commands_that_have_the_field_lose_it() {
    let mut cdb = [0xff; 32];
    for opcode in [
        0x28, 0x2a, 0x2e, 0x2f, 0x41, 0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x93, 0xa8, 0xaa, 0xae,
        0xaf,
    ] {
        cdb[0] = opcode;
        let (field, rest) = take_field(&cdb);
        assert_eq!((field, rest[0], rest[1], rest[2]), (7, opcode, 0x1f, 0xff));
    }
    // FMTPINFO of FORMAT UNIT.
    cdb[0] = 0x04;
    let (field, rest) = take_field(&cdb);
    assert_eq!((field, rest[1], rest[2]), (3, 0x3f, 0xff));
    // READ(6), UNMAP, the 32-byte commands, INQUIRY.
    for opcode in [0x08, 0x42, 0x7f, 0x12] {
        cdb[0] = opcode;
        assert_eq!(take_field(&cdb), (0, cdb));
    }
}

#[test]
fn a_flush_goes_its_way_and_nothing_is_fetched_ahead() {
    let flush = apply_to(Op::Flush, Then::Moved(0), 0, 0, 0);
    assert!(matches!(flush, Ok(Outcome::Disk { op: Op::Flush, .. })));
    let prefetch = Op::Prefetch {
        offset: 0,
        len: 512,
    };
    let nothing = apply_to(prefetch, Then::Moved(0), 0, 0, 0);
    assert!(matches!(nothing, Ok(Outcome::Data(data)) if data.is_empty()));
}
