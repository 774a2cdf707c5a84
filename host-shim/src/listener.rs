//! A unix socket that this process listens on alone, under a path that it cleans up.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::kept::KeptFd;
use crate::lock_file::LockFile;

/// A path that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another host-shim has it.
    #[error(
        "socket {0} belongs to another running host-shim; stop that one, or give this one a \
         path of its own"
    )]
    OtherShim(PathBuf),
    /// Somebody else listens there.
    #[error("socket {0} is in use: something listens on it; stop it, or give another path")]
    InUse(PathBuf),
    /// Something else stands there.
    #[error("{0} is not a socket; remove it, or give another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error(
        "cannot listen on {path}: {error}; does its directory exist, and may this user write it?"
    )]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A listening socket and its path; dropping it removes the path, if it is still ours.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    file: (u64, u64),
    /// `None`: another process has it now.
    lock: Option<LockFile>,
}

impl Listener {
    /// Listens on `path`. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`ListenError`] naming the path and what to do.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let io = |error| ListenError::Io {
            path: path.to_owned(),
            error,
        };
        let lock = LockFile::try_take(&lock_path(path))
            .map_err(io)?
            .ok_or_else(|| ListenError::OtherShim(path.to_owned()))?;
        remove_stale(path)?;
        let socket = UnixListener::bind(path).map_err(io)?;
        let meta = fs::metadata(path).map_err(io)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
            lock: Some(lock),
        })
    }

    /// As [`Self::bind`], for this user alone.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind_private(path: &Path) -> Result<Self, ListenError> {
        let listener = Self::bind(path)?;
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, mode).map_err(|error| ListenError::Io {
            path: path.to_owned(),
            error,
        })?;
        Ok(listener)
    }

    /// The socket at `path` that another process of this shim listens on, as `socket`, with the
    /// lock that it has taken.
    ///
    /// # Errors
    /// What duplicating the socket gave.
    pub fn taken(path: &Path, socket: &KeptFd, lock: KeptFd) -> io::Result<Self> {
        let file = fs::symlink_metadata(path).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
        Ok(Self {
            socket: socket.as_fd().try_clone_to_owned()?.into(),
            path: path.to_owned(),
            file,
            lock: Some(LockFile::taken(&lock_path(path), lock)),
        })
    }

    /// Socket and lock, for [`Self::taken`] in another process; the path stays.
    ///
    /// # Errors
    /// What duplicating them gave.
    pub fn hand_over(mut self) -> io::Result<(OwnedFd, OwnedFd)> {
        let socket = self.socket.try_clone()?;
        let lock = self.lock.take().ok_or(io::ErrorKind::NotFound)?;
        let held = lock.held().as_fd().try_clone_to_owned()?;
        lock.leave();
        Ok((socket.into(), held))
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file)
            && self.lock.is_some();
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file stays behind");
        }
    }
}

/// The lock file that goes with a socket.
pub fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

/// Removes the socket file of a dead listener. Under the lock, no other shim does the same.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |error| ListenError::Io {
        path: path.to_owned(),
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    // Not blocking: a listener whose queue is full is alive, too.
    match mio::net::UnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ListenError::InUse(path.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn a_private_socket_is_for_its_user_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("hba0.status");
        let _listener = Listener::bind_private(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_socket_of_a_dead_process_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("hba0.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let listener = Listener::bind(&path).unwrap();

        UnixStream::connect(listener.path()).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_listener_keeps_its_path() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("hba0.sock");
        let alive = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::InUse(busy)) if busy == path
        ));
        drop(alive);
        assert!(path.exists());
    }

    #[test]
    fn a_second_shim_on_the_same_path_is_told_so() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("hba0.sock");
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::OtherShim(_)), "{error}");
        UnixStream::connect(first.path()).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("hba0.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
