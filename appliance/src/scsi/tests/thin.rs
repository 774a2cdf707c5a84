//! UNMAP and GET LBA STATUS: blocks that are given back.

use super::*;
use crate::disk::{Extent, Reply};

/// UNMAP with a list of so many bytes.
fn unmap(len: u16) -> [u8; 10] {
    let [high, low] = len.to_be_bytes();
    [0x42, 0, 0, 0, 0, 0, 0, high, low, 0]
}

/// A parameter list of one descriptor.
fn one(lba: u64, blocks: u32) -> Vec<u8> {
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(lba.to_be_bytes());
    list.extend(blocks.to_be_bytes());
    list.extend([0; 4]);
    list
}

/// One of two.
fn two(first: (u64, u32), second: (u64, u32)) -> Vec<u8> {
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    list.extend(&one(first.0, first.1)[8..]);
    list.extend(&one(second.0, second.1)[8..]);
    list
}

#[test]
fn unmap_gives_all_ranges_back_at_once() {
    let target = target_with(GEOMETRY, ABLE);
    let list = two((1, 2), (0xfff, 1));
    let Step::Disk { op, pending, .. } = send(&target, &unmap(40), &list, 8) else {
        panic!("no operation")
    };
    let ranges = [(512, 1024), (0xfff * 512, 512)];
    assert_eq!(
        op,
        Op::Unmap {
            ranges: ranges.into(),
            fua: false,
        }
    );
    let good = pending.finish(Ok(Reply::Done));
    assert_eq!((good.status, good.residual), (0, 8), "the list was moved");
}

#[test]
fn unmap_of_nothing_is_good() {
    let target = target_with(GEOMETRY, ABLE);
    let good = |len, list: &[u8]| {
        let answer = answered(&target, &unmap(len), list);
        assert_eq!((answer.status, answer.sense), (0, vec![]));
        answer.residual
    };
    assert_eq!(good(0, &[]), 0, "no list");
    assert_eq!(good(0, &[0xff; 24]), 24, "no list is moved");
    assert_eq!(good(8, &[0, 6, 0, 0, 0, 0, 0, 0]), 0, "no descriptors");
    assert_eq!(good(24, &one(5, 0)), 0, "no blocks");
    assert_eq!(good(24, &one(0x1000, 0)), 0, "no blocks at the very end");
    assert_eq!(good(40, &two((5, 0), (5, 0))), 0, "no blocks twice");
}

#[test]
fn unmap_passes_descriptors_without_blocks_over() {
    let target = target_with(GEOMETRY, ABLE);
    let op = disk_op(send(&target, &unmap(40), &two((9, 0), (1, 1)), 0));
    let ranges = [(512, 512)].into();
    assert_eq!(op, Op::Unmap { ranges, fua: false });
}

#[test]
fn unmap_takes_descriptors_that_follow_each_other_for_one() {
    let target = target_with(GEOMETRY, ABLE);
    for (first, second, ranges) in [
        ((8, 1), (9, 7), [(4096, 4096)].as_slice()),
        ((9, 1), (8, 1), &[(4608, 512), (4096, 512)]),
        ((8, 2), (9, 1), &[(4096, 1024), (4608, 512)]),
        ((8, 1), (10, 1), &[(4096, 512), (5120, 512)]),
    ] {
        let op = disk_op(send(&target, &unmap(40), &two(first, second), 0));
        let ranges = ranges.into();
        let fua = false;
        assert_eq!(op, Op::Unmap { ranges, fua }, "{first:?} {second:?}");
    }
}

#[test]
fn unmap_gives_nothing_back_if_any_range_is_out_of_range() {
    let target = target_with(GEOMETRY, ABLE);
    for wrong in [(0x1000, 1), (0xfff, 2), (u64::MAX, 1), (0x1001, 0)] {
        for list in [two((1, 1), wrong), two(wrong, (1, 1))] {
            let sense = refused(&target, &unmap(40), &list);
            assert_eq!(code(&sense), OUT_OF_RANGE, "{wrong:?}");
        }
    }
}

#[test]
fn an_unmap_list_without_a_header_has_the_wrong_length() {
    let target = target_with(GEOMETRY, ABLE);
    for len in 1..8 {
        assert_eq!(
            code(&refused(&target, &unmap(len), &[0; 8])),
            [5, 0x1a, 0],
            "{len}"
        );
    }
}

