//! A disk that is a raw file or a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{FallocateFlags, fallocate};

use super::io::Pool;
use super::open_error::{OpenError, OpenProblem};
use super::ranges::{Ranges, Subject};
use super::reflink::{Kernel, Reflink};
use super::settled::{Rounds, Settled};
use super::sharing::{Copied, Sharing};
use super::snapshot::{self, Origin, SnapshotError, Snapshots, Whole};
use super::{Abilities, Disk, DiskError, Geometry, Op, OpenFile, Reply, Usage, probe, sys};
use crate::memory::Segments;

/// How writes reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// O_DIRECT, through the bounce pool unless [`FileOptions::bounce`] says otherwise: an
    /// acknowledged write has left the storage VM's memory.
    #[default]
    Direct,
    /// Through the storage VM's page cache, straight from and to the tenant's memory: an
    /// acknowledged write is lost if the storage VM crashes before a flush.
    WriteBack,
}

/// Which file a disk is, and how it is used.
#[derive(Debug, Clone)]
pub struct FileOptions {
    /// Raw file or block device.
    pub path: PathBuf,
    /// Refuse writes; the file is opened for reading only.
    pub read_only: bool,
    /// How writes reach it.
    pub cache: Cache,
    /// Whether a direct one moves all data through the bounce pool. If not, what is aligned goes
    /// straight from and to the tenant's memory where that is no device's, and what is cancelled then
    /// keeps that memory until the disk is done.
    pub bounce: bool,
    /// Let others open it too, if they all say so.
    pub shared: bool,
    /// Bytes of a logical block: 512 or 4096.
    pub block_size: u32,
    /// Bytes of the disk, if it shall be smaller than the file.
    pub size: Option<u64>,
    /// How its filesystem copies.
    pub reflink: Arc<dyn Reflink>,
}

impl FileOptions {
    /// The default way to use `path`: read-write, direct, alone, 512-byte blocks, all of it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            cache: Cache::default(),
            bounce: true,
            shared: false,
            block_size: 512,
            size: None,
            reflink: Arc::new(Kernel),
        }
    }
}

/// A disk that is a raw file or a block device.
#[derive(Debug)]
pub struct FileDisk {
    /// As it was opened; the number of blocks is in `blocks`.
    geometry: Geometry,
    blocks: AtomicU64,
    abilities: Abilities,
    is_device: bool,
    /// It is in a filesystem in memory, where nothing waits for a disk.
    is_in_memory: bool,
    /// Its size is configured, and changes by [`Disk::grow`] alone.
    is_fixed: bool,
    rounds: Mutex<Rounds>,
    /// `None` for a device.
    origin: Option<Origin>,
    file: Arc<OpenFile>,
}

impl FileDisk {
    /// Opens and locks the disk.
    ///
    /// # Errors
    /// [`OpenError`], which names the file and the mend.
    pub fn open(options: &FileOptions) -> Result<Self, OpenError> {
        open(options).map_err(|problem| OpenError {
            path: options.path.clone(),
            problem,
        })
    }

    /// The same disk, but its blocks are never given back, and nobody is told that they could be.
    #[must_use]
    pub fn thick(mut self) -> Self {
        self.abilities.thin = None;
        // Blocks that are shared need room of their own when they are written.
        if let Some(sharing) = Arc::get_mut(&mut self.file).and_then(|file| file.sharing.as_mut()) {
            sharing.keeps_its_own();
        }
        self
    }

    fn size(&self) -> io::Result<u64> {
        size(self.file.file(), self.is_device)
    }

    /// Keeps rollbacks away from its size.
    ///
    /// # Errors
    /// Why it has none that counts: it is being rolled back, or that did not come to its end.
    fn whole(&self) -> io::Result<Option<Whole<'_>>> {
        let Some(origin) = &self.origin else {
            return Ok(None);
        };
        origin.whole().map(Some).ok_or_else(|| {
            io::Error::other(
                "a rollback of it is not finished; wait for that, or roll back again, or restart \
                 the appliance",
            )
        })
    }

    /// Looks now and then whether writes need a sync.
    fn settle(&self) -> io::Result<()> {
        if !self.file.syncs_writes() {
            return Ok(());
        }
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if !rounds.are_due(Instant::now()) {
            return Ok(());
        }
        let Geometry {
            block_size, blocks, ..
        } = self.geometry();
        self.file
            .settle(blocks.saturating_mul(u64::from(block_size)))
    }
}

