//! What a process of the shim takes from itself before it meets anybody: files by Landlock,
//! system calls by seccomp.
//!
//! The program does this, not the library: a [`crate::supervisor`] or [`crate::relay`] on a
//! thread of somebody else's process leaves that process as it is. Both kinds of filter hold for
//! the calling thread and what it starts, so the process may have no other thread yet; and the
//! relay, which the supervisor starts, has the supervisor's limits below its own. Keeper and
//! supervisor, which start each other, have the same.

mod files;
mod filter;
mod relay_calls;
mod supervisor_calls;

pub use files::{Confinement, Places};

/// Why a process cannot be confined. It must not go on then: nobody would see that it is not.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A folder or file that the sandbox is to leave open.
    #[error(
        "cannot reach what the sandbox is to leave open: {0}; the folders of sockets and lock \
         files have to be there before host-shim starts"
    )]
    Place(#[from] landlock::PathFdError),
    /// What this process consists of cannot be read.
    #[error("sandbox: {path}: {error}; is /proc mounted?")]
    Proc {
        /// The file.
        path: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// Landlock is there, and refused.
    #[error("sandbox: {0}; --no-sandbox does without, for debugging")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls is not one: a mistake in its list.
    #[error("sandbox: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// Seccomp refused.
    #[error(
        "sandbox: {0}; the kernel needs CONFIG_SECCOMP_FILTER; --no-sandbox does without, for \
         debugging"
    )]
    Seccomp(#[from] seccompiler::Error),
}

/// Leaves this thread what a relay needs: the descriptors that it has, and memory.
///
/// # Errors
/// [`SandboxError`]; the process may be confined in part.
pub fn confine_relay() -> Result<Confinement, SandboxError> {
    let files = files::allow_none()?;
    filter::apply(&relay_calls::filters()?)?;
    Ok(files)
}

/// Leaves this thread what a supervisor and its keeper need: its sockets and lock files in
/// `places`, the way to the storage VM's QMP socket, and this program, to start the others.
///
/// # Errors
/// [`SandboxError`]; the process may be confined in part.
pub fn confine_supervisor(places: &Places<'_>) -> Result<Confinement, SandboxError> {
    let files = files::allow(places)?;
    filter::apply(&supervisor_calls::filters()?)?;
    Ok(files)
}
