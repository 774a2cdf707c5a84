//! The `vm` bench program: one short round gives a figure for every way and every load.

#[path = "../benches/vm/program/mod.rs"]
mod program;

use std::fs;

use clap::Parser;
use program::Options;
use serde_json::Value;

#[test]
#[ignore = "long"]
fn every_way_to_the_disk_has_a_figure_under_every_load() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_str().unwrap();
    let options = Options::try_parse_from(["vm", "--short", "--out", out]).unwrap();
    program::run(&options).unwrap();

    let text = fs::read_to_string(directory.path().join("vm.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let compared = report["compared"].as_array().unwrap();
    assert_eq!(compared.len(), 4, "reads and writes at two depths");
    for load in compared {
        let rows = load["rows"].as_array().unwrap();
        let ways: Vec<_> = rows.iter().map(|row| row["way"].as_str()).collect();
        let all = ["vhost-pci", "iscsi", "nvme-tcp", "qemu"].map(Some);
        assert_eq!(ways, all, "{load}");
        for row in rows {
            let sample = &row["samples"][0];
            let (median, p99) = (&sample["median_ns"], &sample["p99_ns"]);
            assert!(sample["iops"].as_f64() > Some(0.0), "{row}");
            assert!(median.as_f64() <= p99.as_f64(), "{row}");
            let processes = sample["cpu_ns"].as_array().unwrap();
            assert_eq!(processes.len(), 5, "{row}");
            let calls = &sample["calls"]["calls"];
            let is_ours = row["way"] == "vhost-pci";
            assert_eq!(calls.as_f64() > Some(0.0), is_ours, "{row}");
            // The tenant's QEMU has work by every way.
            assert!(processes[0][1].as_f64() > Some(0.0), "{row}");
        }
    }
    let plot = fs::read_to_string(directory.path().join("vm.svg")).unwrap();
    assert!(plot.contains("reads, depth 32"), "{plot}");
}
