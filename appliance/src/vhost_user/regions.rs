//! The memory of a frontend's tenant: regions of files that it has handed over, mapped here.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals};
use spec::session::{MEMORY_SLOTS, MemoryEntry};

use crate::memory::{Mapping, PART_ALIGNMENT, Part, TableError, TenantMemory};

/// Most bytes of all files of a frontend. Each is mapped whole, and to make one as long as it likes
/// costs a frontend nothing; a process has 128 TiB of addresses on x86-64, for all its tenants.
const MAX_MEMORY: u64 = 4 << 40;

/// One range of tenant memory, as a frontend describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address of its first byte in the frontend, in which ring addresses are given.
    pub user_address: u64,
    /// Offset of its first byte in its file.
    pub offset: u64,
}

/// Memory that is not taken, and the mend.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// The kernel says nothing about the file, or it is none.
    #[error(
        "tenant memory that is no file: {0}; give the tenant's QEMU -object memory-backend-memfd"
    )]
    NoFile(io::Error),
    /// The file can be truncated under our feet.
    #[error(
        "tenant memory is not sealed against shrinking, so its owner could end this program; use \
         -object memory-backend-memfd with seal=on (its default), not memory-backend-file; or \
         start the appliance with --trust-memory, if you trust whoever may shorten the file"
    )]
    Unsealed,
    /// A region without an end, without a length, or outside its file.
    #[error(
        "memory region at guest address {guest_address:#x} ({len} bytes from {offset:#x}) does not \
         lie in its file ({file_len} bytes); the tenant's QEMU is at fault"
    )]
    OutsideFile {
        /// Guest-physical address of the region.
        guest_address: u64,
        /// Length of the region in bytes.
        len: u64,
        /// Offset of the region in its file.
        offset: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// Files that would take the addresses of other tenants' memory.
    #[error(
        "tenant memory in files of {0} bytes, where {MAX_MEMORY} (4 TiB) are the most; give the \
         tenant less memory, or smaller files"
    )]
    TooLarge(u64),
    /// Two regions at the same guest-physical address.
    #[error("two memory regions overlap at guest address {0:#x}; the tenant's QEMU is at fault")]
    Overlap(u64),
    /// More regions than a table holds.
    #[error("more than {MEMORY_SLOTS} memory regions; give the tenant fewer memory devices")]
    TooMany,
    /// The region to remove is not there.
    #[error("no memory region at guest address {0:#x} to remove; the tenant's QEMU is at fault")]
    Unknown(u64),
    /// The files cannot be mapped.
    #[error(
        "tenant memory cannot be mapped: {0}; raise the limit on address space, if there is one"
    )]
    Map(io::Error),
    /// The table makes no sense after all.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The memory table of one frontend.
#[derive(Debug, Default)]
pub(super) struct Regions {
    regions: Vec<(Region, FileId)>,
    files: Vec<MemoryFile>,
    /// The files as they are mapped, if they are.
    mapped: Option<Mapped>,
    /// Whether files need not be sealed.
    trust: bool,
    /// Counts changes.
    version: u64,
}

/// Device and inode.
type FileId = (u64, u64);

#[derive(Debug)]
struct MemoryFile {
    id: FileId,
    file: Arc<File>,
    len: u64,
}

/// Every file whole, each at its place.
#[derive(Debug)]
struct Mapped {
    mapping: Arc<Mapping>,
    places: Vec<Place>,
}

/// Where a file is in the mapping, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    file: FileId,
    at: u64,
    len: u64,
}

impl Regions {
    /// No memory yet; with `trust`, files need not be sealed.
    pub fn new(trust: bool) -> Self {
        Self {
            trust,
            ..Self::default()
        }
    }

    /// Counts changes of the table.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Puts these regions, each with its file, in the place of all. Nothing changes on error.
    ///
    /// # Errors
    /// [`MemoryError`] about the first region that will not do.
    pub fn replace(
        &mut self,
        regions: impl IntoIterator<Item = (Region, File)>,
    ) -> Result<(), MemoryError> {
        let mut next = Self::new(self.trust);
        for (region, file) in regions {
            next.add(region, file)?;
        }
        self.regions = next.regions;
        self.files = next.files;
        self.version += 1;
        Ok(())
    }

