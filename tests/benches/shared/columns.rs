//! Tables in Markdown, in columns that line up as plain text too.

use std::fmt::Write;

use super::spread::Spread;

/// Rows of cells under headings.
pub fn render<const N: usize>(headings: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut lines = vec![headings.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<_> = (0..N).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for (place, line) in lines.iter().enumerate() {
        write_line(&mut text, line, &widths);
        if place == 0 {
            let rules = widths.iter().map(|width| "-".repeat(*width));
            let rules: Vec<String> = rules.collect();
            write_line(&mut text, &rules, &widths);
        }
    }
    text
}

fn write_line(text: &mut String, cells: &[String], widths: &[usize]) {
    for (cell, width) in cells.iter().zip(widths) {
        // Writing to a string does not fail.
        let _ = write!(text, "| {cell:width$} ");
    }
    text.push_str("|\n");
}

/// Requests per second.
pub fn iops(spread: Spread) -> String {
    let [min, median, max] = [spread.min, spread.median, spread.max].map(count);
    format!("{median} ({min} to {max})")
}

/// How many times as much.
pub fn ratio(spread: Spread) -> String {
    let Spread { min, median, max } = spread;
    format!("{median:.2}x ({min:.2} to {max:.2})")
}

fn count(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.2}M", value / 1e6)
    } else if value >= 1e3 {
        format!("{:.1}k", value / 1e3)
    } else {
        format!("{value:.0}")
    }
}

/// A time.
pub fn time(nanoseconds: f64) -> String {
    if nanoseconds >= 1e6 {
        format!("{:.1} ms", nanoseconds / 1e6)
    } else if nanoseconds >= 1e3 {
        format!("{:.1} us", nanoseconds / 1e3)
    } else {
        format!("{nanoseconds:.0} ns")
    }
}
