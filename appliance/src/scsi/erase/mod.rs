//! FORMAT UNIT and SANITIZE: all blocks of a unit are erased in the background.
//!
//! A command claims the unit ([`Erasing::claim`]); from then on nobody gets at its blocks. When the
//! commands of everyone have ended, the claim is [launched](Ticket::launch): it is written down,
//! where there is a file for that, and a thread of its own begins. Resets do not end it, nor does
//! an abort of the command; the end of the appliance does, and the next one begins it anew.

mod format;
mod job;
mod reassign;
mod run;
mod sanitize;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

pub use format::{FormatUnit, MAX_FORMAT_LIST, format};
use job::Saved;
pub use job::{Fill, Job, Kind};
pub use reassign::{MAX_REASSIGN_LIST, blocks};
use run::Failure;
pub use sanitize::{Method, Sanitize, sanitize};

use super::command::Command;
use super::fault::Fault;
use super::state_file::{StateError, StateFile};
use super::upkeep::Upkeep;
use crate::disk::{Closed, Disk, Gate};

/// How often it is tried again to write down that it is done.
const RETRY: Duration = Duration::from_secs(1);

/// What is done to a unit, for the sake of what is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Format,
    Sanitize,
}

/// How far a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Nothing is going on.
    Ready,
    Formatting,
    Sanitizing,
    FormatFailed,
    /// EXIT FAILURE MODE ends it.
    SanitizeFailed,
    /// Only a SANITIZE of this kind ends it.
    SanitizeFailedRestricted,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Ready,
        Self::Formatting,
        Self::Sanitizing,
        Self::FormatFailed,
        Self::SanitizeFailed,
        Self::SanitizeFailedRestricted,
    ];

    const fn during(kind: Kind) -> Self {
        match kind {
            Kind::Format => Self::Formatting,
            Kind::Sanitize | Kind::SanitizeUnrestricted => Self::Sanitizing,
        }
    }

    const fn failed(kind: Kind) -> Self {
        match kind {
            Kind::Format => Self::FormatFailed,
            Kind::Sanitize => Self::SanitizeFailedRestricted,
            Kind::SanitizeUnrestricted => Self::SanitizeFailed,
        }
    }

    /// What is written down of it, when nothing is under way.
    fn saved(self) -> Saved {
        let kind = match self {
            Self::Ready | Self::Formatting | Self::Sanitizing => return Saved::default(),
            Self::FormatFailed => Kind::Format,
            Self::SanitizeFailed => Kind::SanitizeUnrestricted,
            Self::SanitizeFailedRestricted => Kind::Sanitize,
        };
        // What it was to fill blocks with does not matter any more.
        let fill = Fill::Nothing;
        Saved {
            failed: true,
            job: Some(Job { kind, fill }),
        }
    }

    /// Whether a command of this kind may begin now (SBC-4, SANITIZE: AUSE).
    const fn lets_begin(self, kind: Kind) -> bool {
        match self {
            Self::Ready | Self::FormatFailed => true,
            Self::Formatting | Self::Sanitizing => false,
            Self::SanitizeFailed => !matches!(kind, Kind::Format),
            Self::SanitizeFailedRestricted => matches!(kind, Kind::Sanitize),
        }
    }
}

/// How far the blocks of a unit are erased, and whether anybody wants that.
#[derive(Debug)]
pub struct Progress {
    /// A [`Phase`].
    phase: AtomicU8,
    /// PROGRESS INDICATION: parts of 65536.
    parts: AtomicU16,
    unwanted: AtomicBool,
}

impl Progress {
    fn phase(&self) -> Phase {
        let number = usize::from(self.phase.load(Ordering::Relaxed));
        // Every number that is stored is one of them.
        Phase::ALL.get(number).copied().unwrap_or(Phase::Ready)
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// In this pass of so many, so many bytes of all are done.
    fn set(&self, (pass, passes): (u8, u8), done: u64, all: u64) {
        let (done, all) = (u128::from(done), u128::from(all.max(1)));
        let passed = u128::from(pass) * all + done;
        let parts = passed * 65536 / (all * u128::from(passes.max(1)));
        let parts = u16::try_from(parts).unwrap_or(u16::MAX);
        self.parts.store(parts, Ordering::Relaxed);
    }

    fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }

    /// The fault with which commands end now; `None` if nothing is the matter.
    fn fault(&self) -> Option<Fault> {
        let progress = self.parts.load(Ordering::Relaxed);
        Some(match self.phase() {
            Phase::Ready => return None,
            Phase::Formatting => Fault::Erasing(What::Format, progress),
            Phase::Sanitizing => Fault::Erasing(What::Sanitize, progress),
            Phase::FormatFailed => Fault::FormatCorrupted,
            Phase::SanitizeFailed | Phase::SanitizeFailedRestricted => {
                Fault::EraseFailed(What::Sanitize)
            }
        })
    }
}

