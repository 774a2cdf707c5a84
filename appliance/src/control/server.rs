//! The unix socket by which the appliance is controlled.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Uid, geteuid};

use super::client;
use super::desk::Desk;
use crate::vhost_user::{ListenError, Socket};

/// Most clients at a time.
const MAX_CLIENTS: usize = 16;
/// How often it is looked at whether to end.
const LOOK: Duration = Duration::from_millis(200);
/// How long a client may leave a reply unread.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// The appliance cannot be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path cannot be listened on.
    #[error("no control socket: {0}")]
    Listen(#[from] ListenError),
    /// A thread cannot be started.
    #[error("no control socket: a thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A control socket; dropping it ends every client and removes the path.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `path`, for the user that this program runs as and for root.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn start(path: &Path, desk: Arc<Desk>) -> Result<Self, ControlError> {
        let socket = Socket::bind_private(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepts = Accepts {
            socket,
            desk,
            stop: Arc::clone(&stop),
            clients: Arc::default(),
        };
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || accepts.run())
            .map_err(ControlError::Thread)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Accepts {
    socket: Socket,
    desk: Arc<Desk>,
    stop: Arc<AtomicBool>,
    clients: Arc<AtomicUsize>,
}

impl Accepts {
    fn run(self) {
        let listener = self.socket.listener();
        let look = Timespec::try_from(LOOK).unwrap_or_default();
        while !self.stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(listener, PollFlags::IN)];
            match poll(&mut ready, Some(&look)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!("waiting for control clients: {error}"),
            }
            match listener.accept() {
                Ok((stream, _)) => self.take(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // As when there are too many open files: not over and over.
                    tracing::warn!("a control client cannot be taken: {error}");
                    thread::sleep(LOOK);
                }
            }
        }
    }

    fn take(&self, mut stream: UnixStream) {
        match socket_peercred(&stream) {
            Ok(peer) if is_allowed(peer.uid) => {}
            Ok(peer) => {
                let uid = peer.uid.as_raw();
                tracing::warn!(uid, "a control client of another user was turned away");
                return;
            }
            Err(error) => {
                tracing::warn!("who a control client is cannot be told: {error}");
                return;
            }
        }
        if self.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("there are {MAX_CLIENTS} control clients; one more was turned away");
            return;
        }
        let place = Place(Arc::clone(&self.clients));
        let (desk, stop) = (Arc::clone(&self.desk), Arc::clone(&self.stop));
        let started = thread::Builder::new()
            .name("control-client".into())
            .spawn(move || {
                let _place = place;
                let patience = stream
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_read_timeout(Some(LOOK)))
                    .and_then(|()| stream.set_write_timeout(Some(READ_PATIENCE)));
                let is_over = || stop.load(Ordering::Relaxed);
                let served = patience.and_then(|()| client::serve(&desk, &mut stream, is_over));
                if let Err(error) = served {
                    tracing::debug!("a control client is gone: {error}");
                }
            });
        if let Err(error) = started {
            tracing::warn!("a control client cannot be served: {error}");
        }
    }
}

/// Whether a user may control this program: whoever could do as much to it anyway.
fn is_allowed(uid: Uid) -> bool {
    uid == geteuid() || uid.is_root()
}

/// A client's place, given back on drop.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
