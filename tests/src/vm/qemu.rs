//! Which QEMU to run: the one given, the machine's own if it is new enough, or a fetched one.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use super::debian::PackageTree;
use super::error::{Error, Result};
use super::process::{run, which};
use super::{progress, store};

/// The oldest QEMU with `vfio-user-pci`.
const OLDEST: (u32, u32) = (10, 1);
/// The last has the storage daemon.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "seabios", "ovmf", "qemu-utils"];

/// A QEMU that can do the job.
#[derive(Debug, Clone)]
pub enum Qemu {
    /// A program of this machine.
    Installed(PathBuf),
    /// One unpacked from Debian backports.
    Fetched(PackageTree),
}

impl Qemu {
    /// Finds or fetches it.
    pub fn find() -> Result<Self> {
        if let Some(given) = env::var_os("VPCI_QEMU") {
            let path = PathBuf::from(given);
            return fit(&mut Command::new(&path))
                .map(|()| Self::Installed(path.clone()))
                .map_err(|problem| Error::UnfitQemu { path, problem });
        }
        if let Some(path) = which("qemu-system-x86_64")
            && fit(&mut Command::new(&path)).is_ok()
        {
            return Ok(Self::Installed(path));
        }
        Self::fetch().map(Self::Fetched)
    }

    /// The tree of QEMU and firmware packages.
    fn fetch() -> Result<PackageTree> {
        let root = store::keep("qemu", PACKAGES, |root| {
            let _step = progress::step("fetching QEMU");
            let tree = PackageTree::unpack(root, &PACKAGES, true)?;
            fit(&mut Self::Fetched(tree.clone()).command()).map_err(|problem| Error::UnfitQemu {
                path: root.to_owned(),
                problem,
            })
        })?;
        Ok(PackageTree::at(root))
    }

    /// QEMU, ready for its arguments.
    pub fn command(&self) -> Command {
        match self {
            Self::Installed(path) => Command::new(path),
            Self::Fetched(tree) => {
                let mut command = tree.command("qemu-system-x86_64");
                command.env(
                    "QEMU_MODULE_DIR",
                    tree.path("usr/lib/x86_64-linux-gnu/qemu"),
                );
                for firmware in ["usr/share/seabios", "usr/share/qemu"] {
                    command.arg("-L").arg(tree.path(firmware));
                }
                command
            }
        }
    }

    /// OVMF's code and its empty variable store.
    pub fn ovmf(&self) -> Result<(PathBuf, PathBuf)> {
        const FILES: [&str; 2] = ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"];
        let [code, vars] = FILES.map(|file| Path::new("/usr/share/OVMF").join(file));
        if matches!(self, Self::Installed(_)) && code.exists() && vars.exists() {
            return Ok((code, vars));
        }
        let tree = Self::fetch()?;
        let [code, vars] = FILES.map(|file| tree.path("usr/share/OVMF").join(file));
        Ok((code, vars))
    }
}

/// QEMU's storage daemon, ready for its arguments: `VPCI_STORAGE_DAEMON`, the machine's own if it
/// is as new as QEMU has to be, or the one fetched with QEMU.
///
/// # Errors
/// It cannot be fetched.
pub fn storage_daemon() -> Result<Command> {
    const PROGRAM: &str = "qemu-storage-daemon";
    if let Some(given) = env::var_os("VPCI_STORAGE_DAEMON") {
        return Ok(Command::new(given));
    }
    if let Some(path) = which(PROGRAM)
        && let Ok(text) = run(PROGRAM, Command::new(&path).arg("--version"))
        && version(&text).is_some_and(|version| version >= OLDEST)
    {
        return Ok(Command::new(path));
    }
    Ok(Qemu::fetch()?.command(PROGRAM))
}

/// Whether this QEMU can do the job; if not, why.
fn fit(qemu: &mut Command) -> Result<(), String> {
    let text = run("QEMU", qemu.arg("--version")).map_err(|error| error.to_string())?;
    let version = version(&text).ok_or_else(|| format!("not a QEMU; it says: {text}"))?;
    if version < OLDEST {
        let ((major, minor), (oldest_major, oldest_minor)) = (version, OLDEST);
        return Err(format!(
            "is QEMU {major}.{minor}; needed is {oldest_major}.{oldest_minor}"
        ));
    }
    let mut again = Command::new(qemu.get_program());
    again.args(qemu.get_args().filter(|argument| *argument != "--version"));
    let devices = run("QEMU", again.args(["-device", "help"])).map_err(|e| e.to_string())?;
    let has_device = devices.contains("\"vfio-user-pci\"");
    has_device
        .then_some(())
        .ok_or_else(|| "was built without vfio-user-pci".to_owned())
}

/// Major and minor from "QEMU emulator version 11.1.3 (…)".
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once("version ")?;
    let mut numbers = version.split(['.', ' ']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_debians_words() {
        let text = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\n";
        assert_eq!(version(text), Some((11, 1)));
        assert_eq!(version("bash 5"), None);
    }
}
