//! The comparison as JSON, with what it was measured on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::compare::{Compared, Comparison};
use super::error::{Context, Error, Result};
use super::machine::Machine;

/// All that is kept of a comparison.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: Machine,
    /// Bytes of a request.
    block_bytes: u32,
    /// Percent of the requests that are writes.
    write_percent: u8,
    sequential: bool,
    compared: &'a [Compared],
}

/// Writes the comparison to `scsi.json` in `directory`, and gives its path.
///
/// # Errors
/// It cannot be written.
pub fn save(directory: &Path, compared: &[Compared], asked: &Comparison) -> Result<PathBuf> {
    let report = Report {
        machine: Machine::here(),
        block_bytes: asked.block_bytes,
        write_percent: asked.write_percent,
        sequential: asked.sequential,
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
