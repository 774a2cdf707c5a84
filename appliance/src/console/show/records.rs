//! Lines of the log, and of the trace of a LUN.

use crate::console::style::{Kind, Style};
use crate::console::table::Table;
use crate::console::units::{bytes, micros};
use crate::control::protocol::{LogLevel, LogPage, Traced};

pub(in crate::console) fn log(page: &LogPage, style: Style) -> String {
    let mut text = String::new();
    if page.missed > 0 {
        text += &format!("({} lines are not kept any more)\n", page.missed);
    }
    for line in &page.lines {
        let seconds = line.at_ms / 1000;
        let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
        let time = format!("{hour:02}:{minute:02}:{:02}", seconds % 60);
        let kind = match &*line.level {
            "ERROR" => Kind::Bad,
            "WARN" => Kind::Warning,
            "INFO" => Kind::Good,
            _ => Kind::Faint,
        };
        text += &format!(
            "{} {} {}\n",
            style.paint(Kind::Faint, &time),
            style.paint(kind, &format!("{:5}", line.level)),
            line.text
        );
    }
    text
}

pub(in crate::console) fn level(level: &LogLevel, _: Style) -> String {
    format!("{}\n", level.filter)
}

#[expect(clippy::ptr_arg, reason = "it is what a reply is parsed as")]
pub(in crate::console) fn trace(traced: &Vec<Traced>, style: Style) -> String {
    trace_lines(traced, style, true)
}

/// With or without a heading.
pub(in crate::console) fn trace_lines(all: &[Traced], style: Style, heading: bool) -> String {
    let mut table = Table::new(&[">AGO", "TENANT", "COMMAND", ">BYTES", ">TOOK", "ENDED"]);
    for traced in all {
        let command = &traced.command;
        table.styled([
            (micros(command.ago_us), Some(Kind::Faint)),
            (traced.hba.clone(), None),
            (command.command.clone(), None),
            (bytes(command.bytes), None),
            (micros(command.took_us), None),
            (
                command.ending.clone(),
                (!command.good).then_some(Kind::Warning),
            ),
        ]);
    }
    let text = table.render(style);
    if heading {
        return text;
    }
    text.split_once('\n')
        .map(|(_, rows)| rows.to_owned())
        .unwrap_or_default()
}
