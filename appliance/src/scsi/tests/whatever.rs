//! Whatever a tenant sends.

use proptest::prelude::*;

use super::*;
use crate::scsi::table::TABLE;

const DISK_LEN: u128 = 0x1000 * 512;

/// Where on the disk an operation moves, compares or changes bytes: start and end.
fn touched(op: &Op) -> Vec<(u128, u128)> {
    let range = |offset, len: u64| (u128::from(offset), u128::from(offset) + u128::from(len));
    match *op {
        Op::Read { offset, len }
        | Op::Write { offset, len, .. }
        | Op::WriteVerify { offset, len }
        | Op::CompareAndWrite { offset, len, .. }
        | Op::Or { offset, len, .. } => vec![range(offset, len as u64)],
        Op::WriteSame { offset, len, .. }
        | Op::Compare { offset, len, .. }
        | Op::Check { offset, len }
        | Op::Zero { offset, len, .. }
        | Op::Mend { offset, len }
        | Op::Prefetch { offset, len }
        | Op::Copy { offset, len, .. } => vec![range(offset, len)],
        Op::Unmap { ref ranges, .. } => {
            let ranges = ranges.iter();
            ranges.map(|&(offset, len)| range(offset, len)).collect()
        }
        Op::Allocation { offset, .. } => vec![range(offset, 1)],
        Op::Watch(ref watch) => {
            let ranges = watch.ranges().iter();
            ranges.map(|&(offset, len)| range(offset, len)).collect()
        }
        Op::Protected(ref what) => touched(&what.op),
        Op::Flush | Op::Barrier => vec![],
    }
}

/// What a write command is to change, told from the CDB by the standard's tables alone: start and
/// end in bytes; `None` for a command that changes nothing.
fn to_change(cdb: &[u8; 32], data_out: &[u8]) -> Option<Vec<(u128, u128)>> {
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
                (start, start + u128::from(blocks) * 512)
            });
            let number = sent.get(2..4).map_or(0, |len| {
                usize::from(u16::from_be_bytes(len.try_into().unwrap())) / 16
            });
            return Some(
                described
                    .take(number)
                    .filter(|(start, end)| start < end)
                    .collect(),
            );
        }
        _ => return None,
    };
    let same = matches!((cdb[0], number(8, 2)), (0x41 | 0x93, _) | (0x7f, 0x0d));
    let end = match blocks {
        0 if same => DISK_LEN,
        blocks => (lba + blocks) * 512,
    };
    Some(
        Some((lba * 512, end))
            .filter(|(start, end)| start < end)
            .into_iter()
            .collect(),
    )
}

/// A command with its data-out.
#[derive(Debug, Clone)]
struct Sent {
    cdb: [u8; 32],
    data_out: Vec<u8>,
}

/// Where a command's blocks are, and how many: mostly there, sometimes just not, seldom wild.
fn extent() -> impl Strategy<Value = (u64, u32)> {
    let lba = prop_oneof![
        4 => (0..0x200_u64).prop_map(|n| n * 8),
        4 => 0..0x1000_u64,
        2 => 0xff0..0x1010_u64,
        1 => any::<u64>(),
    ];
    let blocks = prop_oneof![
        2 => Just(0_u32),
        4 => Just(8_u32),
        8 => 0..20_u32,
        1 => 0..0x1100_u32,
        1 => any::<u32>(),
    ];
    (lba, blocks)
}

/// An UNMAP parameter list as it should be.
fn list() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(extent(), 0..5).prop_map(|descriptors| {
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
    })
}

