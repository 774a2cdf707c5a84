//! The configuration in force as a text, with its file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::desk::Desk;
use super::handover::{self, HandoverError};
use crate::appliance::Appliance;
use crate::config::{Config, ConfigError, Listen, LunConfig, Source, read_text};
use crate::metrics::{MetricsError, Outlet};
use crate::roster::Applied;

/// What a text is called that no file has.
const NO_FILE: &str = "configuration";

/// The configuration in force as a text, and the only way to put another into force: so the two
/// never differ.
#[derive(Debug)]
pub struct Book {
    appliance: Arc<Appliance>,
    file: Option<PathBuf>,
    outlet: Outlet,
    /// Locked while another takes its place.
    page: Mutex<Page>,
    /// A copy for those who only look.
    shown: Mutex<Page>,
}

#[derive(Debug, Clone)]
struct Page {
    text: String,
    /// Whether the file says the same.
    saved: bool,
}

/// Why the configuration is not another now, or is not saved.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The text is wrong.
    #[error("{0}; nothing was changed")]
    Config(#[from] ConfigError),
    /// It cannot be put into force.
    #[error(transparent)]
    Apply(Box<HandoverError>),
    /// Metrics cannot be served where it says.
    #[error("nothing was changed, as metrics cannot be served there: {0}")]
    Metrics(#[from] MetricsError),
    /// There is no file.
    #[error(
        "the appliance was started without a configuration file; give a path: config save PATH"
    )]
    NoFile,
    /// It is not to be written there.
    #[error("{} cannot be written: {why}; give another path", path.display())]
    Place {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It cannot be written.
    #[error("{} cannot be written: {error}; what was there before still is", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl From<HandoverError> for BookError {
    fn from(error: HandoverError) -> Self {
        Self::Apply(Box::new(error))
    }
}

impl Book {
    /// The book of an appliance that was started with the configuration in `text`, which came from
    /// `file`.
    pub fn new(appliance: Arc<Appliance>, text: String, file: Option<PathBuf>) -> Self {
        let page = Page {
            saved: file.is_some(),
            text,
        };
        Self {
            appliance,
            file,
            outlet: Outlet::default(),
            shown: Mutex::new(page.clone()),
            page: Mutex::new(page),
        }
    }

    /// The appliance.
    pub fn appliance(&self) -> &Arc<Appliance> {
        &self.appliance
    }

    /// The file.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The text, and whether the file says the same.
    pub fn read(&self) -> (String, bool) {
        let page = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        (page.text.clone(), page.saved)
    }

