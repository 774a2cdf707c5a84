//! The comparison as JSON, with what it was measured on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::compare::Compared;
use super::error::{Context, Error, Result};
use super::load::BLOCK;
use super::machine::Machine;

/// All that is kept of a comparison.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: Machine,
    /// How the VMs ran.
    accelerator: &'static str,
    /// Bytes of a request.
    block_bytes: u32,
    compared: &'a [Compared],
}

/// Writes the comparison to `vm.json` in `directory`, and gives its path.
///
/// # Errors
/// It cannot be written.
pub fn save(
    directory: &Path,
    machine: Machine,
    accelerator: &'static str,
    compared: &[Compared],
) -> Result<PathBuf> {
    let report = Report {
        machine,
        accelerator,
        block_bytes: BLOCK,
        compared,
    };
    let path = directory.join("vm.json");
    let saving = || format!("write {}", path.display());
    let text = serde_json::to_string_pretty(&report).map_err(|source| Error::Io {
        action: saving(),
        source: source.into(),
    })?;
    fs::write(&path, text).doing(saving())?;
    Ok(path)
}
