//! What came of a change.

use serde_json::Value;

use super::number;
use crate::console::style::{Kind, Style};
use crate::console::table::wrap;
use crate::console::units::bytes;
use crate::control::protocol::{Applied, Diff, Drained};

pub(in crate::console) fn applied(applied: &Applied, style: Style) -> String {
    let lines = applied.changes.iter();
    let mut text: String = lines.map(|change| wrap(change, 2)).collect();
    text += &keep(applied.saved, style);
    text
}

pub(in crate::console) fn hba_added(result: &Value, style: Style) -> String {
    let uuid = result["uuid"].as_str().unwrap_or("?");
    let shown = serde_json::from_value(result.clone());
    let shown = shown.map_or_else(|_| String::new(), |result| applied(&result, style));
    format!("{shown}start its shim with: --hba {uuid}\n")
}

pub(in crate::console) fn resized(result: &Value, style: Style) -> String {
    let size = result["bytes"].as_u64().unwrap_or(0);
    let kept = keep(result["saved"].as_bool().unwrap_or(true), style);
    let size_text = bytes(size);
    format!("{size_text} ({size} bytes) from now on; who sees it is told\n{kept}")
}

/// What to do that a change is kept, if something is.
fn keep(saved: bool, style: Style) -> String {
    if saved {
        return String::new();
    }
    let hint = "in force; config save keeps it over a restart";
    style.paint(Kind::Faint, hint) + "\n"
}

pub(in crate::console) fn checked(result: &Value, style: Style) -> String {
    let count = |key: &str| {
        let count = result[key].as_u64().unwrap_or(0);
        usize::try_from(count).unwrap_or(usize::MAX)
    };
    let good = style.paint(Kind::Good, "good");
    format!(
        "{good}: {} for {}; it can be applied\n",
        number(count("luns"), "LUN"),
        number(count("hbas"), "tenant")
    )
}

pub(in crate::console) fn diff(diff: &Diff, style: Style) -> String {
    let mut text = String::new();
    for change in &diff.changes {
        let kind = match change.as_bytes().first() {
            Some(b'+') => Kind::Good,
            Some(b'-') => Kind::Bad,
            _ => Kind::Warning,
        };
        text += &style.paint(kind, wrap(change, 2).trim_end());
        text.push('\n');
    }
    if diff.changes.is_empty() {
        text += "nothing is different\n";
    }
    if let Some(refused) = &diff.refused {
        text += &style.paint(Kind::Bad, wrap(&format!("! {refused}"), 2).trim_end());
        text.push('\n');
    }
    text
}

pub(in crate::console) fn saved(result: &Value, _: Style) -> String {
    format!("saved in {}\n", result["path"].as_str().unwrap_or("?"))
}

pub(in crate::console) fn drained(drained: &Drained, _: Style) -> String {
    let hba = &drained.hba;
    match (drained.drained, drained.in_flight) {
        (false, _) => format!("{hba} takes commands again\n"),
        (true, 0) => format!("{hba} is drained: nothing is under way; resume {hba} ends that\n"),
        (true, left) => wrap(
            &format!(
                "{hba} takes no new commands, but {left} are still under way; explain LUN says on \
                 what they wait, resume {hba} ends that"
            ),
            0,
        ),
    }
}
