//! An operator at the consoles of a storage VM: from its first boot, while a tenant works, until
//! after a restart.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rexpect::reader::Options;
use rexpect::session::StreamSession;
use serde_json::Value;
use tests::vm::error::FileContext;
use tests::vm::verified::{FIO, verified_fio, works_on};
use tests::vm::{
    ApplianceConfig, Disk, Machine, Result, Scenario, Shim, StorageVm, TenantVm, config_disk,
    data_disk,
};

/// How long the console may take for anything, under TCG on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A person at a console.
struct Person {
    session: StreamSession<UnixStream>,
    prompt: String,
}

impl Person {
    /// At the console behind `socket`, of the appliance `name`.
    fn at(socket: &Path, name: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).file("connect to", socket)?;
        let reader = stream.try_clone().file("open", socket)?;
        let patience = u64::try_from(PATIENCE.as_millis()).ok();
        // What a terminal does with colours and keys is not to be read.
        let options = Options::new().timeout_ms(patience);
        let options = options.strip_ansi_escape_codes(true);
        Ok(Self {
            session: StreamSession::new(reader, stream, options),
            prompt: format!("{name}> "),
        })
    }

    /// Asks for a prompt: nobody knows what was shown before somebody looked.
    fn awake(&mut self) {
        self.press('c');
        self.expect(&self.prompt.clone(), "Ctrl-C");
    }

    fn press(&mut self, control: char) {
        self.session.send_control(control).expect("a key");
    }

    /// Waits until something has `said` in it; gives what came before.
    fn expect(&mut self, said: &str, after: &str) -> String {
        let found = self.session.exp_string(said);
        found.unwrap_or_else(|error| panic!("after {after:?}, no {said:?}: {error}"))
    }

    /// Says `line`; the console answers with something that has `said` in it, and asks again.
    fn say(&mut self, line: &str, said: &str) {
        self.session.send_line(line).expect("a line");
        // The line itself comes back as it is typed.
        self.expect("\n", line);
        self.expect(said, line);
        self.expect(&self.prompt.clone(), line);
    }

    /// Looks at `top` until it has shown figures of a second, which its first screen has not.
    fn watch_top(&mut self) {
        self.session.send_line("top").expect("a line");
        self.expect("leaves", "top");
        let figure = self.session.exp_regex("[0-9] ?(\u{c2}\u{b5}|m)?s");
        figure.unwrap_or_else(|error| panic!("top shows no latency: {error}"));
        self.session.send("q").expect("a key");
        self.session.flush().expect("a key");
        self.expect(&self.prompt.clone(), "q");
    }

    /// Each command that tells something, and each that changes something, of a LUN `small`.
    fn does_each_command(&mut self) {
        for (line, said) in [
            ("help", "why a LUN is slow or stuck"),
            ("status", "1 attached"),
            ("tenants", "attached"),
            ("luns", "tenant1 0:1"),
            ("disks", "data"),
            ("show data", "latency"),
            ("trace data 5", "GOOD"),
            ("explain data", "LUN data"),
            (
                "lun add small path=/run/small.img to=tenant1 at=7",
                "LUNs added: small",
            ),
            ("lun resize small 16M", "16 MiB"),
            ("config diff", "small"),
            ("lun remove small", "LUNs removed: small"),
            ("lun remove nothing", "there are root, data"),
            ("log 5", ""),
        ] {
            self.say(line, said);
        }
        self.watch_top();
    }
}

