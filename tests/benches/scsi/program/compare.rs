//! All servers under the same loads, in turn.

use std::path::Path;

use clap::Args;
use serde::Serialize;
use tests::vm::progress::Progress;

use super::disks::{Disks, Medium};
use super::error::{Error, Result};
use super::load::Load;
use super::measure::Measured;
use super::peers::{Programs, Server};
use super::spread::Spread;
use super::{raw, target};

/// Depths at which each medium is compared.
const NULL_DEPTHS: [u16; 2] = [1, 32];
const FILE_DEPTHS: [u16; 3] = [1, 32, 128];
/// The depth at which a file's own limit is shown.
const RAW_DEPTH: u16 = 32;

/// What is compared.
#[derive(Debug, Clone, Args)]
pub struct Comparison {
    /// Measurements of each server under each load, all servers in turn.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Servers; all without it.
    #[arg(long = "server", value_enum)]
    pub servers: Vec<Server>,
    /// Disks; all without it.
    #[arg(long = "disk", value_enum)]
    pub media: Vec<Medium>,
    /// Depths; those that make sense for each disk without it.
    #[arg(long = "depth")]
    pub depths: Vec<u16>,
    /// Only where this side polls.
    #[arg(long, conflicts_with = "interrupts")]
    pub polled: bool,
    /// Only where this side sleeps until an interrupt.
    #[arg(long)]
    pub interrupts: bool,
    /// Percent of the requests that are writes; files are overwritten.
    #[arg(long = "writes", value_name = "PERCENT", default_value_t = 0)]
    pub write_percent: u8,
    /// One block after the other, in place of any.
    #[arg(long)]
    pub sequential: bool,
    /// Bytes of a request.
    #[arg(long = "block-size", value_name = "BYTES", default_value_t = 4096)]
    pub block_bytes: u32,
    /// Seconds of a measurement.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
}

/// One load on one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Case {
    pub disk: Medium,
    pub polled: bool,
    pub depth: u16,
}

impl Case {
    pub fn name(&self) -> String {
        let how = if self.polled { "polled" } else { "interrupts" };
        format!("{}, {how}, depth {}", self.disk.name(), self.depth)
    }
}

/// The figures of one measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    pub iops: f64,
    pub median_ns: f64,
    pub p99_ns: f64,
    /// CPU time of the server for a request.
    pub cpu_ns: Option<f64>,
    /// The part of the time in which a side waited for a CPU that others had.
    pub disturbed: f64,
}

impl Sample {
    fn of(measured: &Measured) -> Self {
        let latency = |percent| {
            let latency = measured.latencies.percentile(percent);
            latency.unwrap_or_default().as_secs_f64() * 1e9
        };
        Self {
            iops: measured.iops(),
            median_ns: latency(50),
            p99_ns: latency(99),
            cpu_ns: measured.cpu_per_request(),
            disturbed: measured.disturbed(),
        }
    }
}

/// One server under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub server: Server,
    /// One for each round; none if it cannot serve this.
    pub samples: Vec<Sample>,
    /// Why there is none.
    pub lacks: Option<&'static str>,
}

impl Row {
    /// The spread of one figure over the rounds.
    pub fn spread(&self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.iter().map(figure).collect())
    }

    /// How many times as fast this is as `other`, round by round.
    pub fn times(&self, other: &Self) -> Option<Spread> {
        let rounds = self.samples.iter().zip(&other.samples);
        Spread::of(rounds.map(|(own, other)| own.iops / other.iops).collect())
    }
}

/// All servers under one load.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    pub case: Case,
    pub rows: Vec<Row>,
}

impl Comparison {
    /// Measures all of it.
    ///
    /// # Errors
    /// A server cannot be had, or fails.
    pub fn run(&self, directory: &Path) -> Result<Vec<Compared>> {
        for depth in [1].iter().chain(&self.depths) {
            self.load(*depth, false).check()?;
        }
        let servers = self.servers();
        let cases = self.cases();
        let programs = Programs::prepare(&servers)?;
        let disks = Disks::new(directory);
        let mut progress = Progress::of(cases.len() as u64);
        let mut all = Vec::new();
        for case in cases {
            let _step = progress.step(&case.name());
            all.push(self.compare(case, &servers, &programs, &disks)?);
        }
        Ok(all)
    }

    fn compare(
        &self,
        case: Case,
        servers: &[Server],
        programs: &Programs,
        disks: &Disks,
    ) -> Result<Compared> {
        let shown = |server: &&Server| match server {
            Server::Raw => case.disk != Medium::Null && case.depth == RAW_DEPTH,
            Server::Floor => case.disk == Medium::Null,
            _ => true,
        };
        let mut rows: Vec<Row> = servers
            .iter()
            .filter(shown)
            .map(|&server| Row {
                server,
                samples: Vec::new(),
                lacks: server.lacks(case.disk),
            })
            .collect();
        let file = disks.file(case.disk)?;
        for round in 0..self.rounds {
            // Not always the same one after the same other.
            let first = round as usize % rows.len().max(1);
            let (late, early) = rows.split_at_mut(first);
            for row in early.iter_mut().chain(late) {
                if row.lacks.is_some() {
                    continue;
                }
                let measured = self.measure(row.server, case, file, programs);
                let measured = measured.map_err(|source| Error::Measurement {
                    server: row.server.name(),
                    case: case.name(),
                    source: Box::new(source),
                })?;
                row.samples.push(Sample::of(&measured));
            }
        }
        Ok(Compared { case, rows })
    }

    /// One server once: started, driven, ended, so that none disturbs another.
    fn measure(
        &self,
        server: Server,
        case: Case,
        file: Option<&Path>,
        programs: &Programs,
    ) -> Result<Measured> {
        let mut load = self.load(case.depth, case.polled);
        load.ring_size = load.ring_size.min(server.most_entries());
        match (server, file) {
            (Server::Floor, _) => target::floor(server.kind(), &load),
            (Server::Raw, Some(file)) => raw::measure(file, &load),
            (_, file) => {
                let directory = tempfile::tempdir().map_err(|source| Error::Io {
                    action: "make a folder for the socket".to_owned(),
                    source,
                })?;
                let socket = directory.path().join("vhost");
                let mut running = programs.start(server, file, &socket, case.polled)?;
                target::drive(&socket, server.kind(), &load, &mut running)
            }
        }
    }

    fn load(&self, depth: u16, polled: bool) -> Load {
        Load {
            block_bytes: self.block_bytes,
            write_percent: self.write_percent,
            sequential: self.sequential,
            polled,
            seconds: self.seconds,
            ..Load::of_depth(depth)
        }
    }

    fn servers(&self) -> Vec<Server> {
        if self.servers.is_empty() {
            use clap::ValueEnum;
            return Server::value_variants().to_vec();
        }
        self.servers.clone()
    }

    fn cases(&self) -> Vec<Case> {
        let media = [Medium::Null, Medium::Tmpfs, Medium::Direct];
        let chosen = |medium: &Medium| self.media.is_empty() || self.media.contains(medium);
        let mut cases = Vec::new();
        for disk in media.into_iter().filter(chosen) {
            let depths: &[u16] = match disk {
                _ if !self.depths.is_empty() => &self.depths,
                Medium::Null => &NULL_DEPTHS,
                Medium::Tmpfs | Medium::Direct => &FILE_DEPTHS,
            };
            for polled in [true, false] {
                if (polled && self.interrupts) || (!polled && self.polled) {
                    continue;
                }
                let case = |&depth| Case {
                    disk,
                    polled,
                    depth,
                };
                cases.extend(depths.iter().map(case));
            }
        }
        cases
    }
}
