//! The comparison as a table.

use super::columns::{self, iops, ratio, time};
use super::compare::{Compared, Row};
use super::measure::{Calls, Sample};
use super::spread::Spread;
use super::way::Way;

const HEADINGS: [&str; 11] = [
    "load",
    "way",
    "IOPS",
    "vhost-pci is",
    "p50",
    "p99",
    "CPU/request",
    "tenant's QEMU",
    "storage's QEMU",
    "shim (3 processes)",
    "others use",
];
/// CPUs that others may use on a quiet machine.
const QUIET: f64 = 0.2;

/// Whether the machine was quiet, for whoever quotes a figure.
pub fn quietness(all: &[Compared]) -> &'static str {
    let rows = all.iter().flat_map(|compared| &compared.rows);
    let others = rows.filter_map(|row| row.spread(|sample| sample.others));
    if others.map(|spread| spread.median).fold(0.0, f64::max) < QUIET {
        ""
    } else {
        "\nTHE MACHINE WAS NOT QUIET: others used its CPUs too, so these are no figures to quote."
    }
}

/// Rows of text under headings, in Markdown.
pub fn render(all: &[Compared]) -> String {
    let mut lines = Vec::new();
    for compared in all {
        let ours = compared.rows.iter().find(|row| row.way == Way::VhostPci);
        for (place, row) in compared.rows.iter().enumerate() {
            let load = if place == 0 {
                compared.load.name()
            } else {
                String::new()
            };
            lines.push(line(load, row, ours));
        }
    }
    columns::render(HEADINGS, lines)
}

/// How the tenant was called by vhost-pci, under each load.
pub fn calls(all: &[Compared]) -> String {
    let mut text = String::new();
    for Compared { load, rows } in all {
        let Some(ours) = rows.iter().find(|row| row.way == Way::VhostPci) else {
            continue;
        };
        let median = |figure: fn(&Calls) -> f64| {
            let figures = ours.samples.iter().filter_map(|sample| sample.calls);
            Spread::of(figures.map(|calls| figure(&calls)).collect()).map(|spread| spread.median)
        };
        if let (Some(calls), Some(trapped)) =
            (median(|calls| calls.calls), median(|calls| calls.trapped))
        {
            text += &format!(
                "\nvhost-pci, {}: for a million requests {calls:.0} calls, {trapped:.0} of them by \
                 trapped writes",
                load.name()
            );
        }
    }
    text
}

fn line(load: String, row: &Row, ours: Option<&Row>) -> [String; 11] {
    let median = |figure: &dyn Fn(&Sample) -> f64| row.spread(figure).map(|spread| spread.median);
    let cpu_of = |names: fn(&str) -> bool| {
        let sum = move |sample: &Sample| {
            let chosen = sample.cpu_ns.iter().filter(|(name, _)| names(name));
            chosen.map(|(_, time)| time).sum()
        };
        median(&sum).map_or_else(String::new, time)
    };
    let times = ours
        .filter(|ours| ours.way != row.way)
        .and_then(|ours| ours.times(row, |sample| sample.iops));
    [
        load,
        row.way.name().to_owned(),
        row.spread(|sample| sample.iops)
            .map_or_else(String::new, iops),
        times.map_or_else(String::new, ratio),
        median(&|sample| sample.median_ns).map_or_else(String::new, time),
        median(&|sample| sample.p99_ns).map_or_else(String::new, time),
        median(&Sample::all_cpu_ns).map_or_else(String::new, time),
        cpu_of(|name| name.starts_with("tenant")),
        cpu_of(|name| name.starts_with("storage")),
        cpu_of(|name| name.starts_with("shim")),
        median(&|sample| sample.others).map_or_else(String::new, cpus),
    ]
}

fn cpus(cpus: f64) -> String {
    format!("{cpus:.2} CPUs")
}

#[cfg(test)]
mod tests {
    use super::super::load::Load;
    use super::*;

    fn row(way: Way, iops: &[f64], others: f64) -> Row {
        let sample = |&iops| Sample {
            iops,
            median_ns: 250_000.0,
            p99_ns: 2_500_000.0,
            cpu_ns: vec![
                ("tenant's QEMU", 100_000.0),
                ("storage VM's QEMU", 200_000.0),
                ("shim's keeper", 1_000.0),
                ("shim's supervisor", 4_000.0),
            ],
            waited: 0.5,
            others,
            calls: (way == Way::VhostPci).then_some(Calls {
                calls: 2e6 / iops,
                trapped: 1e6 / iops,
            }),
        };
        Row {
            way,
            samples: iops.iter().map(sample).collect(),
        }
    }

    fn compared(others: f64) -> Vec<Compared> {
        let load = Load {
            writes: false,
            depth: 32,
        };
        let rows = vec![
            row(Way::VhostPci, &[200.0, 900.0, 2000.0], others),
            row(Way::Iscsi, &[100.0, 300.0, 1000.0], others),
        ];
        vec![Compared { load, rows }]
    }

    #[test]
    fn ratios_and_cpu_of_each_side_are_told() {
        let text = render(&compared(0.01));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let cells = |line: usize| -> Vec<&str> { lines[line].split('|').map(str::trim).collect() };
        assert_eq!(
            cells(2)[1..11],
            [
                "reads, depth 32",
                "vhost-pci",
                "900 (200 to 2.0k)",
                "",
                "250.0 us",
                "2.5 ms",
                "305.0 us",
                "100.0 us",
                "200.0 us",
                "5.0 us"
            ]
        );
        assert_eq!(cells(3)[4], "2.00x (2.00 to 3.00)");
        assert_eq!(cells(3)[11], "0.01 CPUs");
    }

    #[test]
    fn calls_are_told_of_the_way_that_has_them() {
        assert_eq!(
            calls(&compared(0.0)),
            "\nvhost-pci, reads, depth 32: for a million requests 2222 calls, 1111 of them by \
             trapped writes"
        );
    }

    #[test]
    fn a_machine_with_other_work_is_said_to_be_not_quiet() {
        assert_eq!(quietness(&compared(0.1)), "");
        assert!(quietness(&compared(0.3)).contains("WAS NOT QUIET"));
    }
}
