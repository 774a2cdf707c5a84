//! The program as its user starts it: ready line, errors, idleness, end.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, as which clippy does not know them"
)]

mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{ChildStderr, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, geteuid};

use program::{Place, Shim, eventually, kill};

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

/// How often a process was given up the CPU, of its own will or not.
fn switches(pid: u32) -> u64 {
    ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]
        .map(|field| status(pid, field).parse::<u64>().unwrap())
        .iter()
        .sum()
}

/// A command that fails: what it wrote to stderr.
fn failure(mut command: Command) -> String {
    let mut child = command.spawn().unwrap();
    assert!(!child.wait().unwrap().success());
    let mut text = String::new();
    child.stderr.unwrap().read_to_string(&mut text).unwrap();
    text
}

// covers: VPCI-SEC-7
#[test]
fn all_processes_are_unprivileged_and_sleep_when_nothing_happens() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let pids = [shim.pid(), shim.supervisor(), shim.relay()];
    for pid in pids {
        assert!(!status(pid, "Uid").split_whitespace().any(|id| id == "0"));
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        // Root's, that is: not to be written by another process of the same user.
        let memory = format!("/proc/{pid}/mem");
        eventually(|| (fs::metadata(&memory).unwrap().uid() == 0).then_some(()));
    }
    // On a busy machine they may still be starting: the first looks see that.
    eventually(|| {
        let before = pids.map(switches);
        thread::sleep(Duration::from_secs(2));
        (pids.map(switches) == before).then_some(())
    });
}

#[test]
fn sigterm_and_sigint_end_it_and_leave_no_socket_behind() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let mut shim = Shim::start(&place);
        let processes = [shim.supervisor(), shim.relay()];
        shim.signal(signal);
        assert!(shim.child.wait().unwrap().success());
        for pid in processes {
            assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        }
        assert_eq!(fs::read_dir(place.dir.as_path()).unwrap().count(), 0);
    }
}

#[test]
fn sigusr1_has_it_log_what_it_counted() {
    let place = Place::new();
    let mut shim = Shim::start(&place);
    shim.signal(Signal::USR1);
    let line = shim.log.next().unwrap().unwrap();
    let counted = format!(
        "counted hba={} kicks=0 calls=0 trapped_doorbells=0",
        place.name()
    );
    assert!(line.ends_with(&counted), "{line}");
}

#[test]
fn a_killed_relay_is_started_again_and_serves() {
    let place = Place::new();
    let mut shim = Shim::start(&place);
    kill_relay(&shim);
    let said = shim.log.next().unwrap().unwrap();
    assert!(said.contains("relay failed"), "{said}");
    let mut tenant = UnixStream::connect(place.path("vhost")).unwrap();
    // GET_FEATURES, version 1, no payload.
    let get_features: Vec<u8> = [1u32, 1, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    std::io::Write::write_all(&mut tenant, &get_features).unwrap();
    tenant.read_exact(&mut [0; 20]).unwrap();
}

/// Kills the relay and waits for another.
fn kill_relay(shim: &Shim) {
    let first = shim.relay();
    kill(first, Signal::KILL);
    eventually(|| {
        let path = format!("/proc/{0}/task/{0}/children", shim.supervisor());
        let children = fs::read_to_string(path).ok()?;
        children
            .split_whitespace()
            .any(|child| child != first.to_string())
            .then_some(())
    });
}

#[test]
fn a_shim_whose_log_nobody_reads_any_more_goes_on() {
    let place = Place::new();
    let mut shim = Shim::start(&place);
    // From here on a line that the supervisor writes is EPIPE.
    shim.log = BufReader::new(spawn_silent()).lines();
    kill_relay(&shim);
    assert!(shim.child.try_wait().unwrap().is_none());
}

/// The standard error of a process that writes nothing to it.
fn spawn_silent() -> ChildStderr {
    let mut child = Command::new("true").stderr(Stdio::piped()).spawn().unwrap();
    child.wait().unwrap();
    child.stderr.unwrap()
}

#[test]
fn a_relay_starts_again_after_the_program_was_replaced() {
    let place = Place::new();
    let program = place.path("host-shim");
    fs::copy(env!("CARGO_BIN_EXE_host-shim"), &program).unwrap();
    let shim = Shim::start_with(&place, place.command_of(&program));
    shim.relay();
    fs::remove_file(&program).unwrap();
    kill_relay(&shim);
}

#[test]
fn a_busy_socket_is_named_with_what_to_do() {
    let place = Place::new();
    let _shim = Shim::start(&place);
    let said = failure(place.command());
    assert!(said.contains("another running host-shim"), "{said}");
    assert!(
        said.contains(place.path("vhost").to_str().unwrap()),
        "{said}"
    );

    let other = Place::new();
    let _listener = UnixListener::bind(other.path("vfio")).unwrap();
    let said = failure(other.command());
    assert!(said.contains("something listens on it"), "{said}");
}

#[test]
fn the_socket_of_a_killed_shim_is_taken_over() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let relay = shim.relay();
    // Keeper and supervisor are killed.
    drop(shim);
    // The relay ends by itself when both are gone.
    eventually(|| (!PathBuf::from(format!("/proc/{relay}/fd")).exists()).then_some(()));
    assert!(place.path("vhost").exists());
    let _again = Shim::start(&place);
}

#[test]
fn a_relay_ends_with_supervisor_and_keeper_even_in_the_middle_of_a_message() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let relay = shim.relay();
    let mut tenant = UnixStream::connect(place.path("vhost")).unwrap();
    std::io::Write::write_all(&mut tenant, &[1, 0]).unwrap();
    // Until it has read that and waits for the rest.
    thread::sleep(Duration::from_millis(500));
    drop(shim);
    eventually(|| (!PathBuf::from(format!("/proc/{relay}/fd")).exists()).then_some(()));
}

// covers: VPCI-SEC-7
#[test]
fn root_without_a_user_is_refused() {
    if !geteuid().is_root() {
        // Without root there is nothing to refuse; the other tests run as we are.
        return;
    }
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_host-shim"));
    command
        .args(["run", "--name", "t1"])
        .args(["--hba", "2f0c4fd2-4f6c-4b3c-9d3b-111111111111"])
        .args([
            "--vhost-user",
            "/nonexistent/a",
            "--vfio-user",
            "/nonexistent/b",
        ])
        .args(["--qmp", "/nonexistent/c", "--ports", "rp0"])
        .stderr(Stdio::piped());
    assert!(failure(command).contains("--user"));
    drop(place);
}
