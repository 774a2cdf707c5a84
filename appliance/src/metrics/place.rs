//! The socket that clients of the metrics connect to.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::config::Listen;
use crate::vhost_user::{ListenError, Socket};

/// A place that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A path.
    #[error(transparent)]
    Unix(#[from] ListenError),
    /// An address.
    #[error(
        "cannot listen on {address}: {error}; is it an address of this machine, and its port free?"
    )]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Place {
    Tcp(TcpListener),
    /// For user and group.
    Unix(Socket),
}

impl Place {
    /// Listens there; accepting does not wait.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(listen: &Listen) -> Result<Self, BindError> {
        let address = match listen {
            Listen::Unix(path) => return Ok(Self::Unix(Socket::bind(path)?)),
            Listen::Tcp(address) => *address,
        };
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        match listener {
            Ok(listener) => Ok(Self::Tcp(listener)),
            Err(error) => Err(BindError::Tcp { address, error }),
        }
    }

    /// Where that is, with the port that was free where none was said.
    pub fn listen(&self) -> Option<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Listen::Tcp),
            Self::Unix(socket) => Some(Listen::Unix(socket.path().to_owned())),
        }
    }

    /// The next client, as a socket that waits.
    ///
    /// # Errors
    /// What accept(2) reports; `WouldBlock` if there is none.
    pub fn accept(&self) -> io::Result<File> {
        let client: OwnedFd = match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.into()
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.listener().accept()?;
                stream.set_nonblocking(false)?;
                stream.into()
            }
        };
        Ok(client.into())
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(socket) => socket.listener().as_fd(),
        }
    }
}
