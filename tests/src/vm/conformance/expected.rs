//! The expected list: how every test ends on every profile.

use std::{collections::BTreeMap, fmt::Write};

use serde::Deserialize;

use super::Profile;
use super::output::{Verdict, Verdicts};

/// The list in the repository.
const LIST: &str = include_str!("../../../conformance/expected.toml");

/// A cell of the list: the test has passed.
const PASS: &str = "pass";
/// A cell of the list: the test's suite is not run on the profile.
const NOT_RUN: &str = "-";

/// How every test ends on every profile, and why those that do not pass do not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The names of the profiles, in the order of the cells.
    profiles: Vec<String>,
    /// A cell's word for a reason to skip.
    skips: BTreeMap<String, Reason>,
    /// A cell's word for a failure that is the test's own, since it asks for what the standard
    /// forbids or the tool cannot see.
    disputed: BTreeMap<String, Reason>,
    /// Why some suites are not run on a profile.
    not_run: BTreeMap<String, String>,
    /// Why a test passes on no profile.
    never: BTreeMap<String, String>,
    /// "Suite.Test", and a word for each profile.
    tests: BTreeMap<String, String>,
}

/// Why a test does not pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    /// A part of what the tool says.
    says: String,
    /// What is behind it, for the reader.
    because: String,
}

impl Expected {
    /// The list in the repository.
    ///
    /// # Panics
    /// If it is no list.
    pub fn list() -> Self {
        toml::from_str(LIST).unwrap_or_else(|error| panic!("expected.toml: {error}"))
    }

    /// What in the list contradicts itself.
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (test, line) in &self.tests {
            let cells: Vec<_> = line.split_whitespace().collect();
            if cells.len() != self.profiles.len() {
                found.push(format!("{test}: {} cells", cells.len()));
            }
            for cell in &cells {
                let is_reason =
                    |cell| self.skips.contains_key(cell) || self.disputed.contains_key(cell);
                if ![PASS, NOT_RUN].contains(cell) && !is_reason(*cell) {
                    found.push(format!("{test}: `{cell}` is no reason"));
                }
            }
            if cells.contains(&PASS) == self.never.contains_key(test) {
                found.push(format!(
                    "{test}: either passes somewhere or stands in [never]"
                ));
            }
        }
        for (column, profile) in self.profiles.iter().enumerate() {
            let mut cells = self.tests.values();
            let is_partial = cells.any(|line| line.split_whitespace().nth(column) == Some(NOT_RUN));
            if is_partial != self.not_run.contains_key(profile) {
                found.push(format!(
                    "{profile}: either runs all suites or stands in [not_run]"
                ));
            }
        }
        let unknown = self
            .never
            .keys()
            .filter(|test| !self.tests.contains_key(*test));
        found.extend(unknown.map(|test| format!("{test}: stands in [never] only")));
        let reasons = self
            .skips
            .values()
            .chain(self.disputed.values())
            .map(|reason| &reason.because)
            .chain(self.never.values())
            .chain(self.not_run.values());
        if reasons.into_iter().any(String::is_empty) {
            found.push("a reason is empty".to_owned());
        }
        found
    }

    /// Where `results` differ from the list, whether for the worse or for the better.
    pub fn differences(&self, results: &[(Profile, Verdicts)]) -> Vec<String> {
        let mut found = Vec::new();
        for (profile, verdicts) in results {
            let name = profile.name();
            let Some(column) = self.profiles.iter().position(|known| known == name) else {
                found.push(format!("{name}: no profile of the list"));
                continue;
            };
            for (test, line) in &self.tests {
                let expected = line.split_whitespace().nth(column).unwrap_or(NOT_RUN);
                let verdict = verdicts.get(test);
                if self.cell(verdict) != expected {
                    found.push(format!(
                        "{name}: {test}: expected {expected}, is {verdict:?}"
                    ));
                }
            }
            let unlisted = verdicts
                .iter()
                .filter(|(test, _)| !self.tests.contains_key(*test));
            found.extend(unlisted.map(|(test, v)| format!("{name}: {test}: not listed, is {v:?}")));
        }
        let missing = self.profiles.iter();
        let missing = missing.filter(|name| results.iter().all(|(p, _)| p.name() != *name));
        found.extend(missing.map(|name| format!("{name}: was not run")));
        found
    }

    /// The list's lines as they would be for `results`, to be read and then pasted.
    pub fn lines_for(&self, results: &[(Profile, Verdicts)]) -> String {
        let mut lines = String::new();
        for test in tests(results) {
            let cells: Vec<_> = results
                .iter()
                .map(|(_, v)| self.cell(v.get(test)))
                .collect();
            let _ = writeln!(
                lines,
                "{:<40} = \"{}\"",
                format!("{test:?}"),
                cells.join(" ")
            );
        }
        lines
    }

    /// How many tests really passed, skipped and failed on each profile, and on all together; a
    /// failure that is the test's own is counted as disputed.
    pub fn totals(&self, results: &[(Profile, Verdicts)]) -> String {
        let header = ["passed", "skipped", "disputed", "failed", "of"];
        let row = |name: &str, columns: [String; 5]| {
            let columns = columns.map(|column| format!("{column:>9}")).concat();
            format!("{name:<10}{columns}\n")
        };
        let mut table = row("profile", header.map(str::to_owned));
        for (profile, verdicts) in results {
            let mut counts = [0, 0, 0, 0, verdicts.len()];
            for verdict in verdicts.values() {
                let column = match verdict {
                    Verdict::Passed => 0,
                    Verdict::Skipped(_) => 1,
                    Verdict::Failed(note) if word(&self.disputed, note).is_some() => 2,
                    Verdict::Failed(_) => 3,
                };
                counts[column] += 1;
            }
            table += &row(profile.name(), counts.map(|count| count.to_string()));
        }
        let tests = tests(results);
        let passes = |test: &&&String| {
            let mut verdicts = results
                .iter()
                .filter_map(|(_, verdicts)| verdicts.get(**test));
            verdicts.any(|verdict| *verdict == Verdict::Passed)
        };
        let (passed, all) = (tests.iter().filter(passes).count(), tests.len());
        let _ = writeln!(
            table,
            "{passed} of {all} tests really pass on at least one profile"
        );
        table
    }

    /// A verdict, as a word of the list.
    fn cell(&self, verdict: Option<&Verdict>) -> &str {
        match verdict {
            None => NOT_RUN,
            Some(Verdict::Passed) => PASS,
            Some(Verdict::Failed(note)) => word(&self.disputed, note).unwrap_or("FAILED"),
            Some(Verdict::Skipped(note)) => word(&self.skips, note).unwrap_or("SKIPPED"),
        }
    }
}

