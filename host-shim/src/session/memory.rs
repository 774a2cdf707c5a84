//! The tenant's memory table, checked against the one file that backs it.

use std::fmt;

use serde::{Deserialize, Serialize};
use spec::session::{MEMORY_SLOTS, MemoryEntry};

/// Which file a descriptor is open on; the same for every duplicate of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} of device {:#x}", self.inode, self.device)
    }
}

/// What the kernel says about a file of tenant memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Which file it is.
    pub id: FileId,
    /// Its length in bytes.
    pub len: u64,
    /// Whether nobody can make it shorter (`F_SEAL_SHRINK`).
    pub sealed: bool,
}

/// One range of tenant memory, as the tenant's QEMU describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address of its first byte in the tenant's QEMU, in which ring addresses are given.
    pub user_address: u64,
    /// Offset of its first byte in the file.
    pub offset: u64,
}

/// A memory table that cannot be given to the storage VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Its regions lie in two files.
    #[error(
        "tenant has two memory backends ({first} and {second}), but one fits a BAR; give it one: \
         a single -object memory-backend-memfd,share=on, no memory device with a backend of its own"
    )]
    TwoBackends {
        /// The file of the first region.
        first: FileId,
        /// The other file.
        second: FileId,
    },
    /// The file can be truncated under the storage VM's feet.
    #[error(
        "tenant memory ({0}) is not sealed against shrinking; use -object memory-backend-memfd \
         with seal=on (its default), not memory-backend-file; for a file that only the operator \
         may write, start host-shim with --trust-memory-file"
    )]
    Unsealed(FileId),
    /// The function was plugged with another file from the start.
    #[error(
        "tenant memory ({found}) is not the file of --trust-memory-file ({trusted}); give the \
         tenant's QEMU -object memory-backend-file,share=on with that file as mem-path"
    )]
    NotTheTrusted {
        /// The tenant's file.
        found: FileId,
        /// The one that the storage VM has.
        trusted: FileId,
    },
    /// A region without an end, without a length, or outside the file.
    #[error(
        "memory region at guest address {guest_address:#x} ({len} bytes) does not lie in the \
         tenant's memory file ({file_len} bytes); the tenant's QEMU is at fault"
    )]
    OutsideFile {
        /// Guest-physical address of the region.
        guest_address: u64,
        /// Length of the region in bytes.
        len: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// Two regions at the same guest-physical address.
    #[error("two memory regions overlap at guest address {0:#x}; the tenant's QEMU is at fault")]
    Overlap(u64),
    /// More regions than the table holds.
    #[error("more than {MEMORY_SLOTS} memory regions; give the tenant fewer memory devices")]
    TooMany,
    /// The region to remove is not in the table.
    #[error("no memory region at guest address {0:#x} to remove; the tenant's QEMU is at fault")]
    Unknown(u64),
}

/// The table of one vhost-user connection.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TenantMemory {
    /// The file of the connection's first region; it stays for as long as the connection.
    file: Option<FileFacts>,
    regions: Vec<Region>,
    /// Counts changes over the life of the session.
    version: u64,
}

impl TenantMemory {
    /// The file that all regions lie in.
    pub fn file(&self) -> Option<FileFacts> {
        self.file
    }

    /// Counts changes of the table.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Replaces the whole table; `trusted` is the only file there may be, and need not be
    /// sealed. Nothing changes on error.
    ///
    /// # Errors
    /// [`MemoryError`] naming the first region that will not do.
    pub fn replace(
        &mut self,
        regions: &[(Region, FileFacts)],
        trusted: Option<FileId>,
    ) -> Result<(), MemoryError> {
        let mut next = Self {
            file: self.file,
            regions: Vec::with_capacity(regions.len()),
            version: self.version,
        };
        for &(region, facts) in regions {
            next.add(region, facts, trusted)?;
        }
        next.version = self.version.wrapping_add(1);
        *self = next;
        Ok(())
    }

