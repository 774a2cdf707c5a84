//! A file that is open and locked, with what all who use it have to know.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::closing::ClosedElsewhere;
use super::io::{Inbox, Pool};
use super::known::{FileId, Known};
use super::ranges::Ranges;
use super::settled::Settled;
use super::sharing::Sharing;
use super::{Cache, DiskError, sys};
use crate::memory::Segments;

/// What happens to a file, for whoever has to know what is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The kernel has written these bytes.
    Written {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The kernel has written these bytes, and has put them on stable storage.
    WrittenThrough {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The kernel begins a sync of this name.
    SyncBegun(usize),
    /// The sync of this name is done.
    Synced(usize),
}

/// Who hears of each [`Deed`], before it is acknowledged.
#[derive(Clone)]
pub struct Witness(Arc<dyn Fn(Deed) + Send + Sync>);

impl Witness {
    /// Calls `hear`, on the threads of those who use the file: it must not take long.
    pub fn new(hear: impl Fn(Deed) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

/// A file whose lock is given up before it is closed, since a ring may keep it open a little longer.
#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Nobody relies on the lock of a duplicate: there is none. An error leaves it to the kernel,
        // which ends it with the file.
        if let Err(error) = sys::unlock(&self.0) {
            tracing::debug!(%error, "a file is closed with its lock");
        }
    }
}

/// An open and locked file; the lock lasts until nobody has it any more. Who has I/O on it under
/// way keeps it.
#[derive(Debug)]
pub struct OpenFile {
    file: ClosedElsewhere<Locked>,
    /// After `file`: loops let go of what is closed but for them.
    known: Known,
    cache: Cache,
    /// Latched when a flush fails: the kernel forgets the pages that it could not write, and a
    /// drive what was in its cache; the next fsync(2) reports success. Whoever hears of the failure
    /// need not be the one whose writes are lost.
    writes_lost: AtomicBool,
    /// Bytes that fallocate(2) gives back or makes zero without writing any.
    pub(super) granule: u64,
    /// What is allocated, and for what, is in the storage VM's memory only, until a sync.
    pub(super) allocates_in_memory: bool,
    /// The alignment that the tenant's memory has to have for a direct file to be read and written
    /// straight from there; `None` if it is not to be.
    pub(super) in_place: Option<usize>,
    /// It is one of those whose writes the kernel can put on stable storage by themselves.
    pub(super) keeps_writes: bool,
    pub(super) settled: Settled,
    /// Operations that were reported as cancelled though the kernel is still at them.
    abandoned: AtomicUsize,
    /// Who changes which blocks, in all loops.
    pub(super) ranges: Arc<Ranges>,
    witness: OnceLock<Witness>,
    /// If it is one to which its filesystem may copy, or from which.
    pub(super) sharing: Option<Sharing>,
}

impl OpenFile {
    /// A file that is opened and locked already, as `cache` needs it.
    pub fn new(file: File, cache: Cache) -> Self {
        Self::closing(file, cache, false)
    }

    /// As [`Self::new`], of a device or not.
    pub(super) fn closing(file: File, cache: Cache, is_device: bool) -> Self {
        let is_slow = is_device && cache == Cache::WriteBack;
        Self {
            file: ClosedElsewhere::new(Locked(file), is_slow),
            known: Known::new(),
            cache,
            writes_lost: AtomicBool::new(false),
            granule: Pool::GRANULE as u64,
            allocates_in_memory: false,
            in_place: None,
            keeps_writes: false,
            settled: Settled::never(),
            abandoned: AtomicUsize::new(0),
            ranges: Arc::new(Ranges::new()),
            witness: OnceLock::new(),
            sharing: None,
        }
    }

    /// As [`Self::new`], but another way to the blocks of `other`.
    pub fn beside(other: &Self, file: File, cache: Cache) -> Self {
        Self {
            ranges: Arc::clone(&other.ranges),
            ..Self::new(file, cache)
        }
    }

    /// From now on `witness` hears of all that [`super::Io`] writes and syncs; the first one only.
    pub fn witnessed_by(&self, witness: Witness) {
        // Whoever came first stays.
        let _ = self.witness.set(witness);
    }

    /// Tells the witness, if there is one.
    pub(super) fn tell(&self, deed: Deed) {
        if let Some(Witness(hear)) = self.witness.get() {
            hear(deed);
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file.0
    }

    pub(super) fn raw_fd(&self) -> i32 {
        self.file().as_raw_fd()
    }

    /// What it is called by those who may still speak of it when it is gone.
    pub(super) fn id(&self) -> FileId {
        self.known.id()
    }

    /// Has the loop of this inbox told when the file is gone, for its ring to let go of it.
    pub(super) fn known_by(&self, inbox: &Arc<Inbox>) {
        self.known.by(inbox);
    }

    /// Whether who closes it may have to wait.
    pub(super) fn is_slow_to_close(&self) -> bool {
        self.file.is_slow()
    }

    pub(super) fn cache(&self) -> Cache {
        self.cache
    }

    pub(super) fn granule(&self) -> u64 {
        self.granule
    }

    /// Whether its data goes straight from and to this buffer in the tenant's memory.
    pub(super) fn moves_in_place(&self, data: Option<&Segments>) -> bool {
        match (self.cache, self.in_place, data) {
            (Cache::WriteBack, ..) => true,
            (Cache::Direct, Some(alignment), Some(data)) => data.is_for_disks(alignment),
            (Cache::Direct, ..) => false,
        }
    }

    /// Whether what fallocate(2) did has to be synced before it may be acknowledged: a direct disk
    /// survives a crash of the storage VM with all that was acknowledged.
    pub(super) fn syncs_allocation(&self) -> bool {
        self.allocates_in_memory && self.cache == Cache::Direct
    }

    /// Whether a write that has been done has to be synced before it may be acknowledged, as it may
    /// have gone where nothing was allocated.
    pub(super) fn syncs_writes(&self) -> bool {
        self.syncs_allocation() && !self.settled.is()
    }

    /// Whether a write that is to be on stable storage may say so itself.
    pub(super) fn writes_through(&self) -> bool {
        self.keeps_writes && self.cache == Cache::Direct
    }

    /// Whether every byte of it has its place for good.
    pub(super) fn settled(&self) -> &Settled {
        &self.settled
    }

    /// Looks whether the first `len` bytes have their places for good by now.
    pub(super) fn settle(&self, len: u64) -> io::Result<()> {
        self.settled
            .look(self.file(), len, || self.sync().map_err(io::Error::other))
    }

    /// Waits until all that was written is on stable storage.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        let synced = self.file().sync_data();
        self.flushed(
            synced
                .map_err(|error| DiskError::from_errno(error.raw_os_error().unwrap_or(libc::EIO))),
        )
    }

    /// Operations of all loops that were reported as cancelled though the kernel is still at them.
    pub(super) fn abandoned(&self) -> &AtomicUsize {
        &self.abandoned
    }

    /// Whether the kernel is still at an operation that was reported as cancelled.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed) > 0
    }

    pub(super) fn sharing(&self) -> Option<&Sharing> {
        self.sharing.as_ref()
    }

    pub(super) fn ranges(&self) -> &Arc<Ranges> {
        &self.ranges
    }

    /// The result of a flush that the kernel ended with `result`.
    pub(super) fn flushed(&self, result: Result<(), DiskError>) -> Result<(), DiskError> {
        let failed = result.is_err_and(|error| error != DiskError::Cancelled);
        if self.writes_lost.fetch_or(failed, Ordering::Relaxed) {
            return Err(DiskError::WritesLost);
        }
        result
    }
}
