//! The appliance: its LUNs, opened once, and the HBAs that see them.

mod monitor;
mod numbers;
mod open;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::monitor::Monitor;
pub use self::numbers::BadPort;
use self::numbers::numbers;
pub use self::open::{LunError, LunProblem, open_disk, open_disk_with};
use self::open::{Opener, open_in_time};
use crate::attachment::{AttachError, Attachment, Claims, Identity, Line};
use crate::config::{Config, HbaConfig, LunConfig};
use crate::device::Device;
use crate::disk::Disk;
use crate::pinning;
pub use crate::pinning::BadPin;
pub use crate::roster::Applied;
use crate::roster::{Enlisted, Luns, Roster, SharedLimits, View, Views};
use crate::scsi::{Address, BadLun, Host, Initiator};
use crate::vhost_user::{self, Options, Served, Socket};

/// How long disks are waited for at the start that are not there or locked, all LUNs together:
/// when the storage VM starts, its kernel still finds disks while we start, and an appliance that
/// has just ended holds its locks until its last I/O is over.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// Everything that does not depend on which functions are there.
#[derive(Debug)]
pub struct Appliance {
    problems: Vec<LunError>,
    opener: Opener,
    /// What is in force; locked for a moment only.
    config: Mutex<Config>,
    /// Locked, before `config`, while another takes its place, which may wait for disks.
    applying: Mutex<TakenOut>,
    /// How many configurations were in force before.
    generation: AtomicU64,
    claims: Claims,
    /// Which boot of this machine it runs in.
    boot: Uuid,
    /// Goes before the roster.
    _monitor: Monitor,
    roster: Arc<Roster>,
}

/// Names of the LUNs that were taken out of the configuration while it ran. What another boot of
/// this machine lost of them is older than that, so the operator knows of it.
type TakenOut = HashSet<String>;

