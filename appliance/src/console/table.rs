//! Tables that fit a terminal of 80 columns.

use super::style::{Kind, Style};

/// Columns of the terminal.
const WIDTH: usize = 80;
/// Spaces between two columns.
const GAP: usize = 2;
/// Columns are not made narrower than this.
const NARROW: usize = 6;

/// A table.
pub(super) struct Table {
    head: Vec<&'static str>,
    /// Whether numbers are in a column: these are put to the right, and not cut.
    right: Vec<bool>,
    rows: Vec<Vec<(String, Option<Kind>)>>,
}

impl Table {
    /// Without rows; a column whose name begins with ">" has numbers.
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head
                .iter()
                .map(|name| name.trim_start_matches('>'))
                .collect(),
            right: head.iter().map(|name| name.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// One more row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.styled(cells.map(|cell| (cell, None)));
    }

    /// One more row whose cells have a kind.
    pub fn styled<const N: usize>(&mut self, cells: [(String, Option<Kind>); N]) {
        debug_assert_eq!(N, self.head.len());
        self.rows.push(cells.into());
    }

    /// The lines.
    pub fn render(&self, style: Style) -> String {
        let widths = self.widths();
        let head: Vec<_> = self.head.iter().map(|name| (*name).to_owned()).collect();
        let head: Vec<_> = head
            .into_iter()
            .map(|name| (name, Some(Kind::Heading)))
            .collect();
        let rows = std::iter::once(&head).chain(&self.rows);
        rows.map(|row| self.line(row, &widths, style)).collect()
    }

    fn line(&self, row: &[(String, Option<Kind>)], widths: &[usize], style: Style) -> String {
        let mut line = String::new();
        for (place, ((text, kind), &width)) in row.iter().zip(widths).enumerate() {
            let text = cut(text, width);
            let space = " ".repeat(width.saturating_sub(text.chars().count()));
            let painted = kind.map_or_else(|| text.clone(), |kind| style.paint(kind, &text));
            if place > 0 {
                line += &" ".repeat(GAP);
            }
            if self.right[place] {
                line += &space;
                line += &painted;
            } else {
                line += &painted;
                line += &space;
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }

    /// As wide as their contents, and the widest narrower until all fit.
    fn widths(&self) -> Vec<usize> {
        let column = |place: usize| {
            let cells = self.rows.iter().map(|row| row[place].0.chars().count());
            cells
                .max()
                .unwrap_or(0)
                .max(self.head[place].chars().count())
        };
        let mut widths: Vec<_> = (0..self.head.len()).map(column).collect();
        let room = WIDTH.saturating_sub(GAP * self.head.len().saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            let texts = (0..widths.len()).filter(|place| !self.right[*place]);
            match texts.max_by_key(|place| widths[*place]) {
                Some(place) if widths[place] > NARROW => widths[place] -= 1,
                _ => break,
            }
        }
        widths
    }
}

/// The text, or as much of its beginning as fits.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// The text in lines of 80 columns at most, each but the first after `indent` spaces.
pub(super) fn wrap(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if column > 0 && column + 1 + len > WIDTH {
            lines.push('\n');
            lines += &" ".repeat(indent);
            column = indent;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines += word;
        column += len;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_is_cut_to_eighty_columns_and_keeps_its_numbers() {
        let mut table = Table::new(&["NAME", "SOURCE", ">BYTES"]);
        table.row(["a".into(), "x".repeat(200), "123456789".into()]);
        table.row(["b".repeat(70), "y".into(), "1".into()]);
        let text = table.render(Style::PLAIN);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert_eq!(widest, Some(80), "{text}");
        let line = text.lines().nth(1).unwrap();
        assert!(line.ends_with("…  123456789"), "{text}");
    }

    #[test]
    fn a_narrow_table_is_as_wide_as_it_has_to_be() {
        let mut table = Table::new(&["LUN", ">N"]);
        table.row(["root".into(), "7".into()]);
        assert_eq!(table.render(Style::PLAIN), "LUN   N\nroot  7\n");
    }

    #[test]
    fn a_long_text_is_wrapped_between_words() {
        let text = wrap(&"word ".repeat(30), 2);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
        assert_eq!(text.split_whitespace().count(), 30);
        assert!(text.lines().nth(1).unwrap().starts_with("  word"));
    }
}
