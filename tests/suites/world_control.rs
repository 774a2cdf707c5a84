//! An operator watches and changes the appliance while tenants work.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::path::{Path, PathBuf};
use std::process::{Command as Program, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use appliance::config::Poll;
use appliance::{Appliance, Config};
use rexpect::session::PtySession;
use serde_json::{Value, json};
use spec::virtio_scsi::response;
use spec::virtio_scsi::task_management::ABORT_TASK;
use tests::world::{
    BLOCK, Command, Control, Failure, Lun, MIB, Operator, PATIENCE, Shape, Tenant, World, address,
    eventually, write10,
};

/// UNIT ATTENTION, POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
const POWER_ON: Failure = attention(0x29, 0);
/// UNIT ATTENTION, CAPACITY DATA HAS CHANGED.
const CAPACITY_CHANGED: Failure = attention(0x2a, 9);
/// UNIT ATTENTION, REPORTED LUNS DATA HAS CHANGED.
const LUNS_CHANGED: Failure = attention(0x3f, 0x0e);

const fn attention(asc: u8, ascq: u8) -> Failure {
    Failure::Sense { key: 6, asc, ascq }
}

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("operator-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// An empty image.
    fn image(&self, name: &str, len: u64) -> PathBuf {
        let path = self.0.join(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// TEST UNIT READY.
fn ready(tenant: &mut Tenant, lun: u16) -> Result<(), Failure> {
    let command = Command::new(lun, &[0; 6]);
    let outcome = tenant.initiator().command(&command).unwrap();
    outcome.good().map(drop)
}

/// Meets unit attentions until there are none; returns them.
fn attentions(tenant: &mut Tenant, lun: u16) -> Vec<Failure> {
    let mut met = Vec::new();
    while let Err(failure @ Failure::Sense { key: 6, .. }) = ready(tenant, lun) {
        met.push(failure);
    }
    met
}

/// A tenant that writes LUN 0 all over and reads it back, again and again.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Tenant, u32)>,
}

impl Busy {
    /// On LUNs of a MiB.
    fn start(mut tenant: Tenant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                for part in 0..16 {
                    let byte = u8::try_from((rounds * 16 + part) % 251).unwrap();
                    // That its other LUNs are others is told by any of them.
                    attentions(&mut tenant, 0);
                    tenant
                        .initiator()
                        .write(0, part * 128, &[byte; 64 * BLOCK])
                        .unwrap();
                    attentions(&mut tenant, 0);
                    let read = tenant.initiator().read(0, part * 128, 64).unwrap();
                    assert!(read.iter().all(|there| *there == byte));
                }
                rounds += 1;
            }
            (tenant, rounds)
        });
        Self { stop, thread }
    }

    /// Stops it; it must have done something.
    fn stop(self) -> Tenant {
        self.stop.store(true, Ordering::Relaxed);
        let (tenant, rounds) = self.thread.join().unwrap();
        assert!(rounds > 0);
        tenant
    }
}

/// Two HBAs: the first sees lun0, the second nothing.
fn two_hbas(lun: Lun) -> World {
    World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(lun)
        .another_hba()
        .start()
}

fn tenant_of(world: &World, hba: usize) -> Tenant {
    world.tenant_of(hba, Shape::default())
}

// --- Watching ----------------------------------------------------------------------------------

