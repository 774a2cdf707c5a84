//! The dirty log of a frontend: where it is, and what is to be marked in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals};

use crate::dirty::Logging;
use crate::memory::DirtyLog;

/// A log that is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// The file can be truncated under our feet.
    #[error(
        "the dirty log is not sealed against shrinking, so its owner could end this program; QEMU's \
         are: the tenant's QEMU is at fault"
    )]
    Unsealed,
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
