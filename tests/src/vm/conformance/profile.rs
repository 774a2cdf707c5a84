//! A kind of LUN, and running the suites on it.

use std::{fs, path::Path, time::Duration};

use super::SUITES;
use super::output::{Verdicts, read};
use crate::vm::agent::Job;
use crate::vm::error::{FileContext, Result};
use crate::vm::machine::Machine;

/// How long a suite may take under TCG on a busy machine, in seconds.
const SUITE: u32 = 300;
/// How long all suites of a profile may take.
const ALL: Duration = Duration::from_secs(1800);
/// Stands before each suite's output.
const MARK: &str = "@@suite ";

/// A kind of LUN.
#[derive(Debug, Clone)]
pub struct Profile {
    name: &'static str,
    /// LUNs of the kind; of each, the tenant's device of each path to it.
    luns: Vec<Vec<String>>,
    suites: Vec<&'static str>,
}

impl Profile {
    /// The profile `name`, on the LUN that the tenant has at `paths`.
    ///
    /// `/dev/sdX` where it can be opened for writing: for `/dev/sgN` the tool makes no transfer
    /// longer than 120 KiB.
    pub fn new(name: &'static str, paths: &[&str]) -> Self {
        let profile = Self {
            name,
            luns: Vec::new(),
            suites: SUITES.to_vec(),
        };
        profile.beside(paths)
    }

    /// With one more LUN of its kind, which takes its share of the suites at the same time.
    pub fn beside(mut self, paths: &[&str]) -> Self {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        self.luns.push(paths);
        self
    }

    /// With only these suites.
    pub fn only(mut self, suites: &[&'static str]) -> Self {
        self.suites = suites.to_vec();
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Starts the suites in `tenant`, on each LUN one after the other, each in a process of its
    /// own.
    pub fn start(self, tenant: &mut Machine) -> Result<Running> {
        let jobs = (0..self.luns.len()).map(|lun| self.start_on(lun, tenant));
        let jobs = jobs.collect::<Result<_>>()?;
        Ok(Running {
            profile: self,
            jobs,
        })
    }

    /// Starts the share of one of the LUNs.
    fn start_on(&self, lun: usize, tenant: &mut Machine) -> Result<Job> {
        let share = self.suites.iter().skip(lun).step_by(self.luns.len());
        let suites = share.copied().collect::<Vec<_>>().join(" ");
        let paths = self.luns[lun].join(" ");
        // Line by line, so that a crash takes no line with it. Of a test's commands the first is
        // enough: the log is long, and names what failed.
        let command = format!(
            "for suite in {suites}; do echo \"{MARK}$suite\"; start=$(date +%s); \
             {{ timeout {SUITE} stdbuf -oL iscsi-test-cu --dataloss --allow-sanitize \
             --Verbose-scsi --test \"LINUX.$suite\" {paths} || echo \"ended with status $?\"; }} | \
             gawk '/^  Test: / {{ sent = 0 }} / Send / && sent++ {{ next }} !/\\[OK\\]/'; \
             echo \"took $(($(date +%s) - start)) s\"; done"
        );
        tenant.start_sh(&command)
    }
}

/// The suites of a profile, under way.
#[derive(Debug)]
pub struct Running {
    profile: Profile,
    jobs: Vec<Job>,
}

impl Running {
    /// Waits for the end; what the tool printed is kept in the directory `logs`.
    pub fn finish(self, logs: &Path) -> Result<(Profile, Verdicts)> {
        let mut text = String::new();
        for job in self.jobs {
            text += &job.succeed(ALL)?;
        }
        let log = logs.join(format!("conformance-{}.log", self.profile.name));
        fs::write(&log, &text).file("write", &log)?;
        let suites = text.split(MARK).skip(1).flat_map(|part| {
            let (suite, output) = part.split_once('\n').unwrap_or((part, ""));
            read(suite, output)
        });
        let verdicts = suites.collect();
        Ok((self.profile, verdicts))
    }
}