/// A command of the table, often a good one with data that fits.
fn sent() -> impl Strategy<Value = Sent> {
    let changing = [
        0x0a, 0x2a, 0x2e, 0x41, 0x42, 0x7f, 0x89, 0x8a, 0x8b, 0x8e, 0x93, 0x9c, 0xaa, 0xae,
    ];
    let changing: Vec<_> = (0..TABLE.len())
        .filter(|&row| changing.contains(&TABLE[row].code))
        .collect();
    let row = prop_oneof![prop::sample::select(changing), 0..TABLE.len()];
    let flags = prop_oneof![
        8 => Just(0_u8),
        8 => prop::sample::select(vec![0x01, 0x02, 0x06, 0x08, 0x09, 0x10, 0x18]),
        1 => any::<u8>(),
    ];
    let filling = prop_oneof![
        8 => Just(None),
        1 => (0..5000_usize).prop_map(Some),
    ];
    let byte = prop_oneof![Just(0_u8), any::<u8>()];
    let wild = prop_oneof![8 => Just(None), 1 => any::<(u8, u8)>().prop_map(Some)];
    (row, flags, extent(), list(), filling, byte, wild).prop_map(
        |(row, flags, (lba, blocks), list, filling, byte, wild)| {
            let row = &TABLE[row];
            let len = list.len();
            let mut cdb = named(row.code, row.service_action, flags, lba, blocks);
            let fitting = match row.code {
                0x42 => {
                    cdb[7..9].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                    len
                }
                0x41 | 0x93 => 512,
                0x7f if cdb[9] == 0x0d => 512,
                0x89 => usize::from(cdb[13]) * 1024,
                0x0a if blocks == 0 => 256 * 512,
                _ => (blocks as usize).min(0x1000) * 512,
            };
            let mut data_out = vec![byte; filling.unwrap_or(fitting)];
            if row.code == 0x42 && filling.is_none() {
                data_out = list;
            }
            if let Some((at, bits)) = wild {
                cdb[usize::from(at) % 32] ^= bits;
            }
            Sent { cdb, data_out }
        },
    )
}

/// The CDB of a command on blocks, whatever its length.
fn named(code: u8, action: Option<u16>, flags: u8, lba: u64, blocks: u32) -> [u8; 32] {
    let mut cdb = [0; 32];
    cdb[0] = code;
    // All of ours fit a byte.
    let action = action.map(|action| action.to_be_bytes()[1]);
    let short = u32::try_from(lba).unwrap_or(u32::MAX).to_be_bytes();
    let blocks = blocks.to_be_bytes();
    if code != 0x7f && code >> 5 != 0 {
        cdb[1] = action.unwrap_or(flags);
    }
    match code >> 5 {
        0 => {
            cdb[1..4].copy_from_slice(&short[1..]);
            cdb[4] = blocks[3];
        }
        1 | 2 => {
            cdb[2..6].copy_from_slice(&short);
            cdb[7..9].copy_from_slice(&blocks[2..]);
        }
        3 => {
            (cdb[7], cdb[9], cdb[10]) = (0x18, action.unwrap_or(0), flags);
            cdb[12..20].copy_from_slice(&lba.to_be_bytes());
            cdb[28..].copy_from_slice(&blocks);
        }
        5 => {
            cdb[2..6].copy_from_slice(&short);
            cdb[6..10].copy_from_slice(&blocks);
        }
        _ => {
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            match code {
                0x89 => cdb[13] = blocks[3],
                0x9c => cdb[12..14].copy_from_slice(&blocks[2..]),
                _ => cdb[10..14].copy_from_slice(&blocks),
            }
        }
    }
    if code == 0x42 {
        cdb[1..7].fill(0);
    }
    cdb
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn nothing_is_good_that_was_not_done_to_just_the_blocks_that_were_named(
        Sent { cdb, data_out } in sent(),
        data_in in 0..70_000_usize,
        able in prop::bool::weighted(0.8),
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
                for (start, end) in touched(&op) {
                    prop_assert!(start < end && end <= DISK_LEN);
                    prop_assert!(start % 512 == 0);
                }
                prop_assert!(op.data_out(512).is_some_and(|len| len <= data_out.len()));
                prop_assert!(op.data_in() <= data_in);
                // What a third-party copy is to change, its own tests know.
                let is_copy = cdb[0] == 0x83;
                prop_assert!(is_copy || op.changes_blocks() == changes.is_some());
                if let Some(changes) = changes {
                    prop_assert_eq!(touched(&op), changes);
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
            Step::Preempt { .. } => prop_assert_eq!(cdb[0], 0x04, "nobody is registered"),
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
                prop_assert!(touched(&op).iter().all(|&(_, end)| end <= DISK_LEN));
                prop_assert!(op.data_out(512).is_some_and(|len| len <= data_out));
                prop_assert!(op.data_in() <= data_in);
            }
            Step::Preempt { .. } => prop_assert_eq!(cdb[0], 0x04, "nobody is registered"),
            Step::NoTarget | Step::Overrun => {}
        }
    }
}
