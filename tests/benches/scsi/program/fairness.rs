//! What a flood at one HBA does to another of the same appliance.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use clap::Args;
use tests::vm::programs;

use super::columns::{self, iops, ratio, time};
use super::disks::{BYTES, Disks, Medium};
use super::error::{Context, Error, Result};
use super::load::Load;
use super::measure::Measured;
use super::peers::{Running, Server};
use super::slots::Kind;
use super::spread::Spread;
use super::{Unknown, target};

/// How long the flood runs before the other tenant is measured, and after.
const AROUND: Duration = Duration::from_millis(600);
const HEADINGS: [&str; 5] = ["disk", "alone", "beside a flood", "the flood", "times"];

/// One tenant reads 4 KiB at a time, alone and while another reads with many at a time; both sleep
/// until they are called, and the appliance's threads do as they do unless told otherwise.
#[derive(Debug, Clone, Args)]
pub struct Fairness {
    /// Measurements of each kind, in turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Requests of the flood that are under way.
    #[arg(long, default_value_t = 128)]
    depth: u16,
    /// Disks; the null disk and a file on tmpfs without it.
    #[arg(long = "disk", value_enum)]
    media: Vec<Medium>,
    /// Seconds of a measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// Medians of rounds, in nanoseconds, and what the flood did in a second.
#[derive(Debug, Default)]
struct Samples {
    alone: Vec<f64>,
    beside: Vec<f64>,
    times: Vec<f64>,
    flood: Vec<f64>,
}

impl Fairness {
    /// Measures all of it; gives a table.
    ///
    /// # Errors
    /// The appliance cannot be had, or fails.
    pub fn run(&self, directory: &Path) -> Result<String> {
        if self.rounds == 0 {
            return Err(Error::Usage("--rounds is at least 1".to_owned()));
        }
        for depth in [1, self.depth] {
            self.load(depth, Duration::ZERO).check()?;
        }
        let program = programs::appliance()?;
        let disks = Disks::new(directory);
        let media = match self.media.as_slice() {
            [] => &[Medium::Null, Medium::Tmpfs],
            media => media,
        };
        let mut rows = Vec::new();
        for &medium in media {
            let mut samples = Samples::default();
            for _ in 0..self.rounds {
                self.round(&program, disks.file(medium)?, &mut samples)?;
            }
            rows.push(samples.row(medium));
        }
        Ok(columns::render(HEADINGS, rows))
    }

    /// One tenant alone, then both, at one appliance.
    fn round(&self, program: &Path, file: Option<&Path>, samples: &mut Samples) -> Result<()> {
        let directory = tempfile::tempdir().doing("make a folder for the sockets")?;
        let sockets = ["quiet", "flood"].map(|name| directory.path().join(name));
        let config = directory.path().join("appliance.toml");
        std::fs::write(&config, configuration(directory.path(), file)).doing("configure")?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&config);
        for socket in &sockets {
            command.arg("--vhost-user").arg(socket);
            command.arg("--hba").args(socket.file_name());
        }
        command.env("RUST_LOG", "warn");
        let [quiet, flood] = &sockets;
        let mut running = Running::start(Server::Ours, &command, &[quiet, flood])?;
        let few = self.load(1, Duration::ZERO);
        let many = self.load(self.depth, 2 * AROUND);
        let alone = target::drive(quiet, Kind::Scsi, &few, &mut running)?;
        let (beside, flood) = thread::scope(|scope| -> Result<_> {
            let flood = scope.spawn(|| target::drive(flood, Kind::Scsi, &many, &mut Unknown));
            thread::sleep(AROUND);
            let beside = target::drive(quiet, Kind::Scsi, &few, &mut running);
            let flood = flood.join().map_err(|_| Error::Panicked)?;
            Ok((beside?, flood?))
        })?;
        let [alone, beside] = [alone, beside].map(|measured| median(&measured));
        samples.alone.push(alone);
        samples.beside.push(beside);
        samples.times.push(beside / alone);
        samples.flood.push(flood.iops());
        Ok(())
    }

    fn load(&self, depth: u16, longer: Duration) -> Load {
        Load {
            seconds: self.seconds + longer.as_secs_f64(),
            ..Load::of_depth(depth)
        }
    }
}

impl Samples {
    fn row(self, medium: Medium) -> [String; 5] {
        let of = |figures, show: fn(Spread) -> String| {
            Spread::of(figures).map_or_else(String::new, show)
        };
        let latency = |spread: Spread| time(spread.median);
        [
            medium.name().to_owned(),
            of(self.alone, latency),
            of(self.beside, latency),
            of(self.flood, iops),
            of(self.times, ratio),
        ]
    }
}

fn median(measured: &Measured) -> f64 {
    let median = measured.latencies.percentile(50);
    median.unwrap_or_default().as_secs_f64() * 1e9
}

/// Two HBAs that share a LUN.
fn configuration(directory: &Path, file: Option<&Path>) -> String {
    let state = directory.join("state").display().to_string();
    let disk = match file {
        None => format!("kind = \"null\"\nsize = {BYTES}"),
        Some(file) => format!("path = {:?}", file.display().to_string()),
    };
    let mut text = format!(
        "name = \"bench\"\nstate = {state:?}\n[[lun]]\nname = \"disk\"\nshared = true\n{disk}\n"
    );
    for (number, name) in ["quiet", "flood"].into_iter().enumerate() {
        text += &format!(
            "[[hba]]\nname = \"{name}\"\nuuid = \"00000000-0000-4000-8000-00000000000{number}\"\n\
             luns = {{ \"0\" = \"disk\" }}\n"
        );
    }
    text
}
