//! How the figures look.

use std::collections::VecDeque;
use std::iter;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::samples::{self, Samples};
use crate::console::units::{bytes, count, micros, short_bytes};

/// Columns of the little sparkline in each row.
const SPARK: u16 = 9;
/// Columns of a LUN's name.
const LUN: u16 = 12;
/// Columns of the table, but for a tenant's name, which has the rest: 10 of 80.
const WIDTHS: [u16; 9] = [LUN, 5, 6, 7, 6, 6, 6, 4, SPARK];

/// Draws it all.
pub(super) fn draw(frame: &mut Frame<'_>, name: &str, samples: &Samples, colour: bool) {
    let paint = |color| {
        if colour {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    };
    let [head, graph, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(5),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(name, samples), head);
    let newest = samples.past.iter().rev();
    let past: Vec<u64> = newest.take(usize::from(graph.width)).copied().collect();
    let past: Vec<u64> = past.into_iter().rev().collect();
    let most = past.iter().copied().max().unwrap_or(0);
    let title = format!("operations a second, {} at most ", count(most));
    let sparkline = Sparkline::default()
        .block(Block::new().borders(Borders::TOP).title(title))
        .style(paint(Color::Cyan))
        .data(past);
    frame.render_widget(sparkline, graph);
    let names = [
        "TENANT", "LUN", " IOPS", "READ/s", "WRITE/s", "   P50", "   P99", "   MAX", "  QD", "LAST",
    ];
    let header = Row::new(names).style(Style::new().add_modifier(Modifier::BOLD));
    let others: u16 = WIDTHS.iter().map(|width| width + 1).sum();
    let room = table.width.saturating_sub(others);
    let rows = samples.rows().iter();
    let rows = rows.map(|row| line(row, usize::from(room), &paint));
    let widths = WIDTHS.map(Constraint::Length);
    let widths = iter::once(Constraint::Min(8)).chain(widths);
    frame.render_widget(Table::new(rows, widths).header(header), table);
    let help = "q leaves. P50, P99, MAX: latency of the last second. QD: commands under way.";
    frame.render_widget(Paragraph::new(help).style(paint(Color::DarkGray)), foot);
}

fn heading<'a>(name: &str, samples: &Samples) -> Paragraph<'a> {
    let rows = samples.rows();
    let sum = |of: fn(&samples::Row) -> u64| rows.iter().map(of).sum::<u64>();
    let mut tenants: Vec<_> = rows.iter().map(|row| &row.tenant).collect();
    tenants.dedup();
    let text = format!(
        "  {} IOPS, read {}/s, write {}/s, errors {}/s; {} tenants, {} LUNs",
        count(sum(|row| row.iops)),
        bytes(sum(|row| row.read_per_s)),
        bytes(sum(|row| row.written_per_s)),
        count(sum(|row| row.errors_per_s)),
        tenants.len(),
        rows.len(),
    );
    let name = Span::styled(name.to_owned(), Style::new().add_modifier(Modifier::BOLD));
    Paragraph::new(Line::from(vec![name, Span::raw(text)]))
}

/// A row of the table, with `room` columns for the tenant.
fn line<'a>(row: &samples::Row, room: usize, paint: &impl Fn(Color) -> Style) -> Row<'a> {
    let tenant = match row.note {
        "polls" => format!("{} (polls)", row.tenant),
        _ => row.tenant.clone(),
    };
    let tenant = if tenant.chars().count() > room {
        cut(&row.tenant, room)
    } else {
        tenant
    };
    // Commands are under way, and none has ended in the last second.
    let waits = row.queue > 0 && row.iops == 0;
    let style = match (row.errors_per_s, row.note) {
        (1.., _) | (_, "silent" | "ending") => paint(Color::Red),
        (_, "absent") => paint(Color::DarkGray),
        (_, "drained") => paint(Color::Yellow),
        _ if waits => paint(Color::Yellow),
        _ => Style::new(),
    };
    // Where nothing moves, why.
    let last = match row.note {
        "" | "polls" if waits => Cell::from("waits"),
        "" | "polls" => Cell::from(spark(&row.past)).style(paint(Color::Cyan)),
        note => Cell::from(note),
    };
    let latency = |us: u64| {
        if row.iops == 0 {
            "-".into()
        } else {
            micros(us)
        }
    };
    Row::new([
        Cell::from(tenant),
        Cell::from(cut(&row.lun, usize::from(LUN))),
        right(&count(row.iops), 5),
        right(&short_bytes(row.read_per_s), 6),
        right(&short_bytes(row.written_per_s), 7),
        right(&latency(row.p50_us), 6),
        right(&latency(row.p99_us), 6),
        right(&latency(row.max_us), 6),
        right(&row.queue.to_string(), 4),
        last,
    ])
    .style(style)
}

/// The text, or what of it fits, with a sign that there is more.
fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let start: String = text.chars().take(room.saturating_sub(1)).collect();
    start + "…"
}

