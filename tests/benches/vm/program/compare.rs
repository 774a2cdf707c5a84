//! All ways under the same loads, in turn.

use clap::Args;
use serde::Serialize;
use tests::vm::progress::Progress;

use super::error::{Error, Result};
use super::load::Load;
use super::measure::{Sample, measure};
use super::rig::Rig;
use super::spread::Spread;
use super::way::Way;

/// The default takes about seven minutes; a measurement its seconds and three or four more.
const ROUNDS: u32 = 4;
const SECONDS: f64 = 3.0;
/// With `--short`: whether it works, no figure to quote.
const SHORT_SECONDS: f64 = 0.5;

const DEPTHS: [u16; 2] = [1, 32];

/// What is compared.
#[derive(Debug, Clone, Args)]
pub struct Comparison {
    /// Measurements of each way under each load, all ways in turn [default: 4].
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of a measurement [default: 3].
    #[arg(long)]
    seconds: Option<f64>,
    /// One short round: to see that it works.
    #[arg(long)]
    short: bool,
    /// Ways; all without it.
    #[arg(long = "way", value_enum)]
    ways: Vec<Way>,
    /// Depths [default: 1 and 32].
    #[arg(long = "depth", value_parser = clap::value_parser!(u16).range(1..))]
    depths: Vec<u16>,
    /// Only reads.
    #[arg(long, conflicts_with = "writes")]
    reads: bool,
    /// Only writes.
    #[arg(long)]
    writes: bool,
}

/// One way under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub way: Way,
    /// One for each round.
    pub samples: Vec<Sample>,
}

impl Row {
    /// The spread of one figure over the rounds.
    pub fn spread(&self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.iter().map(figure).collect())
    }

    /// How many times `figure` is that of `other`, round by round: what disturbs one disturbs its
    /// neighbour.
    pub fn times(&self, other: &Self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        let rounds = self.samples.iter().zip(&other.samples);
        Spread::of(
            rounds
                .map(|(own, other)| figure(own) / figure(other))
                .collect(),
        )
    }
}

/// All ways under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    pub load: Load,
    pub rows: Vec<Row>,
}

impl Comparison {
    /// Measurements of each.
    pub fn rounds(&self) -> u32 {
        let default = if self.short { 1 } else { ROUNDS };
        self.rounds.unwrap_or(default).max(1)
    }

    fn seconds(&self) -> f64 {
        let default = if self.short { SHORT_SECONDS } else { SECONDS };
        self.seconds.unwrap_or(default).clamp(0.1, 600.0)
    }

    /// Measures all of it.
    ///
    /// # Errors
    /// A measurement failed.
    pub fn run(&self, rig: &mut Rig) -> Result<Vec<Compared>> {
        let mut all = self.empty();
        let rounds = self.rounds();
        let mut progress = Progress::of(u64::from(rounds) * all.len() as u64);
        for round in 0..rounds {
            for Compared { load, rows } in &mut all {
                let _step = progress.step(&format!("round {}: {}", round + 1, load.name()));
                // Not always the same one after the same other.
                let first = round as usize % rows.len().max(1);
                let (late, early) = rows.split_at_mut(first);
                for row in early.iter_mut().chain(late) {
                    let sample = measure(rig, row.way, *load, self.seconds());
                    row.samples
                        .push(sample.map_err(|source| Error::Measurement {
                            way: row.way.name(),
                            load: load.name(),
                            source: Box::new(source),
                        })?);
                }
            }
        }
        Ok(all)
    }

    fn empty(&self) -> Vec<Compared> {
        use clap::ValueEnum;
        let ways = if self.ways.is_empty() {
            Way::value_variants()
        } else {
            &self.ways
        };
        let depths = if self.depths.is_empty() {
            &DEPTHS[..]
        } else {
            &self.depths
        };
        let row = |&way: &Way| Row {
            way,
            samples: Vec::new(),
        };
        let mut all = Vec::new();
        for writes in [false, true] {
            if (writes && self.reads) || (!writes && self.writes) {
                continue;
            }
            all.extend(depths.iter().map(|&depth| Compared {
                load: Load { writes, depth },
                rows: ways.iter().map(row).collect(),
            }));
        }
        all
    }
}
