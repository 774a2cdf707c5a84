//! One scenario: its own directories, and its turn on the machine.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
};

use tempfile::TempDir;

use super::error::{Error, FileContext, Result};
use super::store;
use super::turns::Turn;

/// Where a scenario's machines keep their files.
///
/// Logs stay for the reader, under `target/vm/logs/NAME`; disks and sockets go with the value.
#[derive(Debug)]
pub struct Scenario {
    logs: PathBuf,
    disks: TempDir,
    /// Not below `target`: a socket's path has room for 107 bytes.
    sockets: TempDir,
    _turn: Turn,
}

impl Scenario {
    /// Begins the scenario `name`, when there is room for it.
    pub fn begin(name: &str) -> Result<Self> {
        Self::with(Turn::wait(), name)
    }

    /// Begins the scenario `name`, when all others have ended; none begins before it ends.
    pub fn begin_alone(name: &str) -> Result<Self> {
        Self::with(Turn::wait_alone(), name)
    }

    fn with(turn: Turn, name: &str) -> Result<Self> {
        let logs = store::directory().join("logs").join(name);
        if logs.exists() {
            fs::remove_dir_all(&logs).file("remove", &logs)?;
        }
        fs::create_dir_all(&logs).file("create", &logs)?;
        let sockets = temporary(&std::env::temp_dir())?;
        // A shim has another user than QEMU when the harness is root.
        let everyone = Permissions::from_mode(0o777);
        fs::set_permissions(sockets.path(), everyone).file("open up", sockets.path())?;
        Ok(Self {
            disks: temporary(&store::directory().join("disks"))?,
            sockets,
            logs,
            _turn: turn,
        })
    }

    /// Lets Ctrl-C (and SIGTERM) end the process with nothing left behind.
    ///
    /// The machines die with the process that started them; their files need a hand.
    pub fn clean_up_on_ctrl_c(&self) -> Result<()> {
        let directories = [self.disks.path().to_owned(), self.sockets.path().to_owned()];
        let clean_up = move || {
            for directory in &directories {
                // What cannot be removed now, the next scenario sweeps away.
                let _ = fs::remove_dir_all(directory);
            }
            process::exit(130);
        };
        ctrlc::set_handler(clean_up).map_err(|error| Error::Unexpected {
            what: "Ctrl-C".to_owned(),
            problem: error.to_string(),
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

    /// Whether the harness runs as root, and so the shims need another user.
    pub fn is_root(&self) -> Result<bool> {
        let path = self.sockets.path();
        Ok(fs::metadata(path).file("read", path)?.uid() == 0)
    }

    /// A file to be a tenant's RAM, which the shims may write.
    pub fn memory_file(&self, name: &str, mebibytes: u32) -> Result<PathBuf> {
        let path = self.socket(name);
        let file = fs::File::create(&path).file("create", &path)?;
        file.set_len(u64::from(mebibytes) << 20)
            .file("grow", &path)?;
        let everyone = Permissions::from_mode(0o666);
        fs::set_permissions(&path, everyone).file("open up", &path)?;
        Ok(path)
    }

    /// The path for the socket `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }
}

/// The start of the names of temporary directories; the process's id follows.
const PREFIX: &str = "vpci-";

/// A directory in `parent` that goes with the value; those that dead processes left go too.
fn temporary(parent: &Path) -> Result<TempDir> {
    fs::create_dir_all(parent).file("create", parent)?;
    for entry in fs::read_dir(parent).file("list", parent)?.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let is_dead = |id: u32| !Path::new(&format!("/proc/{id}")).exists();
        if owner.and_then(|id| id.parse().ok()).is_some_and(is_dead) {
            // Another user's is not ours to remove.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}-", process::id());
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(parent)
        .file("create", parent)
}
