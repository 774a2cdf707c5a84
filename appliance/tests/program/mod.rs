//! The program as a child process, with its log.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long the program may take to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running appliance and its log.
pub struct Program {
    pub child: Child,
    pub log: mpsc::Receiver<String>,
}

impl Program {
    pub fn run(config: &Path) -> Self {
        Self::run_with(config, &[])
    }

    /// As [`Self::run`], with more arguments.
    pub fn run_with(config: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_appliance"))
            .arg("run")
            .arg("--config")
            .arg(config)
            .arg("--control")
            .arg(config.with_extension("sock"))
            .args(arguments)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, log }
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// The next line with `text` in it.
    pub fn line_with(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("the log says nothing of {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of its own, gone with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("reload-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Makes a disk and returns its LUN.
    pub fn lun(&self, name: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, [0; 512]).unwrap();
        format!("[[lun]]\nname = {name:?}\npath = {path:?}\ncache = \"write-back\"\n")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