    /// Adds a region.
    ///
    /// # Errors
    /// [`MemoryError`] if it will not do; nothing changes then.
    pub fn add(&mut self, region: Region, file: File) -> Result<(), MemoryError> {
        // Only memfds have seals; for every other file the question is an error. It comes first:
        // a file system in user space, which may be the frontend's, is not asked, and answers
        // anything else when it likes.
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed && !self.trust {
            return Err(MemoryError::Unsealed);
        }
        let facts = file.metadata().map_err(MemoryError::NoFile)?;
        if !facts.is_file() {
            let kind = io::Error::other(format!("it is of type {:?}", facts.file_type()));
            return Err(MemoryError::NoFile(kind));
        }
        let file_len = facts.len();
        let ends = region
            .offset
            .checked_add(region.len)
            .is_some_and(|end| end <= file_len)
            && region.guest_address.checked_add(region.len).is_some()
            && region.user_address.checked_add(region.len).is_some();
        if region.len == 0 || !ends {
            return Err(MemoryError::OutsideFile {
                guest_address: region.guest_address,
                len: region.len,
                offset: region.offset,
                file_len,
            });
        }
        let overlaps = |other: &&(Region, FileId)| {
            let other = other.0;
            region.guest_address < other.guest_address + other.len
                && other.guest_address < region.guest_address + region.len
        };
        if let Some((other, _)) = self.regions.iter().find(overlaps) {
            let at = region.guest_address.max(other.guest_address);
            return Err(MemoryError::Overlap(at));
        }
        if self.regions.len() == MEMORY_SLOTS {
            return Err(MemoryError::TooMany);
        }
        let id = (facts.dev(), facts.ino());
        // One of them may be known as shorter.
        let others = self.files.iter().filter(|known| known.id != id);
        let all = others.fold(file_len, |sum, other| sum.saturating_add(other.len));
        if all > MAX_MEMORY {
            return Err(MemoryError::TooLarge(all));
        }
        match self.files.iter_mut().find(|known| known.id == id) {
            // A file that is not sealed against it may have grown.
            Some(known) => known.len = known.len.max(file_len),
            None => self.files.push(MemoryFile {
                id,
                file: Arc::new(file),
                len: file_len,
            }),
        }
        self.regions.push((region, id));
        self.version += 1;
        Ok(())
    }

    /// Removes the region with the addresses and the length of `region`.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`] if there is none.
    pub fn remove(&mut self, region: &Region) -> Result<(), MemoryError> {
        let same = |known: &Region| {
            known.guest_address == region.guest_address
                && known.user_address == region.user_address
                && known.len == region.len
        };
        let index = self.regions.iter().position(|(known, _)| same(known));
        let index = index.ok_or(MemoryError::Unknown(region.guest_address))?;
        self.regions.swap_remove(index);
        let regions = &self.regions;
        self.files
            .retain(|file| regions.iter().any(|(_, id)| *id == file.id));
        self.version += 1;
        Ok(())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.regions.clear();
        self.files.clear();
        self.mapped = None;
        self.version += 1;
    }

    /// The guest-physical address of what the frontend has at `user_address`.
    pub fn translate(&self, user_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|(region, _)| {
            let into = user_address.checked_sub(region.user_address)?;
            (into < region.len).then(|| region.guest_address + into)
        })
    }

    /// The memory as it is now; `None` if there is none. Files that were mapped before stay where
    /// they are, so that pages need not be found again, unless one has come or gone.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if there are no addresses for all files.
    pub fn memory(&mut self) -> Result<Option<Arc<TenantMemory>>, MemoryError> {
        if self.regions.is_empty() {
            self.mapped = None;
            return Ok(None);
        }
        let mapped = match self.mapped.take() {
            Some(mapped) if mapped.is_of(&self.files) => mapped,
            _ => Mapped::new(&self.files).map_err(MemoryError::Map)?,
        };
        let entries = self.regions.iter().map(|(region, id)| MemoryEntry {
            guest_address: region.guest_address,
            len: region.len,
            // Both are inside a mapping, which is not that long.
            bar_offset: mapped.place(*id).saturating_add(region.offset),
        });
        let memory = TenantMemory::new(Arc::clone(&mapped.mapping), entries.collect())?;
        self.mapped = Some(mapped);
        Ok(Some(Arc::new(memory)))
    }
}

impl Mapped {
    fn new(files: &[MemoryFile]) -> io::Result<Self> {
        let too_long = || io::Error::from(io::ErrorKind::OutOfMemory);
        let mut parts = Vec::new();
        let mut places = Vec::new();
        let mut end = 0_usize;
        for file in files {
            let at = end
                .checked_next_multiple_of(PART_ALIGNMENT)
                .ok_or_else(too_long)?;
            let len = usize::try_from(file.len).map_err(|_| too_long())?;
            end = at.checked_add(len).ok_or_else(too_long)?;
            parts.push(Part {
                fd: file.file.as_fd(),
                at,
                len,
            });
            places.push(Place {
                file: file.id,
                at: at as u64,
                len: file.len,
            });
        }
        Ok(Self {
            mapping: Arc::new(Mapping::of_files(end, &parts)?),
            places,
        })
    }