#[test]
fn what_a_tenant_did_is_counted_and_traced() {
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = tenant_of(&world, 0);
    assert_eq!(attentions(&mut tenant, 0), [POWER_ON]);
    tenant.initiator().write(0, 7, &[1; 4 * BLOCK]).unwrap();
    tenant.initiator().read(0, 7, 2).unwrap();
    assert!(tenant.initiator().read(0, u32::MAX, 1).is_err());

    let hbas = operator.call("hbas", &Value::Null).unwrap();
    assert_eq!(
        (&hbas[0]["name"], &hbas[0]["state"]),
        (&json!("hba0"), &json!("attached"))
    );
    let counters = &hbas[0]["units"][0]["counters"];
    // TEST UNIT READY twice, and the three above.
    assert_eq!(counters["commands"], 5);
    assert_eq!(
        (&counters["reads"], &counters["writes"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(counters["bytes_written"], 4 * BLOCK);
    assert_eq!(counters["bytes_read"], 2 * BLOCK);
    assert_eq!(counters["sense_keys"], json!({ "5": 1, "6": 1 }));
    let traced = operator
        .call("trace", &json!({ "lun": "lun0", "most": 3 }))
        .unwrap();
    let told: Vec<_> = traced
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (&t["command"], &t["ending"]))
        .collect();
    let expected = [
        ("WRITE(10) lba 7 +4", "GOOD"),
        ("READ(10) lba 7 +2", "GOOD"),
        ("READ(10) lba 4294967295 +1", "ILLEGAL REQUEST 21/00"),
    ];
    assert_eq!(told.len(), expected.len());
    for (told, expected) in told.iter().zip(expected) {
        assert_eq!((told.0, told.1), (&json!(expected.0), &json!(expected.1)));
    }
}

#[test]
fn a_disk_that_hangs_is_told_with_the_command_that_waits_for_it() {
    let world = two_hbas(Lun::file(MIB).gated());
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 0);
    let calm = operator.call("explain", &json!({ "lun": "lun0" })).unwrap();
    assert!(
        calm["findings"][0]
            .as_str()
            .unwrap()
            .starts_with("nothing keeps it")
    );

    world.gate(0).close();
    let write = Command::new(0, &write10(0, 1)).data_out(&[1; BLOCK]);
    let task = tenant.initiator().submit(&write);
    let mut told = Value::Null;
    let deadline = Instant::now() + PATIENCE;
    while !told["findings"]
        .to_string()
        .contains("a second: 1, the oldest for")
    {
        assert!(Instant::now() < deadline, "{told}");
        thread::sleep(Duration::from_millis(50));
        let asked = json!({ "lun": "lun0" });
        told = operator.call("explain", &asked).unwrap();
    }
    assert_eq!(told["tasks"][0][0], "hba0");
    assert_eq!(told["tasks"][0][1]["command"], "WRITE(10) lba 0 +1");
    assert_eq!(told["tasks"][0][1]["waits"], "for its disk");

    world.gate(0).open();
    world.gate(0).let_write();
    tenant.initiator().wait_for(task, PATIENCE).unwrap();
}

// --- Changing ----------------------------------------------------------------------------------

#[test]
fn a_lun_moves_to_another_tenant_with_its_data_while_a_third_works() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .another_hba()
        .lun(Lun::file(MIB))
        .another_hba()
        .start();
    let control = world.control(None);
    let mut operator = control.operator();
    let busy = Busy::start(tenant_of(&world, 0));
    let (mut from, mut to) = (tenant_of(&world, 1), tenant_of(&world, 2));
    attentions(&mut from, 0);
    from.initiator().write(0, 9, &[0x77; BLOCK]).unwrap();

    let params = json!({ "name": "lun1", "hba": "hba2", "at": "4" });
    operator.call("lun.move", &params).unwrap();

    // Its new HBA's worker shows it a moment after the answer.
    let mut met = Vec::new();
    eventually("the LUN comes", || {
        met = attentions(&mut to, 4);
        !met.is_empty()
    });
    assert_eq!(met, [POWER_ON]);
    assert_eq!(to.initiator().read(4, 9, 1).unwrap(), [0x77; BLOCK]);
    // The last of its target: there is no target any more.
    assert!(from.initiator().read(0, 9, 1).is_err());
    busy.stop();
}

#[test]
fn a_lun_whose_commands_do_not_end_is_put_back() {
    let world = two_hbas(Lun::file(MIB).gated());
    let control = world.control(None);
    let mut operator = control.operator();
    let _tenant = tenant_of(&world, 0);
    // Given up, so that no command waits for it; but the kernel is at it.
    let left = world.gate(0).leave_write();
    let to_other = json!({ "name": "lun0", "hba": "hba1" });

    let moved = operator.call("lun.move", &to_other).unwrap_err();

    assert!(moved.contains("LUN \"lun0\": its disk was not"), "{moved}");
    assert!(moved.contains("was put back where it was"), "{moved}");
    assert_eq!(seen_by(&mut operator, "lun0"), json!([["hba0", "0:0"]]));
    drop(left);
    operator.call("lun.move", &to_other).unwrap();
    assert_eq!(seen_by(&mut operator, "lun0"), json!([["hba1", "0:0"]]));
}

