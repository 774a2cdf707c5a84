//! The disks that servers are compared on.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tests::vm::store;

use super::error::{Context, Result};

/// Bytes of a disk; more than caches of a CPU hold, and little enough for a tmpfs.
pub const BYTES: u64 = 512 << 20;

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Medium {
    /// One that answers at once, where a server has such a thing.
    Null,
    /// A file in memory.
    Tmpfs,
    /// A file on the file system of `target/`, past the page cache.
    Direct,
}

impl Medium {
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null disk",
            Self::Tmpfs => "file on tmpfs",
            Self::Direct => "file, O_DIRECT",
        }
    }
}

/// The files, there while this is.
pub struct Disks {
    tmpfs: PathBuf,
    direct: PathBuf,
}

impl Disks {
    /// Places for them; they are made when they are asked for.
    pub fn new(directory: &Path) -> Self {
        let name = format!("vpci-bench-{}.img", std::process::id());
        Self {
            tmpfs: Path::new("/dev/shm").join(name),
            direct: directory.join("disk.img"),
        }
    }

    /// The file of a medium that is one, filled with data that is not all the same.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn file(&self, medium: Medium) -> Result<Option<&Path>> {
        let path = match medium {
            Medium::Null => return Ok(None),
            Medium::Tmpfs => &self.tmpfs,
            Medium::Direct => &self.direct,
        };
        if !path.exists() {
            fill(path).doing(format!("fill {}", path.display()))?;
        }
        Ok(Some(path))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for path in [&self.tmpfs, &self.direct] {
            // It may never have been made.
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes all of a disk: reading what was never written costs a file system nothing.
fn fill(path: &Path) -> std::io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let chunk: Vec<u8> = (0..CHUNK).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let mut file = File::create(path)?;
    for _ in 0..BYTES / CHUNK as u64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// Where results and disks are kept.
///
/// # Errors
/// It cannot be made.
pub fn directory() -> Result<PathBuf> {
    let directory = store::workspace().join("target/bench-scsi");
    fs::create_dir_all(&directory).doing(format!("create {}", directory.display()))?;
    Ok(directory)
}
