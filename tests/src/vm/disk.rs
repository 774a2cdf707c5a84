//! Disk images of a scenario.

use std::{
    fs::File,
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
}

impl Disk {
    /// A disk of `mebibytes`, all zero; the storage VM knows it as `serial`.
    ///
    /// A virtio-blk serial has room for 20 bytes.
    pub fn blank(scenario: &Scenario, serial: &str, mebibytes: u64) -> Result<Self> {
        let path = scenario.disk(serial);
        let file = File::create(&path).file("create", &path)?;
        file.set_len(mebibytes << 20).file("size", &path)?;
        Ok(Self {
            serial: serial.to_owned(),
            path,
        })
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
        Ok(Self {
            serial: serial.to_owned(),
            path,
        })
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
