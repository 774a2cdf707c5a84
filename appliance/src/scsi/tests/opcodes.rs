//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.

use std::time::Duration;

use super::*;

/// Operation code and service action of every command of a unit that is not thin and has no
/// atomic writes, with the length of its CDB.
const COMMANDS: [(u8, Option<u16>, u8); 82] = [
    (0x00, None, 6),
    (0x03, None, 6),
    (0x04, None, 6),
    (0x07, None, 6),
    (0x08, None, 6),
    (0x0a, None, 6),
    (0x12, None, 6),
    (0x15, None, 6),
    (0x16, None, 6),
    (0x17, None, 6),
    (0x1a, None, 6),
    (0x1b, None, 6),
    (0x1c, None, 6),
    (0x1d, None, 6),
    (0x1e, None, 6),
    (0x25, None, 10),
    (0x28, None, 10),
    (0x2a, None, 10),
    (0x2e, None, 10),
    (0x2f, None, 10),
    (0x34, None, 10),
    (0x35, None, 10),
    (0x37, None, 10),
    (0x3b, None, 10),
    (0x3c, None, 10),
    (0x41, None, 10),
    (0x4c, None, 10),
    (0x4d, None, 10),
    (0x55, None, 10),
    (0x56, None, 10),
    (0x57, None, 10),
    (0x5a, None, 10),
    (0x5e, Some(0x00), 10),
    (0x5e, Some(0x01), 10),
    (0x5e, Some(0x02), 10),
    (0x5e, Some(0x03), 10),
    (0x5f, Some(0x00), 10),
    (0x5f, Some(0x01), 10),
    (0x5f, Some(0x02), 10),
    (0x5f, Some(0x03), 10),
    (0x5f, Some(0x04), 10),
    (0x5f, Some(0x05), 10),
    (0x5f, Some(0x06), 10),
    (0x5f, Some(0x07), 10),
    (0x7f, Some(0x09), 32),
    (0x7f, Some(0x0a), 32),
    (0x7f, Some(0x0b), 32),
    (0x7f, Some(0x0c), 32),
    (0x7f, Some(0x0d), 32),
    (0x83, Some(0x00), 16),
    (0x83, Some(0x01), 16),
    (0x83, Some(0x10), 16),
    (0x83, Some(0x11), 16),
    (0x83, Some(0x1c), 16),
    (0x84, Some(0x00), 16),
    (0x84, Some(0x01), 16),
    (0x84, Some(0x03), 16),
    (0x84, Some(0x04), 16),
    (0x84, Some(0x05), 16),
    (0x84, Some(0x06), 16),
    (0x84, Some(0x07), 16),
    (0x88, None, 16),
    (0x89, None, 16),
    (0x8a, None, 16),
    (0x8b, None, 16),
    (0x8e, None, 16),
    (0x8f, None, 16),
    (0x90, None, 16),
    (0x91, None, 16),
    (0x93, None, 16),
    (0x9e, Some(0x10), 16),
    (0x9e, Some(0x12), 16),
    (0xa0, None, 12),
    (0xa3, Some(0x0c), 12),
    (0xa3, Some(0x0d), 12),
    (0xa3, Some(0x0f), 12),
    (0xa4, Some(0x0f), 12),
    (0xa8, None, 12),
    (0xaa, None, 12),
    (0xae, None, 12),
    (0xaf, None, 12),
    (0xb7, None, 12),
];

/// REPORT SUPPORTED OPERATION CODES with room for 16 KiB.
fn report(options: u8, opcode: u8, action: u16) -> [u8; 12] {
    let [high, low] = action.to_be_bytes();
    [0xa3, 0x0c, options, opcode, high, low, 0, 0, 0x40, 0, 0, 0]
}

fn reported(target: &Host, cdb: &[u8]) -> Vec<u8> {
    let answer = answer(target, 0, cdb, 0x4000);
    assert_eq!((answer.status, answer.sense), (0, vec![]));
    answer.data
}