    /// Puts `text`, which came from `file` if from any, into force, all of it or nothing.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn apply(&self, text: String, file: Option<&Path>) -> Result<Applied, BookError> {
        let mut page = self.page();
        let config = Config::parse(&text, file.unwrap_or(Path::new(NO_FILE)))?;
        let applied = self.put(config)?;
        let saved = self.is_in_file(&text);
        self.turn(&mut page, Page { text, saved });
        Ok(applied)
    }

    /// Puts what `edit` makes of the text into force; whoever else wants to change it waits.
    ///
    /// # Errors
    /// As `edit`, or [`BookError`].
    pub fn change<E: From<BookError>>(
        &self,
        edit: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<Applied, E> {
        let mut page = self.page();
        let text = edit(&page.text)?;
        let config = Config::parse(&text, Path::new(NO_FILE)).map_err(|error| {
            // Lines are of a text that nobody has seen.
            BookError::from(ConfigError {
                line: None,
                ..error
            })
        })?;
        let applied = self.put(config)?;
        let saved = self.is_in_file(&text);
        self.turn(&mut page, Page { text, saved });
        Ok(applied)
    }

    /// Puts a configuration into force, all of it or nothing.
    fn put(&self, config: Config) -> Result<Applied, BookError> {
        // First, as it is easily undone.
        let metrics = self.outlet.prepare(config.metrics.as_ref())?;
        let applied = handover::put(&self.appliance, config)?;
        Ok(Applied {
            metrics: self.outlet.commit(metrics),
            ..applied
        })
    }

    /// Has metrics served, as [`crate::metrics::serve`] says.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub(crate) fn serve_metrics(
        &self,
        desk: &Arc<Desk>,
        given: Option<Listen>,
    ) -> Result<(), MetricsError> {
        // So that no other configuration is put into force meanwhile.
        let _page = self.page();
        let configured = self.appliance.configuration().metrics;
        self.outlet.open(desk, given, configured)
    }

    /// Where metrics come out.
    pub(crate) fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Checks that `text` could be put into force, as far as that shows without opening disks.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn check(&self, text: &str) -> Result<(), BookError> {
        let config = Config::parse(text, Path::new(NO_FILE)).map_err(|error| ConfigError {
            // Lines are of a text that nobody has seen.
            line: None,
            ..error
        })?;
        self.appliance
            .check(&config)
            .map_err(|error| HandoverError::from(error).into())
    }

    /// Reads the file again and puts what is in it now into force.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn reload(&self) -> Result<Applied, BookError> {
        let mut page = self.page();
        let file = self.file.as_deref().ok_or(BookError::NoFile)?;
        let (config, text) = Config::read_with_text(file)?;
        let applied = self.put(config)?;
        self.turn(&mut page, Page { text, saved: true });
        Ok(applied)
    }

    /// Writes the text into its file, or into another.
    ///
    /// # Errors
    /// [`BookError`]; the file is whole all the same, as it was or as it is to be.
    pub fn save(&self, other: Option<&Path>) -> Result<PathBuf, BookError> {
        let mut page = self.page();
        let path = other.or(self.file()).ok_or(BookError::NoFile)?;
        // The file that a link leads to, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let luns = self.appliance.configuration().luns;
        for written in [&path, &part(&path)] {
            check_place(written, &luns).map_err(|why| BookError::Place {
                path: written.clone(),
                why,
            })?;
        }
        write_whole(&path, &page.text).map_err(|error| BookError::Write {
            path: path.clone(),
            error,
        })?;
        let is_ours = self
            .file()
            .is_some_and(|file| fs::canonicalize(file).is_ok_and(|file| file == path));
        if is_ours {
            let saved = Page {
                text: page.text.clone(),
                saved: true,
            };
            self.turn(&mut page, saved);
        }
        Ok(path)
    }

    /// Whether the file says this.
    fn is_in_file(&self, text: &str) -> bool {
        let in_file = self.file().map(read_text);
        matches!(in_file, Some(Ok(there)) if there == text)
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, page: &mut Page, new: Page) {
        page.clone_from(&new);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }
}

/// The file that is written before it takes the place of another.
fn part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Checks that what is at `path` may be lost: that there is nothing, or a regular file which is no
/// disk of a LUN.
fn check_place(path: &Path, luns: &[LunConfig]) -> Result<(), String> {
    let Ok(there) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !there.is_file() {
        return Err("what is there is no regular file".into());
    }
    let is_there = |lun: &&LunConfig| match &lun.source {
        Source::Path(disk) => fs::metadata(disk)
            .is_ok_and(|disk| (disk.dev(), disk.ino()) == (there.dev(), there.ino())),
        Source::Serial(_) | Source::Null(_) | Source::Ram(_) => false,
    };
    match luns.iter().find(is_there) {
        Some(lun) => Err(format!("it is the disk of LUN {:?}", lun.name)),
        None => Ok(()),
    }
}

/// Puts a text in the place of a file, so that a crash leaves the one or the other.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let part = part(path);
    let mode = fs::metadata(path).ok();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)?;
    file.write_all(text.as_bytes())?;
    if let Some(meta) = mode {
        file.set_permissions(meta.permissions())?;
    }
    file.sync_all()?;
    fs::rename(&part, path)?;
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
