//! VERIFY, WRITE AND VERIFY and COMPARE AND WRITE: blocks against data.

use super::*;

/// VERIFY(10), (12), (16) and (32) of 2 blocks from LBA 3 on, with these flags.
fn verifies(flags: u8) -> [Vec<u8>; 4] {
    let mut long = [0; 32];
    long[..11].copy_from_slice(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0a, flags]);
    long[19] = 3;
    long[31] = 2;
    [
        vec![0x2f, flags, 0, 0, 0, 3, 0, 0, 2, 0],
        vec![0xaf, flags, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0],
        cdb_16(0x8f, flags, 3, 2).to_vec(),
        long.to_vec(),
    ]
}

#[test]
fn verify_without_data_reads_the_blocks() {
    for cdb in verifies(0x10) {
        // Data that is there all the same is left alone.
        let op = disk_op(send(&target(GEOMETRY), &cdb, &[0xa6; 1024], 0));
        let (offset, len) = (1536, 1024);
        assert_eq!(op, Op::Check { offset, len });
    }
}

#[test]
fn verify_with_data_compares_block_by_block_or_with_one() {
    let (offset, len) = (1536, 1024);
    for (flags, data_out, same) in [(0x02, 1024, false), (0x06, 512, true)] {
        for cdb in verifies(flags) {
            let target = target(GEOMETRY);
            let op = disk_op(send(&target, &cdb, &vec![0; data_out], 0));
            assert_eq!(op, Op::Compare { offset, len, same });
            let short = send(&target, &cdb, &vec![0; data_out - 1], 0);
            assert!(matches!(short, Step::Overrun));
        }
    }
}

#[test]
fn write_and_verify_is_one_operation() {
    let mut long = [0; 32];
    long[..11].copy_from_slice(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0c, 0x02]);
    long[19] = 3;
    long[31] = 2;
    for cdb in [
        [0x2e, 0x00, 0, 0, 0, 3, 0, 0, 2, 0].as_slice(),
        &[0x2e, 0x12, 0, 0, 0, 3, 0, 0, 2, 0],
        &[0xae, 0x02, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0],
        &cdb_16(0x8e, 0x02, 3, 2),
        &long,
    ] {
        let target = target(GEOMETRY);
        let op = disk_op(send(&target, cdb, &[0; 1024], 0));
        let (offset, len) = (1536, 1024);
        assert_eq!(op, Op::WriteVerify { offset, len });
        assert!(matches!(send(&target, cdb, &[0; 1023], 0), Step::Overrun));
    }
}

/// COMPARE AND WRITE of so many blocks from LBA 1 on.
fn compare_and_write(flags: u8, blocks: u8) -> [u8; 16] {
    let mut cdb = cdb_16(0x89, flags, 1, 0);
    cdb[13] = blocks;
    cdb
}

#[test]
fn compare_and_write_takes_twice_its_blocks() {
    let target = target(GEOMETRY);
    for flags in [0, 0x10, 0x08, 0x18] {
        assert_eq!(
            disk_op(send(&target, &compare_and_write(flags, 2), &[0; 2048], 0)),
            Op::CompareAndWrite {
                offset: 512,
                len: 1024,
                // Without FUA too: were it to be tried again, it would miscompare with itself.
                fua: true
            }
        );
    }
    let short = send(&target, &compare_and_write(0, 2), &[0; 2047], 0);
    assert!(matches!(short, Step::Overrun));
}

#[test]
fn compare_and_write_takes_as_many_blocks_as_it_can_name() {
    let op = disk_op(send(
        &target(GEOMETRY),
        &compare_and_write(0, 255),
        &vec![0; 2 * 255 * 512],
        0,
    ));
    assert_eq!(op.data_out(512), Some(2 * 255 * 512));
    let reserved = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0];
    assert_eq!(
        refused(&target(GEOMETRY), &reserved, &[]),
        invalid_field(12, 0)
    );
}

#[test]
fn compare_and_write_past_the_end_is_out_of_range() {
    let mut cdb = compare_and_write(0, 2);
    cdb[8..10].copy_from_slice(&[0x0f, 0xff]);
    let sense = refused(&target(GEOMETRY), &cdb, &[0; 2048]);
    assert_eq!(
        sense,
        [
            0xf0, 0, 5, 0, 0, 0x10, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0
        ]
    );
}
