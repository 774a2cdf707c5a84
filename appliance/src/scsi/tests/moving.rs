//! READ, WRITE and ORWRITE: data between tenant and disk.

use super::*;
use crate::disk::Reply;

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
fn reads_and_writes_of_every_length_move_the_same_blocks() {
    let target = target(GEOMETRY);
    let mut read_32 = [0; 32];
    read_32[..10].copy_from_slice(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x09]);
    read_32[19] = 3;
    read_32[31] = 2;
    let mut write_32 = read_32;
    write_32[9] = 0x0b;
    for read in [
        [0x08, 0, 0, 3, 2, 0].as_slice(),
        &[0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0],
        &[0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0],
        &cdb_16(0x88, 0, 3, 2),
        &read_32,
    ] {
        let op = disk_op(send(&target, read, &[], 1024));
        let (offset, len) = (1536, 1024);
        assert_eq!(op, Op::Read { offset, len });
    }
    for write in [
        [0x0a, 0, 0, 3, 2, 0].as_slice(),
        &[0x2a, 0, 0, 0, 0, 3, 0, 0, 2, 0],
        &[0xaa, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0],
        &cdb_16(0x8a, 0, 3, 2),
        &write_32,
    ] {
        assert_eq!(
            disk_op(send(&target, write, &[0; 1024], 0)),
            Op::Write {
                offset: 1536,
                len: 1024,
                fua: false,
                atomic: false
            }
        );
    }
}

#[test]
fn read_6_and_write_6_of_no_blocks_move_256() {
    let target = target(GEOMETRY);
    let read = disk_op(send(&target, &[0x08, 0, 0, 0, 0, 0], &[], 131_072));
    assert_eq!(read.data_in(), 131_072);
    let write = disk_op(send(&target, &[0x0a, 0, 0, 0, 0, 0], &[0; 131_072], 0));
    assert_eq!(write.data_out(512), Some(131_072));
}

#[test]
fn no_blocks_are_good_where_there_are_blocks() {
    let target = target(GEOMETRY);
    for opcode in [0x88, 0x8a, 0x8b, 0x8e, 0x8f, 0x89] {
        for lba in [0, 0xfff] {
            let answer = answered(&target, &cdb_16(opcode, 0, lba, 0), &[]);
            assert_eq!((answer.status, answer.data), (0, vec![]), "{opcode:#x}");
        }
        for lba in [0x1000, 0x1001, 1 << 63, u64::MAX] {
            let sense = refused(&target, &cdb_16(opcode, 0, lba, 0), &[]);
            assert_eq!(code(&sense), OUT_OF_RANGE, "{opcode:#x} {lba:#x}");
        }
    }
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
fn blocks_that_are_not_there_are_out_of_range_for_every_command() {
    let target = target(GEOMETRY);
    for opcode in [0x88, 0x8a, 0x8b, 0x8e, 0x8f, 0x93] {
        for (lba, blocks) in [
            (0x1000, 1),
            (0xfff, 2),
            (0xf01, 256),
            (1 << 63, 1),
            (u64::MAX, 2),
        ] {
            let sense = refused(&target, &cdb_16(opcode, 0, lba, blocks), &[0; 512]);
            assert_eq!(code(&sense), OUT_OF_RANGE, "{opcode:#x} {lba:#x} {blocks}");
        }
    }
    let beyond_6 = [0x08, 0x1f, 0xff, 0xff, 1, 0];
    assert_eq!(code(&refused(&target, &beyond_6, &[])), OUT_OF_RANGE);
    let beyond_12 = [0xaa, 0, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(code(&refused(&target, &beyond_12, &[])), OUT_OF_RANGE);
}

#[test]
fn protection_information_is_an_invalid_field_for_every_command() {
    let target = target_with(GEOMETRY, ABLE);
    for protect in 1..8 {
        let flags = protect << 5;
        for opcode in [0x88, 0x8a, 0x8b, 0x8e, 0x8f, 0x93, 0x9c, 0x89] {
            let sense = refused(&target, &cdb_16(opcode, flags, 0, 1), &[0; 512]);
            assert_eq!(sense[12..16][..2], [0x24, 0], "{opcode:#x}");
            assert_eq!(sense[17], 1, "{opcode:#x}");
        }
    }
}

#[test]
fn or_moves_blocks_into_those_there_are() {
    let or = |flags| {
        let cdb = cdb_16(0x8b, flags, 1, 2);
        disk_op(send(&target(GEOMETRY), &cdb, &[0; 1024], 0))
    };
    let op = |fua| Op::Or {
        offset: 512,
        len: 1024,
        fua,
    };
    assert_eq!(or(0), op(false));
    assert_eq!(or(0x10), op(false));
    assert_eq!(or(0x08), op(true));
    assert_eq!(or(0x02), op(true), "FUA_NV");
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
fn what_was_not_moved_of_both_buffers_is_residual() {
    let target = target(GEOMETRY);
    let residual = |cdb: &[u8]| match send(&target, cdb, &[0; 2048], 4096) {
        Step::Disk { pending, .. } => pending.finish(Ok(Reply::Done)).residual,
        other => panic!("{other:?}"),
    };
    assert_eq!(residual(&cdb_16(0x88, 0, 0, 2)), 6144 - 1024, "READ");
    assert_eq!(residual(&cdb_16(0x8a, 0, 0, 2)), 6144 - 1024, "WRITE");
    assert_eq!(residual(&cdb_16(0x8b, 0, 0, 3)), 6144 - 1536, "ORWRITE");
    assert_eq!(
        residual(&cdb_16(0x8e, 2, 0, 4)),
        6144 - 2048,
        "WRITE AND VERIFY"
    );
    assert_eq!(
        residual(&cdb_16(0x8f, 0, 0, 4)),
        6144,
        "VERIFY without data"
    );
    assert_eq!(
        residual(&cdb_16(0x8f, 2, 0, 4)),
        6144 - 2048,
        "VERIFY with data"
    );
    assert_eq!(
        residual(&cdb_16(0x8f, 6, 0, 4)),
        6144 - 512,
        "VERIFY with a block"
    );
    let compare_and_write = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0];
    assert_eq!(residual(&compare_and_write), 6144 - 2048);
    assert_eq!(
        residual(&cdb_16(0x93, 1, 0, 1)),
        6144,
        "WRITE SAME without data"
    );
}
