//! The storage VM's kernel and initramfs, by `appliance/image/build.sh`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::debian::mirror;
use super::error::{FileContext, Result};
use super::process::run;
use super::{programs, progress, store};

const BUILDER: &str = include_str!("../../../appliance/image/build.sh");
const INIT: &str = include_str!("../../../appliance/image/init");
const TERMINAL: &str = include_str!("../../../appliance/image/terminal");
const POWER_OFF: &str = include_str!("../../../appliance/image/power-off");
const AGENT: &str = include_str!("../../guest/agent");

/// What the storage VM is started from.
#[derive(Debug, Clone)]
pub struct StorageImage {
    directory: PathBuf,
}

impl StorageImage {
    /// The image with the appliance of this tree.
    pub fn build() -> Result<Self> {
        Self::with(&programs::appliance()?)
    }

    /// The image with `appliance`, a statically linked program.
    pub fn with(appliance: &Path) -> Result<Self> {
        Self::made("storage-image", appliance, &[])
    }

    /// The image with the appliance of this tree and more of the kernel's `modules`, kept as
    /// `name`: the image that is shipped has none but its own.
    pub fn with_modules(name: &str, modules: &[&str]) -> Result<Self> {
        Self::made(name, &programs::appliance()?, modules)
    }

    fn made(name: &str, appliance: &Path, modules: &[&str]) -> Result<Self> {
        let program = fs::read(appliance).file("read", appliance)?;
        let recipe = (
            (BUILDER, INIT, TERMINAL, POWER_OFF),
            (AGENT, program, modules),
        );
        let directory = store::keep(name, recipe, |directory| {
            let _step = progress::step("building the storage VM image");
            build_into(directory, appliance, modules)
        })?;
        Ok(Self { directory })
    }

    /// The image of [`Self::build`], built once more, into `directory`.
    pub fn built_into(directory: &Path) -> Result<Self> {
        build_into(directory, &programs::appliance()?, &[])?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The same image, put into `directory` in the place of one that is there, as the guide says.
    pub fn put_into(&self, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).file("create", directory)?;
        let there = Self {
            directory: directory.to_owned(),
        };
        for (from, to) in [
            (self.vmlinuz(), there.vmlinuz()),
            (self.initramfs(), there.initramfs()),
        ] {
            let new = to.with_extension("new");
            fs::copy(&from, &new).file("copy", &from)?;
            fs::rename(&new, &to).file("put in place", &to)?;
        }
        Ok(there)
    }

    /// The kernel.
    pub fn vmlinuz(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }
}

fn build_into(directory: &Path, appliance: &Path, modules: &[&str]) -> Result<()> {
    let additions = directory.join("additions");
    add_agent(&additions)?;
    let mut build = Command::new(store::workspace().join("appliance/image/build.sh"));
    build.arg("--appliance").arg(appliance);
    build.arg("--out").arg(directory);
    build.arg("--mirror").arg(mirror());
    build.arg("--add").arg(&additions);
    let packages = store::directory().join("storage-packages");
    build.arg("--cache").arg(packages);
    build.args(["--modules", &modules.join(" ")]);
    run("building the storage VM image", &mut build).map(drop)
}

/// Puts the agent where the image starts it.
fn add_agent(additions: &Path) -> Result<()> {
    let directory = additions.join("etc/start.d");
    fs::create_dir_all(&directory).file("create", &directory)?;
    store::write_program(&directory.join("agent"), AGENT)
}
