//! The tenant's RAM: one memory file, seen at guest-physical addresses.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use appliance::memory::Mapping;
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

use super::memfd::memfd;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Alignment of every allocation.
const PAGE: u64 = 4096;
/// What is added to a guest-physical address to get the address that "QEMU" has it mapped at.
const USER_BASE: u64 = 0x7f00_0000_0000;

/// One range of guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset of its first byte in the memory file.
    pub offset: u64,
}

impl Region {
    /// The address of its first byte in the address space of the tenant's QEMU.
    pub fn user_address(&self) -> u64 {
        user_address(self.gpa)
    }
}

/// The address that the tenant's QEMU has `gpa` mapped at.
pub fn user_address(gpa: u64) -> u64 {
    USER_BASE.wrapping_add(gpa)
}

/// The tenant's RAM, mapped here as the tenant's CPU sees it.
pub struct TenantMemory {
    file: File,
    mapping: Mapping,
    regions: Vec<Region>,
    allocator: Mutex<Allocator>,
}

/// Pages handed out, per region; freed ones are used again for requests of the same size.
struct Allocator {
    next: Vec<u64>,
    freed: BTreeMap<(usize, u64), Vec<u64>>,
}

impl TenantMemory {
    /// RAM with ranges of these (guest-physical address, length), which follow each other in
    /// the file.
    ///
    /// # Errors
    /// What memfd_create(2) or mmap(2) report.
    pub fn new(ranges: &[(u64, u64)], sealed: bool) -> io::Result<Self> {
        let mut regions = Vec::new();
        let mut offset = 0;
        for &(gpa, len) in ranges {
            regions.push(Region { gpa, len, offset });
            offset += len;
        }
        let file = memfd(offset, sealed)?;
        let len = usize::try_from(offset).map_err(io::Error::other)?;
        let mapping = Mapping::new(file.as_fd(), 0, len, None)?;
        let next = regions.iter().map(|region| region.gpa.max(PAGE)).collect();
        Ok(Self {
            file,
            mapping,
            regions,
            allocator: Mutex::new(Allocator {
                next,
                freed: BTreeMap::new(),
            }),
        })
    }

    /// The memory file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The ranges.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// `len` bytes of region `region`, page-aligned; returns their guest-physical address.
    ///
    /// # Panics
    /// If the region is full.
    pub fn allocate(&self, region: usize, len: u64) -> u64 {
        let len = len.max(1).next_multiple_of(PAGE);
        let mut allocator = self
            .allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(gpa) = allocator.freed.get_mut(&(region, len)).and_then(Vec::pop) {
            return gpa;
        }
        let gpa = allocator.next[region];
        let range = self.regions[region];
        assert!(
            gpa + len <= range.gpa + range.len,
            "tenant RAM region {region} has no {len} bytes left"
        );
        allocator.next[region] = gpa + len;
        gpa
    }

    /// Gives back what [`Self::allocate`] returned for `len` bytes.
    pub fn free(&self, gpa: u64, len: u64) {
        let region = self.region_of(gpa);
        let len = len.max(1).next_multiple_of(PAGE);
        let mut allocator = self
            .allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        allocator.freed.entry((region, len)).or_default().push(gpa);
    }

    /// Copies `bytes` to `gpa`.
    ///
    /// # Panics
    /// If they are not all in one region.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.slice(gpa, bytes.len()).copy_from(bytes);
    }

    /// The `len` bytes at `gpa`.
    ///
    /// # Panics
    /// If they are not all in one region.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice(gpa, len).copy_to(&mut bytes);
        bytes
    }

    /// Stores a little-endian machine word, as one access.
    ///
    /// # Panics
    /// If it is not all in one region, or misaligned.
    pub fn store<T: AtomicAccess>(&self, gpa: u64, value: T) {
        self.slice(gpa, size_of::<T>())
            .store(value, 0, Ordering::SeqCst)
            .expect("an aligned address");
    }

    /// Loads a little-endian machine word, as one access.
    ///
    /// # Panics
    /// If it is not all in one region, or misaligned.
    pub fn load<T: AtomicAccess>(&self, gpa: u64) -> T {
        self.slice(gpa, size_of::<T>())
            .load(0, Ordering::SeqCst)
            .expect("an aligned address")
    }

    /// The region that `gpa` is in.
    ///
    /// # Panics
    /// If it is in none.
    pub fn region_of(&self, gpa: u64) -> usize {
        self.regions
            .iter()
            .position(|range| gpa >= range.gpa && gpa - range.gpa < range.len)
            .unwrap_or_else(|| panic!("the tenant has no memory at {gpa:#x}"))
    }

    /// Bytes from `gpa` to the end of its region.
    ///
    /// # Panics
    /// If it is in none.
    pub fn left_in_region(&self, gpa: u64) -> usize {
        let range = self.regions[self.region_of(gpa)];
        usize::try_from(range.gpa + range.len - gpa).unwrap_or(usize::MAX)
    }

    fn slice(&self, gpa: u64, len: usize) -> VolatileSlice<'_> {
        let range = self.regions[self.region_of(gpa)];
        let within = gpa - range.gpa;
        assert!(
            len as u64 <= range.len - within,
            "{gpa:#x} + {len} leaves its region"
        );
        self.mapping
            .slice(range.offset + within, len)
            .expect("regions are inside the file")
    }
}
