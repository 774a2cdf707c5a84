//! WRITE SAME.

use super::*;

const ZEROS: [u8; 512] = [0; 512];
const PATTERN: [u8; 512] = [0xa6; 512];

/// WRITE SAME(10), (16) and (32) of 2 blocks from LBA 3 on, with these flags.
fn sames(flags: u8) -> [Vec<u8>; 3] {
    let mut long = [0; 32];
    long[..11].copy_from_slice(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0d, flags]);
    long[19] = 3;
    long[31] = 2;
    [
        vec![0x41, flags, 0, 0, 0, 3, 0, 0, 2, 0],
        cdb_16(0x93, flags, 3, 2).to_vec(),
        long.to_vec(),
    ]
}

fn zero(unmap: bool) -> Op {
    Op::Zero {
        offset: 1536,
        len: 1024,
        unmap,
        fua: false,
    }
}

const WRITE: Op = Op::WriteSame {
    offset: 1536,
    len: 1024,
    fua: false,
};

#[test]
fn a_block_of_data_is_written_to_all_blocks() {
    for cdb in sames(0) {
        let op = disk_op(send(&target(GEOMETRY), &cdb, &PATTERN, 0));
        assert_eq!(op, WRITE);
    }
    let mut last_byte = ZEROS;
    last_byte[511] = 1;
    let cdb = &sames(0)[1];
    assert_eq!(disk_op(send(&target(GEOMETRY), cdb, &last_byte, 0)), WRITE);
}

#[test]
fn a_block_of_zeros_makes_blocks_zero() {
    for cdb in sames(0) {
        let op = disk_op(send(&target(GEOMETRY), &cdb, &ZEROS, 0));
        assert_eq!(op, zero(false));
    }
}

#[test]
fn without_a_data_buffer_blocks_become_zero() {
    for cdb in &sames(0x01)[1..] {
        assert_eq!(disk_op(send(&target(GEOMETRY), cdb, &[], 0)), zero(false));
        let data = send(&target(GEOMETRY), cdb, &PATTERN, 0);
        assert_eq!(disk_op(data), zero(false), "data is not looked at");
    }
    for cdb in &sames(0x09)[1..] {
        let thin = target_with(GEOMETRY, ABLE);
        assert_eq!(disk_op(send(&thin, cdb, &[], 0)), zero(true));
    }
    assert_eq!(
        refused(&target(GEOMETRY), &sames(0x01)[0], &ZEROS),
        invalid_field(1, 0),
        "WRITE SAME(10) has no NDOB"
    );
}

#[test]
fn only_zeros_are_given_back() {
    let thin = target_with(GEOMETRY, ABLE);
    for cdb in sames(0x08) {
        assert_eq!(disk_op(send(&thin, &cdb, &ZEROS, 0)), zero(true));
        assert_eq!(disk_op(send(&thin, &cdb, &PATTERN, 0)), WRITE);
    }
}

#[test]
fn a_unit_that_is_not_thin_has_no_unmap_bit() {
    let target = target(GEOMETRY);
    let [short, middle, long] = sames(0x08);
    assert_eq!(refused(&target, &short, &ZEROS), invalid_field(1, 3));
    assert_eq!(refused(&target, &middle, &ZEROS), invalid_field(1, 3));
    assert_eq!(refused(&target, &long, &ZEROS), invalid_field(10, 3));
}

#[test]
fn data_of_another_length_than_a_block_is_refused() {
    let target = target_with(GEOMETRY, ABLE);
    for cdb in sames(0x08).into_iter().chain(sames(0)) {
        for len in [0, 256, 511, 513, 1024] {
            assert_eq!(
                refused(&target, &cdb, &vec![0; len]),
                [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0]
            );
        }
    }
}

#[test]
fn no_blocks_are_all_to_the_end() {
    let target = target(GEOMETRY);
    let op = disk_op(send(&target, &cdb_16(0x93, 0, 0xffe, 0), &PATTERN, 0));
    assert_eq!(
        op,
        Op::WriteSame {
            offset: 0xffe * 512,
            len: 1024,
            fua: false
        }
    );
    let all = disk_op(send(&target, &cdb_16(0x93, 0x01, 0, 0), &[], 0));
    assert_eq!(
        all,
        Op::Zero {
            offset: 0,
            len: 0x1000 * 512,
            unmap: false,
            fua: false
        }
    );
    for lba in [0x1000, 0x1001, 1 << 63, u64::MAX] {
        let sense = refused(&target, &cdb_16(0x93, 0, lba, 0), &PATTERN);
        assert_eq!(code(&sense), OUT_OF_RANGE, "{lba:#x}");
    }
}

#[test]
fn more_blocks_than_the_limit_are_an_invalid_field() {
    // Two blocks more than MAXIMUM WRITE SAME LENGTH.
    let large = target(Geometry {
        blocks: 0x10_0002,
        ..GEOMETRY
    });
    let good = |lba, blocks| disk_op(send(&large, &cdb_16(0x93, 1, lba, blocks), &[], 0));
    assert!(matches!(
        good(2, 0),
        Op::Zero {
            len: 0x2000_0000,
            ..
        }
    ));
    assert!(matches!(
        good(0, 0x10_0000),
        Op::Zero {
            offset: 0,
            len: 0x2000_0000,
            ..
        }
    ));
    for (lba, blocks) in [(0, 0), (1, 0), (0, 0x10_0001)] {
        let sense = refused(&large, &cdb_16(0x93, 1, lba, blocks), &[]);
        assert_eq!(sense, invalid_field(10, 7));
    }
    let short = [0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(refused(&large, &short, &ZEROS), invalid_field(7, 7));
}

#[test]
fn a_disk_with_longer_blocks_writes_no_more_bytes_of_the_same() {
    // A disk that has to write them all takes as long as for 512-byte blocks.
    let large = target(Geometry {
        block_size: 4096,
        blocks: 0x10_0000,
        ..GEOMETRY
    });
    let most = cdb_16(0x93, 1, 0, 0x2_0000);
    assert!(matches!(
        disk_op(send(&large, &most, &[], 0)),
        Op::Zero {
            len: 0x2000_0000,
            ..
        }
    ));
    let more = cdb_16(0x93, 1, 0, 0x2_0001);
    assert_eq!(refused(&large, &more, &[]), invalid_field(10, 7));
}
