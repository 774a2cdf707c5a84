//! The program: its options, and what they make it do.

#[path = "../../shared/bars.rs"]
mod bars;
#[path = "../../shared/columns.rs"]
mod columns;
mod compare;
#[path = "../../shared/cpu.rs"]
mod cpu;
mod error;
mod fio;
mod initiator;
mod load;
#[path = "../../shared/machine.rs"]
mod machine;
mod measure;
mod plot;
mod report;
mod rig;
#[path = "../../shared/spread.rs"]
mod spread;
mod table;
mod target;
mod way;
mod whole;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use tests::vm::store;

use compare::Comparison;
use error::{Context, Result};
use machine::Machine;
use rig::Rig;

/// Compares a tenant's disk by vhost-pci, iSCSI, NVMe/TCP and QEMU's own virtio-scsi: the same file
/// of the host, the same load, in turn.
#[derive(Debug, Parser)]
#[command(name = "vm")]
pub struct Options {
    #[command(flatten)]
    comparison: Comparison,
    /// For how long the shim polls after a call, in place of what it does by itself; 0: never.
    #[arg(long, value_name = "MICROSECONDS")]
    doorbell_poll_us: Option<u32>,
    /// Folder for the results.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// What cargo says to a bench program.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Does what the options say.
///
/// # Errors
/// There is no figure, and why.
pub fn run(options: &Options) -> Result<()> {
    let directory = options.out.clone();
    let directory = directory.unwrap_or_else(|| store::workspace().join("target/bench-vm"));
    fs::create_dir_all(&directory).doing(format!("create {}", directory.display()))?;
    let mut rig = Rig::start(options.doorbell_poll_us)?;
    let all = options.comparison.run(&mut rig)?;
    tell(options, &rig, &all, &directory)
}

fn tell(options: &Options, rig: &Rig, all: &[compare::Compared], directory: &Path) -> Result<()> {
    let machine = Machine::here();
    let rounds = options.comparison.rounds();
    println!(
        "\nOne tenant's disk by several ways: random requests of 4096 bytes, fio in the tenant; of \
         {rounds} rounds\nthe median, the least and the most. \"vhost-pci is\" says how many times \
         as fast vhost-pci was, round by\nround; CPU is that of all processes and of each side for one \
         request; \"others use\" says how many CPUs\nprocesses used that have nothing to do with it. \
         {}{}\n{}.\n",
        rig.accelerator(),
        table::quietness(all),
        machine.line()
    );
    print!("{}", table::render(all));
    println!("{}", table::calls(all));
    let json = report::save(directory, machine, rig.accelerator(), all)?;
    let plot = directory.join("vm.svg");
    plot::draw(&plot, all)?;
    println!("\n{}\n{}", json.display(), plot.display());
    Ok(())
}
