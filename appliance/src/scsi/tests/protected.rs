//! What a unit with protection information does not do: nothing may get past the tags.

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::disk::{FileDisk, FileOptions, ProtectedDisk, Protection};
use crate::scsi::testing::{Bench, READY, Scratch, operated};

/// A unit that keeps its state in `state`, and its file.
fn bench(state: &Scratch) -> (Bench, TempFile) {
    // In the build directory, where O_DIRECT works.
    let file = TempFile::new_in(&std::env::current_dir().unwrap()).unwrap();
    file.as_file().set_len(2 << 20).unwrap();
    let disk = FileDisk::open(&FileOptions::new(file.as_path())).unwrap();
    let disk = ProtectedDisk::open(Arc::new(disk), Protection::Type1).unwrap();
    let at = state.path();
    let unit = LogicalUnit::new("root", Arc::new(disk))
        .unwrap()
        .with_upkeep(at.join("information"), at.join("erasing"))
        .unwrap();
    (Bench::of(&Arc::new(unit)), file)
}

#[test]
fn what_would_lose_tags_is_no_command_of_the_unit() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state);
    let (format, reassign) = ([0x04, 0], [0x07, 0]);
    // SANITIZE: OVERWRITE, BLOCK ERASE, EXIT FAILURE MODE.
    let sanitize = [[0x48, 0x01], [0x48, 0x82], [0x48, 0x1f]];
    // EXTENDED COPY, POPULATE TOKEN, WRITE USING TOKEN, COPY OPERATION ABORT.
    let copy_out = [0x00, 0x01, 0x10, 0x11, 0x1c].map(|action| [0x83, action]);
    // RECEIVE COPY RESULTS, ROD TOKEN INFORMATION, and none at all.
    let copy_in = [0x00, 0x03, 0x07, 0x1e].map(|action| [0x84, action]);
    let commands = [format, reassign].into_iter().chain(sanitize);
    for command in commands.chain(copy_out).chain(copy_in) {
        let sense = bench.sense(&command);
        let told = (sense[2], [sense[12], sense[13]]);
        // INVALID COMMAND OPERATION CODE.
        assert_eq!(told, (5, [0x20, 0x00]), "{command:02x?}");
        assert_eq!(bench.ready(), READY, "{command:02x?}");
    }
    assert!(!state.path().join("erasing").exists());
}

#[test]
fn it_does_not_claim_what_it_does_not_do() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state);
    assert_eq!(bench.data(&[0x12, 0, 0, 0, 96, 0])[5], 0x01, "no 3PC");
    let pages = bench.data(&[0x12, 1, 0, 0, 96, 0]);
    assert_eq!(
        pages[3..],
        [
            11, 0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0xb0, 0xb1, 0xb2, 0xb3
        ]
    );
    let sense = bench.sense(&[0x12, 1, 0x8f, 0, 96, 0]);
    assert_eq!((sense[2], sense[12]), (5, 0x24));
    // Block device characteristics: no WABEREQ.
    assert_eq!(bench.data(&[0x12, 1, 0xb1, 0, 96, 0])[7], 0);

    let all = bench.data(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]);
    let listed: Vec<_> = all[4..].chunks(8).map(|row| row[0]).collect();
    assert!(listed.contains(&0x28), "READ(10)");
    for code in [0x04, 0x07, 0x48, 0x83, 0x84] {
        assert!(!listed.contains(&code), "{code:02x}");
        let one = bench.data(&[0xa3, 0x0c, 3, code, 0, 0, 0, 0, 0, 64, 0, 0]);
        assert_eq!(one, [0, 0x01, 0, 0], "SUPPORT: not supported");
    }
}

#[test]
fn its_self_test_checks_a_block_with_its_tag() {
    let state = Scratch::new();
    let (bench, _file) = bench(&state);
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
