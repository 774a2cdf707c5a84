//! The program `host-shim`, started as its user does.

#![allow(dead_code, reason = "each program of tests uses its part of this")]

pub mod peers;

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use vmm_sys_util::tempdir::TempDir;

/// An unprivileged user and group, for when the tests run as root.
const NOBODY: u32 = 65534;

/// A directory for the sockets of one shim.
pub struct Place {
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        if geteuid().is_root() {
            chown(dir.as_path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.as_path().join(name)
    }

    /// Name of the HBA; no two places have the same.
    pub fn name(&self) -> String {
        let last = self.dir.as_path().file_name();
        last.unwrap().to_string_lossy().into_owned()
    }

    /// `host-shim run` with its sockets here, `--user` where root needs it.
    pub fn command(&self) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_host-shim")))
    }

    /// The same with a copy of the program.
    pub fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .args(["run", "--name", &self.name()])
            .args(["--hba", "2f0c4fd2-4f6c-4b3c-9d3b-111111111111"])
            .arg("--vhost-user")
            .arg(self.path("vhost"))
            .arg("--vfio-user")
            .arg(self.path("vfio"))
            .arg("--qmp")
            .arg(self.path("qmp"))
            .args(["--ports", "rp0"])
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped());
        if geteuid().is_root() {
            command.args(["--user", &format!("{NOBODY}:{NOBODY}")]);
        }
        command
    }
}

/// A shim that said it is ready.
pub struct Shim {
    pub child: Child,
    /// What it said before, one line each.
    pub before: Vec<String>,
    /// What it says after that.
    pub log: Lines<BufReader<ChildStderr>>,
}

impl Shim {
    pub fn start(place: &Place) -> Self {
        Self::start_with(place, place.command())
    }

    pub fn start_with(place: &Place, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = format!(
            "host-shim {}: ready, tenant socket {}",
            place.name(),
            place.path("vhost").display()
        );
        let mut before = Vec::new();
        loop {
            let line = log.next();
            match line
                .unwrap_or_else(|| panic!("never ready: {before:?}"))
                .unwrap()
            {
                line if line == ready => break,
                line => before.push(line),
            }
        }
        Self { child, before, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The supervisor, the only child of the keeper; waits until it runs.
    pub fn supervisor(&self) -> u32 {
        eventually(|| child(self.pid()))
    }

    /// The relay, the only child of the first supervisor; waits until it runs.
    pub fn relay(&self) -> u32 {
        eventually(|| child(self.supervisor()))
    }

    /// Kills keeper and supervisor both: nobody goes on.
    pub fn kill_all(&mut self) {
        self.signal(Signal::STOP);
        if let Some(supervisor) = child(self.pid()) {
            kill(supervisor, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill_all();
        }
    }
}

/// The only child of a process, if it has one.
pub fn child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.trim().parse().ok()
}

/// Sends a signal to a process, which may be gone.
pub fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal);
}

/// What `look` sees, once it sees something.
pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "it never came");
        thread::sleep(Duration::from_millis(10));
    }
}
