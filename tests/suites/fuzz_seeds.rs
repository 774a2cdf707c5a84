//! Every seed of the fuzz targets, every input that ever failed, and a fixed number of inputs made of
//! the seeds at random, the same each time; all without a fuzzer.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::fuzz::TARGETS;

/// Seeds of a target at least; without any, its run in CI would start from nothing.
const FEWEST: usize = 3;

/// Longest input, as `tests/fuzz/run` has it.
const LONGEST: usize = 2048;

/// How many inputs are made of the seeds of a target: a few seconds of them.
fn mutations(target: &str) -> usize {
    match target {
        "world" => 4,
        // These set a whole shim or an appliance up for each.
        "vhost_user" | "shim_memory" | "appliance_memory" | "in_flight" => 40,
        _ => 400,
    }
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    /// An input that is like these.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + 1 + self.below(8)).min(input.len());
            match self.below(5) {
                0 => input[at..end].fill_with(|| self.byte()),
                1 if at < end => input[at] ^= 1 << self.below(8),
                2 => drop(input.drain(at..end)),
                3 => {
                    let new: Vec<_> = (0..=self.below(8)).map(|_| self.byte()).collect();
                    input.splice(at..at, new);
                }
                _ => {
                    // The rest is that of another.
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    input.truncate(at);
                    input.extend(&other[from..]);
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}

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
    let mut contents = Vec::new();
    for file in seeds.into_iter().chain(inputs("regressions", target)) {
        // What was printed last is what failed.
        println!("{}", file.display());
        let content = fs::read(&file).unwrap();
        run(&content);
        contents.push(content);
    }
    let mut random = Random(5);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
    for number in 0..mutations(target) {
        let input = random.mutate(&contents);
        fs::write(&file, &input).unwrap();
        println!("mutation {number}, {}", file.display());
        run(&input);
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
