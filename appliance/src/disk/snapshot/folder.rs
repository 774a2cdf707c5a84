//! The folder beside a disk's file in which its snapshots are.
//!
//! That of `/srv/a.img` is `/srv/a.img.snapshots`. Each file in it is a snapshot and has its name;
//! those that begin with a dot are our own. A file appears when it is whole, and on stable storage.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::SnapshotError;

/// Most bytes of a name.
const MAX_NAME: usize = 64;
/// Snapshots that are not whole yet.
const PART: &str = ".part";
/// What a disk was before a rollback that is under way.
const BEFORE: &str = ".before";
/// Says that a rollback is under way, and to what.
const MARK: &str = ".rollback";

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is called.
    pub name: String,
    /// When it was taken.
    pub created: SystemTime,
    /// How long the file was.
    pub bytes: u64,
    /// Bytes that it occupies, those that it shares with others among them.
    pub used: u64,
}

/// A rollback that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The snapshot.
    pub name: String,
    /// How long the disk's file is afterwards.
    pub len: u64,
}

/// Such a folder, which may not be there yet.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// Keeps other programs away from a folder as long as it lives.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it is held for its lock")] File);

fn io_error(action: &'static str) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { action, source }
}

impl Folder {
    /// Of the file at `path`.
    pub fn of(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(".snapshots");
        Self(name.into())
    }

    /// Whether `path` leads to it.
    pub fn is(&self, path: &Path) -> bool {
        fs::canonicalize(path).is_ok_and(|path| path == self.0)
    }

    /// Makes it, if it is not there, and claims it.
    pub fn claim(&self) -> Result<Claim, SnapshotError> {
        let made = DirBuilder::new().mode(0o700).create(&self.0);
        match made {
            Ok(()) => self.sync_parent()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("make the folder of the snapshots")(error)),
        }
        let folder = File::open(&self.0).map_err(io_error("open the folder of the snapshots"))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Claim(folder)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(SnapshotError::Locked),
            Err(error) => Err(io_error("lock the folder of the snapshots")(error.into())),
        }
    }

    fn sync_parent(&self) -> Result<(), SnapshotError> {
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        sync(parent).map_err(io_error("sync the folder of the disk"))
    }

    /// What is in it, the oldest first.
    pub fn list(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        let failed = io_error("read the folder of the snapshots");
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut snapshots = Vec::new();
        for entry in entries {
            let entry = entry.map_err(&failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let metadata = entry.metadata().map_err(&failed)?;
            if check(&name).is_ok() && metadata.is_file() {
                snapshots.push(Snapshot {
                    name,
                    created: metadata.modified().map_err(&failed)?,
                    bytes: metadata.len(),
                    used: metadata.blocks().saturating_mul(512),
                });
            }
        }
        snapshots.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(snapshots)
    }

    /// Where a snapshot is, or would be.
    pub fn path(&self, name: &str) -> Result<PathBuf, SnapshotError> {
        check(name)?;
        Ok(self.0.join(name))
    }

    /// Opens a snapshot.
    pub fn open(&self, name: &str) -> Result<File, SnapshotError> {
        match File::open(self.path(name)?) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.unknown(name)?),
            Err(error) => Err(io_error("open the snapshot")(error)),
        }
    }

    /// The error for a snapshot that is not there.
    pub fn unknown(&self, name: &str) -> Result<SnapshotError, SnapshotError> {
        let known = self.list()?.into_iter().map(|there| there.name);
        Ok(SnapshotError::Unknown {
            name: name.to_owned(),
            known: known.collect(),
        })
    }

    /// An empty file that is to become a snapshot.
    pub fn part(&self) -> Result<File, SnapshotError> {
        self.fresh(PART)
    }

    /// Has that become one.
    pub fn finish_part(&self, file: &File, name: &str) -> Result<(), SnapshotError> {
        let path = self.path(name)?;
        file.sync_all().map_err(io_error("sync the snapshot"))?;
        fs::rename(self.0.join(PART), path).map_err(io_error("name the snapshot"))?;
        self.sync()
    }

    /// Has it become none.
    pub fn drop_part(&self) {
        let _ = fs::remove_file(self.0.join(PART));
        self.tidy();
    }

    /// An empty file for what a disk is before a rollback.
    pub fn before(&self) -> Result<File, SnapshotError> {
        self.fresh(BEFORE)
    }

    fn fresh(&self, name: &str) -> Result<File, SnapshotError> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove what an earlier attempt left")(error));
            }
            _ => {}
        }
        new_file(&path).map_err(io_error("make a file beside the disk"))
    }

    /// Removes a snapshot.
    pub fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        match fs::remove_file(self.path(name)?) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.unknown(name)?);
            }
            Err(error) => return Err(io_error("remove the snapshot")(error)),
        }
        self.sync()?;
        self.tidy();
        Ok(())
    }

    /// Removes it if nothing is in it.
    pub fn tidy(&self) {
        // It fails where there is something.
        let _ = fs::remove_dir(&self.0);
    }

    fn sync(&self) -> Result<(), SnapshotError> {
        sync(&self.0).map_err(io_error("sync the folder of the snapshots"))
    }

    /// The rollback that is under way.
    pub fn mark(&self) -> Result<Option<Mark>, SnapshotError> {
        let text = match fs::read_to_string(self.0.join(MARK)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read which rollback is under way")(error)),
        };
        let parsed = text.trim_end().split_once(' ').and_then(|(len, name)| {
            Some(Mark {
                len: len.parse().ok()?,
                name: check(name).is_ok().then(|| name.to_owned())?,
            })
        });
        let damaged = || io_error("understand which rollback is under way")(damaged());
        parsed.map(Some).ok_or_else(damaged)
    }

    /// Says that a rollback is under way.
    pub fn set_mark(&self, mark: &Mark) -> Result<(), SnapshotError> {
        let written = || -> io::Result<()> {
            let part = self.0.join(PART);
            fs::write(&part, format!("{} {}\n", mark.len, mark.name))?;
            File::open(&part)?.sync_all()?;
            fs::rename(part, self.0.join(MARK))
        };
        written().map_err(io_error("write down that a rollback begins"))?;
        self.sync()
    }

    /// Says that none is.
    pub fn clear_mark(&self) -> Result<(), SnapshotError> {
        match fs::remove_file(self.0.join(MARK)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("write down that the rollback is over")(error));
            }
            _ => {}
        }
        self.sync()?;
        // Of no use any more; whatever comes next removes it otherwise.
        let _ = fs::remove_file(self.0.join(BEFORE));
        Ok(())
    }
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the file .rollback in the folder of the snapshots is damaged",
    )
}

