//! The program `host-shim`, started as its user does.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
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

    /// `host-shim run` with its sockets here, `--user` where root needs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-shim"));
        command
            .args(["run", "--name", "t1"])
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
    /// What it says after that.
    #[allow(dead_code, reason = "not every program of tests reads on")]
    pub log: Lines<BufReader<ChildStderr>>,
}

impl Shim {
    pub fn start(place: &Place) -> Self {
        let mut child = place.command().spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        assert_eq!(
            log.next().unwrap().unwrap(),
            format!(
                "host-shim t1: ready, tenant socket {}",
                place.path("vhost").display()
            )
        );
        Self { child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The relay, its only child; waits until it runs.
    pub fn relay(&self) -> u32 {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let relay = || fs::read_to_string(&path).unwrap().trim().parse().ok();
        eventually(relay)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `look` sees, once it sees something.
pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "it never came");
        thread::sleep(Duration::from_millis(10));
    }
}
