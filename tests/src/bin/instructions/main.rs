//! Instructions of the appliance for a request, counted, and compared with those on record.
//!
//! `cargo instructions` runs the appliance's program `hot-path` under callgrind and fails where a
//! request takes more than 5 % more than the record says; `--record` writes a new one. Nothing
//! that is counted depends on time, on other programs or on the machine, but for the C library.

mod callgrind;
mod record;
mod stage;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use tests::vm::process::run;
use tests::vm::{progress, store};

use callgrind::Profile;
use record::{Growth, Record};
use stage::Stages;

/// Counts the instructions of a request, and compares them with the record.
#[derive(Debug, Parser)]
struct Options {
    /// Takes what is counted as the new record.
    #[arg(long)]
    record: bool,
}

/// What is counted: a name, and the arguments of `hot-path`.
const CASES: [(&str, &[&str], u64); 5] = [
    ("null disk, depth 1", &["null", "1", "1000"], 1000),
    ("null disk, depth 32", &["null", "32", "100"], 3200),
    (
        "null disk, tracked, depth 32",
        &["null", "32", "100", "--tracked"],
        3200,
    ),
    ("file, depth 1", &["file", "1", "1000"], 1000),
    ("file, depth 32", &["file", "32", "100"], 3200),
];

fn main() -> ExitCode {
    match count(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether no request takes more than it may.
fn count(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let program = build()?;
    let mut counted = Vec::new();
    for (name, arguments, requests) in CASES {
        let _step = progress::step(name);
        let profile = profile(&program, arguments)?;
        counted.push((name, Stages::of(&profile, requests)));
    }
    print!("{}", stage::table(&counted));
    let path = record::path();
    let totals = counted.iter().map(|(name, stages)| (*name, stages.total()));
    let now = Record::of(totals);
    if options.record {
        now.save(&path)?;
        println!("\nrecorded in {}", path.display());
        return Ok(true);
    }
    let mut fine = true;
    println!();
    for (name, growth) in now.compared_with(&Record::load(&path)?) {
        fine &= !matches!(growth, Growth::TooMuch { .. } | Growth::Unknown);
        println!("{name}: {growth}");
    }
    Ok(fine)
}

/// Builds the program that is counted, with line tables.
fn build() -> Result<PathBuf, tests::vm::Error> {
    let _step = progress::step("building hot-path");
    let target = store::workspace().join("target");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked"]);
    cargo.args(["--package", "vhost-pci-appliance"]);
    cargo.args(["--features", "measure", "--bin", "hot-path"]);
    cargo.arg("--target-dir").arg(&target);
    cargo.current_dir(store::workspace());
    run("building hot-path", &mut cargo)?;
    Ok(target.join("release/hot-path"))
}

/// Runs the program under callgrind.
fn profile(program: &Path, arguments: &[&str]) -> Result<Profile, Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--collect-atstart=no"]);
    valgrind.arg("--toggle-collect=*counted*");
    let mut file = std::ffi::OsString::from("--callgrind-out-file=");
    file.push(&output);
    valgrind.arg(file).arg(program).args(arguments);
    // The same copies on every CPU.
    let tunables = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-AVX_Fast_Unaligned_Load";
    valgrind.env("GLIBC_TUNABLES", tunables);
    run(
        "valgrind --tool=callgrind; apt install valgrind",
        &mut valgrind,
    )?;
    Ok(Profile::parse(&std::fs::read_to_string(&output)?))
}
