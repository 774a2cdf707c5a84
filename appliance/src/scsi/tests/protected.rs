//! What a unit with protection information does, and does not.

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::disk::{FileDisk, FileOptions, ProtectedDisk, Protection};
use crate::scsi::testing::{Bench, Scratch, operated};

/// A unit that keeps its state in `state`, and its file.
fn bench(state: &Scratch, protection: Option<Protection>) -> (Bench, TempFile) {
    // In the build directory, where O_DIRECT works.
    let file = TempFile::new_in(&std::env::current_dir().unwrap()).unwrap();
    file.as_file().set_len(2 << 20).unwrap();
    let disk = Arc::new(FileDisk::open(&FileOptions::new(file.as_path())).unwrap());
    let disk: Arc<dyn Disk> = match protection {
        Some(protection) => Arc::new(ProtectedDisk::open(disk, protection).unwrap()),
        None => disk,
    };
    let at = state.path();
    let unit = LogicalUnit::new("root", disk)
        .unwrap()
        .with_upkeep(at.join("information"), at.join("erasing"))
        .unwrap();
    (Bench::of(&Arc::new(unit)), file)
}

/// Operation codes and service actions of all commands.
fn listed(bench: &Bench) -> Vec<[u8; 3]> {
    let all = bench.data(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]);
    let rows = all[4..].chunks(8);
    rows.map(|row| [row[0], row[2], row[3]]).collect()
}

#[test]
fn it_has_every_command_but_the_32_byte_ones_and_atomic_writes() {
    let (state, other) = (Scratch::new(), Scratch::new());
    let (plain, _file) = bench(&other, None);
    let mut expected = listed(&plain);
    expected.retain(|row| ![0x7f, 0x9c].contains(&row[0]));
    for protection in [Protection::Type1, Protection::Type3] {
        let (bench, _file) = bench(&state, Some(protection));
        assert_eq!(listed(&bench), expected);
        // READ, VERIFY, WRITE, WRITE AND VERIFY and WRITE SAME (32); and one that there is not.
        for action in [0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e] {
            let sense = bench.sense(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, action]);
            let told = (sense[2], [sense[12], sense[13]]);
            // INVALID COMMAND OPERATION CODE.
            assert_eq!(told, (5, [0x20, 0x00]), "{action:02x}");
            let one = bench.data(&[0xa3, 0x0c, 3, 0x7f, 0, action, 0, 0, 0, 64, 0, 0]);
            assert_eq!(one, [0, 0x01, 0, 0], "SUPPORT: not supported");
        }
        // WRITE ATOMIC(16).
        let sense = bench.sense(&[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!((sense[2], [sense[12], sense[13]]), (5, [0x20, 0x00]));
    }
}

#[test]
fn it_tells_which_commands_have_the_field() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state, Some(Protection::Type1));
    // FORMAT UNIT (FMTPINFO), READ(10), VERIFY(10), UNMAP, COMPARE AND WRITE, ORWRITE(16), WRITE
    // SAME(16), READ(6).
    for (opcode, usage) in [
        (0x04, 0xff),
        (0x28, 0xfa),
        (0x2f, 0xf6),
        (0x42, 0x00),
        (0x89, 0xfa),
        (0x8b, 0xfa),
        (0x93, 0xe9),
        (0x08, 0x1f),
    ] {
        let one = bench.data(&[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 64, 0, 0]);
        assert_eq!((one[1], one[5]), (3, usage), "{opcode:02x}");
    }
}

#[test]
fn it_claims_what_it_does() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state, Some(Protection::Type1));
    assert_eq!(bench.data(&[0x12, 0, 0, 0, 96, 0])[5], 0x09, "3PC, PROTECT");
    let pages = bench.data(&[0x12, 1, 0, 0, 96, 0]);
    assert_eq!(
        pages[3..],
        [
            12, 0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8f, 0xb0, 0xb1, 0xb2, 0xb3
        ]
    );
    // Block device characteristics: WABEREQ 01b.
    assert_eq!(bench.data(&[0x12, 1, 0xb1, 0, 96, 0])[7], 0x40);
    // Logical block provisioning: LBPU, LBPWS, LBPWS10, LBPRZ 001b; thin.
    assert_eq!(bench.data(&[0x12, 1, 0xb2, 0, 96, 0])[5..7], [0xe4, 0x02]);
    // Block limits: no atomic writes.
    assert_eq!(bench.data(&[0x12, 1, 0xb0, 0, 96, 0])[44..56], [0; 12]);
    // GET LBA STATUS: mapped or not known.
    let status = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    assert_eq!(bench.data(&status)[20], 0);
}

#[test]
fn it_is_not_formatted_to_another_type() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state, Some(Protection::Type1));
    // Without a list, and with FMTPINFO 00b, 01b, 10b without a list, 11b.
    for flags in [0x00, 0x10, 0x50, 0x80, 0xd0] {
        let answer = bench.answer(&[0x04, flags, 0, 0, 0, 0], &[0; 4]);
        assert_eq!(answer.status, 2, "{flags:02x}");
        assert_eq!(answer.sense, invalid_field(1, 7), "{flags:02x}");
    }
    let answer = bench.answer(&[0x04, 0x90, 0, 0, 0, 0], &[1, 0, 0, 0]);
    assert_eq!(
        (answer.sense[2], [answer.sense[12], answer.sense[13]]),
        (5, [0x26, 0x00])
    );
    assert!(!state.path().join("erasing").exists());
}

#[test]
fn its_self_test_checks_a_block_with_its_tag() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state, Some(Protection::Type1));
    let (op, answer) = operated(bench.start(&[0x1d, 0x04, 0, 0, 0, 0], &[], 0));
    let Op::Protected(what) = op else {
        panic!("{op:?}");
    };
    assert_eq!(
        what.op,
        Op::Check {
            offset: 0,
            len: 512
        }
    );
    assert_eq!((what.prefix, answer.status), (0, 0));
}

#[test]
fn what_asks_for_tags_is_not_done_again_either() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state, Some(Protection::Type1));
    let none = crate::memory::Segments::new(crate::memory::testing::shared_memory(1));
    let buffers = Buffers {
        data_out: &none,
        data_in: 0,
        tags: crate::scsi::Tags::default(),
    };
    // COMPARE AND WRITE and WRITE(16), each with and without WRPROTECT.
    for (opcode, again) in [(0x89, false), (0x8a, true)] {
        for wrprotect in [0x00, 0x20] {
            let mut cdb = [0; 32];
            cdb[..2].copy_from_slice(&[opcode, wrprotect]);
            cdb[13] = 1;
            let lun = [1, 0, 0x40, 0, 0, 0, 0, 0];
            let answer = bench.host.not_again(lun, &cdb, buffers);
            assert_eq!(answer.is_none(), again, "{opcode:02x} {wrprotect:02x}");
        }
    }
}
