//! Holds `vhost-pci.md` to the tests: every requirement is named by one, and every name is one.
//!
//! A requirement is defined by a paragraph that begins with its id in bold, as in
//! `**VPCI-MEM-3**: ...`. A test that proves it says so in a comment directly above its
//! `#[test]`: `covers:` after two slashes, then ids between commas.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// A requirement id, ordered by section and number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    section: String,
    number: u32,
}

impl Id {
    /// The id that `text` is, all of it.
    fn parse(text: &str) -> Option<Self> {
        let (section, number) = text.strip_prefix("VPCI-")?.split_once('-')?;
        let letters = !section.is_empty() && section.bytes().all(|b| b.is_ascii_uppercase());
        let digits = number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0');
        if !letters || !digits {
            return None;
        }
        Some(Self {
            section: section.to_owned(),
            number: number.parse().ok()?,
        })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VPCI-{}-{}", self.section, self.number)
    }
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// Two paragraphs define this id.
    Duplicate { id: Id, line: usize },
    /// A paragraph that begins like a requirement and is none.
    Malformed { line: usize },
    /// A requirement that demands nothing: no MUST in it.
    NoDemand { id: Id },
    /// The text refers to an id that it does not define.
    Dangling { id: Id, line: usize },
    /// A covers comment with something in it that is not an id.
    NotAnId { at: String, name: String },
    /// A covers comment that is not directly above a test.
    NotAboveTest { at: String },
    /// A test names a requirement that there is not.
    Unknown { at: String, id: Id },
    /// No test names this requirement.
    Untested { id: Id },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { id, line } => {
                write!(
                    f,
                    "vhost-pci.md:{line}: {id} is defined again; number it anew"
                )
            }
            Self::Malformed { line } => write!(
                f,
                "vhost-pci.md:{line}: not a requirement; write `**VPCI-ABC-1**: ...`"
            ),
            Self::NoDemand { id } => write!(f, "{id} has no MUST; say what it demands"),
            Self::Dangling { id, line } => {
                write!(
                    f,
                    "vhost-pci.md:{line}: refers to {id}, which it does not define"
                )
            }
            Self::NotAnId { at, name } => {
                write!(
                    f,
                    "{at}: `{name}` is no requirement id; ids go between commas"
                )
            }
            Self::NotAboveTest { at } => {
                write!(f, "{at}: put this comment directly above a #[test]")
            }
            Self::Unknown { at, id } => {
                write!(f, "{at}: names {id}, which vhost-pci.md does not define")
            }
            Self::Untested { id } => {
                write!(
                    f,
                    "{id} is named by no test; write one with `covers: {id}` above it"
                )
            }
        }
    }
}

/// The requirements that `markdown` defines, with the line of each.
fn requirements(markdown: &str, faults: &mut Vec<Fault>) -> BTreeMap<Id, usize> {
    let mut found = BTreeMap::new();
    let mut demands = BTreeSet::new();
    let mut current: Option<Id> = None;
    for (line, text) in (1..).zip(markdown.lines()) {
        if let Some(rest) = text.strip_prefix("**VPCI") {
            let id = rest
                .split_once("**:")
                .and_then(|(id, _)| Id::parse(&format!("VPCI{id}")));
            match &id {
                None => faults.push(Fault::Malformed { line }),
                Some(id) if found.contains_key(id) => faults.push(Fault::Duplicate {
                    id: id.clone(),
                    line,
                }),
                Some(id) => {
                    found.insert(id.clone(), line);
                }
            }
            current = id;
        } else if text.trim().is_empty() {
            current = None;
        }
        if let Some(id) = current.as_ref().filter(|_| text.contains("MUST")) {
            demands.insert(id.clone());
        }
    }
    let idle = found.keys().filter(|id| !demands.contains(id));
    faults.extend(idle.map(|id| Fault::NoDemand { id: id.clone() }));
    found
}

/// Checks that every id that `markdown` mentions is defined in it.
fn references(markdown: &str, defined: &BTreeMap<Id, usize>, faults: &mut Vec<Fault>) {
    for (line, text) in (1..).zip(markdown.lines()) {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        for id in words.filter_map(Id::parse) {
            if !defined.contains_key(&id) {
                faults.push(Fault::Dangling { id, line });
            }
        }
    }
}

/// The requirements that the tests in `source` name, with the place of each name.
fn coverage(path: &str, source: &str, faults: &mut Vec<Fault>) -> Vec<(Id, String)> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let mut named = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(list) = covers(line) else { continue };
        let at = format!("{path}:{}", index + 1);
        if !leads_to_test(&lines[index + 1..]) {
            faults.push(Fault::NotAboveTest { at });
            continue;
        }
        for name in list.split(',').map(str::trim) {
            match Id::parse(name) {
                Some(id) => named.push((id, at.clone())),
                None => faults.push(Fault::NotAnId {
                    at: at.clone(),
                    name: name.to_owned(),
                }),
            }
        }
    }
    named
}

/// What stands after `covers:` if this line is such a comment, of any kind.
fn covers(line: &str) -> Option<&str> {
    line.strip_prefix("//")?
        .trim_start_matches(['/', '!', ' '])
        .strip_prefix("covers:")
}

/// Whether these lines come to a `#[test]` with nothing but comments and attributes before it.
fn leads_to_test(lines: &[&str]) -> bool {
    let mut in_attribute = false;
    for line in lines {
        if *line == "#[test]" {
            return true;
        }
        let attribute = in_attribute || line.starts_with("#[");
        if !attribute && !line.starts_with("//") {
            return false;
        }
        in_attribute = attribute && !line.ends_with(']');
    }
    false
}

