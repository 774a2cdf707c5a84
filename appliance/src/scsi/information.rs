//! Identifying information: what initiators write on a unit for each other to read (SPC-4, REPORT
//! IDENTIFYING INFORMATION).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::state_file::{Kept, StateError, StateFile};

/// IDENTIFYING INFORMATION TYPE: of the logical unit, for peripheral device.
const BINARY: u8 = 0x00;
/// IDENTIFYING INFORMATION TYPE: text of the logical unit.
const TEXT: u8 = 0x02;
/// IDENTIFYING INFORMATION TYPE: which types there are.
const SUPPORTED: u8 = 0x7f;
/// Most bytes of each.
const MAX_BINARY: u16 = 64;
const MAX_TEXT: u16 = 256;

/// The type of a CDB's byte 10, where it is not one.
const WRONG_TYPE: Fault = Fault::InvalidField { byte: 10, bit: 7 };

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    binary: Vec<u8>,
    text: Vec<u8>,
}

impl Kept for Saved {
    const WHAT: &'static str = "identifying information";
    const WITHOUT: &'static str = "the unit has none until an initiator sets another";
    const MAX_LEN: u64 = 16384;
}

/// The identifying information of one unit.
#[derive(Debug, Default)]
pub struct Information {
    file: Option<StateFile<Saved>>,
    current: Mutex<Saved>,
    /// The last attempt to save failed, which was logged.
    unsaved: AtomicBool,
}

impl Information {
    /// Information is kept in the file at `path`; what that has is there.
    ///
    /// # Errors
    /// [`StateError`] for a file that is damaged; other information may be set over it.
    pub fn set_file(&mut self, path: PathBuf, unit: &str) -> Result<(), StateError> {
        let file = StateFile::new(path, unit);
        let read = file.read();
        self.file = Some(file);
        let mut read: Saved = read?.unwrap_or_default();
        read.binary.truncate(MAX_BINARY.into());
        read.text.truncate(MAX_TEXT.into());
        *self.current() = read;
        Ok(())
    }

    /// REPORT IDENTIFYING INFORMATION parameter data.
    ///
    /// # Errors
    /// [`Fault::InvalidField`] for a type that there is not.
    pub fn report(&self, kind: u8) -> Result<Vec<u8>, Fault> {
        let content = match kind {
            BINARY => self.current().binary.clone(),
            TEXT => self.current().text.clone(),
            SUPPORTED => [(BINARY, MAX_BINARY), (TEXT, MAX_TEXT)]
                .into_iter()
                .flat_map(|(kind, most)| {
                    let [high, low] = most.to_be_bytes();
                    [kind << 1, 0, high, low]
                })
                .collect(),
            _ => return Err(WRONG_TYPE),
        };
        let len = u16::try_from(content.len()).unwrap_or(u16::MAX);
        let mut data = vec![0, 0];
        data.extend(len.to_be_bytes());
        data.extend(content);
        Ok(data)
    }

    /// Checks what a SET IDENTIFYING INFORMATION asks for before its list is looked at.
    ///
    /// # Errors
    /// [`Fault::InvalidField`] for a type that there is not, or more than there is room for.
    pub fn check(&self, kind: u8, len: usize) -> Result<(), Fault> {
        let most = match kind {
            BINARY => MAX_BINARY,
            TEXT => MAX_TEXT,
            _ => return Err(WRONG_TYPE),
        };
        if len > most.into() {
            return Err(Fault::InvalidField { byte: 6, bit: 7 });
        }
        Ok(())
    }

    /// Sets and keeps information that was [checked](Self::check).
    ///
    /// # Errors
    /// [`Fault::InvalidParameter`] for a text that is none, [`Fault::SavingFailed`] if it cannot be
    /// kept; the information is as before then.
    pub fn set(&self, kind: u8, content: Vec<u8>) -> Result<(), Fault> {
        // Held while the file is written, so that two do not mix.
        let mut current = self.current();
        let mut saved = current.clone();
        if kind == TEXT {
            // SPC-4: UTF-8 that ends with a null.
            let text = content
                .split_last()
                .map_or(Some(&[][..]), |(last, text)| (*last == 0).then_some(text));
            if text.is_none_or(|text| std::str::from_utf8(text).is_err()) {
                return Err(Fault::InvalidParameter { byte: 0, bit: 7 });
            }
            saved.text = content;
        } else {
            saved.binary = content;
        }
        if let Some(file) = &self.file
            && let Err(error) = file.write(&saved)
        {
            // Once is enough: an initiator may try it without end.
            if !self.unsaved.swap(true, Ordering::Relaxed) {
                tracing::error!("{error}");
            }
            return Err(Fault::SavingFailed);
        }
        self.unsaved.store(false, Ordering::Relaxed);
        *current = saved;
        Ok(())
    }

    fn current(&self) -> MutexGuard<'_, Saved> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::Scratch;

    #[test]
    fn a_file_of_version_1_is_understood_for_ever() {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        let text = "version = 1\nunit = \"a\"\n\nbinary = [1, 255]\ntext = [104, 105, 0]\n";
        std::fs::write(&path, text).unwrap();
        let mut information = Information::default();
        information.set_file(path.clone(), "a").unwrap();
        assert_eq!(information.report(0), Ok(vec![0, 0, 0, 2, 1, 255]));
        assert_eq!(information.report(2), Ok(b"\0\0\0\x03hi\0".to_vec()));
        information.set(0, vec![1, 255]).unwrap();
        let sealed = std::fs::read_to_string(path).unwrap();
        assert_eq!(sealed.split_once('\n').unwrap().1, text);
    }

    #[test]
    fn the_longest_information_fits_the_file() {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        let mut information = Information::default();
        information.set_file(path.clone(), "a").unwrap();
        information.set(0, vec![255; 64]).unwrap();
        let mut text = vec![b'x'; 255];
        text.push(0);
        information.set(2, text).unwrap();
        Information::default().set_file(path, "a").unwrap();
    }

    #[test]
    fn information_that_cannot_be_kept_is_not_set() {
        let mut information = Information::default();
        let path = PathBuf::from("/does/not/exist");
        information.set_file(path, "a").unwrap();
        assert_eq!(information.set(0, vec![1]), Err(Fault::SavingFailed));
        assert_eq!(information.report(0), Ok(vec![0, 0, 0, 0]));
    }
}
