//! Identifying information, the clock, diagnostics, the echo buffer.

use super::*;
use crate::scsi::testing::{self, Bench, READY, Scratch, told};

fn kept(scratch: &Scratch) -> Arc<LogicalUnit> {
    let at = |name: &str| scratch.path().join(name);
    let unit = testing::unit(testing::Shape::PLAIN);
    Arc::new(unit.with_upkeep(at("information"), at("erasing")).unwrap())
}

/// REPORT IDENTIFYING INFORMATION of this type.
fn report(kind: u8) -> [u8; 12] {
    [0xa3, 0x05, 0, 0, 0, 0, 0, 0, 1, 255, kind << 1, 0]
}

/// SET IDENTIFYING INFORMATION of this type.
fn set(kind: u8, len: u16) -> [u8; 12] {
    let [high, low] = len.to_be_bytes();
    [0xa4, 0x06, 0, 0, 0, 0, 0, 0, high, low, kind << 1, 0]
}

const GOOD: (u8, [u8; 2]) = (0, [0, 0]);

#[test]
fn identifying_information_is_there_for_everyone_and_after_a_restart() {
    let scratch = Scratch::new();
    let unit = kept(&scratch);
    let (one, other) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
    assert_eq!(one.data(&report(0)), [0, 0, 0, 0]);
    let answer = one.answer(&set(0, 3), &[7, 0, 9]);
    assert_eq!((told(&answer), answer.residual), (GOOD, 4096));
    assert_eq!(other.ready(), (2, [0x3f, 0x05]));
    assert_eq!(told(&one.answer(&set(2, 3), b"hi\0")), GOOD);
    assert_eq!(one.ready(), READY);
    drop((one, other, unit));
    let again = Bench::of(&kept(&scratch));
    assert_eq!(again.data(&report(0)), [0, 0, 0, 3, 7, 0, 9]);
    assert_eq!(again.data(&report(2)), *b"\0\0\0\x03hi\0");
    assert_eq!(told(&again.answer(&set(0, 0), &[])), GOOD);
    assert_eq!(again.data(&report(0)), [0, 0, 0, 0]);
}

#[test]
fn types_and_lengths_of_identifying_information_are_limited() {
    let scratch = Scratch::new();
    let bench = Bench::of(&kept(&scratch));
    assert_eq!(
        bench.data(&report(0x7f)),
        [0, 0, 0, 8, 0x00, 0, 0, 64, 0x04, 0, 1, 0]
    );
    assert_eq!(bench.sense(&report(1)), invalid_field(10, 7));
    let sent = |kind, len: u16| bench.answer(&set(kind, len), &vec![0; len.into()]).sense;
    assert_eq!(sent(1, 1), invalid_field(10, 7));
    assert_eq!(sent(0, 65), invalid_field(6, 7));
    assert_eq!(sent(2, 257), invalid_field(6, 7));
    let no_text = bench.answer(&set(2, 2), b"hi");
    assert_eq!(told(&no_text), (2, [0x26, 0x00]));
    assert!(matches!(bench.start(&set(0, 8), &[0; 7], 0), Step::Overrun));
}

#[test]
fn without_state_there_is_no_identifying_information_and_no_sanitize() {
    let target = target(GEOMETRY);
    for cdb in [&report(0)[..], &set(0, 0), &[0x48, 0x02], &[0x48, 0x1f]] {
        assert_eq!(sense(&target, cdb), INVALID_OPCODE, "{cdb:x?}");
    }
}

