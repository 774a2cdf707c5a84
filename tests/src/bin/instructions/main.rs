//! Instructions of the appliance for a request, counted, and compared with those on record.
//!
//! `cargo instructions` runs the appliance's program `hot-path` under callgrind and fails where a
//! request takes more than 5 % more than the record says; `--record` writes a new one. Nothing
//! that is counted depends on time, on other programs or on the machine, but for the C library.
//!
//! Two workers of an HBA must take hardly more than one does, and none may write to a cache line that
//! the other touches.

mod callgrind;
mod lines;
mod record;
mod stage;

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use tests::vm::process::run;
use tests::vm::{progress, store};

use callgrind::Profile;
use lines::Lines;
use record::{Growth, Record};
use stage::Stages;

/// Counts the instructions of a request, and compares them with the record.
#[derive(Debug, Parser)]
struct Options {
    /// Takes what is counted as the new record.
    #[arg(long)]
    record: bool,
}

/// Cases with one worker and with two that are otherwise the same.
const ONE: &str = "null disk, depth 32";
const TWO: &str = "null disk, two workers, depth 32";
/// Percent by which a request may take more where there are two workers.
const OF_TWO: f64 = 5.0;
/// Disks, and how many lines two workers may share there: of a file, the count of those who hold it,
/// to which a worker writes with the first of its requests that are under way and with the last.
const SHARED: [(&str, usize); 2] = [("null", 0), ("file", 1)];

/// What is counted: a name, and the arguments of `hot-path`.
const CASES: [(&str, &[&str], u64); 6] = [
    ("null disk, depth 1", &["null", "1", "1000"], 1000),
    (ONE, &["null", "32", "100"], 3200),
    (
        "null disk, tracked, depth 32",
        &["null", "32", "100", "--tracked"],
        3200,
    ),
    (TWO, &["null", "32", "100", "--workers", "2"], 2 * 3200),
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
    let of = |case| counted.iter().find(|(name, _)| *name == case);
    let two = match (of(ONE), of(TWO)) {
        (Some((_, one)), Some((_, two))) => (two.total() / one.total() - 1.0) * 100.0,
        _ => unreachable!("both are among the cases"),
    };
    println!("\nwhere there are two workers a request takes {two:+.1} %");
    let mut apart = two <= OF_TWO;
    for (kind, most) in SHARED {
        let shared = shared_lines(&program, kind)?;
        println!(
            "{kind}: {} cache lines that one of two workers writes to and the other touches, of \
             {most} that there may be",
            shared.len()
        );
        for line in &shared {
            println!("  {line}");
        }
        apart &= shared.len() <= most;
    }
    let path = record::path();
    let totals = counted.iter().map(|(name, stages)| (*name, stages.total()));
    let now = Record::of(totals);
    if options.record {
        now.save(&path)?;
        println!("\nrecorded in {}", path.display());
        return Ok(apart);
    }
    let mut fine = apart;
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

/// Cache lines that one of two workers writes to and the other touches.
fn shared_lines(program: &Path, kind: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let _step = progress::step(&format!("tracing two workers, {kind}"));
    let arguments = [kind, "8", "4", "--workers", "2", "--marks"];
    let traced = |tool: &[&str]| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(tool).arg(program).args(arguments);
        valgrind
    };
    // Valgrind puts a program at the same place each time.
    let marks = marks(&run("valgrind", &mut traced(&["--tool=none"]))?)?;
    let mut lackey = traced(&["--tool=lackey", "--basic-counts=no", "--trace-mem=yes"]);
    let mut child = lackey
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = Lines::new(marks.0, marks.1);
    lines.read(BufReader::new(child.stderr.take().ok_or("no trace")?))?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || self::marks(&said)? != marks {
        return Err(format!("valgrind --tool=lackey: {}, {said}", output.status).into());
    }
    // A trace without accesses of either shows nothing.
    if lines.of_each(2).contains(&0) {
        return Err("the trace has no accesses of a worker".into());
    }
    Ok(lines.shared())
}

/// Where `hot-path` says that its marks are, and for how many workers.
fn marks(said: &str) -> Result<(u64, u64), Box<dyn std::error::Error>> {
    let marks = said.lines().find_map(|line| line.strip_prefix("marks: "));
    let marks = marks.and_then(|marks| {
        let (at, most) = marks.split_once(' ')?;
        Some((u64::from_str_radix(at, 16).ok()?, most.parse().ok()?))
    });
    marks.ok_or_else(|| format!("hot-path says {said:?}, and not where its marks are").into())
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
