//! A PCI function that no driver has, through sysfs.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use tests::vm::error::FileContext;
use vm_memory::{FileOffset, MmapRegion};

use crate::error::{Error, Result};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Offsets in the configuration space (PCI 3.0, its header).
mod offset {
    pub const VENDOR: u64 = 0x00;
    pub const DEVICE: u64 = 0x02;
    pub const COMMAND: u64 = 0x04;
    pub const CAPABILITIES: u64 = 0x34;
}

/// Bits of the command register (PCI 3.0, device control).
mod command {
    pub const MEMORY_SPACE: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
}

/// The most capabilities that fit into a configuration space of 256 bytes after its header.
const MOST_CAPABILITIES: usize = 48;

/// A PCI function that no driver has.
#[derive(Debug)]
pub struct Function {
    address: String,
    directory: PathBuf,
    config: File,
}

impl Function {
    /// The function at `address`, as sysfs names it: `0000:00:03.0`.
    ///
    /// # Errors
    /// There is none, it has a driver, or this program may not have it.
    pub fn open(address: &str) -> Result<Self> {
        let directory = Path::new(DEVICES).join(address);
        let config = directory.join("config");
        let config = File::options()
            .read(true)
            .write(true)
            .open(&config)
            .file("open", config)?;
        let function = Self {
            address: address.to_owned(),
            directory,
            config,
        };
        if function.directory.join("driver").exists() {
            return Err(function.unfit("has a driver: write its address to driver/unbind first"));
        }
        Ok(function)
    }

    /// An error about this function.
    pub fn unfit(&self, problem: &'static str) -> Error {
        Error::Function {
            address: self.address.clone(),
            problem,
        }
    }

    /// Vendor and device id.
    pub fn ids(&self) -> Result<(u16, u16)> {
        Ok((self.word(offset::VENDOR)?, self.word(offset::DEVICE)?))
    }

    /// Lets it answer in memory space and use DMA, without interrupts.
    pub fn enable(&self) -> Result<()> {
        let on = command::MEMORY_SPACE | command::BUS_MASTER | command::INTERRUPT_DISABLE;
        self.set_command(self.word(offset::COMMAND)? | on)
    }

    /// Forbids it DMA.
    pub fn disable(&self) -> Result<()> {
        self.set_command(self.word(offset::COMMAND)? & !command::BUS_MASTER)
    }

    /// Its capabilities: where each is, and its id (PCI 3.0, capabilities list).
    pub fn capabilities(&self) -> Result<Vec<(u64, u8)>> {
        let mut found = Vec::new();
        let [mut next] = self.read(offset::CAPABILITIES)?;
        while next != 0 {
            if found.len() == MOST_CAPABILITIES {
                return Err(self.unfit("has a list of capabilities that does not end"));
            }
            let at = u64::from(next & !3);
            let [id, following] = self.read(at)?;
            found.push((at, id));
            next = following;
        }
        Ok(found)
    }

    /// `N` bytes of the configuration space.
    pub fn read<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let read = self.config.read_exact_at(&mut bytes, at);
        read.file("read", self.directory.join("config"))?;
        Ok(bytes)
    }

    /// Maps all of a memory BAR.
    pub fn map(&self, bar: u8) -> Result<MmapRegion> {
        let path = self.directory.join(format!("resource{bar}"));
        let open = File::options().read(true).write(true).open(&path);
        let file = open.file("open", &path)?;
        let length = file.metadata().file("look at", &path)?.len();
        let length = usize::try_from(length).map_err(|_| self.unfit("has too large a BAR"))?;
        let map = MmapRegion::build(
            Some(FileOffset::new(file, 0)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        );
        map.map_err(|source| Error::Map {
            what: "the BAR with virtio's registers",
            source,
        })
    }

    fn word(&self, at: u64) -> Result<u16> {
        self.read(at).map(u16::from_le_bytes)
    }

    fn set_command(&self, value: u16) -> Result<()> {
        let config = self.directory.join("config");
        self.config
            .write_all_at(&value.to_le_bytes(), offset::COMMAND)
            .file("write", config)?;
        Ok(())
    }
}
