//! From a LUN of the configuration to a logical unit on an open disk.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{LunConfig, OnError, Provisioning, Source};
use crate::disk::{
    Disk, FileDisk, FileOptions, HeaderError, Kernel, NullDisk, OpenError, OpenProblem,
    ProtectedDisk, RamDisk, Reflink,
};
use crate::locate::{LocateError, disk_with_serial};
use crate::scsi::{BadName, LogicalUnit, StateError};

/// Where the kernel lists disks.
const SYS_BLOCK: &str = "/sys/block";
/// How often a disk is tried that is waited for.
const RETRY: Duration = Duration::from_millis(20);
/// How long waiting is nothing to speak of.
const SILENCE: Duration = Duration::from_millis(500);

/// A LUN that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("LUN {lun:?}: {problem}")]
pub struct LunError {
    /// Its name.
    pub lun: String,
    /// Why.
    pub problem: LunProblem,
}

/// Why a LUN cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LunProblem {
    /// No disk, or more than one, has its serial number.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// Its disk cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its disk is not one with the protection information that it is to have.
    #[error("its disk cannot have protection information: {0}")]
    Protection(#[from] HeaderError),
    /// A disk without a file has no whole number of blocks.
    #[error("its size is no whole number of blocks; make it a multiple of its block_size")]
    Size,
    /// There is no memory for it.
    #[error("there is no memory for it: {0}; make its size smaller")]
    Ram(io::Error),
    /// Its name cannot be an identity.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Whom persistent reservations keep away from it, or what of it was to be erased, is not known.
    #[error(transparent)]
    State(#[from] StateError),
}

impl LunProblem {
    /// Whether the disk may still appear, or be given up by another user.
    fn may_pass(&self) -> bool {
        match self {
            Self::Locate(error) => matches!(error, LocateError::None { .. }),
            Self::Open(error) => matches!(
                error.problem,
                OpenProblem::Missing | OpenProblem::Locked | OpenProblem::InUse
            ),
            Self::Protection(_) | Self::Size | Self::Ram(_) | Self::Name(_) | Self::State(_) => {
                false
            }
        }
    }
}

type Open = dyn Fn(&LunConfig) -> Result<Arc<dyn Disk>, LunProblem> + Send + Sync;

/// How the disk of a LUN is opened.
pub(super) struct Opener(pub Box<Open>);

impl Default for Opener {
    fn default() -> Self {
        Self(Box::new(open_disk))
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

/// Opens a LUN; one whose disk is not there or locked is tried again until `deadline`. Its state
/// is kept in the directory `state`, if there is one.
pub(super) fn open_in_time(
    opener: &Opener,
    lun: &LunConfig,
    state: Option<&Path>,
    deadline: Instant,
) -> Result<Arc<LogicalUnit>, LunProblem> {
    let start = Instant::now();
    let mut reported = false;
    loop {
        match (opener.0)(lun) {
            Ok(disk) => return Ok(Arc::new(unit(lun, disk, state)?)),
            Err(problem) if !problem.may_pass() || Instant::now() >= deadline => {
                return Err(problem);
            }
            Err(problem) => {
                if !reported && start.elapsed() >= SILENCE {
                    tracing::warn!(
                        lun = lun.name,
                        "waiting for its disk, {} s at most: {problem}",
                        deadline.saturating_duration_since(start).as_secs()
                    );
                    reported = true;
                }
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// The disk of a LUN.
///
/// # Errors
/// [`LunProblem`].
pub fn open_disk(lun: &LunConfig) -> Result<Arc<dyn Disk>, LunProblem> {
    open_disk_with(lun, Arc::new(Kernel))
}

/// The disk of a LUN, in a filesystem that copies by `reflink`.
///
/// # Errors
/// [`LunProblem`].
pub fn open_disk_with(
    lun: &LunConfig,
    reflink: Arc<dyn Reflink>,
) -> Result<Arc<dyn Disk>, LunProblem> {
    let path = match &lun.source {
        Source::Serial(serial) => disk_with_serial(Path::new(SYS_BLOCK), serial)?,
        Source::Path(path) => path.clone(),
        Source::Null(size) => {
            let disk = NullDisk::new(*size, lun.block_size, lun.read_only);
            return Ok(Arc::new(disk.ok_or(LunProblem::Size)?));
        }
        Source::Ram(size) => {
            let disk = RamDisk::new(*size, lun.block_size, lun.read_only);
            return Ok(Arc::new(
                disk.map_err(LunProblem::Ram)?.ok_or(LunProblem::Size)?,
            ));
        }
    };
    let disk = FileDisk::open(&FileOptions {
        path,
        read_only: lun.read_only,
        cache: lun.cache,
        bounce: lun.bounce,
        shared: lun.shared,
        block_size: lun.block_size,
        size: lun.size,
        reflink,
    })?;
    let disk = Arc::new(match lun.provisioning {
        Provisioning::Auto => disk,
        Provisioning::Thick => disk.thick(),
    });
    Ok(match lun.protection {
        Some(protection) => Arc::new(ProtectedDisk::open(disk, protection)?),
        None => disk,
    })
}

/// The unit of a LUN, with what the configuration says about it.
fn unit(
    lun: &LunConfig,
    disk: Arc<dyn Disk>,
    state: Option<&Path>,
) -> Result<LogicalUnit, LunProblem> {
    let mut unit = LogicalUnit::new(&lun.name, disk)?;
    if lun.shared {
        unit = unit.shared();
    }
    if let Some(patience) = lun.timeout {
        unit = unit.with_patience(patience);
    }
    if lun.on_error == OnError::Pause {
        unit = unit.with_pauses();
    }
    if let Some(percent) = lun.threshold {
        unit = unit.with_threshold(percent);
    }
    if let Some(state) = state {
        let name = file_name(&lun.name);
        // No name of a LUN has a dot in it there.
        let reservations = state.join(format!("{name}.reservations"));
        let information = state.join(format!("{name}.information"));
        let erasing = state.join(format!("{name}.erasing"));
        unit = unit
            .with_state(state.join(name))
            .with_reservations(reservations)?
            .with_upkeep(information, erasing)?;
    }
    Ok(unit)
}

/// A file name of its own for each LUN name, which leads to no other folder.
fn file_name(lun: &str) -> String {
    lun.bytes().fold(String::new(), |mut name, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            name.push(byte.into());
        } else {
            name += &format!("%{byte:02x}");
        }
        name
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::disk::Cache;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn lun(path: &Path) -> LunConfig {
        LunConfig {
            name: "late".into(),
            source: Source::Path(path.to_owned()),
            read_only: false,
            cache: Cache::WriteBack,
            bounce: true,
            shared: false,
            block_size: 512,
            size: None,
            provisioning: Provisioning::Auto,
            protection: None,
            timeout: None,
            on_error: OnError::default(),
            threshold: None,
            limit: crate::config::Limit::default(),
        }
    }

    #[test]
    fn a_lun_name_becomes_a_file_name_of_its_own() {
        assert_eq!(file_name("t1-root_0"), "t1-root_0");
        assert_eq!(file_name("../a%b"), "%2e%2e%2fa%25b");
    }

    fn in_time(lun: &LunConfig, deadline: Instant) -> Result<Arc<LogicalUnit>, LunProblem> {
        open_in_time(&Opener::default(), lun, None, deadline)
    }

    #[test]
    fn a_disk_that_appears_late_is_waited_for() {
        let path = std::env::temp_dir().join(format!("late-{}", Uuid::new_v4()));
        let appears = std::thread::spawn({
            let path = path.clone();
            move || {
                std::thread::sleep(Duration::from_millis(200));
                let part = path.with_extension("part");
                std::fs::write(&part, [0; 512])?;
                std::fs::rename(part, path)
            }
        });
        let unit = in_time(&lun(&path), Instant::now() + PATIENCE).unwrap();
        assert_eq!(unit.disk().geometry().blocks, 1);
        appears.join().unwrap().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_disk_that_is_locked_is_waited_for() {
        let path = std::env::temp_dir().join(format!("locked-{}", Uuid::new_v4()));
        std::fs::write(&path, [0; 512]).unwrap();
        let held = in_time(&lun(&path), Instant::now()).unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(held);
        });
        assert!(in_time(&lun(&path), Instant::now() + PATIENCE).is_ok());
        release.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_disk_that_does_not_appear_is_waited_for_no_longer_than_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(100);
        let problem = in_time(&lun(Path::new("/does/not/exist")), deadline).unwrap_err();
        assert!(problem.may_pass() && Instant::now() >= deadline);
    }

    #[test]
    fn a_disk_that_is_there_but_no_disk_is_not_waited_for() {
        let start = Instant::now();
        let directory = lun(&std::env::temp_dir());
        assert!(in_time(&directory, start + PATIENCE).is_err());
        assert!(start.elapsed() < PATIENCE);
    }
}
