//! Where the disk with a given serial number is.

use std::fs;
use std::path::{Path, PathBuf};

/// Files below `/sys/block/NAME` that hold a disk's serial number: virtio-blk, NVMe, SCSI.
const SERIAL_FILES: [&str; 2] = ["serial", "device/serial"];
/// As [`SERIAL_FILES`], but a VPD page whose serial number follows 4 bytes (SPC-6 §7.7.15).
const VPD_80_FILE: &str = "device/vpd_pg80";
const VPD_HEADER_LEN: usize = 4;

/// Why no disk was found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// No disk has it.
    #[error(
        "no disk has the serial number {serial:?}; attach it to the storage VM with that serial \
         (QEMU: -device virtio-blk-pci,serial={serial}), or correct `serial`; there are: {}",
        if there.is_empty() { "none".into() } else { there.join(", ") }
    )]
    None {
        /// The serial number.
        serial: String,
        /// Serial numbers that there are.
        there: Vec<String>,
    },
    /// Several disks have it.
    #[error("the disks {0} and {1} both have the serial number {2:?}; give each its own")]
    Several(String, String, String),
}

/// The block device with this serial number among those in `sys_block` (`/sys/block`).
///
/// # Errors
/// [`LocateError`].
pub fn disk_with_serial(sys_block: &Path, serial: &str) -> Result<PathBuf, LocateError> {
    let mut found: Option<String> = None;
    let mut there = Vec::new();
    for (name, its_serial) in serials(sys_block) {
        if its_serial == serial {
            if let Some(first) = found {
                return Err(LocateError::Several(first, name, serial.into()));
            }
            found = Some(name);
        } else {
            there.push(its_serial);
        }
    }
    found
        .map(|name| Path::new("/dev").join(name))
        .ok_or_else(|| LocateError::None {
            serial: serial.into(),
            there,
        })
}

fn serials(sys_block: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(sys_block) else {
        return Vec::new();
    };
    let mut serials: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, serial_of(&entry.path())?))
        })
        .collect();
    serials.sort();
    serials
}

fn serial_of(disk: &Path) -> Option<String> {
    let plain = SERIAL_FILES
        .iter()
        .find_map(|file| fs::read_to_string(disk.join(file)).ok());
    let text = plain.or_else(|| {
        let page = fs::read(disk.join(VPD_80_FILE)).ok()?;
        String::from_utf8(page.get(VPD_HEADER_LEN..)?.to_vec()).ok()
    })?;
    let serial = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!serial.is_empty()).then(|| serial.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys_block(files: &[(&str, &[u8])]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("block-{}", uuid::Uuid::new_v4()));
        for (file, content) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn a_disk_is_found_by_its_serial_whatever_its_kind() {
        let root = sys_block(&[
            ("vda/serial", b"t1root\n"),
            ("nvme0n1/device/serial", b"t1data        \n"),
            ("sda/device/vpd_pg80", b"\x00\x80\x00\x04t2rt"),
        ]);
        let find = |serial| disk_with_serial(&root, serial).unwrap();
        assert_eq!(find("t1root"), Path::new("/dev/vda"));
        assert_eq!(find("t1data"), Path::new("/dev/nvme0n1"));
        assert_eq!(find("t2rt"), Path::new("/dev/sda"));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_serial_that_no_disk_has_is_named_with_those_there_are() {
        let root = sys_block(&[("vda/serial", b"other"), ("loop0/size", b"0")]);
        let error = disk_with_serial(&root, "t1root").unwrap_err();
        assert_eq!(
            error,
            LocateError::None {
                serial: "t1root".into(),
                there: vec!["other".into()]
            }
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_serial_of_two_disks_is_refused() {
        let root = sys_block(&[("vda/serial", b"same"), ("vdb/serial", b"same")]);
        let error = disk_with_serial(&root, "same").unwrap_err();
        let two = LocateError::Several("vda".into(), "vdb".into(), "same".into());
        assert_eq!(error, two);
        fs::remove_dir_all(root).unwrap();
    }
}
