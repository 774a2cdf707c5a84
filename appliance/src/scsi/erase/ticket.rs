//! A claim on a unit, from the command that wants it erased to the thread that does it.

use std::io;
use std::sync::{Arc, OnceLock};

use super::Shared;
use super::job::{Job, Saved};
use super::progress::Phase;
use super::run::{self, Failure};
use crate::disk::{Closed, Disk, Gate};
use crate::pinning;
use crate::scsi::fault::Fault;

/// How a job ended, for the command that waits for it.
#[derive(Debug, Clone, Default)]
pub struct Ended(Arc<OnceLock<Result<(), Fault>>>);

impl Ended {
    /// It has ended like this.
    pub(super) fn tell(&self, result: Result<(), Fault>) {
        // Nobody else does.
        let _ = self.0.set(result);
    }

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
    /// A claim for `job` on a unit that was so before.
    pub(super) fn new(shared: Arc<Shared>, job: Job, before: Phase, immediate: bool) -> Self {
        Self {
            shared: Some(shared),
            job,
            before,
            immediate,
        }
    }

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
    /// Starts the thread; the gate is opened when it has ended.
    pub(super) fn start(
        self: &Arc<Self>,
        job: Job,
        disk: &Arc<dyn Disk>,
        ended: Ended,
        closed: Option<Closed>,
    ) -> io::Result<()> {
        let (shared, disk) = (Arc::clone(self), Arc::clone(disk));
        pinning::spawn_free("erase", move || {
            let result = run::erase(&disk, &job, &shared.progress);
            if matches!(result, Err(Failure::Unwanted)) {
                return;
            }
            shared.settle(&job, &result);
            let what = job.kind.what();
            ended.tell(result.map_err(|_| Fault::EraseFailed(what)));
            drop(closed);
        })?;
        Ok(())
    }
}
