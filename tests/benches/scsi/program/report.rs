//! The comparison as JSON, with what it was measured on.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use serde::Serialize;

use super::compare::Compared;
use super::error::{Context, Error, Result};

/// All that is kept of a comparison.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: Machine,
    /// Bytes of a request.
    block_bytes: u32,
    /// Percent of the requests that are writes.
    write_percent: u8,
    compared: &'a [Compared],
}

/// What it was measured on.
#[derive(Debug, Serialize)]
pub struct Machine {
    cpus: usize,
    model: String,
    kernel: String,
    /// Processes that wanted a CPU in the minute before the end; more than our two spoil figures.
    load: String,
}

impl Machine {
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        Self {
            cpus: thread::available_parallelism().map_or(1, usize::from),
            model: model.map_or_else(String::new, |(_, model)| model.to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// One line about it.
    pub fn line(&self) -> String {
        let Self {
            cpus,
            model,
            kernel,
            load,
        } = self;
        format!("{cpus} CPUs ({model}), Linux {kernel}, load {load}")
    }
}

/// Writes the comparison to `scsi.json` in `directory`, and gives its path.
///
/// # Errors
/// It cannot be written.
pub fn save(
    directory: &Path,
    compared: &[Compared],
    block_bytes: u32,
    write_percent: u8,
) -> Result<PathBuf> {
    let report = Report {
        machine: Machine::here(),
        block_bytes,
        write_percent,
        compared,
    };
    let path = directory.join("scsi.json");
    let saving = || format!("write {}", path.display());
    let text = serde_json::to_string_pretty(&report).map_err(|source| Error::Io {
        action: saving(),
        source: source.into(),
    })?;
    fs::write(&path, text).doing(saving())?;
    Ok(path)
}
