//! The two programs under test, statically linked.

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

use super::error::Result;
use super::process::run;
use super::{progress, store};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The appliance: `VPCI_APPLIANCE`, or built from this tree.
pub fn appliance() -> Result<PathBuf> {
    given("VPCI_APPLIANCE").map_or_else(|| built("appliance"), Ok)
}

/// The host shim: `VPCI_HOST_SHIM`, or built from this tree.
pub fn host_shim() -> Result<PathBuf> {
    given("VPCI_HOST_SHIM").map_or_else(|| built("host-shim"), Ok)
}

fn given(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from)
}

/// Builds both programs, once per process, and gives the path of one.
///
/// They have a target directory of their own, since other flags would make cargo build the whole
/// tree anew each time.
fn built(program: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<()> = OnceLock::new();
    let target = store::directory().join("programs");
    if BUILT.get().is_none() {
        let _lock = store::lock("programs")?;
        let _step = progress::step("building the appliance and the host shim");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--release", "--bins", "--target", TARGET]);
        cargo.args([
            "--package",
            "vhost-pci-appliance",
            "--package",
            "vhost-pci-host-shim",
        ]);
        cargo
            .arg("--target-dir")
            .arg(&target)
            .current_dir(store::workspace());
        // Debug information would be most of the storage VM's initramfs, which lives in its RAM.
        cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        run("building the programs", &mut cargo)?;
        BUILT.get_or_init(|| ());
    }
    Ok(target.join(TARGET).join("release").join(program))
}