impl Disk for FileDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn usage(&self) -> Option<Usage> {
        if self.is_device {
            return None;
        }
        let file = self.file.file();
        Some(Usage {
            // st_blocks counts these, whatever the filesystem's blocks are.
            used: file.metadata().ok()?.blocks().saturating_mul(512),
            available: sys::filesystem(file).ok()?.available,
        })
    }

    /// A part of a block at the end does not count: whoever resizes the file may not be done.
    fn refresh(&self) -> io::Result<bool> {
        let Ok(_whole) = self.whole() else {
            // It may be shorter for as long as that takes.
            return Ok(false);
        };
        self.settle()?;
        if self.is_fixed {
            return Ok(false);
        }
        let blocks = self.size()? / u64::from(self.geometry.block_size);
        if blocks == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not even one block is left of it",
            ));
        }
        if self.blocks.load(Ordering::Relaxed) == blocks {
            return Ok(false);
        }
        // What is new of it is a hole.
        self.file.settled().begin_change();
        self.blocks.store(blocks, Ordering::Relaxed);
        self.file.settled().end_change();
        Ok(true)
    }

    fn answers_at_once(&self) -> bool {
        self.is_in_memory
    }

    /// A read that is not long, of a file in memory: io_uring would have another thread do it, as
    /// such a file cannot say whether it would have to wait. What fails is tried again by io_uring.
    fn at_once(&self, op: &Op, data: Option<&Segments>) -> Option<Result<Reply, DiskError>> {
        match (op, data) {
            (&Op::Read { offset, len }, Some(data))
                if self.is_in_memory && len <= LONGEST_AT_ONCE =>
            {
                sys::read_into(self.file.file(), offset, data, len).then_some(Ok(Reply::Done))
            }
            _ => None,
        }
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        let _whole = self.whole()?;
        let have = self.size()?;
        if have < bytes {
            if self.is_device || self.geometry.read_only {
                return Err(io::ErrorKind::Unsupported.into());
            }
            lengthen(self.file.file(), bytes, self.geometry.block_size)?;
        }
        if self.is_fixed {
            let blocks = bytes / u64::from(self.geometry.block_size);
            self.file.settled().begin_change();
            self.blocks.fetch_max(blocks, Ordering::Relaxed);
            self.file.settled().end_change();
        }
        Ok(())
    }

    fn snapshots(&self) -> Result<Snapshots<'_>, SnapshotError> {
        let origin = self.origin.as_ref().ok_or(SnapshotError::BlockDevice)?;
        Ok(Snapshots::new(origin, &self.file))
    }

    fn copied(&self) -> Option<Copied> {
        self.file.sharing().map(Sharing::copied)
    }

    fn caches_writes(&self) -> bool {
        self.file.cache() == Cache::WriteBack && !self.geometry.read_only
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.file.sync()
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        if self.geometry.read_only && op.changes_blocks() {
            return Err(DiskError::ReadOnly);
        }
        Ok(&self.file)
    }
}

/// Longest read that is done at once: others wait for it, a few microseconds.
const LONGEST_AT_ONCE: usize = 64 << 10;
/// Filesystems without anything under them but swap space (linux/magic.h: TMPFS_MAGIC).
const IN_MEMORY: i64 = 0x0102_1994;

/// Filesystems that sync a direct write with RWF_DSYNC also where nobody waits for it, as the kernel's
/// own code for direct I/O does (linux/magic.h: EXT4, XFS). FUSE and network filesystems leave that to
/// their servers; others do parts of it by themselves.
const KEEPS_WRITES: [i64; 2] = [0xef53, 0x5846_5342];

/// Alignment of O_DIRECT where neither statx(2) nor the device says: every filesystem and device
/// of today takes it.
const FALLBACK_OFFSET_ALIGNMENT: u32 = 512;

/// Attempts `action`, to be named should it fail.
fn attempt<T>(action: &'static str, result: io::Result<T>) -> Result<T, OpenProblem> {
    result.map_err(|source| OpenProblem::Io { action, source })
}

