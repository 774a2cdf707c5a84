//! A file whose lock says that something is taken, for as long as the process lives.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::kept::{Kept, KeptFd};

/// A held lock; dropping it removes the file and lets the lock go.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    held: KeptFd,
}

impl LockFile {
    /// Takes the lock at `path`, or `None` if another process (or another part of this one)
    /// holds it. Never waits.
    ///
    /// # Errors
    /// What creating, locking or inspecting the file gave.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The holder before us removed the file while we opened it: take the one that
            // stands there now.
            let held = file.metadata()?;
            match fs::metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Some(Self {
                        path: path.to_owned(),
                        held: OwnedFd::from(file).into(),
                    }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl LockFile {
    /// The lock at `path` that another process of this shim took, and has left as `held`.
    pub fn taken(path: &Path, held: KeptFd) -> Self {
        let path = path.to_owned();
        Self { path, held }
    }

    /// Has the lock held for as long as `kept`.
    ///
    /// # Errors
    /// What duplicating the descriptor gave.
    pub fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        self.held = kept.keep(self.held.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// The locked file.
    pub fn held(&self) -> &KeptFd {
        &self.held
    }

    /// Leaves the lock to who has a duplicate of it: dropping this would let it go.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays behind");
        }
        // A keeper may still have its duplicate.
        let _ = rustix::fs::flock(&self.held, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn a_lock_is_held_once_and_free_after_its_holder() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("rp0.lock");

        let held = LockFile::try_take(&path).unwrap();
        assert!(held.is_some());
        assert!(LockFile::try_take(&path).unwrap().is_none());

        drop(held);
        assert!(!path.exists());
        assert!(LockFile::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_left_behind_by_a_dead_holder_is_taken_over() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("rp0.lock");
        fs::write(&path, "").unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_some());
    }
}
