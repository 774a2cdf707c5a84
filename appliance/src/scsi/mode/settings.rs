//! The mode parameters of a unit that initiators can change.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::saved::Saved;
use crate::scsi::fault::Fault;
use crate::scsi::state_file::{StateError, StateFile};
use crate::scsi::threshold::Threshold;

/// The changeable parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// WCE: writes are done before they are on stable storage.
    pub write_cache: bool,
    /// D_SENSE: sense data comes in descriptor format.
    pub descriptor_sense: bool,
    /// SWP: nothing is written.
    pub write_protect: bool,
    /// Of thin provisioning.
    pub threshold: Threshold,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // A disk has a volatile cache below it, whatever our own mode is.
            write_cache: true,
            descriptor_sense: false,
            write_protect: false,
            threshold: Threshold::default(),
        }
    }
}

const WRITE_CACHE: u64 = 1;
const DESCRIPTOR_SENSE: u64 = 1 << 1;
const WRITE_PROTECT: u64 = 1 << 2;
const THRESHOLD: u64 = 1 << 3;
const COUNT_SHIFT: u32 = 32;

impl Settings {
    /// All of them in one word, which is read on the path of every command.
    fn pack(self) -> u64 {
        let bit = |is_set: bool, bit| if is_set { bit } else { 0 };
        bit(self.write_cache, WRITE_CACHE)
            | bit(self.descriptor_sense, DESCRIPTOR_SENSE)
            | bit(self.write_protect, WRITE_PROTECT)
            | bit(self.threshold.enabled, THRESHOLD)
            | u64::from(self.threshold.count) << COUNT_SHIFT
    }

    fn unpack(word: u64) -> Self {
        Self {
            write_cache: word & WRITE_CACHE != 0,
            descriptor_sense: word & DESCRIPTOR_SENSE != 0,
            write_protect: word & WRITE_PROTECT != 0,
            threshold: Threshold {
                enabled: word & THRESHOLD != 0,
                // What is left of 64 bits is 32.
                count: u32::try_from(word >> COUNT_SHIFT).unwrap_or(u32::MAX),
            },
        }
    }
}

/// The current, default and saved values of one unit.
#[derive(Debug)]
pub struct Modes {
    current: AtomicU64,
    defaults: Settings,
    /// What a reset brings back: what the file has, or else the defaults.
    kept: AtomicU64,
    file: Option<StateFile<Saved>>,
    /// The file has something.
    is_saved: bool,
    /// The last attempt to save failed, which was logged.
    unsaved: AtomicBool,
    /// How often a reset ended caching, and so owed a flush of what was written before.
    owed: AtomicU64,
    /// How many of these flushes were done.
    paid: AtomicU64,
    /// Held while an initiator changes something, which may take as long as the file does; nobody
    /// who only looks waits for it.
    changing: Mutex<()>,
}

impl Modes {
    /// With defaults, which are current too; nothing can be saved.
    pub fn new(defaults: Settings) -> Self {
        Self {
            current: AtomicU64::new(defaults.pack()),
            defaults,
            kept: AtomicU64::new(defaults.pack()),
            file: None,
            is_saved: false,
            unsaved: AtomicBool::new(false),
            owed: AtomicU64::new(0),
            paid: AtomicU64::new(0),
            changing: Mutex::default(),
        }
    }

    /// With this default for the threshold.
    pub fn set_default_threshold(&mut self, threshold: Threshold) {
        self.defaults.threshold = threshold;
        if !self.is_saved {
            self.kept = AtomicU64::new(self.defaults.pack());
        }
        self.restore();
    }

    /// Values are saved in the file at `path`; what it has is current from now on.
    ///
    /// # Errors
    /// [`StateError`] for a file that says nothing good; the defaults stay, and may be saved over
    /// it.
    pub fn set_file(&mut self, path: PathBuf, unit: &str) -> Result<(), StateError> {
        let file = StateFile::new(path, unit);
        let read = file.read();
        self.file = Some(file);
        if let Some(Saved { settings }) = read? {
            self.kept = AtomicU64::new(settings.pack());
            self.is_saved = true;
            self.restore();
        }
        Ok(())
    }

    /// The values in effect.
    pub fn current(&self) -> Settings {
        Settings::unpack(self.current.load(Ordering::Relaxed))
    }

    /// The values in effect if nothing was ever saved or changed.
    pub fn defaults(&self) -> Settings {
        self.defaults
    }

    /// The values that a reset brings back; `None` if nothing can be saved.
    pub fn saved(&self) -> Option<Settings> {
        let kept = Settings::unpack(self.kept.load(Ordering::Relaxed));
        self.file.as_ref().map(|_| kept)
    }

    /// Changes the current values to what `change` makes of them, and saves them before if
    /// `save`. Returns those before and after.
    ///
    /// # Errors
    /// What `change` returns, or [`Fault::SavingFailed`]; nothing has changed then.
    pub fn change(
        &self,
        save: bool,
        change: impl FnOnce(Settings) -> Result<Settings, Fault>,
    ) -> Result<(Settings, Settings), Fault> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        let after = change(before)?;
        if save {
            self.save(after)?;
        }
        self.current.store(after.pack(), Ordering::Relaxed);
        Ok((before, after))
    }

    fn save(&self, settings: Settings) -> Result<(), Fault> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if let Err(error) = file.write(&Saved { settings }) {
            // Once is enough: an initiator may try it without end.
            if !self.unsaved.swap(true, Ordering::Relaxed) {
                tracing::error!("{error}");
            }
            return Err(Fault::SavingFailed);
        }
        self.unsaved.store(false, Ordering::Relaxed);
        self.kept.store(settings.pack(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes the saved values current, or else the defaults. Where that ends caching, a flush is
    /// owed from then on.
    pub fn restore(&self) {
        let kept = self.kept.load(Ordering::Relaxed);
        let before = self.current.swap(kept, Ordering::SeqCst);
        if before & !kept & WRITE_CACHE != 0 {
            self.owed.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The flush that is owed, to be named when it is done.
    pub fn owed(&self) -> Option<u64> {
        let owed = self.owed.load(Ordering::SeqCst);
        (owed != self.paid.load(Ordering::SeqCst)).then_some(owed)
    }

    /// The flush is done; whether none is owed any more.
    pub fn pay(&self, flush: u64) -> bool {
        self.paid.fetch_max(flush, Ordering::SeqCst);
        self.owed().is_none()
    }

    /// The values in effect, as initiators are told them: there is a write cache as long as
    /// something in it may have to be flushed.
    pub fn told(&self) -> Settings {
        let current = self.current();
        Settings {
            write_cache: current.write_cache || self.owed().is_some(),
            ..current
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn settings_survive_their_word(
            write_cache: bool,
            descriptor_sense: bool,
            write_protect: bool,
            enabled: bool,
            count: u32,
        ) {
            let settings = Settings {
                write_cache,
                descriptor_sense,
                write_protect,
                threshold: Threshold { enabled, count },
            };
            prop_assert_eq!(Settings::unpack(settings.pack()), settings);
        }
    }

    #[test]
    fn a_change_that_is_refused_changes_nothing() {
        let modes = Modes::new(Settings::default());
        let refused = modes.change(false, |_| Err(Fault::ParameterListLength));
        assert_eq!(refused, Err(Fault::ParameterListLength));
        assert_eq!(modes.current(), Settings::default());
    }
}
