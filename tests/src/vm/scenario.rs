//! One scenario: its own directories, and the machine to itself.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::TempDir;

use super::error::{FileContext, Result};
use super::store;

/// Guests are slow enough alone; scenarios wait for each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Where a scenario's machines keep their files.
///
/// Logs stay for the reader, under `target/vm/logs/NAME`; disks and sockets go with the value.
#[derive(Debug)]
pub struct Scenario {
    logs: PathBuf,
    disks: TempDir,
    /// Not below `target`: a socket's path has room for 107 bytes.
    sockets: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Scenario {
    /// Begins the scenario `name`, when those before it have ended.
    pub fn begin(name: &str) -> Result<Self> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let logs = store::directory().join("logs").join(name);
        if logs.exists() {
            fs::remove_dir_all(&logs).file("remove", &logs)?;
        }
        fs::create_dir_all(&logs).file("create", &logs)?;
        let temporary = |parent: &Path| {
            fs::create_dir_all(parent).file("create", parent)?;
            tempfile::Builder::new()
                .prefix("vpci-")
                .tempdir_in(parent)
                .file("create", parent)
        };
        Ok(Self {
            disks: temporary(&store::directory().join("disks"))?,
            sockets: temporary(&std::env::temp_dir())?,
            logs,
            _turn: turn,
        })
    }

    /// The path for the log `NAME.log`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The directory of all logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The path for the disk image, or other large file, `name`.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.disks.path().join(name)
    }

    /// The path for the socket `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }
}
