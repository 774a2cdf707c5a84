//! A terminal's screen as an SVG.

use std::fmt::Write;

use vt100::{Cell, Color, Screen};

/// Pixels of a cell.
const WIDTH: u32 = 8;
const HEIGHT: u32 = 17;
/// Pixels around the text.
const MARGIN: u32 = 10;
const BACKGROUND: &str = "#1d1f21";
const FOREGROUND: &str = "#d0d0d0";

/// The lines of `screen` that have something on them, below its title.
pub fn picture(title: &str, screen: &Screen) -> String {
    let (rows, columns) = size(screen);
    let is_used = |row: &u16| (0..columns).any(|column| has_text(screen.cell(*row, column)));
    let used = (0..rows).filter(is_used).max().map_or(1, |row| row + 1);
    let width = u32::from(columns) * WIDTH + 2 * MARGIN;
    let height = u32::from(used) * HEIGHT + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" shape-rendering=\"crispEdges\"><title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13\" \
         fill=\"{FOREGROUND}\" style=\"white-space:pre\" xml:space=\"preserve\">\n",
        escaped(title)
    );
    for row in 0..used {
        let mut column = 0;
        while column < columns {
            column = run(&mut svg, screen, row, column);
        }
    }
    svg + "</g></svg>\n"
}

/// Rows and columns.
fn size(screen: &Screen) -> (u16, u16) {
    let (rows, columns) = screen.size();
    (rows.get(), columns.get())
}

fn has_text(cell: Option<&Cell>) -> bool {
    cell.is_some_and(|cell| !cell.contents().trim().is_empty())
}

/// How a cell looks.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Look {
    colour: Color,
    bold: bool,
    dim: bool,
}

fn look(cell: &Cell) -> Look {
    Look {
        colour: cell.fgcolor(),
        bold: cell.bold(),
        dim: cell.dim(),
    }
}

/// Writes the cells from `start` on that look the same; gives where others begin.
fn run(svg: &mut String, screen: &Screen, row: u16, start: u16) -> u16 {
    let (_, columns) = size(screen);
    let cell = |column| screen.cell(row, column);
    let Some(first) = cell(start).map(look) else {
        return columns;
    };
    if let Some(eighths) = cell(start).and_then(bar) {
        let (x, height) = (MARGIN + u32::from(start) * WIDTH, HEIGHT * eighths / 8);
        let y = MARGIN + (u32::from(row) + 1) * HEIGHT - height;
        let fill = colour(first).unwrap_or(FOREGROUND);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{height}\" fill=\"{fill}\"/>"
        );
        return start + 1;
    }
    let mut text = String::new();
    let mut end = start;
    while end < columns
        && let Some(next) = cell(end)
        && bar(next).is_none()
        && (look(next) == first || !has_text(Some(next)))
    {
        text += if next.has_contents() {
            next.contents()
        } else {
            " "
        };
        end += 1;
    }
    if !text.trim().is_empty() {
        let indent = text.chars().take_while(|letter| *letter == ' ').count();
        let indent = u16::try_from(indent).unwrap_or(0);
        let text = text.trim();
        let x = MARGIN + u32::from(start + indent) * WIDTH;
        let y = MARGIN + u32::from(row) * HEIGHT + 13;
        let length = u32::try_from(text.chars().count()).unwrap_or(0) * WIDTH;
        // That columns stay columns in any font.
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" textLength=\"{length}\"{}>{}</text>",
            attributes(first),
            escaped(text)
        );
    }
    end.max(start + 1)
}

/// The eighths of a cell that a bar fills, from below: as a character it would leave gaps.
fn bar(cell: &Cell) -> Option<u32> {
    let letter = cell.contents().chars().next()?;
    "▁▂▃▄▅▆▇█"
        .chars()
        .zip(1..)
        .find_map(|(bar, eighths)| (bar == letter).then_some(eighths))
}

fn colour(look: Look) -> Option<&'static str> {
    match look.colour {
        Color::Idx(1 | 9) => Some("#ff6c60"),
        Color::Idx(2 | 10) => Some("#98c379"),
        Color::Idx(3 | 11) => Some("#e5c07b"),
        Color::Idx(6 | 14) => Some("#56b6c2"),
        Color::Idx(8) => Some("#808080"),
        _ => None,
    }
}

fn attributes(look: Look) -> String {
    let mut attributes = String::new();
    if let Some(colour) = colour(look) {
        attributes += &format!(" fill=\"{colour}\"");
    }
    if look.bold {
        attributes += " font-weight=\"bold\"";
    }
    if look.dim {
        attributes += " opacity=\"0.6\"";
    }
    attributes
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
