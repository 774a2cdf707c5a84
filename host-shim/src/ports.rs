//! The root ports that all shims of one storage VM share.

use std::io;
use std::path::{Path, PathBuf};

use crate::kept::KeptFd;
use crate::lock_file::LockFile;
use crate::qmp::PciDevices;

/// A pool that has no port to give.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// All are taken.
    #[error(
        "no free root port: {0} are all taken by other devices; give the storage VM more \
         pcie-root-port devices, and name them in --ports"
    )]
    AllTaken(String),
    /// Another shim has the device's id.
    #[error(
        "another running host-shim has a device {0} in this storage VM; give each a --name of its \
         own"
    )]
    SameName(String),
    /// A lock file cannot be used.
    #[error(
        "lock file {path} of a root port cannot be used ({error}); give --port-locks a directory that this user may write"
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A name that cannot be a root port's id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortNameError {
    /// No port at all.
    #[error("--ports names no root port; give the ids of the storage VM's pcie-root-port devices")]
    None,
    /// Not an id.
    #[error("{0:?} is not the id of a root port (letters, digits, '-', '.', '_')")]
    NotAnId(String),
}

/// The pool.
#[derive(Debug)]
pub struct Ports {
    names: Vec<String>,
    /// Directory and first part of the names of the lock files.
    locks: PathBuf,
    prefix: String,
}

/// A root port that is ours until it is dropped.
#[derive(Debug)]
pub struct Port {
    name: String,
    lock: LockFile,
}

impl Port {
    /// Its id in the storage VM's QEMU.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its lock.
    pub fn lock(&mut self) -> &mut LockFile {
        &mut self.lock
    }
}

impl Ports {
    /// The ports `names` of the storage VM behind the QMP socket `qmp`, with lock files in
    /// `locks`, or beside the socket.
    ///
    /// # Errors
    /// [`PortNameError`] if there is no name, or one that cannot be an id.
    pub fn new(
        names: Vec<String>,
        qmp: &Path,
        locks: Option<&Path>,
    ) -> Result<Self, PortNameError> {
        if names.is_empty() {
            return Err(PortNameError::None);
        }
        let is_id = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        };
        if let Some(bad) = names.iter().find(|name| !is_id(name)) {
            return Err(PortNameError::NotAnId(bad.clone()));
        }
        // A path without a last part is no socket, which connecting will say.
        let file = qmp.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            names,
            locks: locks
                .or_else(|| qmp.parent())
                .unwrap_or(Path::new(""))
                .to_owned(),
            prefix: file.into_owned(),
        })
    }

    /// Takes a port that is neither locked by another shim nor in use in QEMU.
    ///
    /// # Errors
    /// [`PortError`] if there is none.
    pub fn take(&self, devices: &PciDevices) -> Result<Port, PortError> {
        for name in &self.names {
            if devices.is_occupied(name) {
                continue;
            }
            if let Some(lock) = self.lock(name)? {
                return Ok(Port {
                    name: name.clone(),
                    lock,
                });
            }
        }
        Err(PortError::AllTaken(self.names.join(", ")))
    }

    /// Takes the device id `id`, so that no other shim believes its device to be left behind.
    ///
    /// # Errors
    /// [`PortError`] if another shim has it.
    pub fn claim(&self, id: &str) -> Result<LockFile, PortError> {
        self.lock(id)?
            .ok_or_else(|| PortError::SameName(id.to_owned()))
    }

    /// The port `name` that another process of this shim took, with its lock.
    pub fn taken(&self, name: String, held: KeptFd) -> Port {
        let lock = self.claimed(&name, held);
        Port { name, lock }
    }

    /// The claim of `id` that another process of this shim made.
    pub fn claimed(&self, id: &str, held: KeptFd) -> LockFile {
        LockFile::taken(&self.lock_path(id), held)
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.locks.join(format!("{}.{name}.lock", self.prefix))
    }

    fn lock(&self, name: &str) -> Result<Option<LockFile>, PortError> {
        let path = self.lock_path(name);
        LockFile::try_take(&path).map_err(|error| PortError::Lock { path, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use vmm_sys_util::tempdir::TempDir;

    fn pool(dir: &TempDir, names: &[&str]) -> Ports {
        let names = names.iter().map(ToString::to_string).collect();
        Ports::new(names, &dir.as_path().join("qmp.sock"), None).unwrap()
    }

    #[test]
    fn shims_side_by_side_get_different_ports() {
        let dir = TempDir::new().unwrap();
        let devices = PciDevices::default();
        let first = pool(&dir, &["rp0", "rp1"]).take(&devices).unwrap();
        let second = pool(&dir, &["rp0", "rp1"]).take(&devices).unwrap();
        assert_eq!((first.name(), second.name()), ("rp0", "rp1"));

        let error = pool(&dir, &["rp0", "rp1"]).take(&devices).unwrap_err();
        assert!(error.to_string().contains("rp0, rp1"), "{error}");

        drop(first);
        assert_eq!(
            pool(&dir, &["rp0", "rp1"]).take(&devices).unwrap().name(),
            "rp0"
        );
    }

    #[test]
    fn a_port_in_use_in_qemu_is_passed_over() {
        let dir = TempDir::new().unwrap();
        let devices = PciDevices::parse(&json!([{ "devices": [
            { "qdev_id": "rp0", "pci_bridge": { "devices": [{ "qdev_id": "nic" }] } }
        ] }]));
        assert_eq!(
            pool(&dir, &["rp0", "rp1"]).take(&devices).unwrap().name(),
            "rp1"
        );
    }

    #[test]
    fn names_that_are_no_ids_are_refused() {
        for bad in ["", "../rp0", "rp 0", "0rp", "rp0,bus=x"] {
            let ports = Ports::new(vec![bad.to_owned()], Path::new("/run/qmp"), None);
            assert_eq!(ports.unwrap_err(), PortNameError::NotAnId(bad.to_owned()));
        }
        assert!(matches!(
            Ports::new(Vec::new(), Path::new("/run/qmp"), None),
            Err(PortNameError::None)
        ));
    }
}
