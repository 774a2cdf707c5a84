//! FORMAT UNIT and SANITIZE: all blocks of a unit are erased in the background.
//!
//! A command claims the unit ([`Erasing::claim`]); from then on nobody gets at its blocks. When the
//! commands of everyone have ended, the claim is [launched](Ticket::launch): it is written down,
//! where there is a file for that, and a thread of its own begins. Resets do not end it, nor does
//! an abort of the command; the end of the appliance does, and the next one begins it anew.

mod errand;
mod format;
mod job;
mod progress;
mod reassign;
mod run;
mod sanitize;
mod ticket;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use errand::Errand;
pub use format::{FormatUnit, MAX_FORMAT_LIST, format};
pub use job::Job;
use job::Saved;
pub use progress::What;
use progress::{Phase, Progress};
pub use reassign::{MAX_REASSIGN_LIST, blocks};
use run::Failure;
pub use sanitize::{Method, Sanitize, sanitize};
pub use ticket::{Ended, Launched, Ticket};

use super::command::Command;
use super::fault::Fault;
use super::state_file::{StateError, StateFile};
use super::upkeep::Upkeep;
use crate::disk::Disk;
use crate::log_limit::LogLimit;

/// How often it is tried again to write down that it is done.
const RETRY: Duration = Duration::from_secs(1);

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
    /// An initiator may try it without end.
    log: Mutex<LogLimit>,
}

impl Shared {
    fn save(&self, saved: &Saved) -> Result<(), Fault> {
        let Some(file) = self.file.get() else {
            return Ok(());
        };
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        file.write(saved).map_err(|error| {
            self.complain(&error);
            Fault::SavingFailed
        })
    }

    /// Says in the log what went wrong, but not without end.
    fn complain(&self, problem: &dyn fmt::Display) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let (logged, silent) = log.add(Instant::now());
        drop(log);
        if silent > 0 {
            tracing::warn!(
                lun = self.name,
                "{silent} more problems were not logged before"
            );
        }
        if logged {
            tracing::error!(lun = self.name, "{problem}");
        }
    }

    /// Takes note of how a job ended. One that is done but not written down as that would be done
    /// again by the next appliance, to what was written since: nobody may write before.
    fn settle(&self, job: &Job, result: &Result<(), Failure>) {
        let (saved, phase) = match result {
            Ok(()) => (Saved::default(), Phase::Ready),
            Err(error) => {
                self.complain(&format_args!("it is not erased ({:?}): {error}", job.kind));
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
        tracing::debug!(lun = self.name, kind = ?job.kind, ok = result.is_ok(), "erased");
        self.progress.set_phase(phase);
    }
}

/// Whether, and how far, the blocks of one unit are being erased.
#[derive(Debug)]
pub struct Erasing(Arc<Shared>);

impl Drop for Erasing {
    fn drop(&mut self) {
        self.0.progress.give_up();
    }
}

impl Erasing {
    /// Of the unit called `name`; nothing is going on, and nothing outlives the appliance.
    pub fn new(name: &str) -> Self {
        Self(Arc::new(Shared {
            progress: Progress::new(),
            file: OnceLock::new(),
            name: name.to_owned(),
            saving: Mutex::default(),
            reassigning: AtomicBool::new(false),
            log: Mutex::new(LogLimit::new(Instant::now())),
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
        if before == Phase::Leaving {
            return Err(Fault::Busy);
        }
        if !before.lets_begin(job.kind) {
            return Err(refused());
        }
        if !progress.advance(before, Phase::during(job.kind)) {
            return Err(refused());
        }
        let ticket = Ticket::new(Arc::clone(&self.0), job, before, immediate);
        if self.0.reassigning.load(Ordering::SeqCst) {
            return Err(Fault::Busy);
        }
        Ok(ticket)
    }

    /// EXIT FAILURE MODE. Nobody can claim the unit while that is written down.
    ///
    /// # Errors
    /// [`Fault::InvalidField`] if only another SANITIZE ends the failure, [`Fault::Busy`] if
    /// somebody else is at it, [`Fault::SavingFailed`] if it cannot be written down.
    pub fn exit_failure_mode(&self) -> Result<(), Fault> {
        let progress = &self.0.progress;
        match progress.phase() {
            before @ Phase::SanitizeFailed => {
                if !progress.advance(before, Phase::Leaving) {
                    return Err(Fault::Busy);
                }
                let saved = self.0.save(&Saved::default());
                progress.set_phase(match saved {
                    Ok(()) => Phase::Ready,
                    Err(_) => before,
                });
                saved
            }
            Phase::Leaving => Err(Fault::Busy),
            Phase::SanitizeFailedRestricted => Err(Fault::InvalidField { byte: 1, bit: 4 }),
            // There is none to leave.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RamDisk;
    use crate::scsi::testing::Scratch;
    use job::{Fill, Kind};

    fn sanitize_job() -> Job {
        Job {
            kind: Kind::SanitizeUnrestricted,
            fill: Fill::Zeros,
        }
    }

    /// Failed so that EXIT FAILURE MODE ends it.
    fn failed(path: PathBuf) -> Erasing {
        let erasing = Erasing::new("a");
        let disk: Arc<dyn Disk> = Arc::new(RamDisk::new(4096, 512, false).unwrap().unwrap());
        erasing.set_file(path, &disk).unwrap();
        erasing.0.progress.set_phase(Phase::SanitizeFailed);
        erasing
    }

    #[test]
    fn nobody_claims_a_unit_while_the_end_of_its_failure_is_written_down() {
        let scratch = Scratch::new();
        let erasing = failed(scratch.path().join("erasing"));
        let shared = Arc::clone(&erasing.0);
        thread::scope(|scope| {
            // As a filesystem that takes its time.
            let saving = shared.saving.lock().unwrap();
            let exit = scope.spawn(|| erasing.exit_failure_mode());
            let start = Instant::now();
            while erasing.0.progress.phase() == Phase::SanitizeFailed
                && start.elapsed() < Duration::from_secs(2)
            {
                thread::yield_now();
            }
            let claimed = erasing.claim(sanitize_job(), false).map(drop);
            // Whoever is not refused would wait for the filesystem, too.
            let alone = erasing.0.progress.phase() == Phase::Leaving;
            let again = alone.then(|| erasing.exit_failure_mode());
            let meanwhile = erasing.condition();
            drop(saving);
            assert_eq!(exit.join().unwrap(), Ok(()));
            assert_eq!((claimed, again), (Err(Fault::Busy), Some(Err(Fault::Busy))));
            assert_eq!(meanwhile, Some(Fault::EraseFailed(What::Sanitize)));
        });
        assert_eq!(erasing.condition(), None);
        assert!(erasing.claim(sanitize_job(), false).is_ok());
    }

    #[test]
    fn a_failure_whose_end_cannot_be_written_down_stays() {
        let erasing = failed("/does/not/exist/erasing".into());
        assert_eq!(erasing.exit_failure_mode(), Err(Fault::SavingFailed));
        let failed = Some(Fault::EraseFailed(What::Sanitize));
        assert_eq!(erasing.condition(), failed);
        assert!(erasing.claim(sanitize_job(), false).is_ok());
    }
}