fn right<'a>(text: &str, width: usize) -> Cell<'a> {
    Cell::from(format!("{text:>width$}"))
}

/// The last values as bars, the highest of them as a full one.
fn spark(past: &VecDeque<u64>) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let skip = past.len().saturating_sub(usize::from(SPARK));
    let shown: Vec<_> = past.iter().skip(skip).copied().collect();
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: u64| {
        // What is not nothing is to be seen.
        let eighths = u128::from(value) * 8 / u128::from(most);
        let place = usize::try_from(eighths).unwrap_or(8);
        BARS[place.max(usize::from(value > 0))]
    };
    shown.into_iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::samples::tests::tenant;
    use super::*;

    #[test]
    fn a_screen_of_eighty_columns_has_every_figure() {
        let mut samples = Samples::default();
        let start = Instant::now();
        samples.take(&[tenant(0)], start);
        samples.take(&[tenant(1234)], start + Duration::from_secs(1));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal
            .draw(|frame| draw(frame, "storage-1", &samples, true))
            .unwrap();
        let buffer = terminal.backend().buffer();
        let text: Vec<String> = (0..24)
            .map(|y| (0..80).map(|x| buffer[(x, y)].symbol()).collect())
            .collect();
        let text = text.join("\n");
        for part in [
            "storage-1",
            "errors 0/s; 1 tenants, 1 LUNs",
            "1234",
            "4.8 MiB",
            "90 µs",
            "root",
            " 3 ",
            "WRITE/s ",
            " 4.8M ",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.contains("tenant1") && text.contains('█'), "{text}");
    }

    #[test]
    fn a_lun_whose_commands_do_not_end_is_told() {
        let mut samples = Samples::default();
        let start = Instant::now();
        samples.take(&[tenant(1234)], start);
        samples.take(&[tenant(1234)], start + Duration::from_secs(1));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let drawn = terminal.draw(|frame| draw(frame, "storage-1", &samples, true));
        let buffer = drawn.unwrap().buffer;
        let row: String = (0..80).map(|x| buffer[(x, 7)].symbol()).collect();
        assert!(
            row.starts_with("tenant1") && row.contains(" waits"),
            "{row}"
        );
        assert_eq!(buffer[(0, 7)].fg, Color::Yellow);
    }

    #[test]
    fn a_name_that_has_no_room_says_that_there_is_more_of_it() {
        assert_eq!(cut("tenant1-root", 12), "tenant1-root");
        assert_eq!(cut("tenant1-root-2", 12), "tenant1-roo…");
    }

    #[test]
    fn the_highest_bar_is_full_and_the_lowest_is_seen() {
        let past = VecDeque::from([0, 1, 50, 100]);
        assert_eq!(spark(&past), " ▁▄█");
        assert_eq!(spark(&VecDeque::from([0, 0])), "  ");
    }
}
