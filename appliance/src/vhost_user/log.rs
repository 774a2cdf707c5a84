//! The dirty log of a frontend: where it is, and what is to be marked in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstatfs};

use crate::dirty::Logging;
use crate::memory::DirtyLog;

/// The filesystem of huge pages (HUGETLBFS_MAGIC of linux/magic.h).
const HUGETLBFS: i128 = 0x9584_58f6;

/// A log that is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// The file can be truncated under our feet.
    #[error(
        "the dirty log is not sealed against shrinking, so its owner could end this program; QEMU's \
         are: the tenant's QEMU is at fault"
    )]
    Unsealed,
    /// Its pages may be missing when they are touched first.
    #[error(
        "the dirty log is made of huge pages, and with none free its owner could end this program; \
         QEMU's are not: the tenant's QEMU is at fault"
    )]
    HugePages,
    /// It cannot be mapped there.
    #[error("the dirty log cannot be used: {0}; the tenant's QEMU is at fault")]
    Io(#[from] io::Error),
}

/// What a frontend has said about its log.
#[derive(Debug, Default)]
pub(super) struct Log {
    bitmap: Option<Arc<DirtyLog>>,
    /// Guest address at which the used ring of each ring is to be marked.
    used: BTreeMap<u16, u64>,
    /// Counts changes.
    version: u64,
}

impl Log {
    /// SET_LOG_BASE: it is `len` bytes from `offset` of `file`.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn set_base(&mut self, file: &File, offset: u64, len: u64) -> Result<(), LogError> {
        // Asked first, as for memory.
        let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed {
            return Err(LogError::Unsealed);
        }
        let filesystem = fstatfs(file).map_err(io::Error::from)?;
        if i128::from(filesystem.f_type) == HUGETLBFS {
            return Err(LogError::HugePages);
        }
        self.bitmap = Some(Arc::new(DirtyLog::new(file, offset, len)?));
        self.version += 1;
        Ok(())
    }

    /// SET_VRING_ADDR: the used ring of `ring` is to be marked there, or not.
    pub fn set_used(&mut self, ring: u16, address: Option<u64>) {
        let before = match address {
            Some(address) => self.used.insert(ring, address),
            None => self.used.remove(&ring),
        };
        if before != address {
            self.version += 1;
        }
    }

    /// Which version is to be in force, if there is a log.
    pub fn version(&self) -> Option<u64> {
        self.bitmap.as_ref().map(|_| self.version)
    }

    /// What is to be marked, and where.
    pub fn logging(&self) -> Option<Arc<Logging>> {
        let log = Arc::clone(self.bitmap.as_ref()?);
        let used = self.used.clone();
        Some(Arc::new(Logging { log, used }))
    }

    /// Forgets everything; no version comes again.
    pub fn clear(&mut self) {
        (self.bitmap, self.used) = (None, BTreeMap::new());
        self.version += 1;
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    /// A file of 2 MiB, sealed against shrinking.
    fn sealed(flags: MemfdFlags) -> File {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC | flags;
        let file = File::from(memfd_create("log", flags).unwrap());
        file.set_len(2 << 20).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        file
    }

    #[test]
    fn a_log_of_huge_pages_is_refused_and_one_of_usual_pages_taken() {
        let mut log = Log::default();
        let huge = sealed(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
        let refused = log.set_base(&huge, 0, 4096);
        assert!(matches!(refused, Err(LogError::HugePages)));
        assert!(log.version().is_none());
        log.set_base(&sealed(MemfdFlags::empty()), 0, 4096).unwrap();
        assert!(log.version().is_some());
    }
}