#[test]
fn the_clock_counts_from_power_on_until_it_is_set() {
    let unit = Arc::new(testing::unit(testing::Shape::PLAIN));
    let (one, other) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
    let read = [0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0];
    let data = one.data(&read);
    assert_eq!((&data[..4], data.len()), (&[0, 10, 0, 0][..], 12));
    let write = [0xa4, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    let list = [0, 0, 0, 0, 0x01, 0x02, 0x03, 0x04, 0x05, 0x00, 0, 0];
    assert_eq!(told(&one.answer(&write, &list)), GOOD);
    assert_eq!(other.ready(), (2, [0x2a, 0x10]));
    let data = one.data(&read);
    // Set by SET TIMESTAMP; less than a quarter of a minute has passed.
    assert_eq!(data[..8], [0, 10, 2, 0, 0x01, 0x02, 0x03, 0x04]);
    assert!((0x05..0x40).contains(&data[8]) && data[10..] == [0, 0]);
    let short = [0xa4, 0x0f, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0];
    assert_eq!(told(&one.answer(&short, &list)), (2, [0x1a, 0x00]));
}

#[test]
fn the_default_self_test_reads_the_first_block() {
    let target = target(GEOMETRY);
    let op = disk_op(start(&target, field(0), &[0x1d, 0x04, 0, 0, 0, 0], 0, 0));
    let first = Op::Check {
        offset: 0,
        len: 512,
    };
    assert_eq!(op, first);
    let background = [0x1d, 0x20, 0, 0, 0, 0];
    assert_eq!(refused(&target, &background, &[]), invalid_field(1, 5));
    let with_list = [0x1d, 0x04, 0, 0, 4, 0];
    assert_eq!(refused(&target, &with_list, &[0; 4]), invalid_field(3, 7));
}

#[test]
fn the_list_of_diagnostic_pages_is_the_only_one() {
    let target = target(GEOMETRY);
    let send = [0x1d, 0x10, 0, 0, 4, 0];
    assert_eq!(answered(&target, &send, &[0; 4]).status, 0);
    assert_eq!(data(&target, &[0x1c, 0, 0, 0, 255, 0]), [0, 0, 0, 1, 0]);
    assert_eq!(data(&target, &[0x1c, 1, 0, 0, 255, 0]), [0, 0, 0, 1, 0]);
    let other = [0x1c, 1, 0x40, 0, 255, 0];
    assert_eq!(refused(&target, &other, &[]), invalid_field(2, 7));
    let wrong = refused(&target, &send, &[0x40, 0, 0, 0]);
    assert_eq!(code(&wrong), [5, 0x26, 0]);
    let short = refused(&target, &[0x1d, 0x10, 0, 0, 3, 0], &[0; 3]);
    assert_eq!(code(&short), [5, 0x1a, 0]);
}

#[test]
fn an_echo_is_what_the_same_initiator_wrote() {
    let unit = Arc::new(testing::unit(testing::Shape::PLAIN));
    let (one, other) = (Bench::hba(1, &unit), Bench::hba(2, &unit));
    let describe = [0x3c, 0x0b, 0, 0, 0, 0, 0, 0, 255, 0];
    assert_eq!(one.data(&describe), [1, 0, 0x10, 0]);
    let read = [0x3c, 0x0a, 0, 0, 0, 0, 0, 0x10, 0, 0];
    assert_eq!(one.sense(&read)[12..14], [0x2c, 0x00]);
    let write = [0x3b, 0x0a, 0, 0, 0, 0, 0, 0, 5, 0];
    assert_eq!(told(&one.answer(&write, b"hello")), GOOD);
    assert_eq!(one.data(&read), b"hello");
    assert_eq!(other.sense(&read)[12..14], [0x2c, 0x00]);
    let too_long = [0x3b, 0x0a, 0, 0, 0, 0, 0, 0x10, 1, 0];
    assert_eq!(one.answer(&too_long, &[0; 4097]).sense, invalid_field(6, 7));
}

#[test]
fn microcode_and_everything_else_is_not_taken_for_a_buffer() {
    let target = target(GEOMETRY);
    for mode in (0..0x20).filter(|mode| *mode != 0x0a) {
        let cdb = [0x3b, mode, 0, 0, 0, 0, 0, 0, 4, 0];
        assert_eq!(refused(&target, &cdb, &[0; 4]), invalid_field(1, 4));
    }
}
