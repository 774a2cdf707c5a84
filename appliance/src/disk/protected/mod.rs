//! A disk that keeps protection information beside its data.
//!
//! It is in the same file ([`layout`]), written in an order that a crash anywhere leaves whole
//! ([`slots`], [`store`]). Threads of its own work on it ([`crew`]), as one operation waits for the
//! disk several times; what they have to do, [`super::Io`] tells them part by part ([`chunk`]),
//! since nobody else touches the tenant's memory.

mod chunk;
mod crew;
mod header;
mod layout;
mod slots;
mod store;
mod tag;
mod work;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) use super::io::Run;
pub(super) use chunk::{Chunk, Deed, Found, MAX_CHUNK, MAX_ERASE, Tags, Worked};
pub(super) use crew::{Crew, Job, Seat};
pub use header::HeaderError;
pub(super) use layout::GROUP;
pub use tag::{BadTag, Checks, Protection, Tag};

use self::layout::Layout;
use self::store::Medium;
use super::{
    Abilities, Deed as Done, Disk, DiskError, Geometry, Op, OpenFile, SnapshotError, Snapshots,
    Thin, Usage, sys,
};

/// Another operation, on a disk with protection information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// What is done; [`Op::Read`], or another that moves, compares, erases or mends blocks.
    /// [`Op::Zero`] that may give them back, and [`Op::Unmap`], leave tags that check nothing.
    pub op: Op,
    /// What is checked: the tags that are read, and those that are given. Where [`Op::Compare`] is
    /// given tags, those that are read are not; [`Op::CompareAndWrite`] checks all of these.
    pub checks: Checks,
    /// What of the tags that are given [`Op::Compare`] compares with those that are read.
    pub compares: Checks,
    /// Bytes for tags with which the tenant's buffer begins, before the data; at least 8 for each
    /// block in it. With none, tags are made, or not told.
    pub prefix: usize,
    /// What is written without tags is given such as check nothing.
    pub unchecked: bool,
}

impl Protected {
    /// `op` without any tags in the tenant's buffer, with everything checked that is read.
    pub const fn new(op: Op) -> Self {
        Self {
            op,
            checks: Checks::ALL,
            compares: Checks {
                guard: false,
                reference: false,
            },
            prefix: 0,
            unchecked: false,
        }
    }
}

/// A disk with protection information in the file of another.
#[derive(Debug)]
pub struct ProtectedDisk {
    inner: Arc<dyn Disk>,
    protection: Protection,
    layout: Layout,
    crew: Arc<Crew>,
}

impl ProtectedDisk {
    /// The disk that is in the file of `inner`; a blank file becomes one.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn open(inner: Arc<dyn Disk>, protection: Protection) -> Result<Self, HeaderError> {
        let Geometry {
            block_size,
            read_only,
            ..
        } = inner.geometry();
        let layout = Layout { block_size };
        let disk = Self {
            crew: Arc::new(Crew::new(layout, protection)),
            inner,
            protection,
            layout,
        };
        if disk.blocks() == 0 {
            return Err(HeaderError::TooSmall);
        }
        // A flush goes to the file that everything else is in.
        let file = disk.inner.file_for(&Op::Flush).map_err(HeaderError::Io)?;
        header::take(
            &FileMedium(Arc::clone(file)),
            block_size,
            protection,
            read_only,
        )?;
        Ok(disk)
    }

    /// Who works on it.
    pub(super) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// What its tags mean.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    fn blocks(&self) -> u64 {
        let Geometry {
            block_size, blocks, ..
        } = self.inner.geometry();
        let len = blocks.saturating_mul(block_size.into());
        self.layout.blocks_in(len)
    }
}

impl Drop for ProtectedDisk {
    fn drop(&mut self) {
        self.crew.close();
    }
}

impl Disk for ProtectedDisk {
    fn geometry(&self) -> Geometry {
        let inner = self.inner.geometry();
        Geometry {
            // It was at least 1 when it was opened; were the file cut since, reading would fail.
            blocks: self.blocks().max(1),
            // Groups begin at multiples of that.
            physical_block_size: inner.physical_block_size.min(4096),
            ..inner
        }
    }

    /// Blocks are not written atomically: their tags are elsewhere. Which are allocated is not
    /// told.
    fn abilities(&self) -> Abilities {
        let inner = self.inner.abilities();
        // Groups begin at multiples of 4096. Of what is given back by larger pieces, a group's data
        // has some.
        let group = u32::try_from(GROUP).map_or(u32::MAX, |blocks| {
            blocks.saturating_mul(self.layout.block_size)
        });
        let granularity = |inner| if inner <= 4096 { inner } else { group };
        Abilities {
            thin: inner.thin.map(|thin| Thin {
                granularity: granularity(thin.granularity),
                mapped: false,
            }),
            optimal: inner.optimal,
            atomic: None,
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.inner.usage()
    }

    fn refresh(&self) -> std::io::Result<bool> {
        self.inner.refresh()
    }

    /// Data and tags are in one file.
    fn snapshots(&self) -> Result<Snapshots<'_>, SnapshotError> {
        self.inner.snapshots()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()
    }

    fn protected(&self) -> Option<&ProtectedDisk> {
        Some(self)
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        match op {
            Op::Protected(_) | Op::Flush | Op::Barrier | Op::Watch(_) => self.inner.file_for(op),
            // Nobody may get past the tags.
            _ => Err(DiskError::Unsupported),
        }
    }
}

/// The file that a disk is in.
struct FileMedium(Arc<OpenFile>);

fn disk_error(error: std::io::Error) -> DiskError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => DiskError::Truncated,
        _ => DiskError::from_errno(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

impl Medium for FileMedium {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), DiskError> {
        self.0.file().read_exact_at(to, at).map_err(disk_error)
    }

    fn write(&self, at: u64, from: &[u8]) -> Result<(), DiskError> {
        self.0.file().write_all_at(from, at).map_err(disk_error)?;
        self.0.tell(Done::Written {
            offset: at,
            len: from.len() as u64,
        });
        Ok(())
    }

    fn give_back(&self, at: u64, len: u64) -> Result<bool, DiskError> {
        match sys::punch_hole(self.0.file(), at, len) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => Ok(false),
                _ => Err(disk_error(error)),
            },
        }
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.0.sync()
    }
}

#[cfg(test)]
mod tests;
