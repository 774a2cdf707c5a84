//! What can go wrong in a measurement, said so that the reader knows the mend.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::slots::Operation;

/// The program's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the socket.
    #[error("no server at {}: {source}; start it first, or correct the path", path.display())]
    NoServer { path: PathBuf, source: io::Error },
    /// A setup message failed.
    #[error("the server did not take {message}: {source}")]
    Setup {
        message: &'static str,
        source: vhost::Error,
    },
    /// The server cannot do what the load needs.
    #[error("the server does not offer {feature} (virtio features {offered:#x}), which {reason}")]
    Lacks {
        feature: &'static str,
        offered: u64,
        reason: &'static str,
    },
    /// The server has fewer queues.
    #[error("the server has {offered} queues for requests, fewer than --queues {asked}")]
    TooFewQueues { offered: u64, asked: u16 },
    /// A ring that cannot hold the load.
    #[error("{depth} requests do not fit a ring of {size} entries{mend}")]
    RingTooSmall {
        depth: u16,
        size: u16,
        mend: &'static str,
    },
    /// The device used chains that it does not have.
    #[error("the server used {used} chains where it had {given}")]
    UsedTooMuch { used: u16, given: u16 },
    /// The device used a chain that it does not have.
    #[error("the server used chain {head}, which it was not given")]
    UsedUnknown { head: u32 },
    /// A request failed.
    #[error("{operation} of block {block} failed: {answer}")]
    Request {
        operation: Operation,
        block: u64,
        answer: String,
    },
    /// The disk is smaller than the load needs.
    #[error("the disk has {capacity} bytes; the load needs {needed}")]
    TooSmall { capacity: u64, needed: u64 },
    /// A block is not what was written.
    #[error("VERIFICATION FAILED: sector {sector} should hold {expected}, but holds {found}")]
    Corrupt {
        sector: u64,
        expected: String,
        found: String,
    },
    /// The server is gone.
    #[error("the server went away with {under_way} requests under way{log}")]
    Died { under_way: u64, log: String },
    /// The server answers no more.
    #[error("the server finished nothing for {after:?}, with {under_way} requests under way")]
    Stalled { after: Duration, under_way: u64 },
    /// A thread of this program panicked.
    #[error("a thread of the load generator panicked")]
    Panicked,
    /// One measurement of a comparison failed.
    #[error("{server}, {case}: {source}")]
    Measurement {
        server: &'static str,
        case: String,
        source: Box<Error>,
    },
    /// A load that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The harness failed: a peer could not be fetched, built or started.
    #[error(transparent)]
    Harness(#[from] tests::vm::Error),
    /// An operation of the machine failed.
    #[error("cannot {action}: {source}")]
    Io { action: String, source: io::Error },
    /// The plot could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}

/// Says what was tried, when it fails.
pub trait Context<T> {
    /// Turns an I/O error into an [`Error::Io`].
    fn doing(self, action: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io {
            action: action.into(),
            source,
        })
    }
}