#[test]
fn all_commands_are_listed_with_their_lengths() {
    let all = reported(&target(GEOMETRY), &report(0, 0, 0));
    assert_eq!(all[..4], [0, 0, 2, 0x90], "82 descriptors of 8 bytes");
    assert_eq!(all.len(), 4 + 82 * 8);
    for (descriptor, (code, action, len)) in all[4..].chunks(8).zip(COMMANDS) {
        let [high, low] = action.unwrap_or(0).to_be_bytes();
        let has_action = u8::from(action.is_some());
        assert_eq!(descriptor, [code, 0, high, low, 0, has_action, 0, len]);
    }
}

#[test]
fn a_unit_lists_what_its_disk_can_do() {
    let able = reported(&target_with(GEOMETRY, ABLE), &report(0, 0, 0));
    let codes: Vec<_> = able[4..].chunks(8).map(|one| one[0]).collect();
    assert_eq!(codes.len(), 84);
    assert!(codes.contains(&0x42) && codes.contains(&0x9c));
    assert!(codes.is_sorted());
}

#[test]
fn every_command_that_is_listed_is_reported_one_by_one() {
    let target = target(GEOMETRY);
    for (code, action, len) in COMMANDS {
        let one = |options| answer(&target, 0, &report(options, code, action.unwrap_or(0)), 64);
        let with = if action.is_some() { 2 } else { 1 };
        let against = 3 - with;
        for options in [with, 3] {
            let data = one(options).data;
            assert_eq!(data[..5], [0, 3, 0, len, code], "{code:#x}");
            assert_eq!(data.len(), 4 + usize::from(len));
        }
        assert_eq!(one(against).sense, invalid_field(3, 7), "{code:#x}");
    }
}

#[test]
fn commands_that_the_unit_has_not_are_not_supported() {
    let target = target(GEOMETRY);
    for (options, code, action) in [
        (1, 0x42, 0),
        (1, 0x9c, 0),
        (1, 0x8c, 0),
        (2, 0x8c, 0),
        (2, 0x42, 0),
        (2, 0xa3, 0x0a),
        (2, 0x7f, 0x03),
        (3, 0x8c, 0),
        (3, 0x28, 1),
        (3, 0x9e, 0x11),
    ] {
        let told = reported(&target, &report(options, code, action));
        assert_eq!(told, [0, 1, 0, 0], "{code:#x}/{action:#x}");
    }
}

#[test]
fn reporting_options_that_are_reserved_are_invalid_fields() {
    for options in 4..8 {
        let sense = refused(&target(GEOMETRY), &report(options, 0x28, 0), &[]);
        assert_eq!(sense, invalid_field(2, 2));
    }
}

/// CDB usage data of a command without service actions.
fn usage(target: &Host, code: u8) -> Vec<u8> {
    reported(target, &report(1, code, 0))[4..].to_vec()
}

#[test]
fn usage_data_has_the_bits_that_mean_something() {
    let target = target_with(GEOMETRY, ABLE);
    let f = 0xff;
    assert_eq!(usage(&target, 0x08), [0x08, 0x1f, f, f, f, 0]);
    assert_eq!(
        usage(&target, 0x28),
        [0x28, 0x1a, f, f, f, f, 0x3f, f, f, 0]
    );
    assert_eq!(
        usage(&target, 0x2f),
        [0x2f, 0x16, f, f, f, f, 0x3f, f, f, 0]
    );
    assert_eq!(usage(&target, 0x42), [0x42, 0, 0, 0, 0, 0, 0x3f, f, f, 0]);
    assert_eq!(
        usage(&target, 0xaa),
        [0xaa, 0x1a, f, f, f, f, f, f, f, f, 0x3f, 0]
    );
    assert_eq!(
        usage(&target, 0x89),
        [0x89, 0x1a, f, f, f, f, f, f, f, f, 0, 0, 0, f, 0x3f, 0]
    );
    assert_eq!(
        usage(&target, 0x93),
        [0x93, 0x09, f, f, f, f, f, f, f, f, f, f, f, f, 0x3f, 0]
    );
    assert_eq!(
        usage(&target, 0x9c),
        [0x9c, 0x18, f, f, f, f, f, f, f, f, 0, 0, f, f, 0x3f, 0]
    );
}

