//! The vhost-pci functions of this VM, as sysfs shows them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use spec::device::{BAR_REGISTERS, BAR_SESSION, BAR_TENANT, DEVICE_ID, VENDOR_ID};

/// The driver that gives a function to user space.
const VFIO_PCI: &str = "vfio-pci";
/// Name of the groups that VFIO makes up for functions that no IOMMU is in front of.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";

/// The PCI bus in sysfs.
#[derive(Debug, Clone)]
pub struct Bus {
    root: PathBuf,
}

/// A vhost-pci function on the bus.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function {
    /// Domain, bus, device and function: `0000:01:00.0`.
    pub address: String,
    /// Inode of its sysfs directory: another function in the same place has another.
    pub inode: u64,
}

/// Why a function could not be bound to vfio-pci.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The driver is not loaded.
    #[error("the driver vfio-pci is not loaded; run: modprobe vfio-pci")]
    NoDriver,
    /// The function has no IOMMU group, so vfio-pci does not take it.
    #[error(
        "it has no IOMMU group; start the storage VM with -device \
         intel-iommu,intremap=on,caching-mode=on as its first device, and its kernel with \
         intel_iommu=on iommu=pt"
    )]
    NoIommuGroup,
    /// Its group is one of VFIO's no-IOMMU mode.
    #[error(
        "VFIO has it in its no-IOMMU mode, in which it could reach all of the storage VM's memory; \
         remove enable_unsafe_noiommu_mode from the options of vfio, and start the storage VM with \
         -device intel-iommu,intremap=on,caching-mode=on and its kernel with intel_iommu=on \
         iommu=pt"
    )]
    NoIommu,
    /// The driver did not take it.
    #[error("vfio-pci did not take it, see the kernel log; its driver is now {0:?}")]
    NotTaken(Option<String>),
    /// A file of sysfs could not be read or written.
    #[error("{path}: {error}; the appliance must run as root")]
    Sysfs {
        /// The file.
        path: PathBuf,
        /// What was reported.
        error: io::Error,
    },
}

impl Bus {
    /// The bus of this machine.
    pub fn new() -> Self {
        Self::at(Path::new("/sys/bus/pci"))
    }

    /// A bus whose sysfs directory is `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Directory of `function`.
    pub fn path(&self, function: &Function) -> PathBuf {
        self.root.join("devices").join(&function.address)
    }

    /// Every vhost-pci function, in order of address.
    ///
    /// # Errors
    /// What reading the directory reports, naming it.
    pub fn functions(&self) -> io::Result<Vec<Function>> {
        let devices = self.root.join("devices");
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", devices.display()))
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&devices).map_err(named)? {
            let entry = entry.map_err(named)?;
            let path = entry.path();
            // A device may vanish while we look: then it is none of ours.
            if id(&path.join("vendor")) == Some(VENDOR_ID)
                && id(&path.join("device")) == Some(DEVICE_ID)
            {
                let inode = fs::metadata(&path).map(|metadata| metadata.ino());
                if let (Ok(address), Ok(inode)) = (entry.file_name().into_string(), inode) {
                    found.push(Function { address, inode });
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether the kernel has given every BAR of the function its address; a hot-plugged
    /// function is listed before that.
    pub fn has_addresses(&self, function: &Function) -> bool {
        let Ok(resources) = fs::read_to_string(self.path(function).join("resource")) else {
            return false;
        };
        let starts: Vec<bool> = resources
            .lines()
            .map(|line| line.split(' ').next().is_some_and(is_not_zero))
            .collect();
        [BAR_REGISTERS, BAR_TENANT, BAR_SESSION]
            .iter()
            .all(|bar| starts.get(*bar) == Some(&true))
    }

    /// Binds the function to vfio-pci, whatever driver it has now, behind an IOMMU.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(&self, function: &Function) -> Result<(), BindError> {
        let path = self.path(function);
        let bound = driver(&path).as_deref() == Some(VFIO_PCI);
        if !bound && !self.root.join("drivers").join(VFIO_PCI).exists() {
            return Err(BindError::NoDriver);
        }
        let group = path.join("iommu_group");
        if !group.exists() {
            return Err(BindError::NoIommuGroup);
        }
        let name = group.join("name");
        match fs::read_to_string(&name) {
            Ok(name) if name.trim() == NO_IOMMU_GROUP => return Err(BindError::NoIommu),
            Ok(_) => {}
            // A real group has no name, most of the time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Without knowing the group there is no knowing that it is safe.
            Err(error) => return Err(BindError::Sysfs { path: name, error }),
        }
        if bound {
            return Ok(());
        }
        write(path.join("driver_override"), VFIO_PCI)?;
        if driver(&path).is_some() {
            write(path.join("driver/unbind"), &function.address)?;
        }
        write(self.root.join("drivers_probe"), &function.address)?;
        match driver(&path) {
            Some(driver) if driver == VFIO_PCI => Ok(()),
            other => Err(BindError::NotTaken(other)),
        }
    }
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address)
    }
}

