//! What can go wrong in the harness, said so that the reader knows the mend.

use std::{fmt, io, path::PathBuf, process::ExitStatus, time::Duration};

/// The harness's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a step of the harness failed.
///
/// `Debug` is `Display`, since a test that returns an error is reported with `Debug`.
#[derive(thiserror::Error)]
pub enum Error {
    /// A program of the host is missing.
    #[error("{tool} is missing; run: apt-get install {package}")]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A file or socket could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried: "read", "create", …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A command failed.
    #[error("{command} failed ({status}):\n{output}")]
    Command {
        /// The command, as a person would say it.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A command in a guest failed.
    #[error("in {machine}, `{command}` failed with status {status}:\n{output}")]
    InGuest {
        /// The machine.
        machine: String,
        /// The shell command.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it printed.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{awaited} did not happen within {after:?}\n{context}")]
    TooLate {
        /// What was waited for.
        awaited: String,
        /// For how long.
        after: Duration,
        /// The end of the relevant log.
        context: String,
    },
    /// A program ended while it was needed.
    #[error("{name} ended early ({status}), while waiting for {awaited}; its log ends:\n{log}")]
    EndedEarly {
        /// The program.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// What was waited for.
        awaited: String,
        /// The end of its log.
        log: String,
    },
    /// QMP refused a command.
    #[error("QMP command {command} was refused: {reason}")]
    Qmp {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// A QEMU that cannot do the job.
    #[error("{}: {problem}; give another with VPCI_QEMU, or unset it to have one fetched", path.display())]
    UnfitQemu {
        /// The program.
        path: PathBuf,
        /// What it lacks.
        problem: String,
    },
    /// An environment variable with a value that means nothing.
    #[error("{variable}={value}: expected {expected}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What it is set to.
        value: String,
        /// What it may be set to.
        expected: &'static str,
    },
    /// Something fetched or built is not as it should be.
    #[error("{what}: {problem}")]
    Unexpected {
        /// The thing.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Says what was tried on which file, when it fails.
pub trait FileContext<T> {
    /// Turns an I/O error into an [`Error::File`].
    fn file(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> FileContext<T> for io::Result<T> {
    fn file(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File {
            action,
            path: path.into(),
            source,
        })
    }
}
