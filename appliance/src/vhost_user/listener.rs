//! The path that frontends of one HBA connect to.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Who may connect: the user that this program runs as, and its group.
const MODE: u32 = 0o660;
/// As that, where it is for the user alone.
const PRIVATE_MODE: u32 = 0o600;
/// Frontends that may wait for the one before them.
const BACKLOG: i32 = 8;

/// A path that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another appliance has it.
    #[error(
        "socket {0} belongs to another running appliance; stop that one, or give this one a path \
         of its own"
    )]
    OtherAppliance(PathBuf),
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

/// A listening socket, for user and group; dropping it removes its path, if that is still its.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    file: (u64, u64),
    /// Dropped last, so that nobody else takes the path before it is removed.
    _lock: Lock,
}

impl Socket {
    /// Listens on `path`. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`ListenError`], naming the path and the mend.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Self::bind_as(path, MODE)
    }

    /// As [`Self::bind`], for this user alone.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind_private(path: &Path) -> Result<Self, ListenError> {
        Self::bind_as(path, PRIVATE_MODE)
    }

    fn bind_as(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let io = |error: io::Error| ListenError::Io {
            path: path.to_owned(),
            error,
        };
        let lock = Lock::take(path)
            .map_err(io)?
            .ok_or_else(|| ListenError::OtherAppliance(path.to_owned()))?;
        remove_stale(path)?;
        let listener = open(path, mode).map_err(io)?;
        let meta = fs::metadata(path).map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket; accepting from it does not wait.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file stays behind");
        }
    }
}

/// A socket that does not wait.
fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// A socket that listens when nobody else may connect any more.
fn open(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = socket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Removes the socket file of a dead listener. Under the lock, no other appliance does the same.
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
    let address = SocketAddrUnix::new(path).map_err(|error| io(error.into()))?;
    match connect(&socket().map_err(io)?, &address) {
        // A listener whose queue is full is alive, too.
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(io),
        Err(error) => Err(io(error.into())),
    }
}

/// A locked file beside the socket, which says for as long as a process lives that the path is
/// its; removed on drop.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _held: File,
}

impl Lock {
    /// The lock of the socket at `socket`; `None` if somebody else has it.
    fn take(socket: &Path) -> io::Result<Option<Self>> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let held = file.metadata()?;
            let there = fs::metadata(&path);
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                return Ok(Some(Self { path, _held: file }));
            }
            // Its holder removed it while we opened it.
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lock file stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use uuid::Uuid;

    use super::*;

    fn path() -> PathBuf {
        std::env::temp_dir().join(format!("hba-{}.sock", Uuid::new_v4()))
    }

    #[test]
    fn a_socket_is_for_user_and_group_and_gone_with_its_listener() {
        let path = path();
        let socket = Socket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        UnixStream::connect(socket.path()).unwrap();
        drop(socket);
        assert!(!path.exists() && !path.with_extension("sock.lock").exists());
    }

    #[test]
    fn a_socket_of_a_dead_process_is_replaced() {
        let path = path();
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        UnixStream::connect(socket.path()).unwrap();
    }

    #[test]
    fn a_path_that_is_in_use_is_left_alone() {
        let path = path();
        let alive = UnixListener::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(alive);
        let first = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::OtherAppliance(_)), "{error}");
        UnixStream::connect(first.path()).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = path();
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(path).unwrap();
    }
}