    /// Adds a region; `trusted` is the only file there may be, and need not be sealed.
    ///
    /// # Errors
    /// [`MemoryError`] if the region will not do; the table is unchanged then.
    pub fn add(
        &mut self,
        region: Region,
        facts: FileFacts,
        trusted: Option<FileId>,
    ) -> Result<(), MemoryError> {
        if let Some(first) = self.file.filter(|first| first.id != facts.id) {
            return Err(MemoryError::TwoBackends {
                first: first.id,
                second: facts.id,
            });
        }
        match trusted {
            Some(trusted) if trusted != facts.id => {
                return Err(MemoryError::NotTheTrusted {
                    found: facts.id,
                    trusted,
                });
            }
            None if !facts.sealed => return Err(MemoryError::Unsealed(facts.id)),
            _ => {}
        }
        let ends_in_file = region
            .offset
            .checked_add(region.len)
            .is_some_and(|end| end <= facts.len);
        let addresses_end = region.guest_address.checked_add(region.len).is_some()
            && region.user_address.checked_add(region.len).is_some();
        if region.len == 0 || !ends_in_file || !addresses_end {
            return Err(MemoryError::OutsideFile {
                guest_address: region.guest_address,
                len: region.len,
                file_len: facts.len,
            });
        }
        let overlaps = |other: &&Region| {
            region.guest_address < other.guest_address + other.len
                && other.guest_address < region.guest_address + region.len
        };
        if let Some(other) = self.regions.iter().find(overlaps) {
            return Err(MemoryError::Overlap(
                region.guest_address.max(other.guest_address),
            ));
        }
        if self.regions.len() == MEMORY_SLOTS {
            return Err(MemoryError::TooMany);
        }
        self.file = Some(facts);
        self.regions.push(region);
        self.version = self.version.wrapping_add(1);
        Ok(())
    }

    /// Removes the region with the guest address, user address and length of `region`.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`] if there is none.
    pub fn remove(&mut self, region: &Region) -> Result<(), MemoryError> {
        let index = self
            .regions
            .iter()
            .position(|known| {
                known.guest_address == region.guest_address
                    && known.user_address == region.user_address
                    && known.len == region.len
            })
            .ok_or(MemoryError::Unknown(region.guest_address))?;
        self.regions.swap_remove(index);
        self.version = self.version.wrapping_add(1);
        Ok(())
    }

    /// Forgets the regions and their file.
    pub fn clear(&mut self) {
        self.file = None;
        self.regions.clear();
        self.version = self.version.wrapping_add(1);
    }

