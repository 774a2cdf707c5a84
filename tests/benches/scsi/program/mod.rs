//! The program: its options, and what they make it do.

#[path = "../../shared/bars.rs"]
mod bars;
#[path = "../../shared/columns.rs"]
mod columns;
mod compare;
#[path = "../../shared/cpu.rs"]
mod cpu;
mod disks;
mod error;
mod fairness;
mod floor;
mod histogram;
mod load;
#[path = "../../shared/machine.rs"]
mod machine;
mod measure;
mod memory;
mod peers;
mod plot;
mod raw;
mod report;
mod rig;
mod ring;
mod session;
mod sleep;
mod slots;
mod source;
#[path = "../../shared/spread.rs"]
mod spread;
mod table;
mod target;
mod verify;
mod worker;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use compare::Comparison;
use cpu::Time;
use error::Result;
use fairness::Fairness;
use load::Load;
use machine::Machine;
use measure::{Measured, Served};
use slots::Kind;

/// Compares the speed of vhost-user servers: ours, and what others use, under the same loads in
/// turn.
#[derive(Debug, Parser)]
#[command(name = "scsi", args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    comparison: Comparison,
    /// What cargo says to a bench program.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Drives one server that runs already.
    Drive(Drive),
    /// Shows what a flood at one HBA does to the latency at another of the same appliance.
    Fairness(Fairness),
    /// Shows what the load generator can do at most, with a server that answers at once.
    Floor(Load),
}

#[derive(Debug, Args)]
struct Drive {
    /// The server's socket.
    socket: PathBuf,
    /// What it serves.
    #[arg(long, value_enum)]
    kind: Kind,
    #[command(flatten)]
    load: Load,
}

/// Does what the options say.
///
/// # Errors
/// There is no figure, and why.
pub fn run(options: &Options) -> Result<()> {
    match &options.command {
        Some(Command::Drive(drive)) => {
            let Drive { socket, kind, load } = drive;
            print(load, &target::drive(socket, *kind, load, &mut Unknown)?);
        }
        Some(Command::Fairness(fairness)) => print!("{}", fairness.run(&disks::directory()?)?),
        Some(Command::Floor(load)) => print(load, &target::floor(Kind::Scsi, load)?),
        None => compare(&options.comparison)?,
    }
    Ok(())
}

fn compare(comparison: &Comparison) -> Result<()> {
    let directory = disks::directory()?;
    let all = comparison.run(&directory)?;
    let (block, writes) = (comparison.block_bytes, comparison.write_percent);
    let order = if comparison.sequential {
        "sequential"
    } else {
        "random"
    };
    let what = if writes == 0 {
        format!("{order} reads of {block} bytes")
    } else {
        format!("{order} requests of {block} bytes, {writes} % writes")
    };
    println!(
        "\nvhost-user servers: {what}, one queue; of {} rounds the median, the least and the \
         most.\n\"ours is\" says how many times as fast ours was, round by round; \"disturbed\" is the \
         part of the\ntime in which a side waited for a CPU that others had.\n{}.\n",
        comparison.rounds,
        Machine::here().line()
    );
    print!("{}", table::render(&all));
    let json = report::save(&directory, &all, comparison)?;
    let plot = directory.join("scsi.svg");
    plot::draw(&plot, &what, &all)?;
    println!("\n{}\n{}", json.display(), plot.display());
    Ok(())
}

/// A server of which no more is known than its socket.
struct Unknown;

impl Served for Unknown {
    fn cpu(&self) -> Option<Time> {
        None
    }

    fn gone(&mut self) -> Option<String> {
        None
    }
}

fn print(load: &Load, measured: &Measured) {
    let latency = |percent| {
        let latency = measured.latencies.percentile(percent);
        latency.unwrap_or_default()
    };
    println!(
        "{:.0} IOPS, latency {:.1?} median, {:.1?} p99; {} kicks, {} sleeps",
        measured.iops(),
        latency(50),
        latency(99),
        measured.kicks,
        measured.sleeps
    );
    if load.verify {
        println!("all that was read was what had been written");
    }
}
