//! The comparison as a table.

use super::columns::{self, iops, ratio, time};
use super::compare::{Compared, Row, Sample};
use super::peers::Server;

const HEADINGS: [&str; 8] = [
    "disk and load",
    "server",
    "IOPS",
    "median",
    "p99",
    "CPU/request",
    "disturbed",
    "ours is",
];

/// Rows of text under headings, in Markdown.
pub fn render(all: &[Compared]) -> String {
    let mut lines = Vec::new();
    for compared in all {
        let ours = compared.rows.iter().find(|row| row.server == Server::Ours);
        for (place, row) in compared.rows.iter().enumerate() {
            let case = if place == 0 {
                compared.case.name()
            } else {
                String::new()
            };
            lines.push(line(case, row, ours));
        }
    }
    columns::render(HEADINGS, lines)
}

fn line(case: String, row: &Row, ours: Option<&Row>) -> [String; 8] {
    let name = row.server.name().to_owned();
    if let Some(lacks) = row.lacks {
        let mut cells = [const { String::new() }; 8];
        cells[..3].clone_from_slice(&[case, name, format!("({lacks})")]);
        return cells;
    }
    let median = |figure: fn(&Sample) -> f64| row.spread(figure).map(|spread| spread.median);
    let cpu = row.spread(|sample| sample.cpu_ns.unwrap_or(f64::NAN));
    let cpu = cpu.filter(|cpu| cpu.median.is_finite());
    let times = ours
        .filter(|ours| ours.server != row.server)
        .and_then(|ours| ours.times(row));
    [
        case,
        name,
        row.spread(|sample| sample.iops)
            .map_or_else(String::new, iops),
        median(|sample| sample.median_ns).map_or_else(String::new, time),
        median(|sample| sample.p99_ns).map_or_else(String::new, time),
        cpu.map_or_else(String::new, |cpu| time(cpu.median)),
        median(|sample| sample.disturbed).map_or_else(String::new, percent),
        times.map_or_else(String::new, ratio),
    ]
}

fn percent(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::super::compare::Case;
    use super::super::disks::Medium;
    use super::*;

    fn row(server: Server, iops: &[f64]) -> Row {
        let sample = |&iops| Sample {
            iops,
            median_ns: 500.0,
            p99_ns: 2_500.0,
            cpu_ns: Some(1_500_000.0),
            disturbed: 0.25,
        };
        Row {
            server,
            samples: iops.iter().map(sample).collect(),
            lacks: None,
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let case = Case {
            disk: Medium::Tmpfs,
            polled: true,
            depth: 32,
        };
        let rows = vec![
            row(Server::Ours, &[200.0, 900.0, 2000.0]),
            row(Server::Qsd, &[100.0, 300.0, 1000.0]),
        ];
        let text = render(&[Compared { case, rows }]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].contains("file on tmpfs, polled, depth 32"),
            "{text}"
        );
        assert!(lines[2].contains("900 (200 to 2.0k)"), "{text}");
        assert!(lines[3].contains("2.00x (2.00 to 3.00)"), "{text}");
        assert!(lines[3].contains("500 ns"), "{text}");
        assert!(lines[3].contains("2.5 us"), "{text}");
        assert!(lines[3].contains("1.5 ms"), "{text}");
        assert!(lines[3].contains("25 %"), "{text}");
    }

    #[test]
    fn a_server_that_cannot_says_why() {
        let case = Case {
            disk: Medium::Null,
            polled: false,
            depth: 1,
        };
        let mut rows = vec![row(Server::Ours, &[]), row(Server::Qsd, &[100.0])];
        rows[0].lacks = Some("it has no null disk");
        let text = render(&[Compared { case, rows }]);
        assert!(text.contains("(it has no null disk)"), "{text}");
    }
}
