//! How an operation on a disk can fail.

use std::io;

use super::BadTag;

/// Why an operation on a disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The kernel reported this errno, for which there is no case of its own.
    #[error("disk I/O failed: {}", io::Error::from_raw_os_error(*.0))]
    Io(i32),
    /// The filesystem or thin pool under the disk is full.
    #[error("no space is left under the disk")]
    NoSpace,
    /// Memory or requests ran short for the moment; the same operation may work later.
    #[error("resources of the storage VM ran short")]
    Busy,
    /// The device under the disk is gone.
    #[error("the device under the disk is gone")]
    Gone,
    /// The file has become shorter than the disk.
    #[error("the file under the disk has become shorter than the disk")]
    Truncated,
    /// A write to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The operation is not inside the disk, or its buffer is too small for it.
    #[error("the operation is not inside the disk or its buffer")]
    OutOfRange,
    /// The tenant's memory could not be reached.
    #[error("the tenant's memory could not be reached")]
    TenantMemory,
    /// The disk and the tenant's buffer differ.
    #[error("disk and buffer differ from byte {at} on")]
    Miscompare {
        /// First byte that differs, counted from the operation's offset.
        at: u64,
    },
    /// The blocks that are to be copied could not be read; the disk that they are copied to is not
    /// to blame.
    #[error("the blocks that are to be copied could not be read")]
    SourceFailed,
    /// A block and its protection information do not fit each other.
    #[error("the {bad} of the block at byte {at} is wrong")]
    Protection {
        /// First byte of the block, counted from the operation's offset.
        at: u64,
        /// What does not fit.
        bad: BadTag,
    },
    /// The protection information on the disk is not that which was sent with the data to compare.
    #[error("the {bad} of the block at byte {at} is not the one that was sent")]
    TagMiscompare {
        /// First byte of the block, counted from the operation's offset.
        at: u64,
        /// What differs.
        bad: BadTag,
    },
    /// The disk cannot do that.
    #[error("the disk cannot do that")]
    Unsupported,
    /// An earlier flush of the disk failed: acknowledged writes may be lost, and no later flush can
    /// bring them back. It stays so until the disk is opened anew.
    #[error("an earlier flush of this disk failed; writes may be lost")]
    WritesLost,
    /// [`Io::cancel`](super::Io::cancel) ended it.
    #[error("the operation was cancelled")]
    Cancelled,
}

impl DiskError {
    /// The same, of the disk that is copied from.
    pub const fn of_source(self) -> Self {
        match self {
            Self::Cancelled | Self::Busy => self,
            _ => Self::SourceFailed,
        }
    }

    /// The error for an errno value of a read, write or sync.
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EBUSY | libc::ENOBUFS => Self::Busy,
            libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ESTALE => Self::Gone,
            libc::EROFS | libc::EPERM => Self::ReadOnly,
            libc::EFAULT => Self::TenantMemory,
            libc::ECANCELED => Self::Cancelled,
            other => Self::Io(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_becomes_the_case_that_names_it() {
        assert_eq!(DiskError::from_errno(libc::ENOSPC), DiskError::NoSpace);
        assert_eq!(DiskError::from_errno(libc::ENXIO), DiskError::Gone);
        assert_eq!(
            DiskError::from_errno(libc::EIO).to_string(),
            "disk I/O failed: Input/output error (os error 5)"
        );
    }
}
