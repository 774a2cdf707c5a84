//! The file in which a unit's mode parameters outlive the appliance.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::Settings;

/// The only version of the file there is.
const VERSION: u32 = 1;
/// Most bytes of a file that are read; ours are a tenth of that.
const MAX_LEN: u64 = 4096;

/// Why mode parameters cannot be saved.
#[derive(Debug, thiserror::Error)]
#[error("mode parameters cannot be saved in {}: {error}", path.display())]
pub struct SaveError {
    path: PathBuf,
    error: io::Error,
}

/// Why saved mode parameters are not used.
#[derive(Debug, thiserror::Error)]
#[error(
    "saved mode parameters {}: {problem}; the unit has its defaults until it is mended or removed, \
     or an initiator saves others",
    path.display()
)]
pub struct StateError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("has more than {MAX_LEN} bytes")]
    TooLong,
    #[error("makes no sense: {0}")]
    Malformed(String),
    #[error("has version {0}, this appliance reads version {VERSION}")]
    Version(u32),
    #[error("is about the unit {0:?}")]
    OtherUnit(String),
}

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    unit: String,
    settings: Settings,
}

/// Only the version, which says whether the rest can be understood.
#[derive(Debug, Deserialize)]
struct Versioned {
    version: u32,
}

/// Where the parameters of one unit are saved.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    unit: String,
}

impl StateFile {
    /// The file at `path` of the unit called `unit`.
    pub fn new(path: PathBuf, unit: &str) -> Self {
        Self {
            path,
            unit: unit.to_owned(),
        }
    }

    /// What was saved, if there is such a file.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(&self) -> Result<Option<Settings>, StateError> {
        self.try_read().map_err(|problem| StateError {
            path: self.path.clone(),
            problem,
        })
    }

    fn try_read(&self) -> Result<Option<Settings>, Problem> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(Problem::TooLong);
        }
        let malformed = |message: &str| Problem::Malformed(message.replace('\n', " "));
        let text = String::from_utf8(bytes).map_err(|error| malformed(&error.to_string()))?;
        let Versioned { version } =
            toml::from_str(&text).map_err(|error| malformed(error.message()))?;
        if version != VERSION {
            return Err(Problem::Version(version));
        }
        let content: Content = toml::from_str(&text).map_err(|error| malformed(error.message()))?;
        if content.unit != self.unit {
            return Err(Problem::OtherUnit(content.unit));
        }
        Ok(Some(content.settings))
    }

    /// Saves `settings`. They are there, or those before, whenever power fails.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn write(&self, settings: &Settings) -> Result<(), SaveError> {
        self.try_write(settings).map_err(|error| SaveError {
            path: self.path.clone(),
            error,
        })
    }

    fn try_write(&self, settings: &Settings) -> io::Result<()> {
        let text = toml::to_string(&Content {
            version: VERSION,
            unit: self.unit.clone(),
            settings: *settings,
        })
        .map_err(io::Error::other)?;
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::Scratch;
    use crate::scsi::threshold::Threshold;

    const SETTINGS: Settings = Settings {
        write_cache: false,
        descriptor_sense: true,
        write_protect: false,
        threshold: Threshold {
            enabled: true,
            count: 7,
        },
    };

    fn error(text: &[u8]) -> String {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        std::fs::write(&path, text).unwrap();
        let error = StateFile::new(path, "a").read().unwrap_err();
        error.to_string()
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let scratch = Scratch::new();
        let file = StateFile::new(scratch.path().join("state"), "a");
        assert_eq!(file.read().unwrap(), None);
        file.write(&Settings::default()).unwrap();
        file.write(&SETTINGS).unwrap();
        assert_eq!(file.read().unwrap(), Some(SETTINGS));
        let names: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_file_of_version_1_is_understood_for_ever() {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        let text = "version = 1\nunit = \"a\"\n\n[settings]\nwrite_cache = false\n\
                    descriptor_sense = true\nwrite_protect = false\n\n\
                    [settings.threshold]\nenabled = true\ncount = 7\n";
        std::fs::write(&path, text).unwrap();
        let file = StateFile::new(path.clone(), "a");
        assert_eq!(file.read().unwrap(), Some(SETTINGS));
        file.write(&SETTINGS).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }

    #[test]
    fn a_damaged_file_is_named_with_what_is_wrong() {
        assert!(error(b"version = 1\nunit = 3").contains("state: makes no sense"));
        assert!(error(b"version = 2\nunit = \"a\"").contains("has version 2"));
        assert!(error(b"\xff\xfe").contains("makes no sense"));
        assert!(error(b"").contains("makes no sense"));
        assert!(error(&[b'#'; 5000]).contains("has more than 4096 bytes"));
        let other = "version = 1\nunit = \"b\"\n[settings]\nwrite_cache = true\n\
                     descriptor_sense = true\nwrite_protect = false\n\
                     [settings.threshold]\nenabled = true\ncount = 7\n";
        assert!(error(other.as_bytes()).contains("is about the unit \"b\""));
    }
}
