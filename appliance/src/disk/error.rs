//! How an operation on a disk can fail.

use std::io;

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
    /// The operation is not inside the disk or its buffer is too small.
    #[error("the operation is not inside the disk or its buffer")]
    OutOfRange,
    /// The tenant's memory could not be reached.
    #[error("the tenant's memory could not be reached")]
    TenantMemory,
    /// An earlier flush failed, so acknowledged writes of a write-back disk may be lost.
    #[error("an earlier flush of this write-back disk failed; writes may be lost")]
    WritesLost,
    /// [`super::Io::cancel`] ended it.
    #[error("the operation was cancelled")]
    Cancelled,
}
