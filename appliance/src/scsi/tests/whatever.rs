//! Whatever a tenant sends.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::scsi::table::TABLE;

const DISK_LEN: u64 = 0x1000 * 512;

/// Where on the disk an operation moves, compares or changes bytes.
fn touched(op: &Op) -> Vec<Range<u64>> {
    match *op {
        Op::Read { offset, len }
        | Op::Write { offset, len, .. }
        | Op::WriteVerify { offset, len }
        | Op::CompareAndWrite { offset, len, .. }
        | Op::Or { offset, len, .. } => vec![offset..offset + len as u64],
        Op::WriteSame { offset, len, .. }
        | Op::Compare { offset, len, .. }
        | Op::Check { offset, len }
        | Op::Zero { offset, len, .. }
        | Op::Prefetch { offset, len } => vec![offset..offset + len],
        Op::Unmap { ref ranges } => {
            let ranges = ranges.iter();
            ranges.map(|&(offset, len)| offset..offset + len).collect()
        }
        Op::Allocation { offset, .. } => vec![offset..offset + 1],
        Op::Flush => vec![],
    }
}

/// What a write command is to change, told from the CDB by the standard's tables alone: ranges in
/// bytes; `None` for a command that changes nothing.
fn to_change(cdb: &[u8; 32], data_out: &[u8]) -> Option<Vec<Range<u128>>> {
    let number = |at: usize, len: usize| {
        let bytes = cdb[at..at + len].iter();
        bytes.fold(0_u128, |number, &byte| number << 8 | u128::from(byte))
    };
    let (lba, blocks) = match (cdb[0], number(8, 2)) {
        (0x0a, _) => {
            let blocks = if cdb[4] == 0 { 256 } else { number(4, 1) };
            (number(1, 3) & 0x1f_ffff, blocks)
        }
        (0x2a | 0x2e | 0x41, _) => (number(2, 4), number(7, 2)),
        (0xaa | 0xae, _) => (number(2, 4), number(6, 4)),
        (0x8a | 0x8b | 0x8e | 0x93, _) => (number(2, 8), number(10, 4)),
        (0x89, _) => (number(2, 8), number(13, 1)),
        (0x9c, _) => (number(2, 8), number(12, 2)),
        (0x7f, 0x0b..=0x0d) => (number(12, 8), number(28, 4)),
        (0x42, _) => {
            let sent = &data_out[..usize::try_from(number(7, 2)).unwrap().min(data_out.len())];
            let descriptors = sent.get(8..).unwrap_or_default().chunks_exact(16);
            let described = descriptors.map(|descriptor| {
                let lba = u64::from_be_bytes(descriptor[..8].try_into().unwrap());
                let blocks = u32::from_be_bytes(descriptor[8..12].try_into().unwrap());
                let start = u128::from(lba) * 512;
                start..start + u128::from(blocks) * 512
            });
            let number = sent.get(2..4).map_or(0, |len| {
                usize::from(u16::from_be_bytes(len.try_into().unwrap())) / 16
            });
            return Some(
                described
                    .take(number)
                    .filter(|range| !range.is_empty())
                    .collect(),
            );
        }
        _ => return None,
    };
    let same = matches!((cdb[0], number(8, 2)), (0x41 | 0x93, _) | (0x7f, 0x0d));
    let end = match blocks {
        0 if same => DISK_LEN.into(),
        blocks => (lba + blocks) * 512,
    };
    Some(
        Some(lba * 512..end)
            .filter(|range| !range.is_empty())
            .into_iter()
            .collect(),
    )
}

/// A CDB of a row of the table, with fields that are often those of a good command.
fn cdb() -> impl Strategy<Value = [u8; 32]> {
    let flags = prop_oneof![
        Just(0_u8),
        any::<u8>(),
        (0..32_u8).prop_map(|bits| bits & 0x1b)
    ];
    let lba = prop_oneof![Just(0_u64), 0xff0..0x1010_u64, 0..0x1000_u64, any::<u64>()];
    let blocks = prop_oneof![Just(0_u32), 0..20_u32, 0..0x1100_u32, any::<u32>()];
    (0..TABLE.len(), flags, lba, blocks, any::<bool>()).prop_map(
        |(row, flags, lba, blocks, wild)| {
            let row = &TABLE[row];
            let mut cdb = [0; 32];
            cdb[0] = row.code;
            let short = u32::try_from(lba).unwrap_or(u32::MAX).to_be_bytes();
            let (few, many) = (blocks.to_be_bytes(), blocks.to_be_bytes());
            match row.code {
                0x7f => {
                    (cdb[7], cdb[9], cdb[10]) = (0x18, row.service_action.unwrap() as u8, flags);
                    cdb[12..20].copy_from_slice(&lba.to_be_bytes());
                    cdb[28..].copy_from_slice(&many);
                }
                code if code >> 5 == 0 => {
                    cdb[1..4].copy_from_slice(&short[1..]);
                    cdb[4] = few[3];
                }
                0x42 => cdb[7..9].copy_from_slice(&few[2..]),
                code if code >> 5 < 3 => {
                    cdb[1] = flags;
                    cdb[2..6].copy_from_slice(&short);
                    cdb[7..9].copy_from_slice(&few[2..]);
                }
                code if code >> 5 == 5 => {
                    cdb[1] = row.service_action.map_or(flags, |action| action as u8);
                    cdb[2..6].copy_from_slice(&short);
                    cdb[6..10].copy_from_slice(&many);
                }
                code => {
                    cdb[1] = row.service_action.map_or(flags, |action| action as u8);
                    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
                    match code {
                        0x89 => cdb[13] = few[3],
                        0x9c => cdb[12..14].copy_from_slice(&few[2..]),
                        _ => cdb[10..14].copy_from_slice(&many),
                    }
                }
            }
            if wild {
                cdb[usize::from(flags) % 32] ^= few[3];
            }
            cdb
        },
    )
}

