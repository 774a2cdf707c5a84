//! A file whose lock says that something is taken, for as long as the process lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A held lock; dropping it removes the file and lets the lock go.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    _held: File,
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
                        _held: file,
                    }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays behind");
        }
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
