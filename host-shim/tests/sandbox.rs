//! What the running shim can still do, and what becomes of a process under the same limits that
//! tries more.
//!
//! Each attempt is made in a process of its own: this program again, with the one test to run.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, as which clippy does not know them"
)]

mod program;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::{env, panic, process, thread};

use host_shim::sandbox::{self, Confinement, Places};
use rustix::process::{Pid, Signal, kill_process};

use program::{Place, Shim, eventually};

/// Names the test that a process is to make the attempt of.
const ATTEMPT: &str = "HOST_SHIM_TEST_ATTEMPT";
/// Where an attempt finds its files.
const PLACE: &str = "HOST_SHIM_TEST_PLACE";

/// The exit code of a process that made its attempt to the end, unlike that of a test.
const DONE: i32 = 42;
/// The signal of a process that its filter has ended.
const SIGSYS: Option<i32> = Some(libc::SIGSYS);

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

/// Makes the attempt of the test `name` in another process, in a folder of its own; how that
/// ended.
fn alone(name: &str, attempt: impl FnOnce(&Path)) -> ExitStatus {
    if env::var_os(ATTEMPT).is_some_and(|asked| asked == name) {
        attempt(Path::new(&env::var_os(PLACE).unwrap()));
        process::exit(DONE);
    }
    let place = Place::new();
    Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ATTEMPT, name)
        .env(PLACE, place.dir.as_path())
        .env("RUST_BACKTRACE", "1")
        .status()
        .unwrap()
}

/// The attempt of a relay: `attempt` under its limits.
fn as_relay(name: &str, attempt: impl FnOnce()) -> ExitStatus {
    alone(name, |_| {
        sandbox::confine_relay().unwrap();
        attempt();
    })
}

/// The attempt of a supervisor with its sockets and locks in a folder, under its limits.
fn as_supervisor(name: &str, attempt: impl FnOnce(&Path, Confinement)) -> ExitStatus {
    alone(name, |folder| {
        let confined = confine_supervisor(folder);
        attempt(folder, confined);
    })
}

fn confine_supervisor(folder: &Path) -> Confinement {
    let places = Places {
        sockets: vec![folder],
        locks: vec![folder],
    };
    sandbox::confine_supervisor(&places).unwrap()
}

/// Has the thread that asks be traced by its parent.
fn ptrace() {
    #[expect(unsafe_code, reason = "ptrace(2) has no safe wrapper")]
    // SAFETY: PTRACE_TRACEME takes no pointer.
    let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    assert_eq!(traced, 0);
}

/// Memory for `prot`, of `file` or nobody's.
fn map(prot: libc::c_int, file: Option<&File>) -> bool {
    use std::os::fd::AsRawFd;
    let flags = if file.is_some() {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    };
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    #[expect(unsafe_code, reason = "mmap(2) has no safe wrapper")]
    // SAFETY: a mapping at an address of the kernel's choice touches no memory that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, fd, 0) };
    start != libc::MAP_FAILED
}

fn denied<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

#[test]
fn all_processes_run_under_filters() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let (keeper, supervisor) = (shim.pid(), shim.supervisor());
    let relay = shim.relay();
    // Two programs for keeper and supervisor, and a relay has two of its own, too.
    assert_eq!(status(keeper, "Seccomp_filters"), "2");
    assert_eq!(status(supervisor, "Seccomp_filters"), "2");
    eventually(|| (status(relay, "Seccomp_filters") == "4").then_some(()));
    for pid in [keeper, supervisor, relay] {
        assert_eq!(status(pid, "Seccomp"), "2");
        assert_eq!(status(pid, "NoNewPrivs"), "1");
    }
}

#[test]
fn without_a_sandbox_the_log_says_so() {
    let place = Place::new();
    let mut command = place.command();
    command.arg("--no-sandbox");
    let shim = Shim::start_with(&place, command);
    let said = shim.before.concat();
    assert!(said.contains("WARN --no-sandbox"), "{said}");
    let relay = shim.relay();
    eventually(|| UnixStream::connect(place.path("vhost")).ok());
    for pid in [shim.pid(), shim.supervisor(), relay] {
        assert_eq!(status(pid, "Seccomp"), "0");
    }
}

#[test]
fn a_relay_that_its_sandbox_ended_is_told_apart() {
    let place = Place::new();
    let mut shim = Shim::start(&place);
    let relay = Pid::from_raw(shim.relay().try_into().unwrap()).unwrap();
    kill_process(relay, Signal::SYS).unwrap();
    let ended = "relay was ended by its sandbox";
    assert!(shim.log.any(|line| line.unwrap().contains(ended)));
}

#[test]
fn a_confined_supervisor_still_kills_a_relay_that_hangs() {
    let place = Place::new();
    let mut shim = Shim::start(&place);
    let hung = shim.relay();
    let _tenant = UnixStream::connect(place.path("vhost")).unwrap();
    let said = "tenant connected";
    assert!(shim.log.any(|line| line.unwrap().contains(said)));
    // Closing its link would not end a stopped process.
    kill_process(
        Pid::from_raw(hung.try_into().unwrap()).unwrap(),
        Signal::STOP,
    )
    .unwrap();
    eventually(|| (!Path::new(&format!("/proc/{hung}/fd/0")).exists()).then_some(()));
    eventually(|| Some(shim.relay()).filter(|relay| *relay != hung));
}

#[test]
fn a_folder_of_locks_that_is_not_there_is_named() {
    let place = Place::new();
    let mut command = place.command();
    command.args(["--port-locks", "/nonexistent/locks"]);
    let mut child = command.spawn().unwrap();
    assert!(!child.wait().unwrap().success());
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("\"/nonexistent/locks\""), "{said}");
}

