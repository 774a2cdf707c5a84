//! Commands to a unit that may only be read.

use super::*;

/// DATA PROTECT, WRITE PROTECTED.
const PROTECTED: [u8; 3] = [7, 0x27, 0];

#[test]
fn every_command_that_changes_blocks_is_refused() {
    let target = target_with(READ_ONLY, ABLE);
    let mut same_32 = [0; 32];
    same_32[..10].copy_from_slice(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0d]);
    let with_action = |action| {
        let mut cdb = same_32;
        cdb[9] = action;
        cdb
    };
    for cdb in [
        [0x0a, 0, 0, 0, 1, 0].as_slice(),
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &cdb_16(0x8a, 0, 0, 1),
        &with_action(0x0b),
        &[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0xae, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &cdb_16(0x8e, 0x02, 0, 1),
        &with_action(0x0c),
        &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x41, 0x08, 0, 0, 0, 0, 0, 0, 1, 0],
        &cdb_16(0x93, 0, 0, 1),
        &cdb_16(0x93, 0x08, 0, 1),
        &with_action(0x0d),
        &cdb_16(0x8b, 0, 0, 1),
        &cdb_16(0x89, 0, 0, 1),
        &cdb_16(0x9c, 0, 0, 8),
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
    ] {
        // Whether or not there is data with them.
        for data_out in [0, 1024] {
            let sense = refused(&target, cdb, &vec![0; data_out]);
            assert_eq!(code(&sense), PROTECTED, "{cdb:x?}");
        }
    }
}

#[test]
fn a_write_is_refused_before_its_blocks_are_looked_for() {
    let sense = refused(&target(READ_ONLY), &cdb_16(0x8a, 0, u64::MAX, 1), &[]);
    assert_eq!(code(&sense), PROTECTED);
    // The UNMAP bit is none of a unit that is not thin, which matters as little.
    let sense = refused(&target(READ_ONLY), &cdb_16(0x93, 0x08, 0, 1), &[]);
    assert_eq!(code(&sense), PROTECTED);
}

#[test]
fn what_the_unit_has_not_is_no_command_of_it_all_the_same() {
    let target = target(READ_ONLY);
    let unmap = refused(&target, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(code(&unmap), INVALID_OPCODE);
    assert_eq!(
        code(&refused(&target, &cdb_16(0x9c, 0, 0, 0), &[])),
        INVALID_OPCODE
    );
}

#[test]
fn what_only_reads_works() {
    let target = target_with(READ_ONLY, ABLE);
    for cdb in [
        cdb_16(0x88, 0, 0, 1),
        cdb_16(0x8f, 0, 0, 1),
        cdb_16(0x8f, 0x02, 0, 1),
        cdb_16(0x90, 0, 0, 1),
        cdb_16(0x9e, 0x12, 0, 24),
    ] {
        let step = send(&target, &cdb, &[0; 512], 512);
        assert!(matches!(step, Step::Disk { .. }), "{cdb:x?}");
    }
    assert_eq!(answered(&target, &cdb_16(0x91, 0, 0, 0), &[]).status, 0);
}
