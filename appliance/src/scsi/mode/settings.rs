//! The mode parameters of a unit that initiators can change.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::saved::{StateError, StateFile};
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
    /// Held while the current values change.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    file: Option<StateFile>,
    saved: Option<Settings>,
}

impl Modes {
    /// With defaults, which are current too; nothing can be saved.
    pub fn new(defaults: Settings) -> Self {
        Self {
            current: AtomicU64::new(defaults.pack()),
            defaults,
            kept: Mutex::default(),
        }
    }

    /// With this default for the threshold.
    pub fn set_default_threshold(&mut self, threshold: Threshold) {
        self.defaults.threshold = threshold;
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
        {
            let mut kept = self.kept();
            kept.file = Some(file);
            kept.saved = *read.as_ref().unwrap_or(&None);
        }
        self.restore();
        read.map(|_| ())
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
        let kept = self.kept();
        kept.file
            .is_some()
            .then(|| kept.saved.unwrap_or(self.defaults))
    }

    /// Changes the current values to what `change` makes of them, and saves them before if
    /// `save`. Returns those before and after.
    ///
    /// # Errors
    /// What `change` returns, or what it makes of a failure to save; nothing has changed then.
    pub fn change<E>(
        &self,
        save: bool,
        change: impl FnOnce(Settings) -> Result<Settings, E>,
        unsaved: impl FnOnce(io::Error) -> E,
    ) -> Result<(Settings, Settings), E> {
        let mut kept = self.kept();
        let before = self.current();
        let after = change(before)?;
        if let (true, Some(file)) = (save, &kept.file)
            && kept.saved != Some(after)
        {
            file.write(&after).map_err(unsaved)?;
            kept.saved = Some(after);
        }
        self.current.store(after.pack(), Ordering::Relaxed);
        Ok((before, after))
    }

    /// Makes the saved values current, or else the defaults.
    pub fn restore(&self) {
        let kept = self.kept();
        let settings = kept.saved.unwrap_or(self.defaults);
        self.current.store(settings.pack(), Ordering::Relaxed);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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
        let refused = modes.change(false, |_| Err("no"), |_| "unsaved");
        assert_eq!(refused, Err("no"));
        assert_eq!(modes.current(), Settings::default());
    }
}
