//! The instructions on record, and how far others may be from them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ::tests::vm::store;
use serde::{Deserialize, Serialize};

/// Percent by which a request may grow before it counts as a loss.
const TOLERANCE: f64 = 5.0;

/// Instructions of a request, by the name of the case.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record(BTreeMap<String, f64>);

/// How a case compares with the record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Growth {
    /// The record does not have it.
    Unknown,
    /// It grew by so many percent, which is too much.
    TooMuch { now: f64, percent: f64 },
    /// It grew by so many percent (or shrank).
    Fine { now: f64, percent: f64 },
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not on record; run it with --record"),
            Self::TooMuch { now, percent } => write!(
                f,
                "{now:.0} instructions for a request, {percent:+.1} %: MORE THAN {TOLERANCE} %; \
                 make it less, or say in the commit why it must be, and run it with --record"
            ),
            Self::Fine { now, percent } => {
                write!(f, "{now:.0} instructions for a request, {percent:+.1} %")?;
                if *percent < -TOLERANCE {
                    f.write_str("; run it with --record, so that it stays so")?;
                }
                Ok(())
            }
        }
    }
}

/// Where the record is.
pub fn path() -> PathBuf {
    store::workspace().join("tests/benches/instructions.json")
}

impl Record {
    /// The record of these cases.
    pub fn of<'a>(cases: impl Iterator<Item = (&'a str, f64)>) -> Self {
        let whole = cases.map(|(name, count)| (name.to_owned(), count.round()));
        Self(whole.collect())
    }

    /// # Errors
    /// The file is not there, or no record.
    pub fn load(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).map_err(std::io::Error::other)
    }

    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other)?;
        std::fs::write(path, text + "\n")
    }

    /// How each case compares with `before`.
    pub fn compared_with(&self, before: &Self) -> Vec<(&str, Growth)> {
        let compare = |(name, &now): (&'_ String, &f64)| match before.0.get(name) {
            None => Growth::Unknown,
            Some(before) => {
                let percent = (now - before) * 100.0 / before;
                if percent > TOLERANCE {
                    Growth::TooMuch { now, percent }
                } else {
                    Growth::Fine { now, percent }
                }
            }
        };
        let cases = self.0.iter();
        cases.map(|case| (case.0.as_str(), compare(case))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_percent_more_is_fine_and_six_are_not() {
        let before = Record::of([("a", 1000.0), ("b", 1000.0), ("c", 1000.0)].into_iter());
        let cases = [("a", 1050.0), ("b", 1060.0), ("c", 500.0), ("d", 1.0)];
        let now = Record::of(cases.into_iter());
        let growths = now.compared_with(&before);
        assert!(matches!(growths[0], ("a", Growth::Fine { .. })));
        assert!(matches!(growths[1], ("b", Growth::TooMuch { .. })));
        assert!(growths[2].1.to_string().contains("--record"));
        assert_eq!(growths[3], ("d", Growth::Unknown));
    }
}
