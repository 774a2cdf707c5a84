//! The in-flight memory of a frontend, which keeps it while nobody serves its rings.
//!
//! It is laid out as that of a vhost-pci function (`spec::inflight`). Each GET_INFLIGHT_FD gets a
//! file of its own, which is not kept here: the frontend brings it along by SET_INFLIGHT_FD, to us
//! or to the appliance that comes after us.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use spec::inflight::{LEN, REGIONS, Regions};
use spec::virtio_scsi::EVENT_QUEUE;

use crate::memory::Mapping;

/// What keeps its length, so that a frontend cannot send us to SIGBUS, and keeps it from adding
/// seals: one against writing would take it from the next appliance.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// In-flight memory that cannot be given or taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightError {
    /// The regions are elsewhere than they were given.
    #[error("in-flight memory is not laid out as it was given; the tenant's QEMU is at fault")]
    Layout,
    /// It is no file that an appliance gave.
    #[error(
        "in-flight memory is none of an appliance's: it has to be a memfd of {LEN} bytes that \
         cannot be resized; the tenant's QEMU is at fault"
    )]
    NotOurs,
    /// The kernel refused something.
    #[error("in-flight memory: {0}")]
    Io(#[from] io::Error),
}

/// The in-flight memory that a frontend has set.
#[derive(Debug)]
pub(super) struct Inflight {
    mapping: Arc<Mapping>,
    regions: Regions,
}

/// What a frontend is given.
#[derive(Debug)]
pub(super) struct Given {
    pub file: File,
    /// Bytes of all regions; 0 where there is no room for them, and no ring is tracked.
    pub len: u64,
}

/// Fresh memory with empty regions for so many rings of at most so many entries.
///
/// # Errors
/// What memfd_create(2), ftruncate(2) or fcntl(2) report.
pub(super) fn fresh(rings: u16, entries: u16) -> io::Result<Given> {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(memfd_create("vhost-pci-inflight", flags)?);
    file.set_len(LEN)?;
    fcntl_add_seals(&file, SEALS)?;
    let len = Regions::new(rings, entries).map_or(0, |regions| regions.len());
    Ok(Given { file, len })
}

impl Inflight {
    /// The memory that a frontend brings, with regions for so many rings and entries, of `len`
    /// bytes from `offset` of its file.
    ///
    /// # Errors
    /// [`InflightError`] if it is not what [`fresh`] gave.
    pub fn adopted(
        file: &File,
        (offset, len): (u64, u64),
        (rings, entries): (u16, u16),
    ) -> Result<Self, InflightError> {
        let regions = Regions::new(rings, entries)
            .filter(|regions| offset == REGIONS && len == regions.len())
            .ok_or(InflightError::Layout)?;
        // Asked first: only memfds have seals, and other files may not answer anything else. Huge
        // pages, which may be missing when they are touched, do not make a file of this length.
        let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS));
        if !sealed || file.metadata()?.len() != LEN {
            return Err(InflightError::NotOurs);
        }
        let whole = usize::try_from(LEN).map_err(|_| InflightError::NotOurs)?;
        // One that is sealed against writing cannot be mapped, and is refused by that.
        let mapping = Mapping::new(file.as_fd(), 0, whole, None)?;
        Ok(Self {
            mapping: Arc::new(mapping),
            regions,
        })
    }

    /// The memory.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Offset of the region of `ring`, which has so many entries; `None` where it has none. The
    /// event ring never has: its buffers go back as they are fetched.
    pub fn region(&self, ring: u16, entries: u16) -> Option<u32> {
        let region = self.regions.offset(ring, entries);
        region.filter(|_| ring != EVENT_QUEUE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory file of so many bytes with these seals.
    fn memfd(len: u64, seals: SealFlags) -> File {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let file = File::from(memfd_create("theirs", flags).unwrap());
        file.set_len(len).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn what_was_given_is_taken_back_and_cannot_be_resized() {
        let given = fresh(3, 128).unwrap();
        assert_eq!(given.len, 3 * 2112);
        assert!(given.file.set_len(0).is_err());
        assert!(given.file.set_len(2 << 20).is_err());
        let taken = Inflight::adopted(&given.file, (4096, given.len), (3, 128)).unwrap();
        assert_eq!(taken.region(0, 128), Some(4096));
        assert_eq!(taken.region(1, 128), None, "the event ring");
        assert_eq!(taken.region(2, 64), Some(4096 + 2 * 2112));
        assert_eq!(taken.region(2, 256), None);
        assert_eq!(taken.region(3, 128), None);
    }

    #[test]
    fn where_there_is_no_room_for_the_regions_nothing_is_given() {
        assert_eq!(fresh(128, 1024).unwrap().len, 0);
    }

    #[test]
    fn regions_elsewhere_than_given_are_refused() {
        let Given { file, len } = fresh(3, 128).unwrap();
        for (place, shape) in [
            ((0, len), (3, 128)),
            ((8192, len), (3, 128)),
            ((4096, len + 64), (3, 128)),
            ((4096, len), (3, 256)),
            ((4096, len), (2, 128)),
            ((4096, 0), (128, 1024)),
        ] {
            let taken = Inflight::adopted(&file, place, shape);
            assert!(matches!(taken, Err(InflightError::Layout)), "{place:?}");
        }
    }

    #[test]
    fn only_a_file_as_an_appliance_gives_it_is_taken() {
        let length_only = SealFlags::SHRINK | SealFlags::GROW;
        for (len, seals) in [
            (LEN, SealFlags::empty()),
            (LEN, SealFlags::SHRINK),
            (LEN, length_only),
            (LEN / 2, SEALS),
            (2 * LEN, SEALS),
        ] {
            let taken = Inflight::adopted(&memfd(len, seals), (4096, 2112), (1, 128));
            assert!(
                matches!(taken, Err(InflightError::NotOurs)),
                "{len} bytes, {seals:?}"
            );
        }
        let no_memfd = File::open("/proc/self/exe").unwrap();
        let taken = Inflight::adopted(&no_memfd, (4096, 2112), (1, 128));
        assert!(matches!(taken, Err(InflightError::NotOurs)));
    }

    #[test]
    fn memory_that_cannot_be_written_is_refused() {
        let read_only = memfd(LEN, SEALS | SealFlags::WRITE);
        let taken = Inflight::adopted(&read_only, (4096, 2112), (1, 128));
        assert!(matches!(taken, Err(InflightError::Io(_))));
    }
}