    /// Whether these are the files, as long as they are now.
    fn is_of(&self, files: &[MemoryFile]) -> bool {
        let is_mapped = |file: &MemoryFile| {
            let mut places = self.places.iter();
            places.any(|place| (place.file, place.len) == (file.id, file.len))
        };
        self.places.len() == files.len() && files.iter().all(is_mapped)
    }

    /// Offset of the file in the mapping; beyond all if it is not there.
    fn place(&self, id: FileId) -> u64 {
        let place = self.places.iter().find(|place| place.file == id);
        place.map_or(u64::MAX, |place| place.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Hint;

    const MIB: u64 = 1 << 20;

    /// A memory file of so many bytes, as QEMU makes them if `sealed`.
    fn memory_file(len: u64, sealed: bool) -> File {
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING | rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("tenant", flags).unwrap());
        file.set_len(len).unwrap();
        if sealed {
            rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        }
        file
    }

    fn region(guest_address: u64, len: u64, offset: u64) -> Region {
        Region {
            guest_address,
            len,
            user_address: guest_address.wrapping_add(0x7f00_0000_0000),
            offset,
        }
    }

    fn read(memory: &TenantMemory, address: u64) -> u8 {
        let mut byte = [0];
        memory
            .read(&mut Hint::default(), address, &mut byte)
            .unwrap();
        byte[0]
    }

    fn with_byte(file: &File, offset: u64, byte: u8) -> File {
        std::os::unix::fs::FileExt::write_all_at(file, &[byte], offset).unwrap();
        file.try_clone().unwrap()
    }

    #[test]
    fn regions_of_several_files_are_one_memory() {
        let (ram, dimm) = (memory_file(2 * MIB, true), memory_file(MIB, true));
        let mut regions = Regions::new(false);
        regions
            .add(region(0, MIB, MIB), with_byte(&ram, MIB + 5, 1))
            .unwrap();
        regions
            .add(region(4 * MIB, MIB, 0), with_byte(&dimm, 6, 2))
            .unwrap();
        regions
            .add(region(MIB, MIB, 0), with_byte(&ram, 7, 3))
            .unwrap();

        let memory = regions.memory().unwrap().unwrap();

        assert_eq!(read(&memory, 5), 1);
        assert_eq!(read(&memory, 4 * MIB + 6), 2);
        assert_eq!(read(&memory, MIB + 7), 3);
        assert_eq!(memory.run(&mut Hint::default(), MIB - 1, 2), None);
        let nowhere = memory.read(&mut Hint::default(), 2 * MIB, &mut [0]);
        assert!(nowhere.is_err());
        let qemu = 0x7f00_0000_0000;
        assert_eq!(regions.translate(qemu + 4 * MIB + 6), Some(4 * MIB + 6));
        assert_eq!(regions.translate(qemu + 2 * MIB), None);
        assert_eq!(regions.translate(6), None);
    }

    #[test]
    fn a_file_stays_mapped_where_it_is_until_a_file_comes_or_goes() {
        let (ram, dimm) = (memory_file(2 * MIB, true), memory_file(MIB, true));
        let mut regions = Regions::new(false);
        let start = |regions: &mut Regions| {
            let memory = regions.memory().unwrap().unwrap();
            (memory.mapping().as_ptr() as usize, memory)
        };
        regions
            .add(region(0, MIB, 0), ram.try_clone().unwrap())
            .unwrap();
        let (first, memory) = start(&mut regions);
        regions
            .add(region(MIB, MIB, MIB), ram.try_clone().unwrap())
            .unwrap();
        let (second, _) = start(&mut regions);
        assert_eq!(first, second);
        let far = region(4 * MIB, MIB, 0);
        regions.add(far, with_byte(&dimm, 0, 9)).unwrap();
        let (third, with_dimm) = start(&mut regions);
        assert_ne!(first, third);
        regions.remove(&far).unwrap();
        assert_ne!(start(&mut regions).0, third);
        // Who uses an old memory has it for as long as that takes.
        assert_eq!(read(&with_dimm, 4 * MIB), 9);
        assert_eq!(read(&memory, 0), 0);
        regions.remove(&region(0, MIB, 0)).unwrap();
        regions.remove(&region(MIB, MIB, MIB)).unwrap();
        assert!(regions.memory().unwrap().is_none());
    }

    #[test]
    fn a_file_that_can_be_shortened_is_refused_unless_it_is_trusted() {
        let file = memory_file(MIB, false);
        let refused = Regions::new(false).add(region(0, MIB, 0), file.try_clone().unwrap());
        let error = refused.unwrap_err();
        assert!(matches!(error, MemoryError::Unsealed), "{error}");
        assert!(error.to_string().contains("--trust-memory"), "{error}");
        Regions::new(true).add(region(0, MIB, 0), file).unwrap();
    }

    #[test]
    fn a_file_that_has_grown_is_mapped_anew() {
        let file = memory_file(MIB, false);
        let mut regions = Regions::new(true);
        regions
            .add(region(0, MIB, 0), file.try_clone().unwrap())
            .unwrap();
        regions.memory().unwrap().unwrap();
        file.set_len(2 * MIB).unwrap();
        let more = with_byte(&file, MIB, 4);
        regions.add(region(MIB, MIB, MIB), more).unwrap();
        assert_eq!(read(&regions.memory().unwrap().unwrap(), MIB), 4);
    }

    #[test]
    fn memory_that_makes_no_sense_is_refused_and_nothing_changes() {
        let file = memory_file(MIB, true);
        let mut regions = Regions::new(false);
        let mut add = |region| regions.add(region, file.try_clone().unwrap());
        add(region(0x1000, 0x1000, 0)).unwrap();
        for outside in [
            region(0, 0, 0),
            region(0, MIB, 1),
            region(0, MIB + 1, 0),
            region(0, 2, u64::MAX),
            region(u64::MAX, 1, 0),
            Region {
                user_address: u64::MAX,
                ..region(0, 2, 0)
            },
        ] {
            let error = add(outside).unwrap_err();
            assert!(matches!(error, MemoryError::OutsideFile { .. }), "{error}");
        }
        for overlapping in [region(0, 0x1001, 0), region(0x1fff, 1, 0)] {
            let error = add(overlapping).unwrap_err();
            assert!(matches!(error, MemoryError::Overlap(_)), "{error}");
        }
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = File::from(std::os::fd::OwnedFd::from(socket));
        let untrusted = regions.add(region(0x8000, 1, 0), socket.try_clone().unwrap());
        assert!(matches!(untrusted, Err(MemoryError::Unsealed)));
        let trusted = Regions::new(true).add(region(0x8000, 1, 0), socket);
        assert!(matches!(trusted, Err(MemoryError::NoFile(_))));
        let error = regions.remove(&region(0x1000, 0x800, 0)).unwrap_err();
        assert!(matches!(error, MemoryError::Unknown(0x1000)), "{error}");
        let version = regions.version();
        let bad = [
            (region(0, 1, 0), file.try_clone().unwrap()),
            (region(0, 1, 0), file),
        ];
        assert!(regions.replace(bad).is_err());
        assert_eq!(regions.version(), version);
        assert_eq!(regions.translate(0x7f00_0000_1000), Some(0x1000));
    }

    #[test]
    fn files_of_more_than_four_tebibytes_in_all_are_refused() {
        const TIB: u64 = 1 << 40;
        let mut regions = Regions::new(false);
        let large = memory_file(3 * TIB, true);
        for (at, file) in [
            (0, &large),
            (MIB, &large),
            (2 * MIB, &memory_file(TIB, true)),
        ] {
            let region = region(at, MIB, 0);
            regions.add(region, file.try_clone().unwrap()).unwrap();
        }
        let error = regions
            .add(region(3 * MIB, 0x1000, 0), memory_file(0x1000, true))
            .unwrap_err();
        assert!(
            matches!(error, MemoryError::TooLarge(len) if len == 4 * TIB + 0x1000),
            "{error}"
        );
        let alone = memory_file(80 * TIB, true);
        let error = Regions::new(false).add(region(0, MIB, 0), alone);
        assert!(matches!(error, Err(MemoryError::TooLarge(_))));
        // A region of a file that is there needs no more.
        regions.add(region(4 * MIB, MIB, MIB), large).unwrap();
    }

    #[test]
    fn the_513th_region_is_refused() {
        let file = memory_file(MIB, true);
        let mut regions = Regions::new(false);
        for n in 0..512 {
            regions
                .add(region(n, 1, n), file.try_clone().unwrap())
                .unwrap();
        }
        let error = regions.add(region(512, 1, 512), file).unwrap_err();
        assert!(matches!(error, MemoryError::TooMany), "{error}");
    }
}
