//! Why a snapshot is not taken, rolled back to, or cloned.

use std::io;
use std::path::PathBuf;

use crate::disk::DiskError;

/// Why a snapshot is not taken, rolled back to, or cloned. Unless it says otherwise, nothing was
/// changed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is a block device under it.
    #[error(
        "its disk is a block device; take the snapshot where that comes from (LVM, the array), or \
         give the LUN a file on XFS or btrfs"
    )]
    BlockDevice,
    /// There is nothing of the kind under it.
    #[error("its disk is no file; only a LUN on a file on XFS or btrfs has snapshots")]
    NoFile,
    /// The filesystem cannot do it.
    #[error(
        "{} is on {filesystem}, which cannot have files share blocks ({error}); move the LUN's \
         file to XFS (made with reflink=1) or btrfs", path.display()
    )]
    CannotShare {
        /// The file.
        path: PathBuf,
        /// What the kernel calls the filesystem.
        filesystem: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The new file is in another filesystem.
    #[error(
        "{} is not in the filesystem of {}, and blocks can be shared only within one; give a path \
         there", to.display(), from.display()
    )]
    Elsewhere {
        /// The disk's file.
        from: PathBuf,
        /// The new file.
        to: PathBuf,
    },
    /// It cannot be called that.
    #[error(
        "a snapshot cannot be called {0:?}; use up to 64 letters, digits, '-', '_' and '.', the \
         last not first"
    )]
    Name(String),
    /// There is one.
    #[error("there is a snapshot {0:?} already; give another name, or remove that one")]
    Exists(String),
    /// There is a file.
    #[error("{} exists already; give another path", .0.display())]
    FileExists(PathBuf),
    /// It would be taken for a snapshot.
    #[error("{} is in the folder of the snapshots; give a path elsewhere", .0.display())]
    Inside(PathBuf),
    /// There is none.
    #[error("there is no snapshot {name:?}; {}", list(.known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// What was begun does not end.
    #[error(
        "its disk was not done after {seconds} s with what had been begun on it; nothing was \
         changed. Look with: explain"
    )]
    Busy {
        /// How long it was waited for.
        seconds: u64,
    },
    /// Others may change it.
    #[error(
        "another program, or another LUN, has its file open, and may change it meanwhile; stop \
         that one"
    )]
    Shared,
    /// Somebody is at it.
    #[error("another program is at its snapshots; try it again")]
    Locked,
    /// It may not be changed.
    #[error("it is read-only; serve it once without `read_only`")]
    ReadOnly,
    /// Its blocks are being erased.
    #[error(
        "its blocks are being erased, or could not be; wait until FORMAT UNIT or SANITIZE has \
         succeeded (REQUEST SENSE tells)"
    )]
    Erasing,
    /// The path leads to another file by now.
    #[error(
        "{} is another file than the one that is open; put that back, or serve the LUN anew",
        .0.display()
    )]
    Moved(PathBuf),
    /// A rollback to it has to be finished first.
    #[error("a rollback to {0:?} is not finished; roll back again, or restart the appliance")]
    Needed(String),
    /// The disk cannot be flushed.
    #[error("its disk cannot be flushed: {0}")]
    Flush(DiskError),
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The rollback failed, and the disk is as before.
    #[error("it could not be rolled back ({0}); it is as it was before")]
    Undone(io::Error),
    /// The rollback failed half-way.
    #[error(
        "it is rolled back in part only ({0}), and its commands wait. Mend its filesystem, then \
         roll back again; or restart the appliance, which finishes it"
    )]
    Stuck(io::Error),
}

impl SnapshotError {
    /// The same, while a rollback is written down that is not to be under way.
    pub(super) fn stuck(self) -> Self {
        match self {
            Self::Io { source, .. } => Self::Stuck(source),
            other => Self::Stuck(io::Error::other(other)),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "there is none".into()
    } else {
        format!("there are {}", names.join(", "))
    }
}