/// What outlives the unit in the thread.
#[derive(Debug)]
struct Shared {
    progress: Progress,
    /// Where it is written down, if anywhere.
    file: OnceLock<StateFile<Saved>>,
    name: String,
    /// Held while the file is written.
    saving: Mutex<()>,
    /// REASSIGN BLOCKS is at work.
    reassigning: AtomicBool,
}

impl Shared {
    fn save(&self, saved: &Saved) -> Result<(), Fault> {
        let Some(file) = self.file.get() else {
            return Ok(());
        };
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        file.write(saved).map_err(|error| {
            tracing::error!("{error}");
            Fault::SavingFailed
        })
    }

    /// Takes note of how a job ended. One that is done but not written down as that would be done
    /// again by the next appliance, to what was written since: nobody may write before.
    fn settle(&self, job: &Job, result: &Result<(), Failure>) {
        let (saved, phase) = match result {
            Ok(()) => (Saved::default(), Phase::Ready),
            Err(error) => {
                tracing::error!(lun = self.name, kind = ?job.kind, "it is not erased: {error}");
                let saved = Saved {
                    failed: true,
                    job: Some(job.clone()),
                };
                (saved, Phase::failed(job.kind))
            }
        };
        while self.save(&saved).is_err() {
            if result.is_err() {
                // The next appliance tries it again, which is no worse.
                break;
            }
            thread::sleep(RETRY);
            if self.progress.is_unwanted() {
                return;
            }
        }
        tracing::info!(lun = self.name, kind = ?job.kind, ok = result.is_ok(), "erased");
        self.progress.set_phase(phase);
    }
}

/// Whether, and how far, the blocks of one unit are being erased.
#[derive(Debug)]
pub struct Erasing(Arc<Shared>);

impl Drop for Erasing {
    fn drop(&mut self) {
        self.0.progress.unwanted.store(true, Ordering::Relaxed);
    }
}

impl Erasing {
    /// Of the unit called `name`; nothing is going on, and nothing outlives the appliance.
    pub fn new(name: &str) -> Self {
        Self(Arc::new(Shared {
            progress: Progress {
                phase: AtomicU8::new(Phase::Ready as u8),
                parts: AtomicU16::new(0),
                unwanted: AtomicBool::new(false),
            },
            file: OnceLock::new(),
            name: name.to_owned(),
            saving: Mutex::default(),
            reassigning: AtomicBool::new(false),
        }))
    }

    /// What is going on is written down in the file at `path`; what that has goes on, or has
    /// failed.
    ///
    /// # Errors
    /// [`StateError`] for a file that is damaged: whether there are blocks that were to be erased
    /// is not known.
    pub fn set_file(&self, path: PathBuf, disk: &Arc<dyn Disk>) -> Result<(), StateError> {
        let file = StateFile::new(path, &self.0.name);
        let read: Option<Saved> = file.read()?;
        // Set once, before anybody sees the unit.
        let _ = self.0.file.set(file);
        if let Some(Saved {
            job: Some(job),
            failed,
        }) = read
        {
            let progress = &self.0.progress;
            progress.set_phase(if failed {
                Phase::failed(job.kind)
            } else {
                Phase::during(job.kind)
            });
            if !failed {
                tracing::info!(lun = self.0.name, kind = ?job.kind, "erasing it anew");
                let kind = job.kind;
                if let Err(error) = self.0.start(job, disk, Ended::default(), None) {
                    tracing::error!(lun = self.0.name, "it cannot be erased: {error}");
                    progress.set_phase(Phase::failed(kind));
                }
            }
        }
        Ok(())
    }

    /// Whether a command can be carried out now. One load, on the path of every command.
    ///
    /// # Errors
    /// [`Fault::Erasing`], or what is told after a failure.
    pub fn check(&self, command: &Command) -> Result<(), Fault> {
        match self.0.progress.fault() {
            Some(fault) if !self.lets_by(command) => Err(fault),
            _ => Ok(()),
        }
    }

    /// What REQUEST SENSE tells of it.
    pub fn condition(&self) -> Option<Fault> {
        self.0.progress.fault()
    }

    fn lets_by(&self, command: &Command) -> bool {
        match command {
            // They say themselves whether they may begin.
            Command::Upkeep(Upkeep::FormatUnit(_) | Upkeep::Sanitize(_))
            | Command::Upkeep(Upkeep::ExitFailureMode { .. }) => !matches!(
                self.0.progress.phase(),
                Phase::Formatting | Phase::Sanitizing
            ),
            Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::RequestSense { .. }
            | Command::ModeSense(_)
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportOpcodes { .. }
            | Command::ReportTaskManagement { .. }
            | Command::ReportPortGroups { .. }
            | Command::SetPortGroups { .. }
            | Command::ReserveIn { .. }
            | Command::ReserveOut { .. }
            | Command::Reserve
            | Command::Release
            | Command::Upkeep(
                Upkeep::LogSense(_)
                | Upkeep::ReportIdentifying { .. }
                | Upkeep::ReportTimestamp { .. },
            ) => true,
            _ => false,
        }
    }