/// The number in a file like `vendor`: `0x1af4`.
fn id(path: &Path) -> Option<u16> {
    let text = fs::read_to_string(path).ok()?;
    u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

fn is_not_zero(number: &str) -> bool {
    number.strip_prefix("0x").is_some_and(|digits| {
        digits.chars().all(|digit| digit.is_ascii_hexdigit())
            && digits.chars().any(|digit| digit != '0')
    })
}

fn driver(path: &Path) -> Option<String> {
    let link = fs::read_link(path.join("driver")).ok()?;
    link.file_name()?.to_str().map(str::to_owned)
}

fn write(path: PathBuf, text: &str) -> Result<(), BindError> {
    fs::write(&path, text).map_err(|error| BindError::Sysfs { path, error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UNASSIGNED: &str = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
    const ASSIGNED: &str = "0x00000000fe000000 0x00000000fe00ffff 0x0000000000040200\n";

    /// A sysfs of files in a directory of its own.
    struct FakeSysfs(PathBuf);

    impl FakeSysfs {
        fn new() -> Self {
            let root = std::env::temp_dir().join(format!("sysfs-{}", uuid::Uuid::new_v4()));
            fs::create_dir_all(root.join("devices")).unwrap();
            Self(root)
        }

        fn device(&self, address: &str, vendor: &str, device: &str, bars: [&str; 6]) {
            let path = self.0.join("devices").join(address);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("vendor"), vendor).unwrap();
            fs::write(path.join("device"), device).unwrap();
            fs::write(path.join("resource"), bars.concat()).unwrap();
        }
    }

    impl Drop for FakeSysfs {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn function(address: &str) -> Function {
        Function {
            address: address.into(),
            inode: 0,
        }
    }

    #[test]
    fn only_functions_with_our_ids_are_found() {
        let sysfs = FakeSysfs::new();
        sysfs.device("0000:02:00.0", "0x1af4\n", "0x10f5\n", [ASSIGNED; 6]);
        sysfs.device("0000:01:00.0", "0x1af4\n", "0x10f5\n", [ASSIGNED; 6]);
        sysfs.device("0000:00:03.0", "0x1af4\n", "0x1042\n", [ASSIGNED; 6]);
        let found = Bus::at(&sysfs.0).functions().unwrap();
        let addresses: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["0000:01:00.0", "0000:02:00.0"]);
        assert_ne!(found[0].inode, found[1].inode);
    }

    #[test]
    fn a_function_is_not_ready_before_all_its_bars_have_addresses() {
        let sysfs = FakeSysfs::new();
        let bars = [
            ASSIGNED, UNASSIGNED, ASSIGNED, UNASSIGNED, ASSIGNED, UNASSIGNED,
        ];
        sysfs.device("a", "0x1af4\n", "0x10f5\n", bars);
        sysfs.device("b", "0x1af4\n", "0x10f5\n", [UNASSIGNED; 6]);
        let bus = Bus::at(&sysfs.0);
        assert!(bus.has_addresses(&function("a")));
        assert!(!bus.has_addresses(&function("b")));
        assert!(!bus.has_addresses(&function("gone")));
    }

    #[test]
    fn binding_says_what_is_missing() {
        let sysfs = FakeSysfs::new();
        sysfs.device("a", "0x1af4\n", "0x10f5\n", [ASSIGNED; 6]);
        let bus = Bus::at(&sysfs.0);
        let bind = || bus.bind(&function("a")).unwrap_err();
        assert!(matches!(bind(), BindError::NoDriver));
        fs::create_dir_all(sysfs.0.join("drivers/vfio-pci")).unwrap();
        assert!(matches!(bind(), BindError::NoIommuGroup));
        fs::create_dir(sysfs.0.join("devices/a/iommu_group")).unwrap();
        assert!(matches!(bind(), BindError::NotTaken(None)));
        let text = fs::read_to_string(sysfs.0.join("drivers_probe")).unwrap();
        assert_eq!(text, "a");
    }

    // covers: VPCI-SEC-6
    #[test]
    fn a_function_without_an_iommu_is_refused_though_vfio_has_it() {
        let sysfs = FakeSysfs::new();
        sysfs.device("a", "0x1af4\n", "0x10f5\n", [ASSIGNED; 6]);
        let driver = sysfs.0.join("drivers/vfio-pci");
        fs::create_dir_all(&driver).unwrap();
        symlink(driver, sysfs.0.join("devices/a/driver")).unwrap();
        let bind = || Bus::at(&sysfs.0).bind(&function("a"));

        let error = bind().unwrap_err();
        assert!(matches!(error, BindError::NoIommuGroup), "{error}");
        // What modprobe vfio enable_unsafe_noiommu_mode=1 gives.
        let group = sysfs.0.join("devices/a/iommu_group");
        fs::create_dir(&group).unwrap();
        fs::write(group.join("name"), "vfio-noiommu\n").unwrap();
        let error = bind().unwrap_err();
        assert!(matches!(error, BindError::NoIommu), "{error}");
        assert!(error.to_string().contains("intel-iommu"), "{error}");
        // The group of an IOMMU.
        fs::remove_file(group.join("name")).unwrap();
        bind().unwrap();
    }
}
