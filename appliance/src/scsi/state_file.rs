//! A file in which something about a unit outlives the appliance.
//!
//! Its first line has a checksum of all that follows: TOML that was cut off or damaged may still be
//! TOML, with other keys in it. Who mends a file by hand takes that line out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checksum::checksum;

/// The only version of the files there is.
const VERSION: u32 = 1;

/// What is kept in a file of its own.
pub trait Kept: Serialize + DeserializeOwned {
    /// What it is called, for people.
    const WHAT: &'static str;
    /// What the unit does without it.
    const WITHOUT: &'static str;
    /// Most bytes of a file that are read; ours are far from that.
    const MAX_LEN: u64;
}

/// Why something cannot be saved.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be saved in {}: {error}", path.display())]
pub struct SaveError {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// Why what was saved is not used.
#[derive(Debug, thiserror::Error)]
#[error("saved {what} {}: {problem}; {without}", path.display())]
pub struct StateError {
    what: &'static str,
    path: PathBuf,
    problem: Problem,
    without: &'static str,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("has more than {0} bytes")]
    TooLong(u64),
    #[error("makes no sense: {0}")]
    Malformed(String),
    #[error("has version {0}, this appliance reads version {VERSION}")]
    Version(toml::Value),
    #[error("is about the unit {0:?}")]
    OtherUnit(String),
    #[error(
        "is not as it was written (if it was mended by hand, remove its first line, `checksum`)"
    )]
    Damaged,
}

/// Where something about one unit is kept.
#[derive(Debug)]
pub struct StateFile<T> {
    path: PathBuf,
    unit: String,
    kept: PhantomData<fn() -> T>,
}

impl<T: Kept> StateFile<T> {
    /// The file at `path` of the unit called `unit`.
    pub fn new(path: PathBuf, unit: &str) -> Self {
        Self {
            path,
            unit: unit.to_owned(),
            kept: PhantomData,
        }
    }

    /// What was saved, if there is such a file.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(&self) -> Result<Option<T>, StateError> {
        self.try_read().map_err(|problem| StateError {
            what: T::WHAT,
            path: self.path.clone(),
            problem,
            without: T::WITHOUT,
        })
    }

    fn try_read(&self) -> Result<Option<T>, Problem> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(T::MAX_LEN + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > T::MAX_LEN {
            return Err(Problem::TooLong(T::MAX_LEN));
        }
        let malformed = |message: &str| Problem::Malformed(message.replace('\n', " "));
        let text = String::from_utf8(bytes).map_err(|error| malformed(&error.to_string()))?;
        let mut content: toml::Table =
            toml::from_str(&text).map_err(|error| malformed(error.message()))?;
        match content.remove("checksum") {
            Some(said) if said.as_str() != Some(checksum_of_rest(&text).as_str()) => {
                return Err(Problem::Damaged);
            }
            _ => {}
        }
        // The version says whether the rest can be understood.
        match content.remove("version") {
            Some(toml::Value::Integer(version)) if version == i64::from(VERSION) => {}
            Some(version) => return Err(Problem::Version(version)),
            None => return Err(malformed("it has no version")),
        }
        match content.remove("unit") {
            Some(toml::Value::String(unit)) if unit == self.unit => {}
            Some(toml::Value::String(unit)) => return Err(Problem::OtherUnit(unit)),
            _ => return Err(malformed("it has no unit")),
        }
        let kept = content
            .try_into()
            .map_err(|error: toml::de::Error| malformed(error.message()))?;
        Ok(Some(kept))
    }

    /// Saves `kept`. It is there, or what was before, whenever power fails.
    ///
    /// # Errors
    /// [`SaveError`]; the file has either of them then.
    pub fn write(&self, kept: &T) -> Result<(), SaveError> {
        self.try_write(kept).map_err(|error| SaveError {
            what: T::WHAT,
            path: self.path.clone(),
            error,
        })
    }

    fn try_write(&self, kept: &T) -> io::Result<()> {
        let unit = toml::Value::String(self.unit.clone());
        let kept = toml::to_string(kept).map_err(io::Error::other)?;
        let rest = format!("\nversion = {VERSION}\nunit = {unit}\n\n{kept}");
        let text = format!("checksum = \"{}\"{rest}", checksum_of_rest(&rest));
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // While nothing is different yet.
        let directory = File::open(directory)?;
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
        directory.sync_all()
    }
}

/// The checksum, as it is written, of what follows the first line of `text`.
fn checksum_of_rest(text: &str) -> String {
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    format!("{:08x}", checksum(rest.as_bytes()))
}