#[test]
fn usage_data_of_commands_with_service_actions_names_them() {
    let target = target_with(GEOMETRY, ABLE);
    let f = 0xff;
    assert_eq!(
        reported(&target, &report(2, 0x9e, 0x10))[4..],
        [0x9e, 0x10, f, f, f, f, f, f, f, f, f, f, f, f, 1, 0]
    );
    assert_eq!(
        reported(&target, &report(2, 0x83, 0x11))[4..],
        [0x83, 0x11, 0, 0, 0, 0, f, f, f, f, f, f, f, f, 0x3f, 0]
    );
    assert_eq!(
        reported(&target, &report(2, 0x84, 0x07))[4..],
        [0x84, 0x07, f, f, f, f, 0, 0, 0, 0, f, f, f, f, 0, 0]
    );
    assert_eq!(
        reported(&target, &report(2, 0xa3, 0x0c))[4..],
        [0xa3, 0x0c, 0x87, f, f, f, f, f, f, f, 0, 0]
    );
    assert_eq!(
        reported(&target, &report(3, 0x7f, 0x0d))[4..],
        [
            0x7f, 0, 0, 0, 0, 0, 0x3f, 0x18, 0, 0x0d, 0x09, 0, // up to the LBA
            f, f, f, f, f, f, f, f, 0, 0, 0, 0, 0, 0, 0, 0, f, f, f, f,
        ]
    );
}

#[test]
fn a_unit_that_is_not_thin_has_no_use_for_the_unmap_bit() {
    let target = target(GEOMETRY);
    assert_eq!(usage(&target, 0x41)[1], 0);
    assert_eq!(usage(&target, 0x93)[1], 0x01);
    assert_eq!(reported(&target, &report(2, 0x7f, 0x0d))[4 + 10], 0x01);
}

#[test]
fn timeouts_are_those_of_the_unit() {
    let disk = Arc::new(Shape(GEOMETRY, Abilities::default()));
    let unit = LogicalUnit::new("a", disk).unwrap();
    let unit = unit.with_patience(Duration::from_millis(7_001));
    let target = host([(0, Arc::new(unit))]);
    let _ = answer(&target, 0, &[0], 0);
    // Eight seconds, rounded up, and five for the way; no nominal one.
    let timeouts = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13];
    let one = reported(&target, &report(0x81, 0x00, 0));
    assert_eq!(one[..4], [0, 0x83, 0, 6]);
    assert_eq!(one[4 + 6..], timeouts);
    let all = reported(&target, &report(0x80, 0, 0));
    assert_eq!(all[..4], [0, 0, 6, 0x68], "82 descriptors of 20 bytes");
    for descriptor in all[4..].chunks(20) {
        assert_eq!(descriptor[5] & 2, 2);
        assert_eq!(descriptor[8..], timeouts);
    }
    let none = reported(&target, &report(0x81, 0x8c, 0));
    assert_eq!(none, [0, 1, 0, 0], "what is not supported takes no time");
}

#[test]
fn a_report_is_cut_at_the_allocation_length() {
    let cut = [0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0];
    assert_eq!(data(&target(GEOMETRY), &cut), [0, 0, 2, 0x90, 0, 0]);
}

#[test]
fn task_management_functions_are_reported_in_both_forms() {
    let target = target(GEOMETRY);
    assert_eq!(
        data(&target, &[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]),
        [0xfc, 0x03, 0, 0]
    );
    assert_eq!(
        data(&target, &[0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 255, 0, 0]),
        [0xfc, 0x03, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        data(&target, &[0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0]),
        [0xfc, 0x03, 0, 12]
    );
    let short = [0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0];
    assert_eq!(refused(&target, &short, &[]), invalid_field(6, 7));
}
