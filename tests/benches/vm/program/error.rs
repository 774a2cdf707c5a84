//! What can go wrong, said so that the reader knows the mend.

use std::io;

/// The program's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The harness failed: something could not be fetched, built or started, or a guest said no.
    #[error(transparent)]
    Harness(#[from] tests::vm::Error),
    /// What fio printed has no figures.
    #[error("fio in the tenant has no figures, {problem}:\n{text}")]
    Fio { problem: String, text: String },
    /// A load reached another disk than it should, or not all of it did.
    #[error(
        "fio in the tenant counted {tenant} requests, and QEMU only {qemu} at the disk that they \
         should reach"
    )]
    Counts { tenant: u64, qemu: u64 },
    /// A load ended before CPU time was taken.
    #[error("fio in the tenant did not work while CPU time was taken; is the machine overloaded?")]
    Idle,
    /// A way does not lead to the disk.
    #[error("{way} shows other bytes than were written by vhost-pci: it is not the same disk")]
    OtherDisk { way: &'static str },
    /// A process of the machines is gone.
    #[error("the process {0} has gone; see its log under target/vm/logs/bench_vm")]
    Gone(&'static str),
    /// One measurement of a comparison failed.
    #[error("{way}, {load}: {source}")]
    Measurement {
        way: &'static str,
        load: String,
        source: Box<Error>,
    },
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
