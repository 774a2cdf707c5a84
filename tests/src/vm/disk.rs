//! Disk images of a scenario.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::error::{FileContext, Result};
use super::process::run;
use super::scenario::Scenario;
use super::tenant_image;

/// A raw disk image on the host.
#[derive(Debug, Clone)]
pub struct Disk {
    serial: String,
    path: PathBuf,
    controller: Controller,
    operations_per_second: Option<u32>,
    /// More of QEMU's options for the drive, each after a comma.
    drive_options: String,
}

/// How the storage VM sees a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    /// virtio-blk, with physical blocks of so many bytes.
    VirtioBlk { physical_block: u32 },
    /// NVMe, which writes up to so many logical blocks (of 512 bytes) whole or not at all.
    Nvme { atomic_blocks: u16 },
}

impl Disk {
    /// A disk of `mebibytes`, all zero; the storage VM knows it as `serial`.
    ///
    /// A virtio-blk serial has room for 20 bytes.
    pub fn blank(scenario: &Scenario, serial: &str, mebibytes: u64) -> Result<Self> {
        let path = scenario.disk(serial);
        let file = File::create(&path).file("create", &path)?;
        file.set_len(mebibytes << 20).file("size", &path)?;
        Ok(Self::at(serial, path))
    }

    /// A disk with a copy of `file` from its first byte on, and zeros after it.
    pub fn holding(scenario: &Scenario, serial: &str, file: &Path) -> Result<Self> {
        let path = scenario.disk(serial);
        let length = fs::copy(file, &path).file("copy", file)?;
        let image = File::options()
            .write(true)
            .open(&path)
            .file("open", &path)?;
        image
            .set_len(length.next_multiple_of(1 << 20))
            .file("size", &path)?;
        Ok(Self::at(serial, path))
    }

    /// A disk that a tenant boots from.
    pub fn tenant_root(scenario: &Scenario, serial: &str) -> Result<Self> {
        let image = tenant_image::path()?;
        let path = scenario.disk(serial);
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"])
            .arg(&image)
            .arg(&path);
        run("copying the tenant's disk", &mut copy)?;
        Ok(Self::at(serial, path))
    }

    fn at(serial: &str, path: PathBuf) -> Self {
        Self {
            serial: serial.to_owned(),
            path,
            controller: Controller::VirtioBlk {
                physical_block: 512,
            },
            operations_per_second: None,
            drive_options: String::new(),
        }
    }

    /// The same image as one more disk, `serial`; QEMU's own lock of it has to be off.
    pub fn again(&self, serial: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            ..self.clone()
        }
    }

    /// With one more option of QEMU's drive, `NAME=VALUE`.
    pub fn drive_option(mut self, option: &str) -> Self {
        self.drive_options.push(',');
        self.drive_options.push_str(option);
        self
    }

    /// What was added to QEMU's drive, each option after a comma.
    pub fn drive_options(&self) -> &str {
        &self.drive_options
    }

    /// With physical blocks of `bytes`, and logical ones of 512.
    pub fn with_physical_block(mut self, bytes: u32) -> Self {
        self.controller = Controller::VirtioBlk {
            physical_block: bytes,
        };
        self
    }

    /// As an NVMe disk that writes up to `blocks` logical blocks whole or not at all.
    pub fn with_atomic_writes(mut self, blocks: u16) -> Self {
        self.controller = Controller::Nvme {
            atomic_blocks: blocks,
        };
        self
    }

    /// QEMU's device for it, without the drive.
    pub fn device(&self) -> String {
        let serial = &self.serial;
        match self.controller {
            Controller::VirtioBlk { physical_block } => {
                format!("virtio-blk-pci,serial={serial},physical_block_size={physical_block}")
            }
            Controller::Nvme { atomic_blocks } => {
                // NVMe counts them from 0.
                let last = atomic_blocks.saturating_sub(1);
                format!("nvme,serial={serial},atomic.awun={last},atomic.awupf={last}")
            }
        }
    }

    /// Made slow by the storage VM's QEMU, for commands that shall take long.
    pub fn throttled(mut self, operations_per_second: u32) -> Self {
        self.operations_per_second = Some(operations_per_second);
        self
    }

    /// How many operations it does in a second, if it is throttled.
    pub fn operations_per_second(&self) -> Option<u32> {
        self.operations_per_second
    }

    /// The name that the storage VM knows it by.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Where the host has it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it takes of the host's file system.
    pub fn allocated(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.path).file("read", &self.path)?;
        Ok(metadata.blocks() * 512)
    }

    /// The SHA-256 of its contents, as `sha256sum` prints it.
    pub fn sha256(&self) -> Result<String> {
        let line = run("sha256sum", Command::new("sha256sum").arg(&self.path))?;
        Ok(line
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    }
}
