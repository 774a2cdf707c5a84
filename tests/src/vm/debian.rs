//! Trees of Debian packages, fetched without root and used without chroot.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::error::{Error, FileContext, Result};
use super::process::run;

/// The Debian release that everything comes from.
pub const SUITE: &str = "trixie";

/// A directory of unpacked (never installed) Debian packages.
#[derive(Debug, Clone)]
pub struct PackageTree {
    root: PathBuf,
}

impl PackageTree {
    /// The tree already at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Unpacks `packages` and what they depend on into the empty directory `root`.
    ///
    /// With `backports`, versions from backports win.
    pub fn unpack(root: &Path, packages: &[&str], backports: bool) -> Result<Self> {
        let mirror = mirror();
        let mut fetch = Command::new("mmdebstrap");
        fetch.args(["--quiet", "--variant=extract"]);
        fetch.arg(format!("--include={}", packages.join(",")));
        if backports {
            fetch.arg(format!(
                "--aptopt=APT::Default-Release \"{SUITE}-backports\""
            ));
        }
        fetch.args([SUITE, "-", &format!("deb {mirror} {SUITE} main")]);
        if backports {
            fetch.arg(format!("deb {mirror} {SUITE}-backports main"));
        }
        let mut fetch = fetch
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|_| Error::MissingTool {
                tool: "mmdebstrap",
                package: "mmdebstrap",
            })?;
        // A plain user cannot make device nodes, and no tree needs them.
        let mut unpack = Command::new("tar");
        unpack
            .args(["-x", "--no-same-owner", "--exclude=./dev/*", "-C"])
            .arg(root);
        if let Some(tar) = fetch.stdout.take() {
            unpack.stdin(tar);
        }
        let unpacked = run("unpacking Debian packages", &mut unpack);
        let status = fetch.wait().file("run", "mmdebstrap")?;
        if !status.success() {
            return Err(Error::Command {
                command: format!("mmdebstrap of {}", packages.join(", ")),
                status,
                output: format!("see above; the mirror was {mirror} (set VPCI_MIRROR for another)"),
            });
        }
        unpacked?;
        Ok(Self::at(root))
    }

    /// The path of `file` in the tree.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// A command that runs a program of the tree with the tree's own libraries.
    ///
    /// It sees the host's file system, so paths mean the same to it as to us.
    pub fn command(&self, program: &str) -> Command {
        let file = ["usr/bin", "usr/sbin"]
            .map(|directory| self.path(directory).join(program))
            .into_iter()
            .find(|file| file.exists())
            .unwrap_or_else(|| self.path("usr/bin").join(program));
        let mut command = Command::new(self.path("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(self.path("usr/lib/x86_64-linux-gnu"))
            .arg(file);
        command
    }
}

/// The Debian mirror: `VPCI_MIRROR`, or the one that this machine's apt uses.
pub fn mirror() -> String {
    const DEFAULT: &str = "http://deb.debian.org/debian";
    env::var("VPCI_MIRROR")
        .ok()
        .or_else(apt_mirror)
        .unwrap_or_else(|| DEFAULT.to_owned())
}

fn apt_mirror() -> Option<String> {
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
        ])
        .arg("Created-By: Packages")
        .output()
        .ok()?;
    let targets = String::from_utf8(targets.stdout).ok()?;
    let is_debian = |release: &str| ["bookworm", "trixie", "stable"].contains(&release);
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (release, component, uri) = (words.next()?, words.next()?, words.next()?);
        // Not a snapshot or a vendor's archive: those lack trixie-backports.
        let usable = uri.starts_with("http") && uri.trim_end_matches('/').ends_with("/debian");
        (is_debian(release) && component == "main" && usable).then(|| uri.to_owned())
    })
}
