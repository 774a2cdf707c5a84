//! The shims whose status sockets are in a folder.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::{EXTENSION, MAX_LINE, Status};

/// How long a shim may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many are asked at once; each takes a descriptor.
const AT_ONCE: usize = 256;

/// What is found at a status socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The socket.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What is behind it.
    #[serde(flatten)]
    pub shim: Shim,
}

/// What is behind a status socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "status")]
pub enum Shim {
    /// A shim that runs.
    Running(Box<Status>),
    /// Nobody: the shim was killed.
    Gone,
    /// Somebody who does not answer.
    Silent(String),
    /// Somebody whom this user may not ask.
    Denied,
}

/// As JSON has it, which is UTF-8; a path need not be.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

impl Found {
    /// What it is called: the HBA's name, or that of the socket.
    pub fn name(&self) -> String {
        match &self.shim {
            Shim::Running(status) => status.name.clone(),
            Shim::Gone | Shim::Silent(_) | Shim::Denied => {
                let stem = self.path.file_stem().unwrap_or_default();
                stem.to_string_lossy().into_owned()
            }
        }
    }
}

/// The shims whose sockets are in `folder`, by name.
///
/// # Errors
/// What reading the folder reports.
pub fn find(folder: &Path) -> io::Result<Vec<Found>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|end| end == EXTENSION);
        // One that ended meanwhile is no shim any more.
        let is_socket = || fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket());
        if is_ours && is_socket() {
            paths.push(path);
        }
    }
    let mut found = Vec::new();
    for paths in paths.chunks(AT_ONCE) {
        // All are asked before one is waited for, so that they share the time.
        let asked: Vec<_> = paths.iter().map(|path| connect(path)).collect();
        let deadline = Instant::now() + PATIENCE;
        for (path, asked) in paths.iter().zip(asked) {
            let said = asked.and_then(|stream| read(stream, deadline));
            if let Some(shim) = behind(said) {
                let path = path.clone();
                found.push(Found { path, shim });
            }
        }
    }
    found.sort_by_key(|found| (found.name(), found.path.clone()));
    Ok(found)
}

/// What is behind a socket that said this; `None` if that is gone meanwhile.
fn behind(said: io::Result<Vec<u8>>) -> Option<Shim> {
    Some(match said {
        Ok(line) if line.is_empty() => Shim::Silent("it closed the connection".into()),
        Ok(line) => match serde_json::from_slice(&line) {
            Ok(status) => Shim::Running(Box::new(status)),
            Err(error) => Shim::Silent(format!("it is no host-shim of this version: {error}")),
        },
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => return None,
            io::ErrorKind::ConnectionRefused => Shim::Gone,
            io::ErrorKind::PermissionDenied => Shim::Denied,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Shim::Silent("it does not answer within a second".into())
            }
            _ => Shim::Silent(error.to_string()),
        },
    })
}

/// A connection; not waited for where the queue of one that hangs is full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = mio::net::UnixStream::connect(path)?;
    let stream = UnixStream::from(OwnedFd::from(stream));
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// All that comes until the end, in time.
fn read(mut stream: UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while line.len() < MAX_LINE {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // What has come while others were waited for is there.
            stream.set_nonblocking(true)?;
        } else {
            stream.set_read_timeout(Some(left))?;
        }
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => line.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use vmm_sys_util::tempdir::TempDir;

    fn only(dir: &TempDir) -> Shim {
        let mut found = find(dir.as_path()).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0).shim
    }

    #[test]
    fn the_socket_of_a_killed_shim_is_shown_as_one() {
        let dir = TempDir::new().unwrap();
        drop(UnixListener::bind(dir.as_path().join("t1.vfio.status")).unwrap());
        assert_eq!(only(&dir), Shim::Gone);
        assert_eq!(find(dir.as_path()).unwrap()[0].name(), "t1.vfio");
    }

    #[test]
    fn a_socket_whose_name_is_not_utf_8_is_shown_all_the_same() {
        let dir = TempDir::new().unwrap();
        let name = OsStr::from_bytes(b"t\xff.status");
        drop(UnixListener::bind(dir.as_path().join(name)).unwrap());
        let found = find(dir.as_path()).unwrap();
        let shown = serde_json::to_string(&found).unwrap();
        assert!(shown.contains("t\u{fffd}.status"), "{shown}");
    }

    #[test]
    fn other_sockets_and_files_are_no_shims() {
        let dir = TempDir::new().unwrap();
        let _other = UnixListener::bind(dir.as_path().join("t1.vfio")).unwrap();
        fs::write(dir.as_path().join("t1.status"), "").unwrap();
        assert_eq!(find(dir.as_path()).unwrap(), []);
    }

    #[test]
    fn one_that_does_not_answer_is_not_waited_for_long() {
        let dir = TempDir::new().unwrap();
        let _deaf = UnixListener::bind(dir.as_path().join("t1.status")).unwrap();
        let silent = "it does not answer within a second";
        assert_eq!(only(&dir), Shim::Silent(silent.into()));
    }

    #[test]
    fn many_that_do_not_answer_are_waited_for_together_and_hide_none_that_does() {
        let dir = TempDir::new().unwrap();
        let listen = |name: String| UnixListener::bind(dir.as_path().join(name)).unwrap();
        let _deaf: Vec<_> = (0..8).map(|n| listen(format!("deaf{n}.status"))).collect();
        let answers = listen("t1.status".into());
        let answering = thread::spawn(move || {
            let (mut client, _) = answers.accept().unwrap();
            client.write_all(b"hello").unwrap();
        });
        let start = Instant::now();
        let found = find(dir.as_path()).unwrap();
        // Eight seconds, if it were one after the other.
        assert!(start.elapsed() < Duration::from_secs(5));
        answering.join().unwrap();
        assert_eq!(found.len(), 9);
        let Shim::Silent(why) = &found[8].shim else {
            panic!("it is a shim");
        };
        assert!(why.starts_with("it is no host-shim"), "{why}");
    }

    #[test]
    fn one_whose_queue_is_full_is_not_waited_for_at_all() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("t1.status");
        let _deaf = UnixListener::bind(&path).unwrap();
        let queue: Vec<_> = std::iter::repeat_with(|| mio::net::UnixStream::connect(&path))
            .map_while(Result::ok)
            .collect();
        assert!(!queue.is_empty());
        let silent = "it does not answer within a second";
        assert_eq!(only(&dir), Shim::Silent(silent.into()));
    }

    #[test]
    fn one_that_talks_without_end_or_nonsense_is_told() {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.as_path().join("t1.status")).unwrap();
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                while client.write_all(&[b'x'; 4096]).is_ok() {}
            }
        });
        let Shim::Silent(why) = only(&dir) else {
            panic!("it is a shim");
        };
        assert!(why.starts_with("it is no host-shim"), "{why}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(find(Path::new("/no/such/folder")).is_err());
    }
}
