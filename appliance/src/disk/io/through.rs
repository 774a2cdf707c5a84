//! Writes that are on stable storage when the kernel says that they are done.
//!
//! Force unit access, and a write to where nothing may have been allocated, could be a write and
//! then a sync. Where it is one piece, on a direct disk, it is one write with RWF_DSYNC (pwritev2(2)):
//! one turn of the loop instead of two, and no flush of the drive's whole cache where the drive has
//! force unit access itself. (A sync that is linked to its write takes as long as one in a turn of its
//! own: threads of the kernel do both.)
//!
//! Should it fail, nobody says which half of it did. A write that failed has lost nothing; a sync that
//! failed may have lost what others wrote, and the kernel reports that once. So it is written again
//! without, also where nobody waits for it any more: if that fails, the write was to blame; if not, it
//! is the sync that is blamed, and all have to hear of it.
//!
//! A disk through the page cache keeps its own sync: there, errors of write-back that was long ago
//! would come with any such write, also with one that then fails for itself.

use super::operation::Operation;
use super::work::Work;
use crate::disk::{DiskError, OpenFile};

/// What a piece's write is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// In the kernel's or the drive's memory, at least.
    No,
    /// On stable storage.
    Yes,
    /// It was to be on stable storage and failed, and is done again without.
    Doubted,
}

impl Through {
    /// Of the piece of `len` bytes at byte `at` of the present stage.
    pub fn of(operation: &Operation, at: u64, len: usize) -> Self {
        let (file, work) = (&operation.file, &operation.work);
        let is_all = at == 0 && len as u64 == operation.len;
        // Those stages are not all of it.
        let is_last = !matches!(work, Work::Unmap { .. } | Work::Protected(_));
        let is_owed = operation.sync || file.syncs_writes();
        if is_all && is_last && is_owed && file.writes_through() {
            Self::Yes
        } else {
            Self::No
        }
    }

    /// What it is to be after it failed with this errno; `None` if it has failed.
    pub fn after(self, errno: i32) -> Option<Self> {
        match self {
            // Nothing was begun.
            Self::Yes if errno == libc::ECANCELED => None,
            Self::Yes if is_undone(errno) || is_without_sync(errno) => Some(Self::No),
            Self::Yes => Some(Self::Doubted),
            Self::No | Self::Doubted => None,
        }
    }

    /// How a write ends that the kernel has done.
    pub fn done(self, file: &OpenFile) -> Result<(), DiskError> {
        match self {
            Self::No => Ok(()),
            Self::Yes => file.flushed(Ok(())),
            Self::Doubted => file.flushed(Err(DiskError::WritesLost)),
        }
    }

    /// Takes note of it that a write ends with this errno, and is not done again.
    pub fn failed(self, file: &OpenFile, errno: i32) {
        if is_undone(errno) {
            self.undecided(file);
        }
    }

    /// Takes note of it that a write ends, and nobody knows whether it could have been done.
    pub fn undecided(self, file: &OpenFile) {
        if self == Self::Doubted {
            // The operation has an error of its own.
            let _ = file.flushed(Err(DiskError::WritesLost));
        }
    }
}

/// Whether what ends with this errno did not come to an end.
fn is_undone(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR | libc::ECANCELED)
}

/// Whether a write to stable storage that ends with this errno has not come to its sync.
fn is_without_sync(errno: i32) -> bool {
    matches!(
        errno,
        // It is not known here, or there is no room on the disk, or no memory for it.
        libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::ENOSPC
            | libc::EDQUOT
            | libc::EFBIG
            | libc::ENOMEM
            | libc::EBUSY
            | libc::ENOBUFS
            | libc::EFAULT
            | libc::EBADF
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::disk::Cache;

    fn file() -> OpenFile {
        OpenFile::new(File::open("/dev/null").unwrap(), Cache::Direct)
    }

    #[test]
    fn what_is_cancelled_before_it_was_begun_is_not_done_again() {
        assert_eq!(Through::Yes.after(libc::ECANCELED), None);
    }

    #[test]
    fn what_fails_is_done_again_once_and_doubted_where_a_sync_may_have_failed() {
        for (errno, next) in [
            (libc::EIO, Through::Doubted),
            (libc::ENODATA, Through::Doubted),
            (libc::EROFS, Through::Doubted),
            (libc::ENOSPC, Through::No),
            (libc::EOPNOTSUPP, Through::No),
            (libc::EINTR, Through::No),
            (libc::ENOMEM, Through::No),
        ] {
            assert_eq!(Through::Yes.after(errno), Some(next), "{errno}");
            assert_eq!(Through::No.after(errno), None);
            assert_eq!(Through::Doubted.after(errno), None);
        }
    }

    #[test]
    fn everybody_hears_of_a_sync_that_may_have_failed() {
        for (through, errno, is_lost) in [
            (Through::No, libc::EIO, false),
            (Through::Yes, libc::ECANCELED, false),
            // The write was to blame.
            (Through::Doubted, libc::EIO, false),
            (Through::Doubted, libc::ENOSPC, false),
            (Through::Doubted, libc::ECANCELED, true),
        ] {
            let file = file();
            through.failed(&file, errno);
            let flush = file.flushed(Ok(()));
            assert_eq!(flush.is_err(), is_lost, "{through:?}, {errno}");
        }
        let file = file();
        assert_eq!(Through::Yes.done(&file), Ok(()));
        assert_eq!(Through::Doubted.done(&file), Err(DiskError::WritesLost));
        assert_eq!(Through::Yes.done(&file), Err(DiskError::WritesLost));
        assert_eq!(Through::No.done(&file), Ok(()));
    }
}
