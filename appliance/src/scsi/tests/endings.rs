//! How commands end once a disk has worked for them.

use super::*;
use crate::disk::{Extent, Reply};
use crate::scsi::Pending;
use crate::scsi::fault::SenseFormat;

/// A command of each kind that a disk works for, with its data-out and data-in in bytes.
fn commands() -> Vec<(&'static str, Vec<u8>, usize, usize)> {
    let mut compare_and_write = cdb_16(0x89, 0, 7, 0);
    compare_and_write[13] = 1;
    let mut atomic = cdb_16(0x9c, 0, 8, 0);
    atomic[13] = 8;
    vec![
        ("READ", cdb_16(0x88, 0, 7, 1).to_vec(), 0, 512),
        ("WRITE", cdb_16(0x8a, 0, 7, 1).to_vec(), 512, 0),
        ("WRITE ATOMIC", atomic.to_vec(), 4096, 0),
        ("WRITE AND VERIFY", cdb_16(0x8e, 2, 7, 1).to_vec(), 512, 0),
        ("VERIFY", cdb_16(0x8f, 0, 7, 1).to_vec(), 0, 0),
        ("VERIFY data", cdb_16(0x8f, 2, 7, 1).to_vec(), 512, 0),
        ("COMPARE AND WRITE", compare_and_write.to_vec(), 1024, 0),
        ("ORWRITE", cdb_16(0x8b, 0, 7, 1).to_vec(), 512, 0),
        ("WRITE SAME", cdb_16(0x93, 0, 7, 2).to_vec(), 512, 0),
        ("WRITE SAME zeros", cdb_16(0x93, 9, 7, 2).to_vec(), 0, 0),
        ("UNMAP", vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, 0),
        ("PRE-FETCH", cdb_16(0x90, 0, 7, 1).to_vec(), 0, 0),
        ("SYNCHRONIZE CACHE", cdb_16(0x91, 0, 7, 1).to_vec(), 0, 0),
        ("GET LBA STATUS", cdb_16(0x9e, 0x12, 7, 24).to_vec(), 0, 24),
        ("START STOP UNIT", vec![0x1b, 0, 0, 0, 0, 0], 0, 0),
    ]
}

/// The command as the disk works on it.
fn begin(cdb: &[u8], data_out: usize, data_in: usize) -> Pending {
    let target = target_with(GEOMETRY, ABLE);
    let mut data = vec![0xa6; data_out];
    if cdb[0] == 0x42 {
        // One descriptor: a block at LBA 7.
        data = vec![0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        data.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    }
    match send(&target, cdb, &data, data_in) {
        Step::Disk { pending, .. } => pending,
        other => panic!("{other:?}"),
    }
}

const ERRORS: [DiskError; 13] = [
    DiskError::Io(libc::EIO),
    DiskError::Io(0),
    DiskError::NoSpace,
    DiskError::Busy,
    DiskError::Gone,
    DiskError::Truncated,
    DiskError::ReadOnly,
    DiskError::OutOfRange,
    DiskError::TenantMemory,
    DiskError::Miscompare { at: 3 },
    DiskError::Unsupported,
    DiskError::WritesLost,
    DiskError::Cancelled,
];

#[test]
fn no_error_of_a_disk_is_good_for_any_command() {
    for (name, cdb, data_out, data_in) in commands() {
        for error in ERRORS {
            let answer = begin(&cdb, data_out, data_in).finish(Err(error));
            match error {
                DiskError::Busy => assert_eq!(answer.status, 0x08, "{name}"),
                DiskError::Cancelled => assert_eq!(answer.status, 0x40, "{name}"),
                _ => assert_eq!((answer.status, answer.sense.len()), (2, 18), "{name}"),
            }
            let all = u32::try_from(data_out + data_in).unwrap();
            assert_eq!((answer.data, answer.residual), (vec![], all), "{name}");
        }
    }
}

#[test]
fn an_answer_to_another_question_is_an_internal_failure() {
    for (name, cdb, data_out, data_in) in commands() {
        let other = match name {
            "GET LBA STATUS" => Reply::Done,
            _ => Reply::Allocation(vec![Extent {
                len: 512,
                allocated: true,
            }]),
        };
        let answer = begin(&cdb, data_out, data_in).finish(Ok(other));
        assert_eq!(code(&answer.sense), [4, 0x44, 0], "{name}");
    }
    let status = cdb_16(0x9e, 0x12, 7, 24);
    let nothing = begin(&status, 0, 24).finish(Ok(Reply::Allocation(vec![])));
    assert_eq!(code(&nothing.sense), [4, 0x44, 0]);
}

#[test]
fn a_command_whose_time_is_over_is_aborted_in_a_way_that_initiators_repeat() {
    // Linux repeats no command that ends with 2Eh/01h to 2Eh/03h.
    for (name, cdb, data_out, data_in) in commands() {
        let answer = begin(&cdb, data_out, data_in).expired();
        assert_eq!(answer.status, 2, "{name}");
        assert_eq!(code(&answer.sense), [0xb, 0x08, 0x01], "{name}");
    }
}

#[test]
fn a_miscompare_tells_where_it_is() {
    let told = |name| {
        let (_, cdb, data_out, data_in) = commands()
            .into_iter()
            .find(|(other, ..)| *other == name)
            .unwrap();
        let miscompare = DiskError::Miscompare { at: 27 };
        let answer = begin(&cdb, data_out, data_in).finish(Err(miscompare));
        assert_eq!(code(&answer.sense), [0xe, 0x1d, 0]);
        (answer.sense[0], answer.sense[3..7].to_vec())
    };
    // The byte in data-out; the block.
    assert_eq!(told("COMPARE AND WRITE"), (0xf0, vec![0, 0, 0, 27]));
    assert_eq!(told("VERIFY data"), (0xf0, vec![0, 0, 0, 7]));
    assert_eq!(told("WRITE AND VERIFY"), (0xf0, vec![0, 0, 0, 7]));
}

#[test]
fn a_disk_failure_becomes_sense_or_a_status() {
    let target = target(GEOMETRY);
    let read = [0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0];
    let write = [0x2a, 0, 0, 0, 0, 7, 0, 0, 1, 0];
    let outcome = |cdb: &[u8], error| match start(&target, field(0), cdb, 512, 512) {
        Step::Disk { pending, .. } => pending.finish(Err(error)),
        other => panic!("{other:?}"),
    };
    let medium = outcome(&read, DiskError::Io(libc::EIO));
    assert_eq!((medium.status, medium.residual), (2, 1024));
    assert_eq!(
        medium.sense,
        [0xf0, 0, 3, 0, 0, 0, 7, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
    );
    let full = outcome(&write, DiskError::NoSpace);
    assert_eq!(
        [full.sense[2], full.sense[12], full.sense[13]],
        [7, 0x27, 7]
    );
    assert_eq!(outcome(&write, DiskError::Busy).status, 0x08);
}

#[test]
fn an_lba_of_more_than_32_bits_is_told_in_descriptor_format_alone() {
    let large = target(Geometry {
        blocks: 1 << 40,
        ..GEOMETRY
    });
    let read = cdb_16(0x88, 0, 0x01_0203_0405, 1);
    let failed = |format| match send(&large, &read, &[], 512) {
        Step::Disk { mut pending, .. } => {
            pending.format = format;
            pending.finish(Err(DiskError::Io(libc::EIO))).sense
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(
        failed(SenseFormat::Fixed),
        [0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        failed(SenseFormat::Descriptor),
        [
            0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 2, 3, 4, 5
        ]
    );
}