    /// The guest-physical address of `user_address`, if a region holds it. Where GPA_ADDRESSES
    /// is negotiated, regions have their guest address as user address and this is identity.
    pub fn translate(&self, user_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let distance = user_address.checked_sub(region.user_address)?;
            (distance < region.len).then(|| region.guest_address + distance)
        })
    }

    /// The table as the appliance gets it, by guest address.
    pub fn entries(&self) -> Vec<MemoryEntry> {
        let mut entries: Vec<_> = self
            .regions
            .iter()
            .map(|region| MemoryEntry {
                guest_address: region.guest_address,
                len: region.len,
                bar_offset: region.offset,
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.guest_address);
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const FILE: FileFacts = FileFacts {
        id: FileId {
            device: 1,
            inode: 10,
        },
        len: 64 * MIB,
        sealed: true,
    };
    const LOW: Region = Region {
        guest_address: 0,
        len: 32 * MIB,
        user_address: 0x7f00_0000_0000,
        offset: 0,
    };
    const HIGH: Region = Region {
        guest_address: 1 << 32,
        len: 32 * MIB,
        user_address: 0x7f10_0000_0000,
        offset: 32 * MIB,
    };

    #[test]
    fn memory_split_at_4_gib_translates_by_region() {
        let mut memory = TenantMemory::default();
        memory.replace(&[(HIGH, FILE), (LOW, FILE)], None).unwrap();

        assert_eq!(memory.translate(0x7f00_0000_1000), Some(0x1000));
        assert_eq!(memory.translate(0x7f10_0000_2000), Some((1 << 32) + 0x2000));
        assert_eq!(memory.translate(0x7f00_0000_0000 + 32 * MIB), None);
        assert_eq!(
            memory.entries(),
            [
                MemoryEntry {
                    guest_address: 0,
                    len: 32 * MIB,
                    bar_offset: 0
                },
                MemoryEntry {
                    guest_address: 1 << 32,
                    len: 32 * MIB,
                    bar_offset: 32 * MIB
                }
            ]
        );
    }

    #[test]
    fn a_second_memory_backend_is_refused_by_name() {
        let other = FileFacts {
            id: FileId {
                device: 1,
                inode: 11,
            },
            ..FILE
        };
        let mut memory = TenantMemory::default();
        memory.add(LOW, FILE, None).unwrap();

        let error = memory.add(HIGH, other, None).unwrap_err();

        assert_eq!(
            error,
            MemoryError::TwoBackends {
                first: FILE.id,
                second: other.id
            }
        );
        assert!(error.to_string().contains("two memory backends"));
        assert_eq!(memory.entries().len(), 1);
    }

    #[test]
    fn an_unsealed_file_is_refused_unless_trusted() {
        let unsealed = FileFacts {
            sealed: false,
            ..FILE
        };
        let mut memory = TenantMemory::default();
        assert_eq!(
            memory.add(LOW, unsealed, None),
            Err(MemoryError::Unsealed(FILE.id))
        );
        assert_eq!(memory.add(LOW, unsealed, Some(FILE.id)), Ok(()));
    }

    #[test]
    fn a_region_past_the_end_of_its_file_is_refused() {
        let mut memory = TenantMemory::default();
        for bad in [
            Region {
                offset: 33 * MIB,
                ..LOW
            },
            Region {
                offset: u64::MAX,
                ..LOW
            },
            Region {
                guest_address: u64::MAX,
                ..LOW
            },
            Region { len: 0, ..LOW },
        ] {
            assert!(matches!(
                memory.add(bad, FILE, None),
                Err(MemoryError::OutsideFile { .. })
            ));
        }
    }

    #[test]
    fn overlapping_regions_are_refused_and_leave_the_old_table() {
        let mut memory = TenantMemory::default();
        memory.replace(&[(LOW, FILE)], None).unwrap();
        let version = memory.version();
        let clash = Region {
            guest_address: 32 * MIB - 1,
            ..HIGH
        };

        let result = memory.replace(&[(LOW, FILE), (clash, FILE)], None);

        assert_eq!(result, Err(MemoryError::Overlap(32 * MIB - 1)));
        assert_eq!(memory.version(), version);
        assert_eq!(memory.entries().len(), 1);
    }

    #[test]
    fn regions_come_and_go_one_by_one() {
        let mut memory = TenantMemory::default();
        memory.add(LOW, FILE, None).unwrap();
        memory.add(HIGH, FILE, None).unwrap();
        memory.remove(&LOW).unwrap();
        assert_eq!(memory.translate(0x7f00_0000_0000), None);
        assert_eq!(memory.remove(&LOW), Err(MemoryError::Unknown(0)));
        assert_eq!(memory.entries().len(), 1);
    }

    #[test]
    fn the_table_holds_512_regions() {
        let mut memory = TenantMemory::default();
        let page = |index: u64| Region {
            guest_address: index * 0x2000,
            len: 0x1000,
            user_address: index * 0x2000,
            offset: 0,
        };
        for index in 0..512 {
            memory.add(page(index), FILE, None).unwrap();
        }
        assert_eq!(memory.add(page(512), FILE, None), Err(MemoryError::TooMany));
    }
}
