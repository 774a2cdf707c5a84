//! Snapshots of a disk on a file, by reference.
//!
//! For a snapshot the disk stands still for a moment ([`pause`]): what was begun is over, all of it
//! is flushed, and the filesystem has a new file in its [`folder`] share every block. A rollback has
//! the disk's own file share those of the snapshot, so that whoever has it open, and its lock,
//! notice nothing of that. It is written down before: where a crash comes in between, whoever opens
//! the disk next finishes it.

mod error;
mod folder;
mod pause;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::Duration;

pub use self::error::SnapshotError;
pub use self::folder::Snapshot;
use self::folder::{Folder, Mark};
use self::pause::{Kept, Pause};
use super::reflink::{Reflink, is_impossible};
use super::{OpenFile, sys};

/// How long what was begun on a disk may take to end: its tenants wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a disk on a regular file has to have for snapshots.
#[derive(Debug)]
pub struct Origin {
    /// Its file, without links.
    path: PathBuf,
    /// Others may have it open, too.
    shared: bool,
    read_only: bool,
    /// It is never shorter than this many bytes, as that is configured.
    least: Option<u64>,
    /// The pause of a rollback that is rolled back in part only. Whoever rolls it back has it for
    /// itself meanwhile: the file may be shorter then.
    stuck: RwLock<Option<Pause>>,
}

/// Keeps rollbacks of a disk waiting as long as it lives.
#[derive(Debug)]
#[must_use = "dropping it lets a rollback begin"]
pub struct Whole<'a>(
    #[expect(dead_code, reason = "it is held for its lock")] RwLockReadGuard<'a, Option<Pause>>,
);

/// The snapshots of one disk.
#[derive(Debug)]
pub struct Snapshots<'a> {
    origin: &'a Origin,
    file: &'a OpenFile,
}

/// A disk that has been rolled back; its commands go on when this is dropped.
#[derive(Debug)]
#[must_use = "tenants wait until it is dropped"]
pub struct RolledBack {
    _pause: Pause,
}

impl Origin {
    /// Of the file that was opened by `path`.
    pub fn of(path: &Path, (shared, read_only): (bool, bool), least: Option<u64>) -> Self {
        Self {
            path: without_links(path),
            shared,
            read_only,
            least,
            stuck: RwLock::default(),
        }
    }

    /// For who looks at the size of the file, or changes it. `None` while the disk is being rolled
    /// back, and where it is so in part only.
    pub fn whole(&self) -> Option<Whole<'_>> {
        let stuck = match self.stuck.try_read() {
            Ok(stuck) => stuck,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        stuck.is_none().then_some(Whole(stuck))
    }
}

/// The file that a path leads to. One that has no name any more keeps this; it is found out when
/// something is to be beside it.
fn without_links(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// A lock on a file that others may have open: for us alone as long as this lives.
struct Alone<'a>(Option<&'a File>);

impl<'a> Alone<'a> {
    fn with(file: &'a File, is_shared: bool) -> Result<Self, SnapshotError> {
        if !is_shared {
            return Ok(Self(None));
        }
        match sys::lock_soon(file, true) {
            Err(error) if sys::is_locked(&error) => Err(SnapshotError::Shared),
            Err(error) => Err(io_error("lock it")(error)),
            Ok(()) => Ok(Self(Some(file))),
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // From an exclusive lock to a shared one nobody is in the way.
        if let Some(Err(error)) = self.0.map(|file| sys::lock(file, false)) {
            tracing::error!("the lock of a shared disk stays exclusive: {error}");
        }
    }
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { action, source }
}

impl<'a> Snapshots<'a> {
    pub(super) fn new(origin: &'a Origin, file: &'a OpenFile) -> Self {
        Self { origin, file }
    }

    /// What there is, the oldest first.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn list(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        Folder::of(&self.origin.path).list()
    }