#[test]
fn a_relay_opens_no_file_and_lives() {
    let ended = as_relay("a_relay_opens_no_file_and_lives", || {
        assert!(denied(File::open("/etc/passwd")));
        assert!(denied(File::open("/proc/self/maps")));
        assert!(denied(File::create("/tmp/relay-was-here")));
        assert!(denied(fs::metadata("/etc/passwd")));
    });
    assert_eq!(ended.code(), Some(DONE), "{ended}");
}

#[test]
fn a_relay_that_removes_a_file_is_killed() {
    let name = "a_relay_that_removes_a_file_is_killed";
    let ended = as_relay(name, || drop(fs::remove_file("/nonexistent")));
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_makes_a_socket_is_killed() {
    let ended = as_relay("a_relay_that_makes_a_socket_is_killed", || {
        drop(UnixStream::connect("/nonexistent"));
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_starts_a_program_is_killed() {
    let ended = as_relay("a_relay_that_starts_a_program_is_killed", || {
        use std::os::unix::process::CommandExt;
        let _ = Command::new("/bin/true").exec();
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_forks_or_threads_is_killed() {
    let ended = as_relay("a_relay_that_forks_or_threads_is_killed", || {
        drop(thread::Builder::new().spawn(|| {}));
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_is_traced_is_killed() {
    let ended = as_relay("a_relay_that_is_traced_is_killed", ptrace);
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_makes_code_is_killed() {
    let ended = as_relay("a_relay_that_makes_code_is_killed", || {
        assert!(map(libc::PROT_READ | libc::PROT_WRITE, None));
        map(libc::PROT_READ | libc::PROT_EXEC, None);
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_maps_a_file_as_the_tenants_memory_is_killed() {
    let name = "a_relay_that_maps_a_file_as_the_tenants_memory_is_killed";
    let ended = alone(name, |_| {
        let file = File::open("/etc/passwd").unwrap();
        sandbox::confine_relay().unwrap();
        map(libc::PROT_READ, Some(&file));
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_signals_another_process_is_killed() {
    let ended = as_relay("a_relay_that_signals_another_process_is_killed", || {
        let parent = rustix::process::getppid().unwrap();
        let _ = rustix::process::test_kill_process(parent);
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_relay_that_panics_says_so_and_unwinds() {
    let ended = as_relay("a_relay_that_panics_says_so_and_unwinds", || {
        // With its backtrace, which looks for files.
        let panicked = panic::catch_unwind(|| panic!("of a relay, as its test wants it"));
        assert!(panicked.is_err());
    });
    assert_eq!(ended.code(), Some(DONE), "{ended}");
}

#[test]
fn a_relay_that_aborts_ends_by_that_and_not_by_its_sandbox() {
    let name = "a_relay_that_aborts_ends_by_that_and_not_by_its_sandbox";
    let ended = as_relay(name, || process::abort());
    assert_eq!(ended.signal(), Some(libc::SIGABRT), "{ended}");
}

#[test]
fn a_supervisor_reaches_its_folder_and_no_other_file() {
    let name = "a_supervisor_reaches_its_folder_and_no_other_file";
    let ended = as_supervisor(name, |folder, confined| {
        let lock = folder.join("rp0.lock");
        drop(
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&lock)
                .unwrap(),
        );
        fs::remove_file(&lock).unwrap();
        if confined == Confinement::CallsOnly {
            eprintln!("no Landlock here: only the calls were looked at");
            return;
        }
        assert!(denied(File::open("/etc/passwd")));
        assert!(denied(fs::read_dir("/")));
        assert!(denied(File::create("/tmp/supervisor-was-here")));
        assert!(denied(Command::new("/bin/sh").arg("-c").arg(":").spawn()));
        // Not even what stands in its folder is read.
        fs::metadata(folder).unwrap();
        assert!(denied(fs::read_dir(folder)));
    });
    assert_eq!(ended.code(), Some(DONE), "{ended}");
}

#[test]
fn a_supervisor_connects_to_a_socket_and_makes_none_elsewhere() {
    let name = "a_supervisor_connects_to_a_socket_and_makes_none_elsewhere";
    let ended = alone(name, |folder| {
        let _qmp = UnixListener::bind(folder.join("qmp")).unwrap();
        confine_supervisor(folder);
        let mut qmp = UnixStream::connect(folder.join("qmp")).unwrap();
        qmp.write_all(b"{}").unwrap();
        assert!(UnixListener::bind(folder.join("another")).is_err());
    });
    assert_eq!(ended.code(), Some(DONE), "{ended}");
}

#[test]
fn a_supervisor_that_goes_to_the_network_is_killed() {
    let name = "a_supervisor_that_goes_to_the_network_is_killed";
    let ended = as_supervisor(name, |_, _| drop(UdpSocket::bind("127.0.0.1:0")));
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_supervisor_that_is_traced_is_killed() {
    let name = "a_supervisor_that_is_traced_is_killed";
    let ended = as_supervisor(name, |_, _| ptrace());
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_supervisor_that_writes_its_own_code_is_killed() {
    let name = "a_supervisor_that_writes_its_own_code_is_killed";
    let ended = as_supervisor(name, |_, _| {
        map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, None);
    });
    assert_eq!(ended.signal(), SIGSYS, "{ended}");
}

#[test]
fn a_call_that_a_supervisor_does_not_know_is_refused_as_by_an_old_kernel() {
    let name = "a_call_that_a_supervisor_does_not_know_is_refused_as_by_an_old_kernel";
    let ended = as_supervisor(name, |folder, _| {
        let error = fs::create_dir(folder.join("made")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
    });
    assert_eq!(ended.code(), Some(DONE), "{ended}");
}