/// Every fault between this text and these sources, given as (path, content).
fn check(markdown: &str, sources: &[(String, String)]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let defined = requirements(markdown, &mut faults);
    references(markdown, &defined, &mut faults);
    let mut tested = BTreeSet::new();
    for (path, source) in sources {
        for (id, at) in coverage(path, source, &mut faults) {
            if defined.contains_key(&id) {
                tested.insert(id);
            } else {
                faults.push(Fault::Unknown { at, id });
            }
        }
    }
    let untested = defined.into_keys().filter(|id| !tested.contains(id));
    faults.extend(untested.map(|id| Fault::Untested { id }));
    faults
}

/// Every Rust source below `root`, but for build products and hidden folders.
fn sources(root: &Path) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            let hidden = name.as_encoded_bytes().starts_with(b".");
            if kind.is_dir() && !hidden && name != "target" {
                folders.push(path);
            } else if kind.is_file() && path.extension() == Some(OsStr::new("rs")) {
                let place = path.strip_prefix(root)?.display().to_string();
                found.push((place, fs::read_to_string(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn every_requirement_is_tested_and_every_tested_requirement_exists() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("this crate is not in a workspace")?;
    let faults = check(include_str!("../vhost-pci.md"), &sources(root)?);
    let list: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert!(
        list.is_empty(),
        "{} faults:\n{}",
        list.len(),
        list.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod scanner {
    use super::*;

    const TEXT: &str = "# A\n\n**VPCI-MEM-1**: It MUST a.\n\n**VPCI-MEM-2**: It\nMUST NOT b.\n";

    fn id(text: &str) -> Id {
        Id::parse(text).unwrap()
    }

    /// The faults that this text has with one source file of these lines.
    fn faults(markdown: &str, lines: &[&str]) -> Vec<Fault> {
        check(markdown, &[("a.rs".to_owned(), lines.join("\n"))])
    }

    #[test]
    fn tests_that_name_every_requirement_satisfy_it() {
        assert_eq!(
            faults(TEXT, &["// covers: VPCI-MEM-1, VPCI-MEM-2", "#[test]"]),
            []
        );
    }

    #[test]
    fn a_requirement_that_no_test_names_is_a_fault() {
        assert_eq!(
            faults(TEXT, &["// covers: VPCI-MEM-1", "#[test]"]),
            [Fault::Untested {
                id: id("VPCI-MEM-2")
            }]
        );
    }

    #[test]
    fn a_name_that_no_requirement_has_is_a_fault() {
        let lines = ["// covers: VPCI-MEM-1, VPCI-MEM-2, VPCI-MEM-3", "#[test]"];
        assert_eq!(
            faults(TEXT, &lines),
            [Fault::Unknown {
                at: "a.rs:1".to_owned(),
                id: id("VPCI-MEM-3")
            }]
        );
    }

    #[test]
    fn an_id_that_is_defined_twice_is_a_fault() {
        let text = "**VPCI-MEM-1**: MUST.\n\n**VPCI-MEM-1**: MUST.\n";
        assert_eq!(
            faults(text, &["// covers: VPCI-MEM-1", "#[test]"]),
            [Fault::Duplicate {
                id: id("VPCI-MEM-1"),
                line: 3
            }]
        );
    }

    #[test]
    fn a_misspelt_definition_is_a_fault() {
        for text in [
            "**VPCI-mem-1**: MUST.",
            "**VPCI-MEM-01**: MUST.",
            "**VPCI-MEM-x**: MUST.",
        ] {
            assert_eq!(faults(text, &[]), [Fault::Malformed { line: 1 }], "{text}");
        }
    }

    #[test]
    fn a_requirement_without_a_must_is_a_fault() {
        let text = "**VPCI-MEM-1**: It is nice.\n\nIt MUST not count here.\n";
        assert_eq!(
            faults(text, &["// covers: VPCI-MEM-1", "#[test]"]),
            [Fault::NoDemand {
                id: id("VPCI-MEM-1")
            }]
        );
    }

    #[test]
    fn a_reference_to_a_requirement_that_is_not_there_is_a_fault() {
        assert_eq!(
            faults("as by (VPCI-SEC-9).", &[]),
            [Fault::Dangling {
                id: id("VPCI-SEC-9"),
                line: 1
            }]
        );
    }

    #[test]
    fn attributes_and_comments_may_stand_between_the_comment_and_the_test() {
        let lines = [
            "    // covers: VPCI-MEM-1",
            "    // covers: VPCI-MEM-2",
            "    /// What it shows.",
            "    #[expect(",
            "        clippy::unwrap_used,",
            "        reason = \"...\"",
            "    )]",
            "    #[test]",
        ];
        assert_eq!(faults(TEXT, &lines), []);
    }

    #[test]
    fn a_comment_that_is_not_above_a_test_is_a_fault() {
        for lines in [
            ["// covers: VPCI-MEM-1", "", "#[test]"],
            ["// covers: VPCI-MEM-1", "fn helper() {}", "#[test]"],
            ["/// covers: VPCI-MEM-1", "// #[test]", "fn f() {}"],
        ] {
            let expected = Fault::NotAboveTest {
                at: "a.rs:1".to_owned(),
            };
            assert_eq!(faults("", &lines), [expected], "{lines:?}");
        }
    }

    #[test]
    fn a_list_with_something_else_in_it_is_a_fault() {
        for (list, name) in [
            ("", ""),
            ("MEM-1", "MEM-1"),
            ("VPCI-A-1 VPCI-A-2", "VPCI-A-1 VPCI-A-2"),
        ] {
            assert_eq!(
                faults("", &[&format!("// covers: {list}"), "#[test]"]),
                [Fault::NotAnId {
                    at: "a.rs:1".to_owned(),
                    name: name.to_owned()
                }]
            );
        }
    }
}