    /// Claims the unit for `job`; its blocks are out of reach from now on.
    ///
    /// # Errors
    /// [`Fault::Erasing`], [`Fault::EraseFailed`] or [`Fault::Busy`], if it may not begin now.
    pub fn claim(&self, job: Job, immediate: bool) -> Result<Ticket, Fault> {
        let progress = &self.0.progress;
        let before = progress.phase();
        let refused = || progress.fault().unwrap_or(Fault::BadReply);
        if !before.lets_begin(job.kind) {
            return Err(refused());
        }
        let during = Phase::during(job.kind);
        progress
            .phase
            .compare_exchange(
                before as u8,
                during as u8,
                Ordering::SeqCst,
                Ordering::SeqCst,
            )
            .map_err(|_| refused())?;
        progress.parts.store(0, Ordering::Relaxed);
        let ticket = Ticket {
            shared: Some(Arc::clone(&self.0)),
            job,
            before,
            immediate,
        };
        if self.0.reassigning.load(Ordering::SeqCst) {
            return Err(Fault::Busy);
        }
        Ok(ticket)
    }

    /// EXIT FAILURE MODE.
    ///
    /// # Errors
    /// [`Fault::InvalidField`] if only another SANITIZE ends the failure.
    pub fn exit_failure_mode(&self) -> Result<(), Fault> {
        match self.0.progress.phase() {
            Phase::SanitizeFailed => {
                self.0.save(&Saved::default())?;
                self.0.progress.set_phase(Phase::Ready);
                Ok(())
            }
            Phase::SanitizeFailedRestricted => Err(Fault::InvalidField { byte: 1, bit: 4 }),
            // There is none to leave.
            _ => Ok(()),
        }
    }
}

/// How a job ended, for the command that waits for it.
#[derive(Debug, Clone, Default)]
pub struct Ended(Arc<OnceLock<Result<(), Fault>>>);

impl Ended {
    /// `None` as long as it is under way.
    pub fn result(&self) -> Option<Result<(), Fault>> {
        self.0.get().copied()
    }
}

/// A claim on a unit, which is given up by dropping it before it was launched.
#[derive(Debug)]
pub struct Ticket {
    /// `None` once it was launched.
    shared: Option<Arc<Shared>>,
    job: Job,
    /// What the unit was before.
    before: Phase,
    /// IMMED: its command does not wait for it.
    immediate: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.progress.set_phase(self.before);
        }
    }
}

/// A job that has begun.
#[derive(Debug)]
pub enum Launched {
    /// Its command does not wait for it.
    Immediate,
    /// Its command is to wait at the gate, and hears then how it ended.
    Wait(Arc<Gate>, Ended),
}

impl Ticket {
    /// Begins, now that nobody is at the blocks any more.
    ///
    /// # Errors
    /// [`Fault::SavingFailed`] if it cannot be written down, and the unit is as before then;
    /// [`Fault::EraseFailed`] if it cannot be begun.
    pub fn launch(mut self, disk: &Arc<dyn Disk>) -> Result<Launched, Fault> {
        let (gate, closed) = Gate::closed().map_err(|_| Fault::SavingFailed)?;
        let Some(shared) = self.shared.as_ref() else {
            return Err(Fault::BadReply);
        };
        let begun = Saved {
            failed: false,
            job: Some(self.job.clone()),
        };
        let kind = self.job.kind;
        if let Err(fault) = shared.save(&begun) {
            // The file may say that it has begun, and the next appliance would go on with it.
            if shared.save(&self.before.saved()).is_err() {
                shared.progress.set_phase(Phase::failed(kind));
                self.shared = None;
            }
            return Err(fault);
        }
        let ended = Ended::default();
        let started = shared.start(self.job.clone(), disk, ended.clone(), Some(closed));
        if let Err(error) = started {
            let what = "starting a thread";
            shared.settle(&self.job, &Err(Failure::Io { what, error }));
            self.shared = None;
            return Err(Fault::EraseFailed(kind.what()));
        }
        self.shared = None;
        Ok(if self.immediate {
            Launched::Immediate
        } else {
            Launched::Wait(gate, ended)
        })
    }
}

impl Shared {
    fn start(
        self: &Arc<Self>,
        job: Job,
        disk: &Arc<dyn Disk>,
        ended: Ended,
        closed: Option<Closed>,
    ) -> io::Result<()> {
        let (shared, disk) = (Arc::clone(self), Arc::clone(disk));
        let thread = thread::Builder::new().name("erase".into());
        thread.spawn(move || {
            let result = run::erase(&disk, &job, &shared.progress);
            if matches!(result, Err(Failure::Unwanted)) {
                return;
            }
            shared.settle(&job, &result);
            let what = job.kind.what();
            // Nobody else sets it.
            let _ = ended.0.set(result.map_err(|_| Fault::EraseFailed(what)));
            drop(closed);
        })?;
        Ok(())
    }
}