/// Data-out: of a length that often fits, zeros or not, or an UNMAP parameter list.
fn data_out() -> impl Strategy<Value = Vec<u8>> {
    let descriptor = (
        prop_oneof![0xff0..0x1010_u64, 0..0x1000_u64, any::<u64>()],
        prop_oneof![Just(0_u32), 0..20_u32, any::<u32>()],
    );
    let list = prop::collection::vec(descriptor, 0..5).prop_map(|descriptors| {
        let len = u16::try_from(descriptors.len() * 16).unwrap();
        let mut list = (len + 6).to_be_bytes().to_vec();
        list.extend(len.to_be_bytes());
        list.extend([0; 4]);
        for (lba, blocks) in descriptors {
            list.extend(lba.to_be_bytes());
            list.extend(blocks.to_be_bytes());
            list.extend([0; 4]);
        }
        list
    });
    let filled = prop_oneof![
        Just(512_usize),
        0..70_000_usize,
        (0..40_usize).prop_map(|n| n * 512)
    ];
    prop_oneof![
        list,
        prop::collection::vec(any::<u8>(), 0..100),
        (filled, any::<u8>()).prop_map(|(len, byte)| vec![byte & 0x80; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_good_that_was_not_done_to_just_the_blocks_that_were_named(
        cdb in cdb(),
        data_out in data_out(),
        data_in in 0..70_000_usize,
        able: bool,
    ) {
        let abilities = if able { ABLE } else { Abilities::default() };
        let target = target_with(GEOMETRY, abilities);
        let changes = to_change(&cdb, &data_out);
        match start_with(&target, field(0), &cdb, &data_out, data_in) {
            Step::Answer(answer) => {
                prop_assert!(answer.data.len() <= data_in);
                let total = data_out.len() + data_in;
                prop_assert!(answer.residual as usize <= total - answer.data.len());
                prop_assert_eq!(answer.sense.is_empty(), answer.status != 2);
                if let (0, Some(changes)) = (answer.status, changes) {
                    prop_assert_eq!(changes, vec![], "GOOD without a change");
                }
            }
            Step::Disk { op, pending, .. } => {
                for range in touched(&op) {
                    prop_assert!(range.start < range.end && range.end <= DISK_LEN);
                    prop_assert!(range.start % 512 == 0);
                }
                prop_assert!(op.data_out(512).is_some_and(|len| len <= data_out.len()));
                prop_assert!(op.data_in() <= data_in);
                prop_assert_eq!(op.changes_blocks(), changes.is_some());
                if let Some(changes) = changes {
                    let touched = touched(&op).into_iter();
                    let touched = touched.map(|range| range.start.into()..range.end.into());
                    prop_assert_eq!(touched.collect::<Vec<Range<u128>>>(), changes);
                }
                prop_assert_ne!(pending.finish(Err(DiskError::Io(5))).status, 0);
            }
            Step::Overrun => {
                // With room for the whole disk it is none.
                let mut data_out = data_out;
                data_out.resize(0x1000 * 512, 0);
                let again = start_with(&target, field(0), &cdb, &data_out, 0x1000 * 512);
                prop_assert!(!matches!(again, Step::Overrun));
            }
            Step::NoTarget => prop_assert!(false, "the target is there"),
        }
    }

    #[test]
    fn no_bytes_at_all_leave_the_buffers_and_the_disk(
        lun: [u8; 4],
        cdb: [u8; 32],
        data_out in 0..5000_usize,
        data_in in 0..5000_usize,
    ) {
        let target = target_with(GEOMETRY, ABLE);
        let address = [1, lun[0] & 1, lun[1] & 0x41, lun[2] & 1, 0, 0, 0, 0];
        match start_with(&target, address, &cdb, &vec![lun[3]; data_out], data_in) {
            Step::Answer(answer) => prop_assert!(answer.data.len() <= data_in),
            Step::Disk { op, .. } => {
                prop_assert!(touched(&op).iter().all(|range| range.end <= DISK_LEN));
                prop_assert!(op.data_out(512).is_some_and(|len| len <= data_out));
                prop_assert!(op.data_in() <= data_in);
            }
            Step::NoTarget | Step::Overrun => {}
        }
    }
}