fn open(options: &FileOptions) -> Result<FileDisk, OpenProblem> {
    let block_size = options.block_size;
    if !matches!(block_size, 512 | 4096) {
        return Err(OpenProblem::BlockSize(block_size));
    }
    let exclusive = !options.read_only && !options.shared;
    let is_device = kind_is_device(&options.path)?;
    let file = open_file(options, is_device && exclusive)?;
    match sys::lock_soon(&file, exclusive) {
        Err(error) if sys::is_locked(&error) => return Err(OpenProblem::Locked),
        ended => attempt("lock it", ended)?,
    }

    if !is_device {
        finish_rollback(options, &file, exclusive)?;
    }
    if is_device
        && !options.read_only
        && attempt("read its protection", sys::device_is_protected(&file))?
    {
        return Err(OpenProblem::OnlyReadable);
    }
    let size = attempt("read its size", size(&file, is_device))?;
    let logical = if is_device {
        attempt("read its block size", sys::device_logical_block(&file))?
    } else {
        FALLBACK_OFFSET_ALIGNMENT
    };
    let blocks = blocks(options, size)?;
    let alignment = match options.cache {
        Cache::Direct => Some(check_direct(&file, logical, block_size)?),
        Cache::WriteBack => None,
    };
    let what = probe::Subject {
        file: &file,
        is_device,
        size,
        block_size,
        direct: options.cache == Cache::Direct,
        read_only: options.read_only,
        alone: exclusive,
    };
    let traits = attempt("find out what it can do", what.traits())?;
    let metadata = attempt("ask which file it is", file.metadata())?;
    let subject = if is_device {
        Subject::Device(metadata.rdev())
    } else {
        Subject::File {
            filesystem: metadata.dev(),
            inode: metadata.ino(),
        }
    };
    let settled = if is_device || options.read_only {
        Settled::never()
    } else {
        let settled = Settled::of(&file, exclusive);
        attempt("ask for its filesystem", settled)?
    };
    let magic = if is_device {
        None
    } else {
        let magic = sys::filesystem_magic(&file);
        Some(attempt("ask for its filesystem", magic)?)
    };
    let is_in_memory = magic == Some(IN_MEMORY);
    let mut file = OpenFile::closing(file, options.cache, is_device);
    file.granule = traits.granule;
    // A filesystem's journal is; a device is told at once.
    file.allocates_in_memory = !is_device;
    file.keeps_writes = magic.is_none_or(|magic| KEEPS_WRITES.contains(&magic));
    file.in_place = alignment.filter(|_| !options.bounce);
    file.settled = settled;
    file.ranges = Ranges::of(subject);
    if !is_device {
        let (path, calls) = (&options.path, Arc::clone(&options.reflink));
        let sharing = Sharing::of(file.file(), subject, path, calls);
        file.sharing = Some(attempt("ask for its filesystem", sharing)?);
    }
    let origin = if is_device {
        None
    } else {
        let access = (options.shared && !options.read_only, options.read_only);
        Some(Origin::of(&options.path, access, options.size))
    };
    let disk = FileDisk {
        geometry: Geometry {
            block_size,
            blocks,
            physical_block_size: traits.physical_block,
            read_only: options.read_only,
        },
        blocks: AtomicU64::new(blocks),
        abilities: traits.abilities,
        is_device,
        is_in_memory,
        is_fixed: options.size.is_some(),
        file: Arc::new(file),
        rounds: Mutex::new(Rounds::new()),
        origin,
    };
    if !options.read_only {
        attempt("find out where it is written", disk.settle())?;
    }
    Ok(disk)
}

/// Finishes a rollback that was interrupted.
fn finish_rollback(options: &FileOptions, file: &File, exclusive: bool) -> Result<(), OpenProblem> {
    let failed = |error| OpenProblem::Rollback(Box::new(error));
    let Some(name) = snapshot::unfinished(&options.path).map_err(failed)? else {
        return Ok(());
    };
    if options.read_only {
        return Err(OpenProblem::HalfRolledBack(name));
    }
    // Others would have it as it is now.
    if !exclusive && sys::lock_soon(file, true).is_err() {
        return Err(OpenProblem::Locked);
    }
    let finished = snapshot::finish(&options.path, file, &*options.reflink);
    if !exclusive {
        attempt("share its lock", sys::lock(file, false))?;
    }
    finished.map_err(failed)
}