/// The word of the reason that the tool's `note` is about.
fn word<'a>(reasons: &'a BTreeMap<String, Reason>, note: &str) -> Option<&'a str> {
    let (word, _) = reasons
        .iter()
        .find(|(_, reason)| note.contains(&reason.says))?;
    Some(word)
}

/// The names of all tests that were run.
fn tests(results: &[(Profile, Verdicts)]) -> Vec<&String> {
    let mut tests: Vec<_> = results
        .iter()
        .flat_map(|(_, verdicts)| verdicts.keys())
        .collect();
    tests.sort();
    tests.dedup();
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_list() -> Expected {
        toml::from_str(
            r#"
            profiles = ["thin", "huge"]
            [skips.iscsi]
            says = "Not an iSCSI device"
            because = "there is none"
            [disputed.tool]
            says = "tool's own"
            because = "the tool is wrong"
            [not_run]
            huge = "it would be no other"
            [never]
            "Read10.Async" = "it needs one"
            [tests]
            "Read10.Async" = "iscsi -"
            "Read10.Simple" = "pass -"
            "#,
        )
        .unwrap()
    }

    fn skipped(note: &str) -> Verdict {
        Verdict::Skipped(note.to_owned())
    }

    fn run(verdicts: &[(&str, Verdict)]) -> Vec<(Profile, Verdicts)> {
        let verdicts = verdicts
            .iter()
            .map(|(test, v)| ((*test).to_owned(), v.clone()));
        vec![
            (Profile::new("thin", &[]), verdicts.collect()),
            (Profile::new("huge", &[]), Verdicts::new()),
        ]
    }

    #[test]
    fn repositorys_list_does_not_contradict_itself() {
        assert_eq!(Expected::list().contradictions(), Vec::<String>::new());
    }

    #[test]
    fn what_never_passes_is_done_by_a_test_that_there_is() {
        let suites = [
            (
                "world_conformance::",
                include_str!("../../../suites/world_conformance.rs"),
            ),
            (
                "world_corrected::",
                include_str!("../../../suites/world_corrected.rs"),
            ),
        ];
        for (test, reason) in Expected::list().never {
            let stand_in = suites.iter().find_map(|(suite, text)| {
                let (_, name) = reason.split_once(suite)?;
                text.contains(&format!("#[test]\nfn {name}() {{"))
                    .then_some(name)
            });
            assert!(stand_in.is_some(), "{test}: {reason}");
        }
    }

    #[test]
    fn test_that_never_passes_needs_a_reason_and_one_that_passes_needs_none() {
        let mut list = small_list();
        assert_eq!(list.contradictions(), Vec::<String>::new());
        list.never.clear();
        assert_eq!(list.contradictions().len(), 1);
        list.never
            .insert("Read10.Async".into(), "it needs one".into());
        list.never.insert("Read10.Simple".into(), "wrong".into());
        assert_eq!(list.contradictions().len(), 1);
    }

    #[test]
    fn profile_without_some_suites_needs_a_reason() {
        let mut list = small_list();
        list.not_run.clear();
        assert_eq!(list.contradictions().len(), 1);
    }

    #[test]
    fn results_as_listed_do_not_differ() {
        let results = run(&[
            (
                "Read10.Async",
                skipped("Not an iSCSI device. Skipping test"),
            ),
            ("Read10.Simple", Verdict::Passed),
        ]);
        assert_eq!(small_list().differences(&results), Vec::<String>::new());
    }

    #[test]
    fn every_other_result_differs() {
        let iscsi = skipped("Not an iSCSI device. Skipping test");
        let cases = [
            // Better, worse, skipped for another reason, missing, unknown.
            [
                ("Read10.Async", Verdict::Passed),
                ("Read10.Simple", Verdict::Passed),
            ],
            [
                ("Read10.Async", iscsi.clone()),
                ("Read10.Simple", Verdict::Failed("no".into())),
            ],
            [
                ("Read10.Async", skipped("too small")),
                ("Read10.Simple", Verdict::Passed),
            ],
            [("Read10.Async", iscsi.clone()), ("Read10.Async", iscsi)],
        ];
        for case in cases {
            let differences = small_list().differences(&run(&case));
            assert_eq!(differences.len(), 1, "{case:?}: {differences:?}");
        }
        let unknown = run(&[("Read99.Simple", Verdict::Passed)]);
        assert_eq!(small_list().differences(&unknown).len(), 3);
    }

    #[test]
    fn total_counts_a_test_that_passes_on_any_profile_once() {
        let mut results = run(&[("A.One", Verdict::Passed), ("A.Two", skipped("x"))]);
        results[1].1.insert("A.One".into(), Verdict::Passed);
        assert!(
            small_list()
                .totals(&results)
                .ends_with("1 of 2 tests really pass on at least one profile\n")
        );
    }
}
