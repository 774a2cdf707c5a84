//! What `iscsi-test-cu` prints, read for what really happened.
//!
//! CUnit says only "passed" or "FAILED". A test that skips itself has passed in its eyes; some say
//! so in the verbose log, and some just return, which shows in that they have sent no command, and
//! found nothing right in what was read before.

use std::collections::BTreeMap;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It checked something, and all was well.
    Passed,
    /// It checked nothing; the tool's reason.
    Skipped(String),
    /// What it found wrong.
    Failed(String),
}

/// The verdicts of each "Suite.Test".
pub type Verdicts = BTreeMap<String, Verdict>;

/// The reason of tests that return without a word.
pub const SILENT: &str = "neither sent nor checked anything";

/// Notes with this mark are about a part of a test, not all of it.
const PARTIAL: [&str; 3] = [
    "Skipping assert",
    "restrictions on this LUN",
    "skipping MAXIMUM",
];

/// The verdicts in what a run of `suite` printed; a test without an end is one that the tool, or
/// its time, ended with.
pub fn read(suite: &str, text: &str) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let mut blocks = text.split("\n  Test: ");
    // Before the first test: the tool's own questions to the LUN.
    let head = blocks.next().unwrap_or_default();
    for block in blocks {
        let name = block.split_whitespace().next().unwrap_or_default();
        verdicts.insert(format!("{suite}.{name}"), verdict(block));
    }
    if verdicts.is_empty() {
        let problem = format!("ran no test: {}", last_line(head));
        verdicts.insert(format!("{suite}.*"), Verdict::Failed(problem));
    }
    verdicts
}

/// The verdict in what one test printed.
fn verdict(block: &str) -> Verdict {
    // Without a log, the result stands behind the name: "NAME ...passed".
    let (first, rest) = block.split_once('\n').unwrap_or((block, ""));
    let result = first.split_once(" ...").map_or("", |(_, result)| result);
    let mut lines = std::iter::once(result).chain(rest.lines());
    match lines.find(|line| *line == "passed" || *line == "FAILED") {
        Some("FAILED") => Verdict::Failed(complaints(block)),
        Some(_) => skip(block).map_or(Verdict::Passed, Verdict::Skipped),
        None => Verdict::Failed(format!("never ended; last: {}", last_line(block))),
    }
}

/// Why the test checked nothing, if so.
fn skip(block: &str) -> Option<String> {
    let mut notes = block.lines().filter_map(|line| {
        let note = line.split_once("[SKIPPED]")?.1.trim();
        (!PARTIAL.iter().any(|mark| note.contains(mark))).then(|| note.to_owned())
    });
    let is_check = |line: &str| line.contains(" Send ") || line.contains("[SUCCESS]");
    let silent = || (!block.lines().any(is_check)).then(|| SILENT.to_owned());
    notes.next().or_else(silent)
}

/// What failed: the log's lines about it, or else CUnit's first.
fn complaints(block: &str) -> String {
    let mut lines: Vec<&str> = block
        .lines()
        .filter(|line| line.contains("[FAILED]"))
        .filter_map(|line| Some(line.split_once("[FAILED]")?.1.trim()))
        .collect();
    lines.dedup();
    if lines.is_empty() {
        // CUnit's own: "    1. test_x.c:12  - CU_ASSERT_EQUAL(ret,0)".
        let numbered = |line: &&str| line.starts_with("    1. ");
        lines.extend(block.lines().find(numbered).map(str::trim));
    }
    lines.truncate(3);
    lines.join("; ")
}

fn last_line(text: &str) -> &str {
    let mut lines = text.lines().rev().map(str::trim);
    lines.find(|line| !line.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
\n     CUnit - A unit testing framework for C - Version 2.1-3\n\n\nSuite: Read10
  Test: Simple ...
    Send READ10 LBA:0 blocks:1
    [OK] READ10 returned SUCCESS.
passed
  Test: ZeroBlocks ...passed
  Test: Inquired ...
    [SUCCESS] Block device claimed a version of SPC
passed
  Test: Async ...
    [SKIPPED] Not an iSCSI device. Skipping test
passed
  Test: DpoFua ...
    Send READ10 LBA:0 blocks:1
    [SKIPPED] LUN too small. Skipping assert
    [FAILED] READ10 with DPO failed
FAILED
    1. test_read10_dpofua.c:61  - CU_ASSERT_EQUAL(_r,0)
  Test: Last ...
    Send READ10 LBA:0 blocks:1
Segmentation fault\n";

    #[test]
    fn skipped_silent_failed_and_crashed_tests_have_not_passed() {
        let verdicts = read("Read10", PRINTED);
        let expected = [
            (
                "Read10.Async",
                Verdict::Skipped("Not an iSCSI device. Skipping test".into()),
            ),
            (
                "Read10.DpoFua",
                Verdict::Failed("READ10 with DPO failed".into()),
            ),
            ("Read10.Inquired", Verdict::Passed),
            (
                "Read10.Last",
                Verdict::Failed("never ended; last: Segmentation fault".into()),
            ),
            ("Read10.Simple", Verdict::Passed),
            ("Read10.ZeroBlocks", Verdict::Skipped(SILENT.into())),
        ];
        let expected = expected.map(|(name, verdict)| (name.to_owned(), verdict));
        assert_eq!(verdicts, BTreeMap::from(expected));
    }

    #[test]
    fn suite_that_did_not_start_has_failed() {
        let verdicts = read("Read10", "Failed to connect to SCSI device 0\n");
        let problem = "ran no test: Failed to connect to SCSI device 0".to_owned();
        assert_eq!(verdicts["Read10.*"], Verdict::Failed(problem));
    }
}
