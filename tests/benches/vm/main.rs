//! Speed of a tenant's disk by the ways that lead from one VM to another, and by QEMU's own.
//!
//! `cargo bench -p vhost-pci-tests --bench vm` compares; `-- --help` says what else there is.
//! Open the files of [`program`] in this order: `rig` makes the machines and all ways to one disk,
//! `measure` takes one figure, `compare` takes all in turn, `table`, `report` and `plot` tell.
#![cfg_attr(
    test,
    allow(
        dead_code,
        unused_imports,
        reason = "cargo sets `test` for a bench without a harness, which leaves out the tests but \
                  not what they need; suites/bench_vm.rs runs them"
    )
)]

use std::process::ExitCode;

use clap::Parser;
use program::Options;

mod program;

fn main() -> ExitCode {
    if std::env::args().len() == 1 {
        // `cargo test --benches` only wants to see it run; suites/bench_vm.rs starts the machines.
        println!("vm: nothing is measured without --bench, as `cargo bench` says it");
        return ExitCode::SUCCESS;
    }
    match program::run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm: {error}");
            ExitCode::FAILURE
        }
    }
}
