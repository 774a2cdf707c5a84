//! Snapshots, clones and copies of LUNs on files in a filesystem that has files share blocks.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::io::Write;
use std::path::Path;
use std::process::{Command as Program, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::ABORT_TASK;
use tests::world::{
    BLOCK, Command, Control, Copies, Failure, Filesystem, Initiator, Lun, MIB, Operator, PATIENCE,
    Shape, Sharing, Tenant, World, address, eventually, write10,
};

/// Long enough to see what must not happen; such a test is only ever wrong by passing.
const A_WHILE: Duration = Duration::from_millis(50);

/// UNIT ATTENTION, NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
const MEDIUM_CHANGED: Failure = Failure::Sense {
    key: 6,
    asc: 0x28,
    ascq: 0,
};

fn tenant_of(world: &World, hba: usize) -> Tenant {
    let mut tenant = world.tenant_of(hba, Shape::default());
    attentions(&mut tenant, 0);
    tenant
}

/// Meets unit attentions until there are none; returns them.
fn attentions(tenant: &mut Tenant, lun: u16) -> Vec<Failure> {
    let mut met = Vec::new();
    loop {
        let outcome = tenant.initiator().command(&Command::new(lun, &[0; 6]));
        match outcome.unwrap().good() {
            Err(failure @ Failure::Sense { key: 6, .. }) => met.push(failure),
            _ => return met,
        }
    }
}

fn take(operator: &mut Operator, name: &str) -> Value {
    let params = json!({ "name": "lun0", "snapshot": name });
    operator.call("lun.snapshot", &params).unwrap()
}

fn roll_back(operator: &mut Operator, name: &str) {
    let params = json!({ "name": "lun0", "snapshot": name });
    operator.call("lun.rollback", &params).unwrap();
}

/// The names of the snapshots of lun0.
fn listed(operator: &mut Operator) -> Vec<String> {
    let all = operator.call("lun.snapshots", &json!({ "name": "lun0" }));
    let all = all.unwrap();
    let names = all.as_array().unwrap().iter();
    names
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

fn read(initiator: &mut Initiator, lun: u16, lba: u32) -> Vec<u8> {
    initiator.read(lun, lba, 1).unwrap()
}

#[test]
fn a_lun_is_rolled_back_and_all_who_see_it_are_told() {
    let world = World::new()
        .lun(Lun::file(MIB).shared())
        .another_hba()
        .shared_lun(0)
        .copies_by(Copies::new())
        .start();
    let control = world.control(None);
    let mut operator = control.operator();
    let [mut one, mut other] = [0, 1].map(|hba| tenant_of(&world, hba));
    one.initiator().write(0, 7, &[1; BLOCK]).unwrap();
    let taken = take(&mut operator, "monday");
    assert_eq!(
        (&taken["lun"], &taken["bytes"]),
        (&json!("lun0"), &json!(MIB))
    );
    other.initiator().write(0, 7, &[2; BLOCK]).unwrap();
    take(&mut operator, "tuesday");
    assert_eq!(listed(&mut operator), ["monday", "tuesday"]);

    roll_back(&mut operator, "monday");

    for tenant in [&mut one, &mut other] {
        assert_eq!(attentions(tenant, 0), [MEDIUM_CHANGED]);
        assert_eq!(read(tenant.initiator(), 0, 7), [1; BLOCK]);
    }
    roll_back(&mut operator, "tuesday");
    attentions(&mut one, 0);
    assert_eq!(read(one.initiator(), 0, 7), [2; BLOCK]);
    let params = json!({ "name": "lun0", "snapshot": "monday" });
    let left = operator.call("lun.snapshot.remove", &params).unwrap();
    assert_eq!(left[0]["name"], "tuesday");
    assert_eq!(listed(&mut operator), ["tuesday"]);
}

#[test]
fn snapshots_are_there_after_a_restart() {
    let mut world = World::new()
        .lun(Lun::file(MIB))
        .copies_by(Copies::new())
        .start();
    let control = world.control(None);
    let mut tenant = tenant_of(&world, 0);
    tenant.initiator().write(0, 7, &[1; BLOCK]).unwrap();
    take(&mut control.operator(), "monday");
    tenant.initiator().write(0, 7, &[2; BLOCK]).unwrap();
    drop((control, tenant));
    world.kill_appliance();
    world.start_appliance();
    let control = world.control(None);
    let mut operator = control.operator();
    assert_eq!(listed(&mut operator), ["monday"]);
    roll_back(&mut operator, "monday");
    assert_eq!(world.image(0, 7 * BLOCK as u64, BLOCK), [1; BLOCK]);
}

/// A read that finds a block and its tag not to fit would fail.
#[test]
fn a_lun_with_protection_information_comes_back_with_it() {
    let world = World::new()
        .lun(Lun::file(MIB).protected("type1"))
        .copies_by(Copies::new())
        .start();
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = tenant_of(&world, 0);
    tenant.initiator().write(0, 7, &[1; 9 * BLOCK]).unwrap();
    take(&mut operator, "monday");
    tenant.initiator().write(0, 3, &[2; 9 * BLOCK]).unwrap();
    roll_back(&mut operator, "monday");
    assert_eq!(attentions(&mut tenant, 0), [MEDIUM_CHANGED]);
    let read = tenant.initiator().read(0, 3, 13).unwrap();
    assert_eq!(read[..4 * BLOCK], [0; 4 * BLOCK]);
    assert_eq!(read[4 * BLOCK..], [1; 9 * BLOCK]);
}

#[test]
fn only_the_lun_that_a_snapshot_is_taken_of_stands_still() {
    let copies = Copies::new();
    let world = World::new()
        .lun(Lun::file(MIB))
        .lun(Lun::file(MIB))
        .copies_by(Arc::<Copies>::clone(&copies))
        .start();
    let control = world.control(None);
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 1);
    copies.hang(true);
    thread::scope(|scope| {
        let mut operator = control.operator();
        let taken = scope.spawn(move || take(&mut operator, "monday"));
        eventually("the filesystem is at it", || copies.calls() > 0);
        let write = Command::new(0, &write10(7, 1)).data_out(&[3; BLOCK]);
        let waits = tenant.initiator().submit(&write);
        for lba in 0..20 {
            tenant.initiator().write(1, lba, &[4; BLOCK]).unwrap();
            assert_eq!(read(tenant.initiator(), 0, lba), [0; BLOCK]);
        }
        copies.hang(false);
        taken.join().unwrap();
        let outcome = tenant.initiator().wait_for(waits, PATIENCE).unwrap();
        outcome.good().unwrap();
    });
    let mut operator = control.operator();
    assert_eq!(read(tenant.initiator(), 0, 7), [3; BLOCK]);
    roll_back(&mut operator, "monday");
    attentions(&mut tenant, 0);
    assert_eq!(read(tenant.initiator(), 0, 7), [0; BLOCK]);
}

#[test]
fn a_clone_is_a_lun_of_another_tenant() {
    let world = World::new()
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .copies_by(Copies::new())
        .start();
    let control = world.control(None);
    let mut operator = control.operator();
    let [mut one, mut other] = [0, 1].map(|hba| tenant_of(&world, hba));
    one.initiator().write(0, 7, &[1; BLOCK]).unwrap();
    take(&mut operator, "monday");
    one.initiator().write(0, 7, &[2; BLOCK]).unwrap();
    let folder = std::env::temp_dir().join(format!("clones-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    for (new, snapshot, at) in [("now", None, 4), ("then", Some("monday"), 5)] {
        let mut params = json!({
            "name": "lun0", "new": new, "path": folder.join(new), "hba": "hba1",
            "at": at.to_string(),
        });
        if let Some(snapshot) = snapshot {
            params["snapshot"] = snapshot.into();
        }
        let applied = operator.call("lun.clone", &params).unwrap();
        assert!(applied["changes"].to_string().contains(new), "{applied}");
        attentions(&mut other, at);
    }
    one.initiator().write(0, 7, &[3; BLOCK]).unwrap();
    assert_eq!(read(other.initiator(), 4, 7), [2; BLOCK]);
    assert_eq!(read(other.initiator(), 5, 7), [1; BLOCK]);
    // What cannot be put into force leaves no file.
    let path = folder.join("third");
    let params = json!({ "name": "lun0", "new": "third", "path": path, "hba": "nobody" });
    let refused = operator.call("lun.clone", &params).unwrap_err();
    assert!(
        refused.contains("no tenant is named \"nobody\""),
        "{refused}"
    );
    assert!(!path.exists());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_has_no_snapshots_says_why_and_what_to_do() {
    let folder = Path::new("/dev/shm").join(format!("world-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let lun = Lun::file(MIB).write_back();
    let world = World::new().lun(lun).images_in(&folder).start();
    let control = world.control(None);
    let mut operator = control.operator();
    let ram = json!({ "name": "ram", "keys": { "kind": "ram", "size": MIB } });
    operator.call("lun.add", &ram).unwrap();
    let refused = operator.call("lun.snapshot", &json!({ "name": "ram" }));
    let text =
        "LUN \"ram\": its disk is no file; only a LUN on a file on XFS or btrfs has snapshots";
    assert!(refused.unwrap_err().contains(text));
    let refused = operator.call("lun.snapshot", &json!({ "name": "lun0" }));
    std::fs::remove_dir_all(folder).unwrap();
    let refused = refused.unwrap_err();
    let text = "is on tmpfs, which cannot have files share blocks";
    assert!(refused.contains(text), "{refused}");
    assert!(refused.contains("move the LUN's file to XFS"), "{refused}");
}

// --- The console ---------------------------------------------------------------------------------

fn console(control: &Control, words: &[&str]) -> Output {
    let mut program = Program::new(env!("CARGO_BIN_EXE_console"));
    program.arg(control.path()).args(words).output().unwrap()
}

#[test]
fn the_console_takes_lists_and_removes_snapshots_and_rolls_back() {
    let world = World::new()
        .lun(Lun::file(MIB))
        .copies_by(Copies::new())
        .start();
    let control = world.control(None);
    let said = |words: &[&str]| {
        let output = console(&control, words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(said(&["lun", "snapshot", "lun0"]), "no snapshots\n");
    assert_eq!(
        said(&["lun", "snapshot", "lun0", "create", "monday"]),
        "monday is taken; lun snapshot lun0 rollback monday goes back to it\n"
    );
    let table = said(&["lun", "snapshot", "lun0", "list"]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].starts_with("SNAPSHOT  TAKEN (UTC)"), "{table}");
    assert!(lines[1].starts_with("monday    20"), "{table}");
    assert!(lines[1].contains("1 MiB"), "{table}");
    assert_eq!(
        said(&["lun", "snapshot", "lun0", "rollback", "monday"]),
        "lun0 is as it was at monday; who sees it is told\n"
    );
    assert_eq!(
        said(&["lun", "snapshot", "lun0", "remove", "monday"]),
        "no snapshots\n"
    );
    // Without a name it is called by its time.
    assert!(said(&["lun", "snapshot", "lun0", "create"]).starts_with("20"));
    let output = console(&control, &["lun", "snapshot", "lun0", "rollback", "x"]);
    assert_eq!(output.status.code(), Some(1));
}

// --- Copies --------------------------------------------------------------------------------------

/// EXTENDED COPY(LID1) of so many bytes from the start of LUN 0 to that of LUN 1, sent to LUN 0.
fn copy(initiator: &mut Initiator, len: u32) -> Command {
    let mut cscds = Vec::new();
    for lun in [0, 1] {
        let inquiry = Command::new(lun, &[0x12, 1, 0x83, 0, 64, 0]).data_in(64);
        let page = initiator.run(&inquiry).unwrap();
        let mut cscd = vec![0xe4, 0, 0, 0];
        cscd.extend(&page[4..16]);
        cscd.resize(28, 0);
        cscd.extend([0, 0, 2, 0]);
        cscds.extend(cscd);
    }
    let mut segment = vec![0x0a, 0, 0, 0x1c, 0, 0, 0, 1];
    segment.extend(len.to_be_bytes());
    segment.extend([0; 20]);
    let mut list = vec![9, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0];
    list.extend(cscds);
    list.extend(segment);
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
    Command::new(0, &cdb).data_out(&list)
}

/// How many bytes came to lun1 in which way.
fn copied(control: &Control) -> Value {
    let luns = control.operator().call("luns", &json!({ "name": "lun1" }));
    luns.unwrap()[0]["copied"].clone()
}

#[test]
fn a_copy_that_the_filesystem_does_is_counted_as_that() {
    let world = World::new()
        .lun(Lun::file(MIB))
        .lun(Lun::file(MIB))
        .copies_by(Copies::new())
        .start();
    let control = world.control(None);
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 1);
    tenant.initiator().write(0, 0, &[5; 129 * BLOCK]).unwrap();
    let copy = copy(tenant.initiator(), 129 * 512);
    tenant.initiator().run(&copy).unwrap();
    assert_eq!(
        world.image(1, 0, 130 * BLOCK)[..129 * BLOCK],
        [5; 129 * BLOCK]
    );
    assert_eq!(world.image(1, 129 * BLOCK as u64, BLOCK), [0; BLOCK]);
    let expected = json!({ "reflink": 65536, "filesystem": 0, "pool": 512 });
    assert_eq!(copied(&control), expected);
    let shown = console(&control, &["show", "lun1"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("copied to 64 KiB by reflink, 512 B read and written"),
        "{shown}"
    );
}

#[test]
fn an_abort_is_answered_when_the_filesystem_is_done_with_the_copy() {
    let copies = Copies::new();
    let world = World::new()
        .lun(Lun::file(MIB))
        .lun(Lun::file(MIB))
        .copies_by(Arc::<Copies>::clone(&copies))
        .start();
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 1);
    tenant.initiator().write(0, 0, &[5; 64 * BLOCK]).unwrap();
    let copy = copy(tenant.initiator(), 64 * 512);
    copies.hang(true);
    let task = tenant.initiator().submit(&copy);
    eventually("the filesystem is at it", || copies.calls() > 0);
    let at = tenant.send_function(ABORT_TASK, address(0), task.tag());
    assert_eq!(tenant.function_answer(at, A_WHILE), None, "it may land yet");
    copies.hang(false);
    assert_eq!(tenant.function_answer(at, PATIENCE), Some(response::OK));
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    assert_eq!(outcome.response.response, response::ABORTED);
    // Whatever it has done, it does no more.
    let after = world.image(1, 0, 64 * BLOCK);
    tenant.initiator().write(1, 0, &[6; BLOCK]).unwrap();
    thread::sleep(A_WHILE);
    assert_eq!(world.image(1, 0, BLOCK), [6; BLOCK]);
    assert_eq!(world.image(1, 512, 63 * BLOCK), after[BLOCK..]);
}

// --- On a real filesystem ------------------------------------------------------------------------

/// A filesystem, or nothing; then that is said where it is seen.
fn filesystem(kind: Sharing, test: &str) -> Option<Filesystem> {
    match Filesystem::new(kind) {
        Ok(made) => Some(made),
        Err(why) => {
            // Not by `eprintln`, which nobody sees of a test that passes.
            let _ = writeln!(
                std::io::stderr(),
                "NOT RUN: {test} needs {kind:?}, but {why}; the suite vm_features has an XFS"
            );
            None
        }
    }
}

#[test]
fn xfs_copies_by_reference() {
    if let Some(xfs) = filesystem(Sharing::Xfs, "xfs_copies_by_reference") {
        copies_by_reference(&xfs);
    }
}

#[test]
fn btrfs_copies_by_reference() {
    if let Some(btrfs) = filesystem(Sharing::Btrfs, "btrfs_copies_by_reference") {
        copies_by_reference(&btrfs);
    }
}

fn copies_by_reference(filesystem: &Filesystem) {
    for write_back in [false, true] {
        let lun = || {
            let lun = Lun::file(4 * MIB);
            if write_back { lun.write_back() } else { lun }
        };
        let folder = filesystem.path().join(write_back.to_string());
        std::fs::create_dir(&folder).unwrap();
        let world = World::new()
            .lun(lun())
            .lun(lun())
            .images_in(&folder)
            .start();
        let control = world.control(None);
        let mut tenant = tenant_of(&world, 0);
        attentions(&mut tenant, 1);
        let data: Vec<u8> = (0..2048 * BLOCK)
            .map(|at| u8::try_from(at / 7 % 251).unwrap())
            .collect();
        tenant.initiator().write(0, 0, &data).unwrap();
        let copy = copy(tenant.initiator(), 2047 * 512);
        tenant.initiator().run(&copy).unwrap();
        assert!(world.image(1, 0, 2047 * BLOCK) == data[..2047 * BLOCK]);
        let copied = copied(&control);
        assert_eq!(copied["reflink"], 2040 * 512, "{copied}");
        // Neither is changed by writes to the other.
        tenant.initiator().write(0, 8, &[1; BLOCK]).unwrap();
        tenant.initiator().write(1, 9, &[2; BLOCK]).unwrap();
        assert_eq!(read(tenant.initiator(), 1, 8), data[8 * BLOCK..9 * BLOCK]);
        assert_eq!(read(tenant.initiator(), 0, 9), data[9 * BLOCK..10 * BLOCK]);
    }
}

#[test]
fn a_snapshot_on_xfs_is_of_one_moment_and_comes_back_as_it_was() {
    let test = "a_snapshot_on_xfs_is_of_one_moment_and_comes_back_as_it_was";
    if let Some(xfs) = filesystem(Sharing::Xfs, test) {
        snapshots_are_of_one_moment(&xfs);
    }
}

#[test]
fn a_snapshot_on_btrfs_is_of_one_moment_and_comes_back_as_it_was() {
    let test = "a_snapshot_on_btrfs_is_of_one_moment_and_comes_back_as_it_was";
    if let Some(btrfs) = filesystem(Sharing::Btrfs, test) {
        snapshots_are_of_one_moment(&btrfs);
    }
}

/// Each block of a snapshot that is taken while a tenant writes all blocks in turn, with a number
/// that becomes larger, has one of two numbers, and those with the larger one come first.
fn snapshots_are_of_one_moment(filesystem: &Filesystem) {
    for lun in [Lun::file(MIB), Lun::file(MIB).write_back()] {
        let folder = filesystem.path().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let world = World::new().lun(lun).images_in(&folder).start();
        let control = world.control(None);
        let mut operator = control.operator();
        let mut tenant = tenant_of(&world, 0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let writes = scope.spawn(|| {
                for number in 1..=u8::MAX {
                    for lba in (0..2048).step_by(128) {
                        let data = [number; 128 * BLOCK];
                        tenant.initiator().write(0, lba, &data).unwrap();
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for name in ["a", "b", "c"] {
                thread::sleep(Duration::from_millis(30));
                take(&mut operator, name);
            }
            stop.store(true, Ordering::Relaxed);
            writes.join().unwrap();
        });
        for name in ["b", "a", "c"] {
            let taken = std::fs::read(folder.join("lun0.img.snapshots").join(name)).unwrap();
            let numbers: Vec<u8> = taken.chunks(128 * BLOCK).map(|part| part[0]).collect();
            let whole = taken.chunks(128 * BLOCK).zip(&numbers);
            assert!(
                whole
                    .into_iter()
                    .all(|(part, n)| part.iter().all(|byte| byte == n))
            );
            assert!(numbers.is_sorted_by(|a, b| a >= b), "{numbers:?}");
            assert!(numbers[0] - numbers[15] <= 1, "{numbers:?}");
            roll_back(&mut operator, name);
            assert!(world.image(0, 0, taken.len()) == taken, "{name}");
        }
        assert_eq!(attentions(&mut tenant, 0), [MEDIUM_CHANGED]);
    }
}
