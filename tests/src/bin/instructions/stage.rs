//! The stages of a request, and how many instructions each takes.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::callgrind::{Place, Profile};

/// Stages by the source files of the appliance, in the order in which a request meets them.
const STAGES: [(&str, &[&str]); 8] = [
    (
        "worker's loop",
        &["appliance/src/worker.rs", "appliance/src/worker/"],
    ),
    (
        "io_uring and wake-ups",
        &[
            "appliance/src/disk/io/mod.rs",
            "appliance/src/disk/io/ring.rs",
        ],
    ),
    (
        "ring: fetch, put, publish, ask",
        &[
            "appliance/src/ring/",
            "appliance/src/rings.rs",
            "appliance/src/rings/",
            "appliance/src/in_flight.rs",
        ],
    ),
    (
        "in-flight record",
        &["appliance/src/journal.rs", "spec/src/inflight.rs"],
    ),
    ("guest memory", &["appliance/src/memory/", "vm-memory"]),
    (
        "header and response",
        &["appliance/src/task.rs", "spec/src/virtio_scsi.rs"],
    ),
    ("SCSI", &["appliance/src/scsi/"]),
    ("disk", &["appliance/src/disk/"]),
];
const COPIES: &str = "memcpy and such (libc)";
const ALLOCATOR: &str = "allocator (libc)";
const OTHERS: &str = "the standard library, where it was not inlined";

/// Instructions of a request by stage.
#[derive(Debug)]
pub struct Stages {
    of: BTreeMap<&'static str, f64>,
}

impl Stages {
    /// Those of a profile of so many requests.
    pub fn of(profile: &Profile, requests: u64) -> Self {
        let mut of = BTreeMap::new();
        for (place, cost) in profile.iter() {
            *of.entry(stage(place)).or_default() += cost as f64 / requests as f64;
        }
        Self { of }
    }

    /// All together.
    pub fn total(&self) -> f64 {
        self.of.values().sum()
    }
}

/// The stage of a place: that of its line; that of the function where the line is of a library.
fn stage(place: &Place) -> &'static str {
    let known = [&place.file, &place.function_file]
        .into_iter()
        .find_map(|file| {
            let is_in = |part: &&str| file.contains(part);
            let mut stages = STAGES.iter();
            stages.find(|(_, files)| files.iter().any(is_in))
        });
    if let Some((name, _)) = known {
        return name;
    }
    let is = |names: &[&str]| names.iter().any(|name| place.function.contains(name));
    if is(&["memcpy", "memmove", "memset", "memcmp", "bcmp"]) {
        COPIES
    } else if is(&["malloc", "_int_free", "free", "realloc", "calloc"]) {
        ALLOCATOR
    } else {
        OTHERS
    }
}

/// A table in Markdown: a line for each stage, a column for each case.
pub fn table(cases: &[(&str, Stages)]) -> String {
    let mut text = String::from("| instructions for a request |");
    for (name, _) in cases {
        let _ = write!(text, " {name} |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(cases.len());
    text.push('\n');
    let names = STAGES.iter().map(|(name, _)| *name);
    for stage in names.chain([COPIES, ALLOCATOR, OTHERS]) {
        let _ = write!(text, "| {stage} |");
        for (_, stages) in cases {
            let count = stages.of.get(stage).copied().unwrap_or_default();
            let _ = write!(text, " {count:.0} |");
        }
        text.push('\n');
    }
    text += "| **all** |";
    for (_, stages) in cases {
        let _ = write!(text, " **{:.0}** |", stages.total());
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str, function_file: &str, function: &str) -> Place {
        Place {
            file: file.to_owned(),
            function_file: function_file.to_owned(),
            function: function.to_owned(),
        }
    }

    #[test]
    fn an_instruction_belongs_to_its_line_or_else_to_its_function() {
        let worker = "/w/appliance/src/worker.rs";
        let core = "/rustc/1/library/core/src/option.rs";
        for (place, expected) in [
            (
                place("/w/appliance/src/rings.rs", worker, "turn"),
                "ring: fetch, put, publish, ask",
            ),
            (place(core, worker, "turn"), "worker's loop"),
            (
                place("/w/appliance/src/disk/io/ring.rs", core, "x"),
                "io_uring and wake-ups",
            ),
            (
                place("/w/appliance/src/disk/io/check.rs", core, "x"),
                "disk",
            ),
            (place("memmove.S", "memmove.S", "__memcpy_sse2"), COPIES),
            (place("malloc.c", "malloc.c", "_int_malloc"), ALLOCATOR),
            (place(core, core, "core::iter::partition"), OTHERS),
        ] {
            assert_eq!(stage(&place), expected, "{place:?}");
        }
    }
}
