//! The appliance: its LUNs, opened once, and the HBAs that see them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::attachment::{AttachError, Attachment, Claims, Identity};
use crate::config::{Config, HbaConfig, LunConfig, Source};
use crate::device::Device;
use crate::disk::{FileDisk, FileOptions, OpenError, OpenProblem};
use crate::locate::{LocateError, disk_with_serial};
use crate::scsi::{Address, BadLun, BadName, Host, LogicalUnit};

/// Where the kernel lists disks.
const SYS_BLOCK: &str = "/sys/block";
/// How long disks are waited for that are not there or locked, all LUNs together, and how often
/// they are tried: when the storage VM starts, its kernel still finds disks while we start, and an
/// appliance that has just ended holds its locks until its last I/O is over.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
const DISK_RETRY: Duration = Duration::from_millis(20);
/// How long that is nothing to speak of.
const DISK_SILENCE: Duration = Duration::from_millis(500);

/// Everything that does not depend on which functions are there.
#[derive(Debug)]
pub struct Appliance {
    name: String,
    units: usize,
    hbas: HashMap<Uuid, Hba>,
    problems: Vec<LunError>,
    claims: Claims,
}

#[derive(Debug)]
struct Hba {
    name: String,
    units: BTreeMap<u16, Arc<LogicalUnit>>,
}

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
    /// Its name cannot be an identity.
    #[error(transparent)]
    Name(#[from] BadName),
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
            Self::Name(_) => false,
        }
    }
}

/// Why an appliance cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There are LUNs, but not one can be served.
    #[error("no LUN can be served: {}", join(.0))]
    NoLun(Vec<LunError>),
    /// An HBA has a LUN number that it cannot have.
    #[error("HBA {hba:?}: {problem}")]
    Lun {
        /// Name of the HBA.
        hba: String,
        /// What is wrong.
        problem: BadLun,
    },
}

fn join(errors: &[LunError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl Appliance {
    /// Opens the disks of every LUN; one that is not there or locked is waited for, up to 10 s.
    ///
    /// A LUN whose disk cannot be opened is reported ([`Self::problems`], and in the log) and
    /// left out; the others are served.
    ///
    /// # Errors
    /// [`StartError`] if nothing is left to serve, or the HBAs make no sense.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let mut units = HashMap::new();
        let mut problems = Vec::new();
        let deadline = Instant::now() + DISK_PATIENCE;
        for lun in &config.luns {
            match open_in_time(lun, deadline) {
                Ok(unit) => {
                    units.insert(lun.name.as_str(), Arc::new(unit));
                }
                Err(problem) => {
                    let error = LunError {
                        lun: lun.name.clone(),
                        problem,
                    };
                    tracing::error!("{error}; the other LUNs are served without it");
                    problems.push(error);
                }
            }
        }
        if units.is_empty() && !problems.is_empty() {
            return Err(StartError::NoLun(problems));
        }
        let hbas = config
            .hbas
            .iter()
            .map(|hba| Ok((hba.uuid, Hba::new(hba, &units)?)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            units: units.len(),
            name: config.name,
            hbas,
            problems,
            claims: Claims::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many LUNs are served.
    pub fn luns(&self) -> usize {
        self.units
    }

    /// How many HBAs may attach.
    pub fn hbas(&self) -> usize {
        self.hbas.len()
    }

    /// The LUNs that are not served.
    pub fn problems(&self) -> &[LunError] {
        &self.problems
    }

    /// Takes a vhost-pci function into service.
    ///
    /// # Errors
    /// [`AttachError`]; the function is dropped then.
    pub fn attach(&self, device: Arc<dyn Device>) -> Result<Attachment, AttachError> {
        let uuid = Identity::read(&*device)?.hba;
        let hba = self.hbas.get(&uuid).ok_or(AttachError::UnknownHba(uuid))?;
        let host = hba.host().map_err(AttachError::Target)?;
        Attachment::start(device, &self.claims, uuid, &hba.name, host)
    }
}

impl Hba {
    fn new(
        config: &HbaConfig,
        units: &HashMap<&str, Arc<LogicalUnit>>,
    ) -> Result<Self, StartError> {
        let hba = Self {
            name: config.name.clone(),
            units: config
                .luns
                .iter()
                .filter_map(|(number, lun)| Some((*number, Arc::clone(units.get(lun.as_str())?))))
                .collect(),
        };
        match hba.host() {
            Ok(_) => Ok(hba),
            Err(problem) => Err(StartError::Lun {
                hba: hba.name,
                problem,
            }),
        }
    }

    /// A host for one attachment: what its tenant sees starts afresh.
    fn host(&self) -> Result<Host, BadLun> {
        Host::new(self.units.iter().map(|(&lun, unit)| {
            let target = 0;
            (Address { target, lun }, Arc::clone(unit))
        }))
    }
}

/// Opens a LUN; one whose disk is not there or locked is tried again until `deadline`.
fn open_in_time(lun: &LunConfig, deadline: Instant) -> Result<LogicalUnit, LunProblem> {
    let start = Instant::now();
    let mut reported = false;
    loop {
        match open(lun) {
            Err(problem) if problem.may_pass() && Instant::now() < deadline => {
                if !reported && start.elapsed() >= DISK_SILENCE {
                    tracing::warn!(
                        lun = lun.name,
                        "waiting for its disk, {} s at most: {problem}",
                        deadline.saturating_duration_since(start).as_secs()
                    );
                    reported = true;
                }
                std::thread::sleep(DISK_RETRY);
            }
            result => return result,
        }
    }
}

fn open(lun: &LunConfig) -> Result<LogicalUnit, LunProblem> {
    let path = match &lun.source {
        Source::Serial(serial) => disk_with_serial(Path::new(SYS_BLOCK), serial)?,
        Source::Path(path) => path.clone(),
    };
    let disk = FileDisk::open(&FileOptions {
        path,
        read_only: lun.read_only,
        cache: lun.cache,
        shared: lun.shared,
        block_size: lun.block_size,
        size: lun.size,
    })?;
    Ok(LogicalUnit::new(&lun.name, Arc::new(disk))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Cache;

    fn lun(path: &Path) -> LunConfig {
        LunConfig {
            name: "late".into(),
            source: Source::Path(path.to_owned()),
            read_only: false,
            cache: Cache::WriteBack,
            shared: false,
            block_size: 512,
            size: None,
        }
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
        let unit = open_in_time(&lun(&path), Instant::now() + DISK_PATIENCE).unwrap();
        assert_eq!(unit.disk().geometry().blocks, 1);
        appears.join().unwrap().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_disk_that_is_locked_is_waited_for() {
        let path = std::env::temp_dir().join(format!("locked-{}", Uuid::new_v4()));
        std::fs::write(&path, [0; 512]).unwrap();
        let held = open(&lun(&path)).unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(held);
        });
        assert!(open_in_time(&lun(&path), Instant::now() + DISK_PATIENCE).is_ok());
        release.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_disk_that_does_not_appear_is_waited_for_no_longer_than_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(100);
        let problem = open_in_time(&lun(Path::new("/does/not/exist")), deadline).unwrap_err();
        assert!(problem.may_pass() && Instant::now() >= deadline);
    }

    #[test]
    fn a_disk_that_is_there_but_no_disk_is_not_waited_for() {
        let start = Instant::now();
        let directory = lun(&std::env::temp_dir());
        assert!(open_in_time(&directory, start + DISK_PATIENCE).is_err());
        assert!(start.elapsed() < DISK_PATIENCE);
    }
}