#[test]
fn an_unmap_list_that_is_not_all_there_is_an_overrun() {
    let target = target_with(GEOMETRY, ABLE);
    let short = send(&target, &unmap(24), &one(0, 1)[..23], 4096);
    assert!(matches!(short, Step::Overrun));
}

#[test]
fn an_unmap_beyond_the_limits_is_an_invalid_parameter() {
    let large = target_with(
        Geometry {
            blocks: 1 << 40,
            ..GEOMETRY
        },
        ABLE,
    );
    let most = disk_op(send(&large, &unmap(24), &one(0, 0x10_0000), 0));
    let ranges = [(0, 0x2000_0000)].into();
    assert_eq!(most, Op::Unmap { ranges, fua: false });
    // C/D is 0: byte 16, bit 7 of the list.
    assert_eq!(
        refused(&large, &unmap(24), &one(0, 0x10_0001)),
        [
            0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x8f, 0, 16
        ]
    );
}

#[test]
fn a_unit_that_is_not_thin_has_no_unmap() {
    let sense = refused(&target(GEOMETRY), &unmap(24), &one(0, 1));
    assert_eq!(code(&sense), INVALID_OPCODE);
}

/// GET LBA STATUS.
fn status(lba: u64, allocation: u32) -> [u8; 16] {
    cdb_16(0x9e, 0x12, lba, allocation)
}

#[test]
fn lba_status_is_what_the_disk_says() {
    let target = target_with(GEOMETRY, ABLE);
    let Step::Disk { op, pending, .. } = send(&target, &status(0x10, 60), &[], 100) else {
        panic!("no operation")
    };
    // 60 bytes: the header and three descriptors.
    assert_eq!(
        op,
        Op::Allocation {
            offset: 0x2000,
            limit: 3
        }
    );
    let extent = |blocks: u64, allocated| Extent {
        len: blocks * 512,
        allocated,
    };
    let extents = vec![extent(8, true), extent(0xfe8, false)];
    let answer = pending.finish(Ok(Reply::Allocation(extents)));
    assert_eq!((answer.status, answer.residual), (0, 60));
    assert_eq!(
        answer.data,
        [
            0, 0, 0, 36, 0, 0, 0, 0, // header
            0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0, 0, // mapped
            0, 0, 0, 0, 0, 0, 0, 0x18, 0, 0, 0x0f, 0xe8, 1, 0, 0, 0, // deallocated
        ]
    );
}

#[test]
fn all_blocks_of_a_unit_that_cannot_tell_are_mapped() {
    let cannot_tell = Abilities {
        thin: Some(Thin {
            granularity: 4096,
            mapped: false,
        }),
        ..Abilities::default()
    };
    for abilities in [Abilities::default(), cannot_tell] {
        assert_eq!(
            data(&target_with(GEOMETRY, abilities), &status(0xffe, 24)),
            [
                0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0xfe, 0, 0, 0, 2, 0, 0, 0, 0
            ]
        );
    }
}

#[test]
fn lba_status_beyond_the_end_is_out_of_range() {
    for abilities in [ABLE, Abilities::default()] {
        let target = target_with(GEOMETRY, abilities);
        for lba in [0x1000, 0x1001, 1 << 63, u64::MAX] {
            let sense = refused(&target, &status(lba, 24), &[]);
            assert_eq!(code(&sense), OUT_OF_RANGE, "{lba:#x}");
        }
    }
}

#[test]
fn lba_status_needs_room_for_what_may_come() {
    let target = target_with(GEOMETRY, ABLE);
    let room = |allocation, data_in| send(&target, &status(0, allocation), &[], data_in);
    assert!(matches!(room(40, 39), Step::Overrun));
    assert!(matches!(room(40, 40), Step::Disk { .. }));
    assert!(matches!(room(4, 4), Step::Disk { .. }));
    // However much is allocated, no more than 256 descriptors come.
    assert!(matches!(room(u32::MAX, 8 + 256 * 16), Step::Disk { .. }));
    assert!(matches!(room(u32::MAX, 8 + 256 * 16 - 1), Step::Overrun));
}

#[test]
fn a_report_type_is_an_invalid_field() {
    let mut cdb = status(0, 24);
    cdb[14] = 1;
    let sense = refused(&target_with(GEOMETRY, ABLE), &cdb, &[]);
    assert_eq!(sense, invalid_field(14, 0));
}