/// Makes a file longer, never shorter: someone else may have made it longer still since it was
/// looked at. Its last block is allocated, the rest of what is new is a hole. That it is so long is
/// on stable storage then.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if its filesystem has no fallocate(2); else what the kernel
/// reports.
fn lengthen(file: &File, bytes: u64, block_size: u32) -> io::Result<()> {
    let last = bytes.saturating_sub(block_size.into());
    fallocate(file, FallocateFlags::empty(), last, bytes - last)?;
    file.sync_all()
}

/// Bytes of a file or device.
fn size(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device {
        sys::device_size(file)
    } else {
        Ok(file.metadata()?.len())
    }
}

fn kind_is_device(path: &Path) -> Result<bool, OpenProblem> {
    let metadata = std::fs::metadata(path).map_err(|error| open_problem(error, false))?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        Ok(true)
    } else if kind.is_file() {
        Ok(false)
    } else {
        Err(OpenProblem::WrongKind)
    }
}

fn open_file(options: &FileOptions, claim_device: bool) -> Result<File, OpenProblem> {
    // Were the path exchanged for a FIFO since it was looked at, O_NONBLOCK keeps us from waiting
    // for its writer; on files and block devices it means nothing.
    let mut flags = libc::O_NONBLOCK;
    if options.cache == Cache::Direct {
        flags |= libc::O_DIRECT;
    }
    if claim_device {
        // open(2): on a block device, O_EXCL fails with EBUSY if the kernel itself uses it.
        flags |= libc::O_EXCL;
    }
    OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(&options.path)
        .map_err(|error| match open_problem(error, !options.read_only) {
            // A write-protected device says EACCES, too.
            OpenProblem::Permission { write: true } if File::open(&options.path).is_ok() => {
                OpenProblem::OnlyReadable
            }
            problem => problem,
        })
}

fn open_problem(source: io::Error, write: bool) -> OpenProblem {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV) => OpenProblem::Missing,
        Some(libc::EACCES | libc::EPERM) => OpenProblem::Permission { write },
        Some(libc::EROFS) => OpenProblem::OnlyReadable,
        Some(libc::EBUSY) => OpenProblem::InUse,
        // open(2): the filesystem does not support O_DIRECT.
        Some(libc::EINVAL) => OpenProblem::NoDirect,
        _ => OpenProblem::Io {
            action: "open it",
            source,
        },
    }
}

fn blocks(options: &FileOptions, size: u64) -> Result<u64, OpenProblem> {
    let block_size = options.block_size;
    let used = options.size.unwrap_or(size);
    if used > size {
        return Err(OpenProblem::LargerThanDisk { wanted: used, size });
    }
    if used < u64::from(block_size) {
        return Err(OpenProblem::TooSmall {
            size: used,
            block_size,
        });
    }
    if !used.is_multiple_of(u64::from(block_size)) {
        return Err(OpenProblem::NotAMultiple {
            size: used,
            block_size,
        });
    }
    Ok(used / u64::from(block_size))
}

/// Checks that O_DIRECT works with `block_size` and the bounce pool's alignment: by what statx(2)
/// says, and by reading the first block. Returns the alignment that any memory has to have, and the
/// length of each piece of it.
fn check_direct(file: &File, logical: u32, block_size: u32) -> Result<usize, OpenProblem> {
    let reported = attempt("ask for its alignment", sys::direct_alignment(file))?;
    let offset = match reported {
        Some(alignment) if alignment.offset == 0 => return Err(OpenProblem::NoDirect),
        Some(alignment) if alignment.memory as usize > Pool::GRANULE => {
            return Err(OpenProblem::NoDirect);
        }
        Some(alignment) => alignment.offset,
        None => logical,
    };
    if !block_size.is_multiple_of(offset) {
        return Err(OpenProblem::Alignment {
            needed: offset,
            block_size,
        });
    }
    let alignment = reported.map_or(Pool::GRANULE, |alignment| {
        alignment.memory.max(alignment.offset) as usize
    });
    let mut pool = attempt("make room for a block", Pool::new(Pool::GRANULE))?;
    let Some(run) = pool.take(block_size as usize) else {
        return Ok(alignment);
    };
    match file.read_at(pool.bytes_mut(&run), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(OpenProblem::NoDirect),
        // Anything else, an unreadable first block too, is for the tenant to find.
        _ => Ok(alignment),
    }
}

#[cfg(test)]
mod tests;
