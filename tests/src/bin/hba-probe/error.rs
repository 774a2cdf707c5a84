//! Why a check failed, or could not be made.

use std::time::Duration;

use tests::world::Failure;

/// The program's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a check failed, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the kernel could not be used.
    #[error("{0}; run this as root")]
    File(#[from] tests::vm::Error),
    /// The PCI function is not one that can be driven.
    #[error("PCI function {address} {problem}")]
    Function {
        /// Its address.
        address: String,
        /// What is wrong, and the mend.
        problem: &'static str,
    },
    /// Memory could not be mapped.
    #[error("cannot map {what}: {source}")]
    Map {
        /// The memory.
        what: &'static str,
        /// Why not.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The device does not do what virtio says.
    #[error("the device {0}")]
    Device(&'static str),
    /// Something did not come.
    #[error("{what} did not come within {after:?}")]
    Missing {
        /// What.
        what: &'static str,
        /// For how long it was waited for.
        after: Duration,
    },
    /// A command failed that should not have.
    #[error("{what} failed: {source}")]
    Command {
        /// The command.
        what: &'static str,
        /// How.
        source: Failure,
    },
    /// A number is not the one that it should be.
    #[error("{what} is {got}, not {expected}")]
    Number {
        /// What it says.
        what: &'static str,
        /// The number.
        got: u8,
        /// The right one.
        expected: u8,
    },
    /// The target did what it should not.
    #[error("{0}")]
    Wrong(String),
    /// The disk was too quick to hold a command.
    #[error("the disk was done before the check began: throttle it to a few operations a second")]
    TooQuick,
    /// Memory was written that the device had let go.
    #[error("{what} was written at {offset:#x} after {event}: {byte:#04x}")]
    Touched {
        /// The memory.
        what: &'static str,
        /// Where in the DMA memory.
        offset: usize,
        /// What should have been the end of writing.
        event: &'static str,
        /// What stands there now.
        byte: u8,
    },
}

/// Fails unless `got` is `expected`.
pub fn expect(what: &'static str, got: u8, expected: u8) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::Number {
            what,
            got,
            expected,
        })
    }
}
