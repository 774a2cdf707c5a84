//! `host-shim status` and `host-shim watch` beside shims that run.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use program::peers::{appliance, tenant, tenant_memory};
use program::{Place, Shim, eventually, kill};
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long a line may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

fn program(command: &str, folder: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_host-shim"));
    program.arg(command).arg("--dir").arg(folder);
    program
}

fn table(folder: &Path) -> String {
    let shown = program("status", folder).output().unwrap();
    assert!(shown.status.success());
    String::from_utf8(shown.stdout).unwrap()
}

/// What `--json` says of the only shim.
fn only(folder: &Path) -> Value {
    let shown = program("status", folder).arg("--json").output().unwrap();
    assert!(shown.status.success());
    let mut shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
    shown[0].take()
}

/// A `watch` and its lines.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    fn start(folder: &Path) -> Self {
        let mut command = program("watch", folder);
        let command = command.args(["--interval", "0.02"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (to, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line with this text.
    fn expect(&self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("never said: {text}"));
            if line.contains(text) {
                return;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_shim_that_waits_for_a_tenant_is_shown_with_its_process() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let shown = only(place.dir.as_path());
    assert_eq!(shown["state"], "running");
    let status = &shown["status"];
    assert_eq!(status["name"], place.name());
    assert_eq!(status["hba"], "2f0c4fd2-4f6c-4b3c-9d3b-111111111111");
    assert_eq!(status["pid"], shim.supervisor());
    assert_eq!(status["tenant"]["connected"], false);
    assert_eq!(status["storage"]["appliance"], false);
    let table = table(place.dir.as_path());
    let line = table.lines().nth(1).unwrap();
    let cells: Vec<_> = line.split_whitespace().skip(1).take(6).collect();
    assert_eq!(cells, ["none", "0", "-", "none", "none", "0"], "{table}");
}

#[test]
fn a_tenant_and_an_appliance_are_shown_with_memory_rings_and_counts() {
    let place = Place::new();
    // Without QMP: an appliance connects by itself.
    let memory = tenant_memory();
    let shim = Shim::start(&place);
    let _tenant = tenant(&place, &memory);
    let (_appliance, _vector) = appliance(&place);

    let status = eventually(|| {
        let status = only(place.dir.as_path())["status"].take();
        (status["tenant"]["rings"] == json!([2])).then_some(status)
    });

    assert_eq!(status["tenant"]["connected"], true);
    assert_eq!(status["tenant"]["regions"], 1);
    assert!(status["tenant"]["features"].as_u64().unwrap() & 1 << 32 != 0);
    assert_eq!(status["storage"]["connected"], true);
    assert_eq!(status["storage"]["appliance"], true);
    assert_eq!(status["storage"]["vectors"], 1);
    assert_eq!(status["counters"]["attachments"], 1);
    assert!(status["counters"]["requests"].as_u64().unwrap() >= 3);
    drop(shim);
}

#[test]
fn watch_tells_what_happens_from_start_to_end() {
    let place = Place::new();
    let watch = Watch::start(place.dir.as_path());
    let mut shim = Shim::start(&place);
    watch.expect("runs, pid ");
    let memory = tenant_memory();
    let tenant = tenant(&place, &memory);
    watch.expect("tenant connected");
    watch.expect("driver started, features 0x");
    drop(tenant);
    watch.expect("tenant gone");
    kill(shim.supervisor(), Signal::KILL);
    watch.expect("another supervisor goes on, pid ");
    shim.signal(Signal::TERM);
    shim.child.wait().unwrap();
    watch.expect("ended");
}

#[test]
fn a_killed_shim_is_shown_as_gone_and_the_next_one_takes_its_place() {
    let place = Place::new();
    let mut shim = Shim::start(&place);
    shim.kill_all();
    let gone = eventually(|| Some(only(place.dir.as_path())).filter(|s| s["state"] == "gone"));
    assert!(gone["path"].as_str().unwrap().ends_with("/vfio.status"));
    assert!(table(place.dir.as_path()).contains("vfio: it was killed; its socket"));
    let _next = Shim::start(&place);
    assert_eq!(only(place.dir.as_path())["state"], "running");
}

#[test]
fn a_supervisor_that_goes_on_for_another_says_so() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let first = shim.supervisor();
    kill(first, Signal::KILL);
    let status = eventually(|| {
        let mut shown = only(place.dir.as_path());
        let other = shown["state"] == "running" && shown["status"]["pid"] != first;
        other.then(|| shown["status"].take())
    });
    assert_eq!(status["resumed"], true);
}

#[test]
fn an_error_is_shown_with_its_mend() {
    let place = Place::new();
    let _shim = Shim::start(&place);
    let memory = tenant_memory();
    // There is nobody at the QMP socket.
    let _tenant = tenant(&place, &memory);
    let error = eventually(|| {
        let error = only(place.dir.as_path())["status"]["error"].take();
        error.is_object().then_some(error)
    });
    let text = error["text"].as_str().unwrap();
    assert!(
        text.contains("QMP socket") && text.contains("cannot be reached"),
        "{text}"
    );
}

#[test]
fn the_status_socket_is_for_its_user_and_never_waited_for() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let socket = place.path("vfio.status");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Clients that do not read, and more than wait in its queue.
    let deaf: Vec<_> = (0..200)
        .filter_map(|_| UnixStream::connect(&socket).ok())
        .collect();
    let start = Instant::now();
    assert_eq!(
        only(place.dir.as_path())["status"]["pid"],
        shim.supervisor()
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    // Each has its whole line.
    for mut client in deaf {
        let mut line = String::new();
        client.read_to_string(&mut line).unwrap();
        assert!(line.ends_with("}\n"), "{line}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named_with_the_mend() {
    for command in ["status", "watch"] {
        let shown = program(command, Path::new("/no/such/folder"))
            .output()
            .unwrap();
        assert!(!shown.status.success());
        let error = String::from_utf8(shown.stderr).unwrap();
        assert!(
            error.contains("/no/such/folder") && error.contains("--dir"),
            "{error}"
        );
    }
}