/// A new file, for our user alone.
pub fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Puts what a folder lists on stable storage.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Checks what a snapshot is to be called.
pub fn check(name: &str) -> Result<(), SnapshotError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let good =
        (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits);
    if good {
        Ok(())
    } else {
        Err(SnapshotError::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::Scratch;

    #[test]
    fn a_name_leads_nowhere_else() {
        let long = "a".repeat(65);
        for bad in ["", ".", "..", ".part", "a/b", "a b", "ä", "a\n", &long] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "2026-11-27_22.45", &long[1..]] {
            assert!(check(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_a_damaged_one_is_reported() {
        let scratch = Scratch::new();
        let folder = Folder::of(&scratch.path().join("a.img"));
        assert_eq!(folder.mark().unwrap(), None);
        let _claim = folder.claim().unwrap();
        let mark = Mark {
            name: "monday".into(),
            len: 4096,
        };
        folder.set_mark(&mark).unwrap();
        assert_eq!(folder.mark().unwrap(), Some(mark));
        folder.clear_mark().unwrap();
        assert_eq!(folder.mark().unwrap(), None);
        for damage in ["", "4096", "x monday", "4096 ../a"] {
            fs::write(folder.0.join(MARK), damage).unwrap();
            assert!(folder.mark().is_err(), "{damage:?}");
        }
    }

    #[test]
    fn one_program_at_a_time_is_at_the_snapshots() {
        let scratch = Scratch::new();
        let folder = Folder::of(&scratch.path().join("a.img"));
        let claim = folder.claim().unwrap();
        assert!(matches!(folder.claim(), Err(SnapshotError::Locked)));
        drop(claim);
        drop(folder.claim().unwrap());
        folder.tidy();
        assert!(!folder.0.exists());
    }
}