    /// Takes a snapshot: everything that was acknowledged is in it.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn create(&self, name: &str) -> Result<(), SnapshotError> {
        let folder = Folder::of(&self.origin.path);
        let path = folder.path(name)?;
        self.check_path()?;
        let _claim = folder.claim()?;
        if path.exists() {
            return Err(SnapshotError::Exists(name.to_owned()));
        }
        let taken = folder.part().and_then(|part| {
            self.take(&part, &path)?;
            folder.finish_part(&part, name)
        });
        if taken.is_err() {
            folder.drop_part();
        }
        taken
    }

    /// Makes a new file with what the disk holds, or held when a snapshot was taken.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn clone_to(&self, snapshot: Option<&str>, path: &Path) -> Result<(), SnapshotError> {
        let folder = Folder::of(&self.origin.path);
        let from = snapshot.map(|name| folder.open(name)).transpose()?;
        self.check_path()?;
        if path.parent().is_some_and(|parent| folder.is(parent)) {
            return Err(SnapshotError::Inside(path.to_owned()));
        }
        let to = folder::new_file(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => SnapshotError::FileExists(path.to_owned()),
            _ => io_error("make the new file")(error),
        })?;
        let made = match &from {
            Some(from) => self.share(from, &to, path),
            None => self.take(&to, path),
        };
        let made = made.and_then(|()| {
            to.sync_all().map_err(io_error("sync the new file"))?;
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            folder::sync(parent.unwrap_or(Path::new("."))).map_err(io_error("sync its folder"))
        });
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        let folder = Folder::of(&self.origin.path);
        folder::check(name)?;
        if self.list()?.iter().all(|there| there.name != name) {
            return Err(folder.unknown(name)?);
        }
        let _claim = folder.claim()?;
        if folder.mark()?.is_some_and(|mark| mark.name == name) {
            return Err(SnapshotError::Needed(name.to_owned()));
        }
        folder.remove(name)
    }

    /// Puts what the disk held when a snapshot was taken in place of what it holds. It does not
    /// become shorter: what it has grown since then is zeros. Nobody reads or writes meanwhile, nor
    /// until what this returns is dropped; commands that wait are carried out then. `check` has the
    /// last word, when the disk stands still.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn rollback(
        &self,
        name: &str,
        check: impl FnOnce() -> Result<(), SnapshotError>,
    ) -> Result<RolledBack, SnapshotError> {
        if self.origin.read_only {
            return Err(SnapshotError::ReadOnly);
        }
        let folder = Folder::of(&self.origin.path);
        // Without a folder being made for nothing; and again, when nobody removes it any more.
        folder.open(name)?;
        self.check_path()?;
        let _claim = folder.claim()?;
        let snapshot = folder.open(name)?;
        let stuck = &self.origin.stuck;
        let mut stuck = stuck.write().unwrap_or_else(PoisonError::into_inner);
        let is_stuck = stuck.is_some();
        let pause = match stuck.take() {
            Some(pause) => pause,
            None => self.pause(Kept::Everyone)?,
        };
        let rolled = check().and_then(|()| self.put_back(&folder, &snapshot, name, is_stuck));
        match rolled {
            Ok(()) => Ok(RolledBack { _pause: pause }),
            Err(error @ SnapshotError::Stuck(_)) => {
                *stuck = Some(pause);
                Err(error)
            }
            // It was so before.
            Err(error) if is_stuck => {
                *stuck = Some(pause);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// With nobody at the disk.
    fn put_back(
        &self,
        folder: &Folder,
        snapshot: &File,
        name: &str,
        is_stuck: bool,
    ) -> Result<(), SnapshotError> {
        let file = self.file.file();
        let _alone = Alone::with(file, self.origin.shared)?;
        let _change = self.file.settled().change();
        let len = file.metadata().map_err(io_error("read its size"))?.len();
        let taken = snapshot
            .metadata()
            .map_err(io_error("read the size of the snapshot"))?
            .len();
        // Where it is stuck, it may have become shorter.
        let marked = if is_stuck { folder.mark()? } else { None };
        let mark = Mark {
            name: name.to_owned(),
            len: len
                .max(taken)
                .max(marked.map_or(0, |mark| mark.len))
                .max(self.origin.least.unwrap_or(0)),
        };
        // Where it is stuck, what it was before is kept already, and this is no better.
        let before = if is_stuck {
            None
        } else {
            self.file.sync().map_err(SnapshotError::Flush)?;
            let before = folder.before()?;
            self.share(file, &before, &self.origin.path)?;
            before.sync_all().map_err(io_error("sync what it was"))?;
            Some(before)
        };
        if let Err(error) = folder.set_mark(&mark) {
            // The one that is there, old or new, has the next to open the disk mend it.
            if is_stuck {
                return Err(error);
            }
            // It may be there all the same, and the next to open the disk would believe it.
            return match folder.clear_mark() {
                Ok(()) => Err(error),
                Err(left) => Err(left.stuck()),
            };
        }
        let calls = self.calls()?;
        if let Err(error) = replace(calls, snapshot, file, mark.len) {
            let undone = before.map(|before| replace(calls, &before, file, len));
            return match undone {
                Some(Ok(())) => {
                    folder.clear_mark().map_err(SnapshotError::stuck)?;
                    Err(SnapshotError::Undone(error))
                }
                _ => Err(SnapshotError::Stuck(error)),
            };
        }
        // Otherwise the next to open it would roll back what was written since.
        folder.clear_mark().map_err(SnapshotError::stuck)
    }

    /// Has an empty file share all blocks, with nothing that was acknowledged missing.
    fn take(&self, to: &File, path: &Path) -> Result<(), SnapshotError> {
        // Most of it before anybody waits.
        self.file.sync().map_err(SnapshotError::Flush)?;
        let _pause = self.pause(Kept::Changes)?;
        let file = self.file.file();
        let _alone = Alone::with(file, self.origin.shared && !self.origin.read_only)?;
        self.file.sync().map_err(SnapshotError::Flush)?;
        // Blocks that are shared are written elsewhere from now on.
        let _change = self.file.settled().change();
        self.share(file, to, path)
    }

    fn pause(&self, kept: Kept) -> Result<Pause, SnapshotError> {
        let pause = Pause::begin(self.file.ranges(), kept, PATIENCE);
        let pause = pause.map_err(io_error("have the disk stand still"))?;
        pause.ok_or(SnapshotError::Busy {
            seconds: PATIENCE.as_secs(),
        })
    }

    /// Has an empty file share all blocks of another; `path` is where it is.
    fn share(&self, from: &File, to: &File, path: &Path) -> Result<(), SnapshotError> {
        let shared = self.calls()?.clone_range(from, 0, to, 0, 0);
        shared.map_err(|error| match error.raw_os_error() {
            Some(libc::EXDEV) => SnapshotError::Elsewhere {
                from: self.origin.path.clone(),
                to: path.to_owned(),
            },
            _ if is_impossible(&error) => SnapshotError::CannotShare {
                path: self.origin.path.clone(),
                filesystem: filesystem_name(from),
                error,
            },
            _ => io_error("have the filesystem share its blocks")(error),
        })
    }

    fn calls(&self) -> Result<&'a dyn Reflink, SnapshotError> {
        let sharing = self.file.sharing().ok_or(SnapshotError::NoFile)?;
        Ok(sharing.calls())
    }

    /// Checks that the folder is beside the file that is open.
    fn check_path(&self) -> Result<(), SnapshotError> {
        let path = &self.origin.path;
        let there = fs::metadata(path).map_err(io_error("find its file"))?;
        let open = self.file.file().metadata();
        let open = open.map_err(io_error("ask which file it is"))?;
        if (there.dev(), there.ino()) == (open.dev(), open.ino()) {
            Ok(())
        } else {
            Err(SnapshotError::Moved(path.clone()))
        }
    }
}

/// Has `to` share all blocks of `from` and have this length, on stable storage.
fn replace(calls: &dyn Reflink, from: &File, to: &File, len: u64) -> io::Result<()> {
    let have = to.metadata()?.len();
    let taken = from.metadata()?.len();
    if have > taken {
        // What lies behind would stay; and the end of what is shared need be no whole block.
        to.set_len(taken)?;
    }
    calls.clone_range(from, 0, to, 0, 0)?;
    if taken < len {
        to.set_len(len)?;
    }
    to.sync_all()
}

/// The snapshot to which a rollback of the file at `path` is to be finished, as whoever did it has
/// ended in the middle.
///
/// # Errors
/// [`SnapshotError`], if that cannot be told.
pub fn unfinished(path: &Path) -> Result<Option<String>, SnapshotError> {
    let folder = Folder::of(&without_links(path));
    Ok(folder.mark()?.map(|mark| mark.name))
}

/// Finishes that rollback; nobody else has the file.
///
/// # Errors
/// [`SnapshotError`].
pub fn finish(path: &Path, file: &File, calls: &dyn Reflink) -> Result<(), SnapshotError> {
    let path = without_links(path);
    let folder = Folder::of(&path);
    let _claim = folder.claim()?;
    let Some(mark) = folder.mark()? else {
        return Ok(());
    };
    let snapshot = folder.open(&mark.name)?;
    replace(calls, &snapshot, file, mark.len)
        .map_err(io_error("have the filesystem share its blocks"))?;
    folder.clear_mark()?;
    tracing::warn!(
        file = %path.display(),
        snapshot = mark.name,
        "a rollback that was interrupted is finished"
    );
    Ok(())
}

/// What the kernel calls the filesystem that a file is in.
fn filesystem_name(file: &File) -> String {
    let named = || {
        let device = file.metadata().ok()?.dev();
        let numbers = format!(
            "{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        // proc_pid_mountinfo(5): the third field is the device; the type comes after " - ".
        let mount = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some(&numbers))?;
        let (_, rest) = mount.split_once(" - ")?;
        rest.split(' ').next().map(str::to_owned)
    };
    named().unwrap_or_else(|| "a filesystem".to_owned())
}

#[cfg(test)]
mod tests;
