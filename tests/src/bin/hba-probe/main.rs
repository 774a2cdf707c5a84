//! A program for a tenant that drives one of its HBAs itself, to see what Linux's driver never
//! makes happen: aborts, queries, and resets in the middle of I/O.
//!
//! It needs root, an HBA that no driver has, and there LUN 0 on a blank disk throttled to a few
//! operations a second, which it overwrites, and LUN 1 on any disk. Each check prints a line:
//! `ok NAME`, or `FAILED NAME: WHY`. The exit status is 0 if all are ok.

mod afterwards;
mod checks;
mod dma;
mod error;
mod hba;
mod pci;
mod ring;
mod slow_unit;
mod transport;

use std::{env, process::ExitCode, time::Instant};

use crate::error::Result;
use crate::hba::Hba;
use crate::pci::Function;
use crate::transport::Transport;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address] = arguments.as_slice() else {
        eprintln!("usage: hba-probe ADDRESS (of the HBA's PCI function, 0000:00:03.0)");
        return ExitCode::FAILURE;
    };
    match run(address) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAILED to go on: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes every check; how many failed.
fn run(address: &str) -> Result<usize> {
    let mut hba = open(address)?;
    let mut failed = 0;
    for check in checks::ALL {
        let begun = Instant::now();
        let result = checks::make(&mut hba, check);
        let name = check.0;
        let took = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("ok {name} ({took:.1} s)"),
            Err(error) => {
                println!("FAILED {name}: {error} ({took:.1} s)");
                failed += 1;
                // What it left behind is nothing for the next.
                drop(hba);
                hba = open(address)?;
            }
        }
    }
    Ok(failed)
}

fn open(address: &str) -> Result<Hba> {
    Hba::new(Transport::new(Function::open(address)?)?)
}
