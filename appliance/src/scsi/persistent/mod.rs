//! The persistent reservation of a unit, shared by all who see it.

mod fenced;
mod list;
mod report;
mod saved;
mod state;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fenced::{Aborting, Fenced};
pub use list::{Action, MAX_LIST, Request, parse};
pub use report::Ask;
use saved::Saved;
use state::Effects;
pub use state::{Asker, Kind, Registrant, State};

use super::fault::Fault;
use super::port::Port;
use super::state_file::{StateError, StateFile};

/// Registrations and reservation of a unit, and where they are kept.
#[derive(Debug, Default)]
pub struct Persistent {
    file: Option<StateFile<Saved>>,
    /// The last attempt to save failed, which was logged: the file may be another than it says.
    unsaved: AtomicBool,
    /// Held while an initiator changes something, which may take as long as the file does.
    changing: Mutex<()>,
    /// What is in force; never locked for long.
    state: Mutex<State>,
    /// Locked after `state`, where both are.
    fenced: Mutex<Fenced>,
}

impl Persistent {
    /// What is to survive a loss of power is kept in the file at `path`; what it has is in force
    /// from now on.
    ///
    /// # Errors
    /// [`StateError`] for a file that says nothing good.
    pub fn set_file(&mut self, path: PathBuf, unit: &str) -> Result<(), StateError> {
        let file = StateFile::new(path, unit);
        if let Some(saved) = file.read()? {
            self.state = Mutex::new(State::from(saved));
        }
        self.file = Some(file);
        Ok(())
    }

    /// Whether anything can survive a loss of power.
    pub fn can_persist(&self) -> bool {
        self.file.is_some()
    }

    /// What is in force.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// PERSISTENT RESERVE IN: what it returns; `known` are the ports by which the unit is reached.
    pub fn data(&self, ask: Ask, known: &[Port]) -> Vec<u8> {
        let state = self.state();
        let fenced = self.fenced();
        report::data(ask, &state, &fenced, known, self.can_persist())
    }

    /// Nothing of those whom this fence was about can reach the disk any more.
    pub fn fence_is_through(&self, fence: u64) {
        self.fenced().is_through(fence);
    }

    fn fenced(&self) -> MutexGuard<'_, Fenced> {
        self.fenced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from changing it until the guard is dropped.
    pub fn steady(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a request says. What is to survive is on stable storage before it is in force;
    /// `settle` makes everyone heed it. `steady` is the guard of this.
    ///
    /// # Errors
    /// As [`State::after`], or [`Fault::SavingFailed`]; nothing is different then.
    pub fn apply(
        &self,
        _steady: &MutexGuard<'_, ()>,
        asker: Asker<'_>,
        request: &Request,
        settle: impl FnOnce(&State, &Effects),
    ) -> Result<Aborting, Fault> {
        let before = self.state().clone();
        let (after, mut effects) = before
            .after(asker, request)
            .or_else(|fault| self.fenced().again(&before, asker, request, fault))?;
        self.save(&before, &after)?;
        let mut state = self.state();
        *state = after;
        settle(&state, &effects);
        let lost = std::mem::take(&mut effects.abort);
        Ok(self.fenced().note(&before, &state, request, lost))
    }

    fn save(&self, before: &State, after: &State) -> Result<(), Fault> {
        let (before, after) = (Saved::from(before), Saved::from(after));
        // A write that failed may have left what was to be in force, and is not.
        let differs = before != after || self.unsaved.load(Ordering::Relaxed);
        let Some(file) = self.file.as_ref().filter(|_| differs) else {
            return Ok(());
        };
        if let Err(error) = file.write(&after) {
            // Once is enough: an initiator may try it without end.
            if !self.unsaved.swap(true, Ordering::Relaxed) {
                tracing::error!("{error}");
            }
            return Err(Fault::SavingFailed);
        }
        self.unsaved.store(false, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
