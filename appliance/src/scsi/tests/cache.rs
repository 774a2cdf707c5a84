//! SYNCHRONIZE CACHE and PRE-FETCH.

use super::*;
use crate::disk::Reply;

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
    assert_eq!(data(&target, &[0x1b, 0, 0, 0, 1, 0]), [0_u8; 0]);
    assert_eq!(sense(&target, &[0x1b, 0, 0, 0, 2, 0]), [5, 0x24, 0]);
}

#[test]
fn synchronize_cache_flushes_with_immed_and_sync_nv_too() {
    let target = target(GEOMETRY);
    for flags in [0x02, 0x04, 0x06] {
        let short = [0x35, flags, 0, 0, 0, 1, 3, 0, 1, 0];
        assert_eq!(disk_op(send(&target, &short, &[], 0)), Op::Flush);
        let long = cdb_16(0x91, flags, 1, 1);
        assert_eq!(disk_op(send(&target, &long, &[], 0)), Op::Flush);
    }
}

#[test]
fn synchronize_cache_of_blocks_that_are_not_there_is_out_of_range() {
    let target = target(GEOMETRY);
    for (lba, blocks) in [
        (0x1000, 0),
        (0x1001, 0),
        (0xfff, 2),
        (u64::MAX, 0),
        (1 << 63, 1),
    ] {
        let sense = refused(&target, &cdb_16(0x91, 0, lba, blocks), &[]);
        assert_eq!(code(&sense), OUT_OF_RANGE, "{lba:#x} {blocks}");
    }
    let short = [0x35, 0, 0, 0, 0x10, 0, 0, 0, 0, 0];
    assert_eq!(code(&refused(&target, &short, &[])), OUT_OF_RANGE);
}

#[test]
fn pre_fetch_tells_the_disk_and_is_good_without_a_promise() {
    let target = target(GEOMETRY);
    let short = [0x34, 0x02, 0, 0, 0, 2, 3, 0, 4, 0];
    let Step::Disk { op, pending, .. } = send(&target, &short, &[], 0) else {
        panic!("no operation")
    };
    assert_eq!(
        op,
        Op::Prefetch {
            offset: 1024,
            len: 2048
        }
    );
    // CONDITION MET would say that all of it stays in a cache.
    assert_eq!(pending.finish(Ok(Reply::Done)).status, 0x00);
}

#[test]
fn pre_fetch_of_no_blocks_is_one_of_all_to_the_end() {
    let target = target(GEOMETRY);
    assert_eq!(
        disk_op(send(&target, &cdb_16(0x90, 0, 0xffe, 0), &[], 0)),
        Op::Prefetch {
            offset: 0xffe * 512,
            len: 1024
        }
    );
    for (lba, blocks) in [(0x1000, 0), (0x1001, 0), (0xfff, 2), (u64::MAX, 0)] {
        let sense = refused(&target, &cdb_16(0x90, 0, lba, blocks), &[]);
        assert_eq!(code(&sense), OUT_OF_RANGE, "{lba:#x} {blocks}");
    }
}

#[test]
fn pre_fetch_of_a_large_unit_fetches_no_more_than_the_limit() {
    let large = target(Geometry {
        blocks: 1 << 40,
        ..GEOMETRY
    });
    assert_eq!(
        disk_op(send(&large, &cdb_16(0x90, 0, 0, 0), &[], 0)),
        Op::Prefetch {
            offset: 0,
            len: 65536 * 512
        }
    );
}
