//! Speed of vhost-user servers under one load: ours, and what others use.
//!
//! `cargo bench -p vhost-pci-tests --bench scsi` compares; `-- --help` says what else there is.
//! Open the files of [`program`] in this order: `target` drives one server once, `compare` does so
//! with all of them in turn, `table`, `report` and `plot` tell.
#![cfg_attr(
    test,
    allow(
        dead_code,
        unused_imports,
        reason = "cargo sets `test` for a bench without a harness, which leaves out the tests but \
                  not what they need; suites/bench_scsi.rs runs them"
    )
)]

use std::process::ExitCode;

use clap::Parser;
use program::Options;

mod program;

fn main() -> ExitCode {
    // `cargo test --benches` only wants to see it run.
    let options = if std::env::args().len() > 1 {
        Options::parse()
    } else {
        Options::parse_from(["scsi", "floor", "--seconds", "0.1", "--polled"])
    };
    match program::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scsi: {error}");
            ExitCode::FAILURE
        }
    }
}