#[test]
fn a_lun_that_a_configuration_gives_to_another_waits_for_its_disk_too() {
    let world = two_hbas(Lun::file(MIB).gated());
    let control = world.control(None);
    let mut operator = control.operator();
    let _tenant = tenant_of(&world, 0);
    let text = operator.call("config.get", &json!({})).unwrap();
    let text = text["text"].as_str().unwrap();
    let (first, second) = ("luns = { \"0\" = \"lun0\" }", "luns = {  }");
    assert!(text.contains(first) && text.contains(second), "{text}");
    let moved = text.replace(second, "luns = { \"5\" = \"lun0\" }");
    let moved = json!({ "text": moved.replace(first, "luns = {}") });
    let left = world.gate(0).leave_write();

    let refused = operator.call("config.apply", &moved).unwrap_err();

    assert!(refused.contains("was put back where it was"), "{refused}");
    assert_eq!(seen_by(&mut operator, "lun0"), json!([["hba0", "0:0"]]));
    drop(left);
    let applied = operator.call("config.apply", &moved).unwrap();
    let changes = json!(["HBAs that see other LUNs: hba0, hba1"]);
    assert_eq!(applied["changes"], changes);
    assert_eq!(seen_by(&mut operator, "lun0"), json!([["hba1", "0:5"]]));
}

#[test]
fn a_lun_that_nobody_sees_is_not_shown_while_its_disk_is_at_what_was_begun_before() {
    let world = two_hbas(Lun::file(MIB).gated());
    let control = world.control(None);
    let mut operator = control.operator();
    let text = operator.call("config.get", &json!({})).unwrap();
    let text = text["text"].as_str().unwrap();
    let nobody = text.replace("luns = { \"0\" = \"lun0\" }", "luns = {}");
    operator
        .call("config.apply", &json!({ "text": nobody }))
        .unwrap();
    let left = world.gate(0).leave_write();
    let to_other = json!({ "name": "lun0", "hba": "hba1" });

    let refused = operator.call("lun.move", &to_other).unwrap_err();

    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(seen_by(&mut operator, "lun0"), json!([]));
    drop(left);
    operator.call("lun.move", &to_other).unwrap();
}

/// Who sees a LUN, and where.
fn seen_by(operator: &mut Operator, lun: &str) -> Value {
    let shown = operator.call("show", &json!({ "name": lun })).unwrap();
    shown["lun"]["seen_by"].clone()
}

#[test]
fn a_lun_grows_and_its_tenant_is_told() {
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 0);

    let grown = operator.call("lun.resize", &json!({ "name": "lun0", "bytes": 2 * MIB }));

    assert_eq!(grown.unwrap()["bytes"], 2 * MIB);
    assert_eq!(attentions(&mut tenant, 0), [CAPACITY_CHANGED]);
    let last = u32::try_from(2 * MIB / BLOCK as u64 - 1).unwrap();
    tenant.initiator().write(0, last, &[5; BLOCK]).unwrap();
    assert_eq!(tenant.initiator().read(0, last, 1).unwrap(), [5; BLOCK]);
}

#[test]
fn a_drained_tenant_waits_and_goes_on_when_it_is_resumed() {
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 0);

    let drained = operator.call("drain", &json!({ "name": "hba0" })).unwrap();
    assert_eq!(
        drained,
        json!({ "hba": "hba0", "drained": true, "in_flight": 0 })
    );
    let write = Command::new(0, &write10(0, 1)).data_out(&[9; BLOCK]);
    let task = tenant.initiator().submit(&write);
    let early = tenant
        .initiator()
        .wait_for(task, Duration::from_millis(300));
    assert!(early.is_err(), "it was carried out");
    assert_eq!(world.image(0, 0, BLOCK), [0; BLOCK]);
    let told = operator.call("explain", &json!({ "lun": "lun0" })).unwrap();
    assert!(
        told["findings"][0]
            .as_str()
            .unwrap()
            .contains("resume hba0")
    );

    operator.call("resume", &json!({ "name": "hba0" })).unwrap();
    tenant
        .initiator()
        .wait_for(task, PATIENCE)
        .unwrap()
        .good()
        .unwrap();
    assert_eq!(world.image(0, 0, BLOCK), [9; BLOCK]);
}

