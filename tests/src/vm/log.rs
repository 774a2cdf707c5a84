//! A log file that grows while it is read.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// How many lines of a log an error shows.
const TAIL_LINES: usize = 25;

/// A log written by some other process.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// The log at `path`, which need not exist yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it.
    pub fn text(&self) -> String {
        // A log that is not there yet is an empty one.
        String::from_utf8_lossy(&fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// Whether `pattern` occurs in it.
    pub fn contains(&self, pattern: &str) -> bool {
        self.text().contains(pattern)
    }

    /// How often `pattern` occurs in it.
    pub fn count(&self, pattern: &str) -> usize {
        self.text().matches(pattern).count()
    }

    /// Its last lines, and where to find the rest.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("--- {} ends ---\n{tail}\n---", self.path.display())
    }
}
