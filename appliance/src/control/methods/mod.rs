//! The methods: what each is called, takes and does.

mod config;
mod drain;
mod explain;
mod hba;
mod limit;
mod log;
mod look;
mod lun;
mod metrics;
mod snapshot;
mod trace;

use std::fmt::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use self::look::disks;
use super::desk::Desk;
use super::protocol::{Failure, code};

/// One method.
pub(super) struct Method {
    /// What it is called.
    pub name: &'static str,
    /// Its parameters: name (with "?" if it may be left out), type, meaning.
    pub params: &'static [(&'static str, &'static str, &'static str)],
    /// Type of its result, in `control::protocol`.
    pub result: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Does it.
    pub run: fn(&Desk, &Value) -> Result<Value, Failure>,
}

/// All of them.
pub(super) const METHODS: &[Method] = &[
    look::HELLO,
    look::STATUS,
    look::HBAS,
    look::LUNS,
    look::DISKS,
    look::SHOW,
    config::GET,
    config::CHECK,
    config::DIFF,
    config::APPLY,
    config::SAVE,
    lun::ADD,
    lun::REMOVE,
    lun::RESIZE,
    lun::MOVE,
    limit::LUN,
    snapshot::CREATE,
    snapshot::LIST,
    snapshot::ROLLBACK,
    snapshot::REMOVE,
    snapshot::CLONE,
    hba::ADD,
    hba::REMOVE,
    limit::HBA,
    limit::GROUP,
    drain::DRAIN,
    drain::RESUME,
    log::LEVEL,
    log::READ,
    explain::EXPLAIN,
    trace::TRACE,
    metrics::METRICS,
];

/// The parameters of a method; none are an empty object.
fn params<T: DeserializeOwned>(given: &Value) -> Result<T, Failure> {
    let given = match given {
        Value::Null => Value::Object(serde_json::Map::new()),
        given => given.clone(),
    };
    serde_json::from_value(given)
        .map_err(|error| Failure::new(code::PARAMS, format!("the parameters are wrong: {error}")))
}

/// A result.
fn value(result: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(result).map_err(|error| Failure::new(code::SYSTEM, error.to_string()))
}

/// The reference of the methods, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for method in METHODS {
        // Writing to a String cannot fail.
        let _ = write!(text, "### `{}`\n\n{}\n\n", method.name, method.about);
        for (name, kind, about) in method.params {
            let (name, optional) = match name.strip_suffix('?') {
                Some(name) => (name, ", optional"),
                None => (*name, ""),
            };
            let _ = writeln!(text, "- `{name}` ({kind}{optional}): {about}");
        }
        if !method.params.is_empty() {
            text.push('\n');
        }
        let _ = write!(text, "Result: {}\n\n", method.result);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_written_reference_is_that_of_the_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/control.md");
        let written = std::fs::read_to_string(path).unwrap();
        let (_, methods) = written.split_once("## Methods\n\n").unwrap();
        assert!(
            methods.trim_end() == reference().trim_end(),
            "docs/control.md is to end with:\n{}",
            reference()
        );
    }
}
