//! The unix socket by which the appliance is controlled.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Uid, geteuid};

use super::client;
use super::desk::Desk;
use crate::clients::{Clients, LOOK, Service};
use crate::vhost_user::{ListenError, Socket};

/// Most clients at a time.
const MAX_CLIENTS: usize = 16;
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
    _clients: Clients,
}

impl Server {
    /// Listens on `path`, for the user that this program runs as and for root.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn start(path: &Path, desk: Arc<Desk>) -> Result<Self, ControlError> {
        let socket = Socket::bind_private(path)?;
        let clients = Clients::of(Door(socket), Control { desk });
        Ok(Self {
            _clients: clients.map_err(ControlError::Thread)?,
        })
    }
}

/// The socket, by which it is looked whether there is a client.
struct Door(Socket);

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.listener().as_fd()
    }
}

struct Control {
    desk: Arc<Desk>,
}

impl Service for Control {
    type Listener = Door;
    type Client = UnixStream;
    const NAME: &'static str = "control";
    const MOST: usize = MAX_CLIENTS;

    fn accept(door: &Door) -> io::Result<UnixStream> {
        let (stream, _) = door.0.listener().accept()?;
        Ok(stream)
    }

    fn admits(&self, client: &UnixStream) -> bool {
        match socket_peercred(client) {
            Ok(peer) if is_allowed(peer.uid) => true,
            Ok(peer) => {
                let uid = peer.uid.as_raw();
                tracing::warn!(uid, "a control client of another user was turned away");
                false
            }
            Err(error) => {
                tracing::warn!("who a control client is cannot be told: {error}");
                false
            }
        }
    }

    fn serve(&self, mut client: UnixStream, stop: &AtomicBool) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(LOOK))?;
        client.set_write_timeout(Some(READ_PATIENCE))?;
        client::serve(&self.desk, &mut client, || stop.load(Ordering::Relaxed))
    }
}

/// Whether a user may control this program: whoever could do as much to it anyway.
fn is_allowed(uid: Uid) -> bool {
    uid == geteuid() || uid.is_root()
}

#[cfg(test)]
mod tests;
