//! WRITE ATOMIC(16).

use super::*;

fn atomic(flags: u8, lba: u64, blocks: u16) -> [u8; 16] {
    let mut cdb = cdb_16(0x9c, flags, lba, 0);
    cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

#[test]
fn an_atomic_write_is_all_or_nothing() {
    let target = target_with(GEOMETRY, ABLE);
    for (flags, fua) in [(0, false), (0x10, false), (0x08, true)] {
        assert_eq!(
            disk_op(send(&target, &atomic(flags, 16, 16), &[0; 8192], 0)),
            Op::Write {
                offset: 8192,
                len: 8192,
                fua,
                atomic: true
            }
        );
    }
    let short = send(&target, &atomic(0, 16, 16), &[0; 8191], 0);
    assert!(matches!(short, Step::Overrun));
}

#[test]
fn an_atomic_write_keeps_to_the_limits_of_the_disk() {
    let target = target_with(GEOMETRY, ABLE);
    let refused = |lba, blocks| refused(&target, &atomic(0, lba, blocks), &[0; 512]);
    // No granules, or more than there may be.
    for (lba, blocks) in [(0, 1), (0, 4), (0, 12), (0, 136), (0, 256)] {
        assert_eq!(
            refused(lba, blocks),
            invalid_field(12, 7),
            "{blocks} blocks"
        );
    }
    // No granule begins there, or it is on both sides of a multiple of 128.
    for (lba, blocks) in [(1, 8), (4, 8), (120, 16), (64, 128), (8, 128)] {
        assert_eq!(refused(lba, blocks), invalid_field(2, 7), "LBA {lba}");
    }
    for (lba, blocks) in [
        (128, 8),
        (128, 128),
        (8, 16),
        (128, 24),
        (136, 120),
        (120, 8),
    ] {
        let cdb = atomic(0, lba, blocks);
        let data = vec![0; usize::from(blocks) * 512];
        assert_eq!(
            disk_op(send(&target, &cdb, &data, 0)),
            Op::Write {
                offset: lba * 512,
                len: usize::from(blocks) * 512,
                fua: false,
                atomic: true
            },
            "{blocks} at {lba}"
        );
    }
}

#[test]
fn an_atomic_write_is_refused_where_the_disk_ends_inside_its_window() {
    let odd = Geometry {
        blocks: 0x1000 + 24,
        ..GEOMETRY
    };
    let target = target_with(odd, ABLE);
    for (lba, blocks) in [(0x1000, 8), (0x1000, 16), (0x1008, 8), (0x1010, 8)] {
        let cdb = atomic(0, lba, blocks);
        let data = vec![0; usize::from(blocks) * 512];
        assert!(matches!(send(&target, &cdb, &data, 0), Step::Disk { .. }));
    }
    for (lba, blocks) in [(0x1000, 24), (0x1008, 16)] {
        let sense = refused(&target, &atomic(0, lba, blocks), &[0; 512]);
        assert_eq!(sense, invalid_field(2, 7), "{blocks} at {lba}");
    }
}

#[test]
fn an_atomic_write_of_no_blocks_is_good() {
    let target = target_with(GEOMETRY, ABLE);
    assert_eq!(answered(&target, &atomic(0, 0, 0), &[]).status, 0);
    assert_eq!(answered(&target, &atomic(0, 1, 0), &[]).status, 0);
}

#[test]
fn an_atomic_write_is_out_of_range_before_it_breaks_a_limit() {
    let target = target_with(GEOMETRY, ABLE);
    for (lba, blocks) in [
        (0x1008, 0),
        (0xff8, 16),
        (0xe01, 512),
        (1 << 63, 256),
        (u64::MAX - 7, 8),
        (u64::MAX - 7, 0),
    ] {
        let sense = refused(&target, &atomic(0, lba, blocks), &[0; 512]);
        assert_eq!(code(&sense), OUT_OF_RANGE, "{lba:#x} {blocks}");
    }
}

#[test]
fn an_atomic_boundary_is_an_invalid_field() {
    let mut cdb = atomic(0, 0, 8);
    cdb[11] = 8;
    let sense = refused(&target_with(GEOMETRY, ABLE), &cdb, &[0; 4096]);
    assert_eq!(sense, invalid_field(11, 3));
}

#[test]
fn a_disk_that_tears_writes_has_no_atomic_ones() {
    let sense = refused(&target(GEOMETRY), &atomic(0, 0, 8), &[0; 4096]);
    assert_eq!(code(&sense), INVALID_OPCODE);
}
