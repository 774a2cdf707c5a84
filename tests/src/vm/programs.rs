//! The programs under test, and those that test from inside a tenant, statically linked.

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

/// A test program for a tenant, of those in `src/bin`, built from this tree.
pub fn for_tenant(program: &str) -> Result<PathBuf> {
    let _lock = store::lock("programs")?;
    let _step = progress::step("building the tenant's test programs");
    let directory = build(&[
        "--bin",
        "hba-probe",
        "--bin",
        "witness",
        "--package",
        "vhost-pci-tests",
    ])?;
    Ok(directory.join(program))
}

/// Builds both programs, once per process, and gives the path of one.
fn built(program: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if BUILT.get().is_none() {
        let _lock = store::lock("programs")?;
        let _step = progress::step("building the appliance and the host shim");
        let packages = ["vhost-pci-appliance", "vhost-pci-host-shim"];
        let directory = build(&["--bins", "--package", packages[0], "--package", packages[1]])?;
        BUILT.get_or_init(|| directory);
    }
    Ok(BUILT.get().expect("it was built").join(program))
}

/// Builds what `selection` says, statically linked, and gives the directory with it.
///
/// That has a target directory of its own, since other flags would make cargo build the whole
/// tree anew each time.
fn build(selection: &[&str]) -> Result<PathBuf> {
    let target = store::directory().join("programs");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--target", TARGET]);
    cargo.args(selection);
    cargo
        .arg("--target-dir")
        .arg(&target)
        .current_dir(store::workspace());
    // Debug information would be most of the storage VM's initramfs, which lives in its RAM.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run("building the programs", &mut cargo)?;
    Ok(target.join(TARGET).join("release"))
}
