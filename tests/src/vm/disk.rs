//! Disk images of a scenario.

use std::{
    fs::{self, File},
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
    operations_per_second: Option<u32>,
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
            operations_per_second: None,
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
