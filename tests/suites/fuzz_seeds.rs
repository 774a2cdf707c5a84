//! Every seed of the fuzz targets, and every input that ever failed, without a fuzzer.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::fuzz::TARGETS;

/// Seeds of a target at least; without any, its run in CI would start from nothing.
const FEWEST: usize = 3;

/// The files of a target in `tests/fuzz/seeds` or `tests/fuzz/regressions`.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let Ok(entries) = fs::read_dir(root.join(kind).join(target)) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Set in the process that runs a target.
const ALONE: &str = "FUZZ_SEEDS_ALONE";

/// Runs a target in a process of its own: some count what the process has.
fn replay(target: &str) {
    if env::var_os(ALONE).is_none() {
        let tests = env::current_exe().unwrap();
        let alone = Command::new(tests)
            .args(["--exact", target, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let [out, err] = [&alone.stdout, &alone.stderr].map(|said| String::from_utf8_lossy(said));
        let said = format!("{out}{err}");
        assert!(
            alone.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let seeds = inputs("seeds", target);
    assert!(seeds.len() >= FEWEST, "{} seeds", seeds.len());
    for file in seeds.into_iter().chain(inputs("regressions", target)) {
        // What was printed last is what failed.
        println!("{}", file.display());
        run(&fs::read(&file).unwrap());
    }
    // Some things are only reached by too little.
    run(&[]);
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        #[test]
        fn every_target_has_its_test() {
            let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
        }
    };
}

replays! {
    cdb chain vfio_user vhost_user shim_memory appliance_memory config state_file
    reservations_file in_flight world
}