/// Why an appliance cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There are LUNs, but not one can be served.
    #[error("no LUN can be served: {}", join(.0))]
    NoLun(Vec<LunError>),
    /// An HBA has a LUN number that it cannot have.
    #[error(transparent)]
    Lun(#[from] BadView),
    /// An HBA has a `port` that it cannot have.
    #[error(transparent)]
    Port(#[from] BadPort),
    /// An HBA has a worker on a CPU where it cannot be.
    #[error(transparent)]
    Pin(#[from] BadPin),
    /// The disks cannot be looked after.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
    /// There is no place for what is to be saved.
    #[error("the `state` directory {} cannot be made: {error}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// An HBA with a LUN number that it cannot have.
#[derive(Debug, thiserror::Error)]
#[error("HBA {hba:?}: {problem}")]
pub struct BadView {
    /// Name of the HBA.
    pub hba: String,
    /// What is wrong.
    pub problem: BadLun,
}

/// Why a new configuration is not put into force; the old one stays, all of it.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A LUN that is new cannot be served.
    #[error("{0}; nothing was changed")]
    Lun(#[from] LunError),
    /// Something is different that cannot change while it is in use.
    #[error(
        "`{key}` of LUN {lun:?} cannot change while the LUN is served; take the LUN out of the \
         configuration, apply that, then add it again. Nothing was changed"
    )]
    Changed {
        /// Name of the LUN.
        lun: String,
        /// The key.
        key: &'static str,
    },
    /// Something is different that cannot change while the HBA is there.
    #[error(
        "`{key}` of HBA {hba:?} cannot change while it is in the configuration; take the HBA out, \
         apply that, then add it again, or restart the appliance. Nothing was changed"
    )]
    ChangedHba {
        /// Name of the HBA.
        hba: String,
        /// The key.
        key: &'static str,
    },
    /// An HBA has a worker on a CPU where it cannot be.
    #[error("{0}; nothing was changed")]
    Pin(#[from] BadPin),
    /// Something is different that is the same for the whole life of an appliance.
    #[error("`{0}` cannot change while the appliance runs; restart it. Nothing was changed")]
    Fixed(&'static str),
    /// An HBA has a LUN number that it cannot have.
    #[error("{0}; nothing was changed")]
    View(#[from] BadView),
    /// An HBA has a `port` that it cannot have.
    #[error("{0}; nothing was changed")]
    Port(#[from] BadPort),
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
        Self::start(config, Opener::default())
    }

    /// As [`Self::new`], with disks that `open` opens; [`open_disk`] is the usual way.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_disks(
        config: Config,
        open: impl Fn(&LunConfig) -> Result<Arc<dyn Disk>, LunProblem> + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        Self::start(config, Opener(Box::new(open)))
    }

    /// As if it ran in this boot of the machine, not nil; to play one that was started anew.
    #[must_use]
    pub fn in_boot(mut self, boot: Uuid) -> Self {
        self.boot = boot;
        self
    }

    fn start(config: Config, opener: Opener) -> Result<Self, StartError> {
        if let Some(path) = &config.state {
            std::fs::create_dir_all(path).map_err(|error| StartError::State {
                path: path.clone(),
                error,
            })?;
        }
        let mut luns = Luns::new();
        let mut problems = Vec::new();
        let deadline = Instant::now() + DISK_PATIENCE;
        for lun in &config.luns {
            match open_in_time(&opener, lun, config.state.as_deref(), deadline) {
                Ok(unit) => {
                    luns.insert(lun.name.clone(), unit);
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
        if luns.is_empty() && !problems.is_empty() {
            return Err(StartError::NoLun(problems));
        }
        pinning::check(&config.hbas)?;
        let roster = Arc::new(Roster::default());
        let numbers = numbers(&config.hbas, &roster.numbers())?;
        let views = views(&config.hbas, &luns, &numbers)?;
        roster.replace(luns, views, &SharedLimits::of(&config));
        Ok(Self {
            problems,
            opener,
            config: Mutex::new(config),
            applying: Mutex::default(),
            generation: AtomicU64::new(0),
            claims: Claims::default(),
            boot: boot_id(),
            _monitor: Monitor::start(&roster).map_err(StartError::Thread)?,
            roster,
        })
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.config().name.clone()
    }

    /// How many LUNs are served.
    pub fn luns(&self) -> usize {
        self.roster.counts().0
    }

    /// How many HBAs may attach.
    pub fn hbas(&self) -> usize {
        self.roster.counts().1
    }

    /// The LUNs that could not be served at the start.
    pub fn problems(&self) -> &[LunError] {
        &self.problems
    }

    /// A number that is another after each [`Self::apply`] that succeeded: what could not be
    /// attached before it may be now.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Puts another configuration into force, all of it or nothing. LUNs are told apart by name,
    /// HBAs by UUID.
    ///
    /// New disks are opened first, without waiting for any that are missing; a LUN that was not
    /// served before for want of its disk, and is as it was, stays so if that is still missing.
    /// Then attached HBAs
    /// see the LUNs that they are to see, and those that are no longer in the configuration are
    /// let go. The disk of a LUN that nobody sees any more is closed when its last command is
    /// over. This waits for disks to be opened, and for nothing else.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing is different then.
    pub fn apply(&self, config: Config) -> Result<Applied, ApplyError> {
        let applying = self.applying.lock();
        let mut taken_out = applying.unwrap_or_else(PoisonError::into_inner);
        let current = self.config().clone();
        let served = self.roster.luns();
        check_change(&current, &config, &served)?;
        let mut luns = Luns::new();
        let mut luns_missing = Vec::new();
        for lun in &config.luns {
            let unit = match served.get(&lun.name) {
                Some(unit) => Arc::clone(unit),
                None => {
                    let state = config.state.as_deref();
                    match open_in_time(&self.opener, lun, state, Instant::now()) {
                        Ok(unit) => unit,
                        // It was not served before, either.
                        Err(problem) if current.luns.contains(lun) => {
                            tracing::warn!(lun = lun.name, "it is still not served: {problem}");
                            luns_missing.push(lun.name.clone());
                            continue;
                        }
                        Err(problem) => {
                            let lun = lun.name.clone();
                            return Err(LunError { lun, problem }.into());
                        }
                    }
                }
            };
            if taken_out.contains(&lun.name) {
                unit.forgive();
            }
            luns.insert(lun.name.clone(), unit);
        }
        let numbers = numbers(&config.hbas, &self.roster.numbers())?;
        let views = views(&config.hbas, &luns, &numbers)?;
        drop(served);
        let applied = Applied {
            luns_missing,
            ..self.roster.replace(luns, views, &SharedLimits::of(&config))
        };
        let names = current.luns.iter().map(|lun| &lun.name);
        let out = names.filter(|name| config.luns.iter().all(|lun| lun.name != **name));
        taken_out.extend(out.cloned());
        *self.config() = config;
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(applied)
    }

    /// Checks that another configuration could be put into force, as far as that shows without
    /// opening disks.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn check(&self, config: &Config) -> Result<(), ApplyError> {
        let current = self.config().clone();
        check_change(&current, config, &self.roster.luns())?;
        numbers(&config.hbas, &self.roster.numbers())?;
        Ok(())
    }

    /// What is in force.
    pub fn configuration(&self) -> Config {
        self.config().clone()
    }

    /// Who is in service.
    pub(crate) fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a vhost-pci function into service.
    ///
    /// # Errors
    /// [`AttachError`]; the function is dropped then.
    pub fn attach(&self, device: Arc<dyn Device>) -> Result<Attachment, AttachError> {
        let uuid = Identity::read(&*device)?.hba;
        let (name, host, line) = self.enlist(uuid)?;
        Attachment::start(device, &self.claims, uuid, &name, host, line)
    }

    fn enlist(&self, hba: Uuid) -> Result<(String, Host, Line), AttachError> {
        let Enlisted {
            name,
            host,
            inbox,
            workers,
        } = self.roster.enlist(hba)?;
        let roster = Arc::clone(&self.roster);
        let line = Line::new(inbox, roster, self.boot.into_bytes(), workers);
        Ok((name, host, line))
    }

    /// Serves the HBA named `hba` to the frontends that connect to `socket`, one after the other.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn serve(
        &self,
        hba: &str,
        socket: &Arc<Socket>,
        options: Options,
    ) -> Result<Served, AttachError> {
        let uuid = {
            let config = self.config();
            let known = config.hbas.iter().find(|known| known.name == hba);
            known.map(|known| known.uuid)
        };
        let uuid = uuid.ok_or_else(|| AttachError::NoSuchHba(hba.to_owned()))?;
        let (name, host, line) = self.enlist(uuid)?;
        let started = vhost_user::start(Arc::clone(socket), name.as_str().into(), options);
        let (server, front) = started.map_err(|error| AttachError::Io {
            what: "starting a thread",
            error,
        })?;
        match Attachment::start_at_socket(front, &self.claims, uuid, &name, host, line) {
            Ok(attachment) => Ok(Served::new(attachment, server)),
            Err(error) => Err(error),
        }
    }
}

/// Which boot of this machine this is. If the kernel does not say, it is one of its own: what the
/// appliance before this one left in memory counts as lost then.
fn boot_id() -> Uuid {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let id = read.ok().and_then(|id| Uuid::parse_str(id.trim()).ok());
    id.unwrap_or_else(|| {
        tracing::warn!("the kernel does not tell which boot this is; mount /proc");
        Uuid::new_v4()
    })
}

/// What each HBA is to see, of the LUNs that are there.
fn views(hbas: &[HbaConfig], luns: &Luns, numbers: &HashMap<Uuid, u8>) -> Result<Views, BadView> {
    hbas.iter()
        .map(|hba| {
            let units = hba.luns.iter();
            let view = View {
                name: hba.name.clone(),
                initiator: Initiator {
                    uuid: hba.uuid,
                    number: numbers.get(&hba.uuid).copied().unwrap_or(u8::MAX),
                },
                access: hba.access,
                units: units
                    .filter_map(|(&address, lun)| Some((address, Arc::clone(luns.get(lun)?))))
                    .collect(),
                poll: hba.poll,
                limit: hba.limit,
                group: hba.limit_group.clone(),
                weight: hba.weight,
                coalesce: hba.coalesce,
                workers: hba.workers.clone(),
            };
            // No host is made of them yet: that would be one more initiator.
            match view.units.keys().find(|at| at.lun > Address::MAX_LUN) {
                None => Ok((hba.uuid, view)),
                Some(at) => Err(BadView {
                    hba: hba.name.clone(),
                    problem: BadLun(at.lun),
                }),
            }
        })
        .collect()
}

/// Checks that nothing changes that cannot.
fn check_change(old: &Config, new: &Config, served: &Luns) -> Result<(), ApplyError> {
    if old.name != new.name {
        return Err(ApplyError::Fixed("name"));
    }
    if old.state != new.state {
        return Err(ApplyError::Fixed("state"));
    }
    pinning::check(&new.hbas)?;
    for hba in &new.hbas {
        let mut before = old.hbas.iter().filter(|old| old.uuid == hba.uuid);
        if let Some(old) = before.find(|old| old.workers != hba.workers) {
            let is_count = old.workers.count != hba.workers.count;
            return Err(ApplyError::ChangedHba {
                hba: hba.name.clone(),
                key: if is_count { "workers" } else { "pin" },
            });
        }
    }
    let new: HashMap<_, _> = new.luns.iter().map(|lun| (&lun.name, lun)).collect();
    for old in &old.luns {
        let Some(unit) = served.get(&old.name) else {
            continue;
        };
        let geometry = unit.disk().geometry();
        let bytes = geometry.blocks * u64::from(geometry.block_size);
        let differs = |new: &&LunConfig| different_key(old, new, bytes);
        if let Some(key) = new.get(&old.name).and_then(differs) {
            return Err(ApplyError::Changed {
                lun: old.name.clone(),
                key,
            });
        }
    }
    Ok(())
}

/// The first key in which two LUNs differ. A size that its disk, of `bytes`, has been given while
/// it was served is none.
fn different_key(old: &LunConfig, new: &LunConfig, bytes: u64) -> Option<&'static str> {
    let LunConfig {
        name: _,
        source,
        read_only,
        cache,
        bounce,
        shared,
        block_size,
        size,
        provisioning,
        protection,
        timeout,
        on_error,
        threshold,
        limit: _,
    } = old;
    [
        (*source != new.source, "serial`, `path` or `kind"),
        (*read_only != new.read_only, "read_only"),
        (*cache != new.cache, "cache"),
        (*bounce != new.bounce, "bounce"),
        (*shared != new.shared, "shared"),
        (*block_size != new.block_size, "block_size"),
        (
            *size != new.size && (size.is_none() || new.size != Some(bytes)),
            "size",
        ),
        (*provisioning != new.provisioning, "provisioning"),
        (*protection != new.protection, "protection"),
        (*timeout != new.timeout, "timeout"),
        (*on_error != new.on_error, "on_error"),
        (*threshold != new.threshold, "threshold"),
    ]
    .into_iter()
    .find_map(|(differs, key)| differs.then_some(key))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;

    fn config(luns: &[&str]) -> Config {
        let lun = |name: &&str| format!("[[lun]]\nname = {name:?}\nkind = \"null\"\nsize = 512\n");
        let text: String = luns.iter().map(lun).collect();
        Config::parse(&format!("name = \"a\"\n{text}"), Path::new("a.toml")).unwrap()
    }

    #[test]
    fn a_disk_that_hangs_while_it_is_opened_holds_up_nothing_but_its_configuration() {
        let (opens, opening) = mpsc::channel();
        let (let_go, hangs) = mpsc::channel();
        let (opens, hangs) = (Mutex::new(opens), Mutex::new(hangs));
        let appliance = Appliance::with_disks(config(&["good"]), move |lun| {
            if lun.name == "slow" {
                opens.lock().unwrap().send(()).unwrap();
                let () = hangs.lock().unwrap().recv().unwrap();
            }
            open_disk(lun)
        })
        .unwrap();
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| appliance.apply(config(&["good", "slow"])));
            opening.recv().unwrap();
            // As `serve` does, it reads the configuration.
            let is_free = appliance.config.try_lock().is_ok();
            let_go.send(()).unwrap();
            assert!(is_free);
            assert_eq!(applied.join().unwrap().unwrap().luns_added, ["slow"]);
        });
        assert_eq!(appliance.luns(), 2);
    }

    #[test]
    fn a_disk_that_was_missing_before_keeps_nothing_else_from_changing() {
        let start = config(&["good", "missing"]);
        let appliance = Appliance::with_disks(start, |lun| {
            if lun.name == "missing" {
                return Err(LunProblem::Size);
            }
            open_disk(lun)
        })
        .unwrap();
        let more = config(&["good", "missing", "new"]);
        let applied = appliance.apply(more).unwrap();
        assert_eq!(applied.luns_added, ["new"]);
        assert_eq!(applied.luns_missing, ["missing"]);
        assert_eq!(
            applied.to_string(),
            "LUNs added: new; LUNs still not served: missing"
        );
        assert_eq!(appliance.luns(), 2);
        // One that is new, or another than it was, has to be there.
        let mut other = config(&["good", "missing", "new"]);
        other.luns[1].block_size = 4096;
        assert!(matches!(appliance.apply(other), Err(ApplyError::Lun(_))));
    }
}