#[test]
fn what_a_drained_tenant_ends_is_not_carried_out_later() {
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = tenant_of(&world, 0);
    attentions(&mut tenant, 0);
    operator.call("drain", &json!({ "name": "hba0" })).unwrap();
    let write = Command::new(0, &write10(0, 1)).data_out(&[9; BLOCK]);
    let task = tenant.initiator().submit(&write);

    let answer = tenant.task_management(ABORT_TASK, address(0), task.tag());

    assert_eq!(answer, Some(response::OK));
    let outcome = tenant.initiator().wait_for(task, PATIENCE).unwrap();
    // BUSY (SAM-5, status codes): nothing of it has been done.
    assert_eq!(outcome.good(), Err(Failure::Status(8)));
    operator.call("resume", &json!({ "name": "hba0" })).unwrap();
    ready(&mut tenant, 0).unwrap();
    assert_eq!(world.image(0, 0, BLOCK), [0; BLOCK]);
}

// --- The console -------------------------------------------------------------------------------

fn console(control: &Control, words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_console");
    let mut program = Program::new(program);
    program.arg(control.path()).args(words).output().unwrap()
}

#[test]
fn a_command_of_the_console_ends_with_a_status_that_says_how_it_went() {
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    for (words, status) in [
        (&["status"][..], 0),
        (&["help", "lun"], 0),
        (&["--json", "luns"], 0),
        (&["lun", "remove", "nothing"], 1),
        (&["lun"], 2),
        (&["nothing"], 2),
        (&["explain"], 2),
    ] {
        let output = console(&control, words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {output:?}");
        // Not a terminal: no colours.
        assert!(!output.stdout.contains(&0x1b), "{words:?}");
        assert_eq!(status != 0, output.stdout.is_empty(), "{words:?}");
        assert_eq!(status == 0, output.stderr.is_empty(), "{words:?}");
    }
    let output = console(&control, &["--json", "luns"]);
    let luns: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(luns[0]["name"], "lun0");
    drop(control);
    let nobody = Program::new(env!("CARGO_BIN_EXE_console"))
        .args(["/does/not/exist", "status"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(3));
}

#[test]
fn a_session_on_a_terminal_does_each_command_while_a_tenant_works() {
    let folder = Folder::new();
    let file = folder.0.join("appliance.toml");
    let image = folder.image("more.img", MIB);
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(Some(&file));
    let busy = Busy::start(tenant_of(&world, 0));
    let mut program = Program::new(env!("CARGO_BIN_EXE_console"));
    program
        .arg(control.path())
        .env("TERM", "xterm")
        .env("NO_COLOR", "1")
        .env("HOME", &folder.0);
    let mut terminal = rexpect::session::spawn_command(program, Some(30_000)).unwrap();
    terminal.exp_string("Console of appliance world").unwrap();
    let add = format!("lun add more path={} to=hba1 at=3", image.display());
    let limited = format!(
        "lun add more path={} iops=500 bytes_per_second=10M",
        image.display()
    );
    for (line, said) in [
        ("help", "why a LUN is slow or stuck"),
        (
            "help lun add",
            "open a disk as a LUN".to_uppercase().as_str(),
        ),
        ("status", "2 tenants"),
        ("tenants", "hba0"),
        ("luns", "hba0 0:0"),
        ("disks", "lun0"),
        ("show lun0", "latency"),
        ("show hba0", "in flight"),
        ("trace lun0 5", "WRITE(10)"),
        ("explain lun0", "LUN lun0"),
        (&add, "LUNs added: more"),
        ("lun resize more 2M", "2 MiB"),
        ("lun limit more iops=500 bw=10M", "other limits: LUN more"),
        ("show more", "500 operations, 10 MiB a second"),
        ("group limit gold iops=9000", "other limits: group gold"),
        (
            "tenant limit hba0 group=gold weight=3",
            "other limits: tenant hba0",
        ),
        ("show hba0", "gold: 9000 operations a second"),
        ("lun limit more iops=none bw=none", "other limits: LUN more"),
        ("lun limit more", "lun limit LUN"),
        ("lun move more hba0 at=5", "hba0, hba1"),
        ("lun snapshot more", "no snapshots"),
        ("lun snapshot more remove a", "there is no snapshot"),
        ("lun clone more again", "lun clone LUN NEW path=FILE"),
        ("lun remove more", "LUNs removed: more"),
        (&limited, "LUNs added: more"),
        ("show more", "500 operations, 10 MiB a second"),
        ("lun remove more", "LUNs removed: more"),
        (
            "lun add other kind=null size=512 burst=100",
            "limits nothing; add iops",
        ),
        ("tenant add web", "start its shim with: --hba"),
        ("tenant remove web", "HBAs removed: web"),
        (
            "tenant add shop iops=700 bw=20M group=gold weight=2",
            "start its shim with: --hba",
        ),
        ("show shop", "700 operations, 20 MiB a second"),
        ("tenant remove shop", "HBAs removed: shop"),
        ("drain hba1", "hba1 is drained"),
        ("resume hba1", "hba1 takes commands again"),
        ("tenant pause hba1", "hba1 is drained"),
        ("tenants", "drained"),
        ("tenant resume hba1", "hba1 takes commands again"),
        ("config show", "[[hba]]"),
        ("config save", "saved in"),
        ("config check", "it can be applied"),
        ("config diff", "nothing is different"),
        ("config apply", "nothing is different"),
        ("log level", ""),
        ("log", ""),
        ("nonsense", "there is no command"),
        ("lun remove nothing", "there are lun0"),
        // Completion: the name of the only LUN.
        ("explain l\t", "LUN lun0"),
    ] {
        terminal.exp_string("world> ").unwrap();
        terminal.send_line(line).unwrap();
        let said = if line == "help lun add" {
            "Open a disk as a LUN"
        } else {
            said
        };
        let found = terminal.exp_string(said);
        found.unwrap_or_else(|error| panic!("{line}: {said}: {error}"));
    }
    terminal.exp_string("world> ").unwrap();
    terminal.send_line("top").unwrap();
    terminal.exp_string("errors").unwrap();
    terminal.send("q").unwrap();
    terminal.flush().unwrap();
    terminal.exp_string("world> ").unwrap();
    terminal.send_control('d').unwrap();
    terminal.exp_eof().unwrap();
    busy.stop();
    assert!(std::fs::read_to_string(&file).unwrap().contains("hba1"));
}

#[test]
fn the_console_says_where_metrics_are_served_from_now_on() {
    let folder = Folder::new();
    let file = folder.0.join("other.toml");
    let place = folder.0.join("metrics.sock");
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let said = |words: &[&str]| {
        let output = console(&control, words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = said(&["config", "show"]);
    let text = format!("{text}\n[metrics]\nlisten = {place:?}\n");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();

    assert!(said(&["config", "check", file]).contains("it can be applied"));
    // Lines end at 80 columns.
    let unwrapped = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let diff = unwrapped(said(&["config", "diff", file]));
    let listen = format!("+ metrics: listen {}", place.display());
    assert!(diff.contains(&listen), "{diff}");
    assert!(!place.exists());
    let applied = unwrapped(said(&["config", "apply", file]));
    let served = format!("metrics are served at {}", place.display());
    assert!(applied.contains(&served), "{applied}");
    assert!(place.exists());
}

/// A console of `control` on a terminal, with a prompt.
fn terminal(control: &Control, home: &Path, flags: &[&str]) -> PtySession {
    let mut program = Program::new(env!("CARGO_BIN_EXE_console"));
    program
        .arg(control.path())
        .args(flags)
        .env("TERM", "xterm")
        .env("NO_COLOR", "1")
        .env("SHELL", "/bin/sh")
        .env("HOME", home);
    let mut terminal = rexpect::session::spawn_command(program, Some(30_000)).unwrap();
    terminal.exp_string("world> ").unwrap();
    terminal
}

#[test]
fn a_shell_runs_on_the_consoles_terminal_where_it_is_allowed_and_leads_back() {
    let folder = Folder::new();
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let mut terminal = terminal(&control, &folder.0, &["--allow-shell"]);
    terminal.send_line("shell").unwrap();
    terminal.exp_string("exit leads back").unwrap();
    // Ctrl-C ends what runs in it, not the shell or the console.
    terminal
        .send_line("echo done $((6 * 7)); sleep 60")
        .unwrap();
    terminal.exp_string("done 42").unwrap();
    terminal.send_control('c').unwrap();
    terminal.send_line("echo done $((6 * 8)); exit 3").unwrap();
    terminal.exp_string("done 48").unwrap();
    terminal.exp_string("world> ").unwrap();
    terminal.send_line("luns").unwrap();
    terminal.exp_string("hba0 0:0").unwrap();
    // There is no terminal: nobody could leave it.
    let output = console(&control, &["--allow-shell", "shell"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("needs a terminal"), "{said}");
}

#[test]
fn a_console_that_does_not_allow_a_shell_says_how_one_does() {
    let folder = Folder::new();
    let world = two_hbas(Lun::file(MIB));
    let control = world.control(None);
    let mut terminal = terminal(&control, &folder.0, &[]);
    terminal.send_line("shell").unwrap();
    terminal.exp_string("--allow-shell").unwrap();
    terminal.exp_string("world> ").unwrap();
    let output = console(&control, &["shell"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

// --- Changes without end -----------------------------------------------------------------------

/// A reproducible sequence of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }

    fn one_of<'a>(&mut self, all: &'a [String]) -> &'a str {
        &all[self.below(all.len())]
    }
}

/// What an appliance serves, as far as that comes from its configuration.
fn served(operator: &mut Operator) -> Value {
    let only = |all: Value, keys: &[&str]| -> Vec<Value> {
        let all = all.as_array().unwrap().clone();
        let picked = all.into_iter().map(|one| {
            let keys = keys
                .iter()
                .map(|key| ((*key).to_owned(), one[*key].clone()));
            Value::Object(keys.collect())
        });
        picked.collect()
    };
    let luns = operator.call("luns", &Value::Null).unwrap();
    let keys = [
        "name",
        "source",
        "bytes",
        "block_size",
        "cache",
        "read_only",
        "shared",
        "limit",
        "state",
        "seen_by",
    ];
    let luns = only(luns, &keys);
    let hbas = operator.call("hbas", &Value::Null).unwrap();
    let keys = [
        "name", "uuid", "access", "poll", "luns", "limit", "group", "weight",
    ];
    let hbas = only(hbas, &keys);
    json!({ "luns": luns, "hbas": hbas })
}

fn names(operator: &mut Operator, method: &str) -> Vec<String> {
    let all = operator.call(method, &Value::Null).unwrap();
    let all = all.as_array().unwrap().iter();
    all.map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}

/// A change that makes sense; the first tenant keeps its LUN 0.
fn valid(
    operator: &mut Operator,
    numbers: &mut Numbers,
    folder: &Folder,
    n: usize,
) -> (&'static str, Value) {
    let luns = names(operator, "luns");
    let others: Vec<_> = luns
        .iter()
        .filter(|name| *name != "lun0")
        .cloned()
        .collect();
    let hbas = names(operator, "hbas");
    let added: Vec<_> = hbas
        .iter()
        .filter(|name| name.starts_with("new"))
        .cloned()
        .collect();
    match numbers.below(12) {
        0 | 1 => {
            let path = folder.image(&format!("image{n}"), MIB);
            let mut keys = json!({ "path": path });
            for (key, value) in [
                ("read_only", json!(true)),
                ("cache", json!("write-back")),
                ("shared", json!(true)),
                ("timeout", json!(7)),
                ("size", json!(MIB / 2)),
            ] {
                if numbers.below(3) == 0 {
                    keys[key] = value;
                }
            }
            let mut add = json!({ "name": format!("lun-{n}"), "keys": keys });
            if numbers.below(4) > 0 {
                add["hba"] = numbers.one_of(&hbas).into();
            }
            ("lun.add", add)
        }
        2 if !others.is_empty() => ("lun.remove", json!({ "name": numbers.one_of(&others) })),
        3 if !others.is_empty() => {
            let (name, hba) = (numbers.one_of(&others), numbers.one_of(&hbas));
            ("lun.move", json!({ "name": name, "hba": hba }))
        }
        4 if !others.is_empty() => {
            let luns = operator.call("luns", &Value::Null).unwrap();
            let name = numbers.one_of(&others);
            let luns = luns.as_array().unwrap();
            let lun = luns.iter().find(|lun| lun["name"] == *name).unwrap();
            if lun["read_only"] == true {
                return ("lun.remove", json!({ "name": name }));
            }
            let bytes = lun["bytes"].as_u64().unwrap() + 4096;
            ("lun.resize", json!({ "name": name, "bytes": bytes }))
        }
        5 if !added.is_empty() => ("hba.remove", json!({ "name": numbers.one_of(&added) })),
        6 => {
            let text = operator.call("config.get", &Value::Null).unwrap();
            let text = text["text"].as_str().unwrap();
            let metrics = "[metrics]\nlisten = \"127.0.0.1:0\"\n";
            let text = if text.contains(metrics) {
                text.replace(metrics, "")
            } else {
                format!("{text}\n{metrics}")
            };
            let usual = format!("poll = {}", Poll::USUAL);
            let text = format!("# change {n}\n{}", text.replace(&usual, "poll = 1"));
            ("config.apply", json!({ "text": text }))
        }
        7 => ("hba.add", json!({ "name": format!("new{n}") })),
        _ => valid_limit(operator, numbers, &luns, &hbas),
    }
}

/// A limit that makes sense, under which the first tenant can work.
fn valid_limit(
    operator: &mut Operator,
    numbers: &mut Numbers,
    luns: &[String],
    hbas: &[String],
) -> (&'static str, Value) {
    let mut limit = json!({});
    for key in ["iops", "bytes_per_second"] {
        match numbers.below(4) {
            0 => limit[key] = 0.into(),
            1 => {}
            _ => limit[key] = (10_000_000 + numbers.below(1000)).into(),
        }
    }
    if numbers.below(3) == 0 {
        limit["burst"] = (100 + numbers.below(100)).into();
    }
    let config = configuration(operator);
    let is_in = |group: &str| {
        let mut hbas = config.hbas.iter();
        hbas.any(|hba| hba.limit_group.as_deref() == Some(group))
    };
    match numbers.below(4) {
        0 => {
            limit["name"] = numbers.one_of(luns).into();
            ("lun.limit", limit)
        }
        1 => {
            limit["name"] = numbers.one_of(hbas).into();
            limit["weight"] = (1 + numbers.below(9)).into();
            ("hba.limit", limit)
        }
        2 => {
            let name = format!("group{}", numbers.below(3));
            let is_known = config.groups.iter().any(|group| group.name == name);
            let goes = is_known && !is_in(&name) && numbers.below(2) == 0;
            let iops = if goes {
                0
            } else {
                10_000_000 + numbers.below(1000)
            };
            let bytes = if goes { json!(0) } else { Value::Null };
            let limit = json!({ "name": name, "iops": iops, "bytes_per_second": bytes });
            ("group.limit", limit)
        }
        _ => {
            let groups = config.groups.iter().map(|group| group.name.clone());
            let groups: Vec<_> = groups.chain([String::new()]).collect();
            let (hba, group) = (numbers.one_of(hbas), numbers.one_of(&groups));
            ("hba.limit", json!({ "name": hba, "group": group }))
        }
    }
}

/// The configuration in force.
fn configuration(operator: &mut Operator) -> Config {
    let text = operator.call("config.get", &Value::Null).unwrap();
    Config::parse(text["text"].as_str().unwrap(), Path::new("in force")).unwrap()
}

/// A change that makes none.
fn invalid(operator: &mut Operator, numbers: &mut Numbers) -> (&'static str, Value) {
    let text = operator.call("config.get", &Value::Null).unwrap();
    let text = text["text"].as_str().unwrap();
    let with = |more: &str| {
        (
            "config.apply",
            json!({ "text": format!("{text}\n{more}\n") }),
        )
    };
    match numbers.below(16) {
        10 => ("lun.limit", json!({ "name": "nobody", "iops": 5 })),
        11 => (
            "lun.limit",
            json!({ "name": "lun0", "iops": 5, "bytes_per_second": 1_u64 << 50 }),
        ),
        12 => (
            "hba.limit",
            json!({ "name": "hba0", "iops": 5, "group": "nowhere" }),
        ),
        13 => (
            "hba.limit",
            json!({ "name": "hba0", "iops": 5, "weight": 0 }),
        ),
        14 => ("group.limit", json!({ "name": "nowhere", "iops": 0 })),
        15 => {
            with("[[limit_group]]\nname = \"x\"\niops = 5\n[[limit_group]]\nname = \"x\"\niops = 5")
        }
        0 => (
            "lun.add",
            json!({ "name": "lun0", "keys": { "path": "/dev/null" } }),
        ),
        1 => (
            "lun.add",
            json!({ "name": "x", "keys": { "path": "/does/not/exist" } }),
        ),
        2 => (
            "lun.add",
            json!({ "name": "x y", "keys": { "kind": "null", "size": 512 } }),
        ),
        3 => ("lun.move", json!({ "name": "lun0", "hba": "nobody" })),
        4 => ("hba.add", json!({ "name": "hba0" })),
        5 => with(
            "[[lun]]\nname = \"x\"\nkind = \"null\"\nsize = 512\n[[lun]]\nname = \"y\"\npath = \"/does/not/exist\"",
        ),
        6 => with("[[hba"),
        7 => (
            "config.apply",
            json!({ "text": text.replace("\"direct\"", "\"write-back\"") }),
        ),
        8 => (
            "config.apply",
            json!({ "text": text.replace("\"world\"", "\"other\"") }),
        ),
        _ => ("lun.resize", json!({ "name": "lun0", "bytes": 512 })),
    }
}

fn a_hundred_changes(seed: u64) {
    let folder = Folder::new();
    let file = folder.0.join("appliance.toml");
    let mut numbers = Numbers(seed);
    let mut world = two_hbas(Lun::file(MIB));
    let control = world.control(Some(&file));
    let mut operator = control.operator();
    let busy = Busy::start(tenant_of(&world, 0));
    for n in 0..100 {
        if numbers.below(3) == 0 {
            let before = (
                served(&mut operator),
                operator.call("config.get", &Value::Null),
            );
            let (method, params) = invalid(&mut operator, &mut numbers);
            let refused = operator.call(method, &params);
            assert!(refused.is_err(), "{method} {params}");
            let after = (
                served(&mut operator),
                operator.call("config.get", &Value::Null),
            );
            assert_eq!(before, after, "{method} {params}");
        }
        let (method, params) = valid(&mut operator, &mut numbers, &folder, n);
        let done = operator.call(method, &params);
        done.unwrap_or_else(|error| panic!("{n}: {method} {params}: {error}"));
    }
    operator.call("config.save", &Value::Null).unwrap();
    let live = served(&mut operator);
    let mut tenant = busy.stop();
    let seen = attentions(&mut tenant, 0);
    assert!(seen.is_empty() || seen == [LUNS_CHANGED], "{seen:?}");
    drop((operator, control));
    drop(tenant);
    world.stop_appliance();

    let (config, text) = Config::read_with_text(Path::new(&file)).unwrap();
    let cold = Arc::new(Appliance::new(config).unwrap());
    let control = Control::start(cold, text, Some(&file));
    let cold = served(&mut control.operator());
    assert_eq!(live, cold);
}

#[test]
fn a_hundred_changes_end_where_a_cold_start_with_the_last_file_does() {
    a_hundred_changes(0x9e37_79b9);
}

#[test]
fn another_hundred_changes_do_too() {
    a_hundred_changes(0xdead_beef_cafe);
}