/// `appliance console` of the host, through the control port.
fn from_the_host(control: &Path, words: &[&str]) -> String {
    let mut console = Command::new(env!("CARGO_BIN_EXE_console"));
    let output = console.arg(control).args(words).output();
    let output = output.expect("a program");
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn an_operator_sets_up_a_storage_vm_and_works_at_each_of_its_consoles() -> Result<()> {
    let scenario = Scenario::begin("console")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", 16)?;
    let known = ApplianceConfig::new("storage").hba("tenant1", &[]);
    let uuid = known.uuid("tenant1").expect("the HBA");
    let mut storage = [&config_disk::blank(&scenario)?, &root, &data]
        .into_iter()
        .fold(StorageVm::unconfigured(), StorageVm::disk)
        .operated()
        .start(&scenario)?;

    // The first boot: an empty config disk.
    let mut person = Person::at(storage.virtio_console(), "storage")?;
    person.awake();
    person.press('d');
    person.expect("help tenant add", "Ctrl-D");
    person.expect("storage> ", "Ctrl-D");
    for (line, said) in [
        ("status", "no problems"),
        (
            &format!("tenant add tenant1 uuid={uuid}")[..],
            "HBAs added: tenant1",
        ),
        ("lun add root serial=t1root to=tenant1", "LUNs added: root"),
        ("lun add data serial=t1data to=tenant1", "LUNs added: data"),
        ("config save", "saved in /etc/vhost-pci/appliance.toml"),
        ("config diff", "nothing is different"),
    ] {
        person.say(line, said);
    }
    the_image_is_sound(&mut storage)?;

    // A tenant boots, and verifies what it writes from now on.
    let shim = Shim::new("tenant1", &known).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;
    let disk = data_disk(&mut tenant)?;
    let fio = tenant.start_sh(&format!(
        "while [ ! -e /tmp/enough ]; do {} || exit; done",
        verified_fio(&disk)
    ))?;

    let begun = || from_the_host(storage.control(), &["trace", "data", "1"]).contains("WRITE(10)");
    let deadline = Instant::now() + PATIENCE;
    while !begun() {
        assert!(Instant::now() < deadline, "fio writes nothing");
        thread::sleep(Duration::from_secs(1));
    }

    storage.sh("truncate -s 8M /run/small.img")?;
    person.does_each_command();
    // Whoever is at the host's end of this one need not be let into the storage VM.
    person.say("shell", "--allow-shell");
    drop(person);
    // The serial line, where the log comes, too.
    storage.sh("rm /run/small.img; truncate -s 8M /run/small.img")?;
    let mut person = Person::at(storage.console_socket(), "storage")?;
    person.awake();
    person.does_each_command();
    person.session.send_line("shell").expect("a line");
    person.expect("exit leads back", "shell");
    person
        .session
        .send_line("echo done $((6 * 7))")
        .expect("a line");
    person.expect("done 42", "echo");
    person.say("exit", "");
    // The configuration has been saved, so nobody is told that there is none.
    person.press('d');
    let said = person.expect("storage> ", "Ctrl-D");
    assert!(!said.contains("init:"), "{said}");
    drop(person);
    // And from the host, one after the other.
    assert!(from_the_host(storage.control(), &["status"]).contains("1 attached"));
    let luns = from_the_host(storage.control(), &["--json", "luns"]);
    let luns: Value = serde_json::from_str(&luns).expect("JSON");
    assert_eq!(
        (&luns[0]["name"], &luns[1]["name"]),
        (&"root".into(), &"data".into())
    );
    let traced = from_the_host(storage.control(), &["trace", "data", "3"]);
    assert!(
        traced.contains("data") || traced.contains("GOOD"),
        "{traced}"
    );
    let added = ["lun", "add", "extra", "kind=ram", "size=8M", "to=tenant1"];
    assert!(from_the_host(storage.control(), &added).contains("extra"));
    from_the_host(storage.control(), &["config", "save"]);

    // What was saved, and the tenant's data, outlast a restart of the storage VM.
    assert!(!fio.is_done(), "verified I/O has ended");
    storage.reset()?;
    let mut person = Person::at(storage.virtio_console(), "storage")?;
    person.awake();
    person.say("luns", "extra");
    tenant.sh("touch /tmp/enough")?;
    fio.succeed(FIO)?;
    works_on(&mut tenant, &disk)?;
    Ok(())
}

/// What the image promises beside the appliance.
fn the_image_is_sound(storage: &mut Machine) -> Result<()> {
    assert!(storage.sh("touch /bin/x 2>&1; true")?.contains("Read-only"));
    assert_eq!(
        storage.sh("cat /sys/class/misc/hw_random/rng_current")?,
        "virtio_rng.0\n"
    );
    // Consoles have another name than the appliance, which can be told by its.
    assert_eq!(storage.sh("pidof appliance | wc -w")?, "1\n");
    assert_eq!(storage.sh("pidof appliance-console | wc -w")?, "2\n");
    // The watchdog is fed, by a program that has it open.
    assert_eq!(storage.sh("pidof watchdog | wc -w")?, "1\n");
    assert_eq!(
        storage.sh("cat /sys/class/watchdog/watchdog0/timeout")?,
        "60\n"
    );
    let there: u64 = storage.sh("date +%s")?.trim().parse().expect("seconds");
    let here = SystemTime::now().duration_since(UNIX_EPOCH);
    let here = here.expect("a clock").as_secs();
    assert!(here.abs_diff(there) <= 5, "{here} and {there}");
    Ok(())
}

#[test]
fn a_storage_vm_without_a_configuration_says_how_to_give_it_one() -> Result<()> {
    let scenario = Scenario::begin("console_first_boot")?;
    let storage = StorageVm::unconfigured().operated().start(&scenario)?;
    let mut person = Person::at(storage.console_socket(), "storage")?;
    person.awake();
    person.say("status", "0 tenants");
    assert!(storage.console().contains("mke2fs -t ext4 config.img"));
    Ok(())
}

#[test]
fn a_config_disk_that_does_not_mount_keeps_the_appliance_from_starting() -> Result<()> {
    let scenario = Scenario::begin("console_spoilt")?;
    let disk = config_disk::spoilt(&scenario)?;
    let mut storage = StorageVm::unconfigured().disk(&disk).power_on(&scenario)?;
    storage.wait_console("does not mount", PATIENCE)?;
    storage.wait_booted()?;
    storage.wait_console("This is a shell", PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    assert_eq!(storage.sh("pidof appliance | wc -w")?, "0\n");
    assert!(!storage.console().contains("was empty"));
    let ended = storage.power_off()?;
    assert!(ended.success(), "{ended}");
    Ok(())
}
