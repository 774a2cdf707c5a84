//! The storage VM's config disk, as an operator makes one.

use super::disk::Disk;
use super::error::Result;
use super::process::run;
use super::scenario::Scenario;
use super::tenant_image;

/// The serial by which the image finds it.
const SERIAL: &str = "vhost-pci-config";
/// What the guide says: room for ten thousand LUNs and their state.
const BYTES: u64 = 64 << 20;

/// An empty config disk.
pub fn blank(scenario: &Scenario) -> Result<Disk> {
    let disk = Disk::blank(scenario, SERIAL, BYTES >> 20)?;
    let packages = tenant_image::packages()?;
    let mut mke2fs = packages.command("mke2fs");
    mke2fs.env("MKE2FS_CONFIG", packages.path("etc/mke2fs.conf"));
    mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(disk.path());
    run("making the config disk", &mut mke2fs)?;
    Ok(disk)
}

/// Whether `disk` was unmounted by whoever had it last.
pub fn is_clean(disk: &Disk) -> Result<bool> {
    let mut dumpe2fs = tenant_image::packages()?.command("dumpe2fs");
    dumpe2fs.arg("-h").arg(disk.path());
    let said = run("looking at the config disk", &mut dumpe2fs)?;
    Ok(!said.contains("needs_recovery"))
}

/// A disk that has the serial of a config disk, and nothing on it that could be mounted.
pub fn spoilt(scenario: &Scenario) -> Result<Disk> {
    Disk::blank(scenario, SERIAL, 1)
}
