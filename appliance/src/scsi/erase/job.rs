//! What is to be done to all blocks of a unit, as it is written down.

use serde::{Deserialize, Serialize};

use super::progress::What;
use crate::scsi::state_file::Kept;

/// Most bytes of a pattern: a block.
const MAX_PATTERN: usize = 4096;

/// Which command wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// FORMAT UNIT.
    Format,
    /// SANITIZE; if it fails, only another one may follow.
    Sanitize,
    /// SANITIZE with AUSE; if it fails, EXIT FAILURE MODE may end that.
    SanitizeUnrestricted,
}

impl Kind {
    /// What is told of it.
    pub const fn what(self) -> What {
        match self {
            Self::Format => What::Format,
            Self::Sanitize | Self::SanitizeUnrestricted => What::Sanitize,
        }
    }
}

/// What the blocks are filled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fill {
    /// They stay as they are.
    Nothing,
    /// With zeros; they are given back where the disk is thin.
    Zeros,
    /// With a pattern that begins anew in each block, as often as there are passes.
    Pattern {
        pattern: Pattern,
        /// At least 1.
        passes: u8,
        /// Every second pass has the bits inverted.
        invert: bool,
    },
}

/// Bytes of a pattern: at least one, at most a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Vec<u8>);

impl Pattern {
    /// The pattern of these bytes; `None` if there are none, or too many for any block.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let is_one = (1..=MAX_PATTERN).contains(&bytes.len());
        is_one.then(|| Self(bytes.to_vec()))
    }

    /// A block of it.
    pub fn block(&self, size: usize, inverted: bool) -> Vec<u8> {
        let mask = if inverted { 0xff } else { 0 };
        let bytes = self.0.iter().cycle().take(size);
        bytes.map(|byte| byte ^ mask).collect()
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, String> {
        let digits = hex.as_bytes().chunks(2);
        let bytes = digits.map(|pair| {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            u8::try_from(digit(0)? << 4 | digit(1)?).ok()
        });
        let bytes: Option<Vec<u8>> = bytes.collect();
        let pattern = bytes.and_then(|bytes| Self::new(&bytes));
        pattern.ok_or_else(|| "the pattern is none".into())
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.iter().fold(Self::new(), |mut hex, byte| {
            hex += &format!("{byte:02x}");
            hex
        })
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    pub kind: Kind,
    pub fill: Fill,
}

impl Job {
    /// How often all blocks are written.
    pub fn passes(&self) -> u8 {
        match self.fill {
            Fill::Nothing => 0,
            Fill::Zeros => 1,
            Fill::Pattern { passes, .. } => passes,
        }
    }
}

/// What the file says: the job that is under way, or has failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub failed: bool,
    pub job: Option<Job>,
}

impl Kept for Saved {
    const WHAT: &'static str = "state of FORMAT UNIT and SANITIZE";
    const WITHOUT: &'static str = "mend it, or remove it if no block may be what it was to erase";
    const MAX_LEN: u64 = 4 * MAX_PATTERN as u64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::state_file::StateFile;
    use crate::scsi::testing::Scratch;

    fn overwrite(bytes: &[u8]) -> Saved {
        Saved {
            failed: true,
            job: Some(Job {
                kind: Kind::SanitizeUnrestricted,
                fill: Fill::Pattern {
                    pattern: Pattern::new(bytes).unwrap(),
                    passes: 3,
                    invert: true,
                },
            }),
        }
    }

    #[test]
    fn a_file_of_version_1_is_understood_for_ever() {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        let text = "version = 1\nunit = \"a\"\n\nfailed = true\n\n[job]\n\
                    kind = \"sanitize-unrestricted\"\n\n[job.fill.pattern]\n\
                    pattern = \"00ffa5\"\npasses = 3\ninvert = true\n";
        std::fs::write(&path, text).unwrap();
        let file = StateFile::<Saved>::new(path.clone(), "a");
        let saved = overwrite(&[0x00, 0xff, 0xa5]);
        assert_eq!(file.read().unwrap(), Some(saved.clone()));
        file.write(&saved).unwrap();
        let sealed = std::fs::read_to_string(&path).unwrap();
        assert_eq!(sealed.split_once('\n').unwrap().1, text);
        let zeros = "version = 1\nunit = \"a\"\n\nfailed = false\n\n[job]\n\
                     kind = \"format\"\nfill = \"zeros\"\n";
        std::fs::write(path, zeros).unwrap();
        let job = Job {
            kind: Kind::Format,
            fill: Fill::Zeros,
        };
        let read = file.read().unwrap().unwrap();
        assert_eq!((read.failed, read.job), (false, Some(job)));
    }

    #[test]
    fn the_longest_pattern_fits_the_file() {
        let scratch = Scratch::new();
        let file = StateFile::<Saved>::new(scratch.path().join("state"), "a");
        let saved = overwrite(&[0x5a; 4096]);
        file.write(&saved).unwrap();
        assert_eq!(file.read().unwrap(), Some(saved));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for hex in ["", "0", "0g", "+1", "\u{e4}"] {
            assert!(Pattern::try_from(hex.to_owned()).is_err(), "{hex:?}");
        }
        assert!(Pattern::try_from("00".repeat(4097)).is_err());
        assert!(Pattern::new(&[]).is_none());
    }

    #[test]
    fn a_pattern_begins_anew_in_each_block() {
        let pattern = Pattern::new(&[1, 2, 3]).unwrap();
        assert_eq!(pattern.block(8, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(pattern.block(4, true), [0xfe, 0xfd, 0xfc, 0xfe]);
    }
}
