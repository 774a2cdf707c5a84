//! Filesystems under the LUNs of a World that have files share blocks, or play it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use appliance::disk::Reflink;
use uuid::Uuid;

/// Plays a filesystem that shares blocks: it copies them.
#[derive(Debug, Default)]
pub struct Copies {
    calls: AtomicU32,
    hangs: Mutex<bool>,
    goes_on: Condvar,
}

impl Copies {
    /// A new one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How often it was asked for.
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Whether what it is asked for waits.
    pub fn hang(&self, hangs: bool) {
        *self.hangs.lock().unwrap_or_else(PoisonError::into_inner) = hangs;
        self.goes_on.notify_all();
    }
}

impl Reflink for Copies {
    fn clone_range(
        &self,
        from: &File,
        at: u64,
        to: &File,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let hangs = self.hangs.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.goes_on.wait_while(hangs, |hangs| *hangs);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        let len = if len == 0 {
            from.metadata()?.len().saturating_sub(at)
        } else {
            len
        };
        // Through other descriptors: these may want memory that is aligned.
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        File::open(path(from))?.read_exact_at(&mut bytes, at)?;
        let to = File::options().write(true).open(path(to))?;
        to.write_all_at(&bytes, offset)?;
        to.sync_data()
    }

    fn copy_range(&self, _: &File, _: u64, _: &File, _: u64, _: usize) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn copies_elsewhere(&self, _: &File) -> io::Result<bool> {
        Ok(false)
    }
}

/// Filesystems that share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

/// A filesystem of its own, in an image that is mounted; gone when it is dropped.
#[derive(Debug)]
pub struct Filesystem {
    image: PathBuf,
    mount: PathBuf,
}

impl Filesystem {
    /// Makes one of 512 MiB.
    ///
    /// # Errors
    /// Why there is none: that takes root, its mkfs, loop devices, and a kernel that has it.
    pub fn new(kind: Sharing) -> Result<Self, String> {
        let kind = match kind {
            Sharing::Xfs => "xfs",
            Sharing::Btrfs => "btrfs",
        };
        let mount = std::env::temp_dir().join(format!("{kind}-{}", Uuid::new_v4()));
        let image = mount.with_extension("img");
        let made = Self { image, mount };
        let room = || -> io::Result<()> {
            File::create(&made.image)?.set_len(512 << 20)?;
            std::fs::create_dir(&made.mount)
        };
        room().map_err(|error| format!("no place for an image: {error}"))?;
        run(Command::new(format!("mkfs.{kind}"))
            .arg("-q")
            .arg(&made.image))?;
        let options = ["-t", kind, "-o", "loop"];
        run(Command::new("mount")
            .args(options)
            .arg(&made.image)
            .arg(&made.mount))?;
        Ok(made)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().display().to_string();
    let said = |error: &dyn std::fmt::Display| format!("{program}: {error}");
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(said(&text))
        }
        Err(error) => Err(said(&error)),
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        // Nothing is mounted where it could not be made.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        let _ = std::fs::remove_dir(&self.mount);
        let _ = std::fs::remove_file(&self.image);
    }
}
