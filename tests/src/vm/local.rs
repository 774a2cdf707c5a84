//! An appliance on the tenant's own host, without a storage VM.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::disk::Disk;
use super::error::Result;
use super::log::Log;
use super::process::Process;
use super::programs;
use super::scenario::Scenario;

/// How long it may take until it listens, or ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// An appliance that serves one HBA at a socket; dropping it kills it.
#[derive(Debug)]
pub struct LocalAppliance {
    process: Process,
    socket: PathBuf,
}

impl LocalAppliance {
    /// Starts one whose HBA sees `disks` as LUN 0, 1, …, and waits until it listens.
    pub fn start(scenario: &Scenario, name: &str, disks: &[&Disk]) -> Result<Self> {
        Self::start_at(
            scenario,
            name,
            &scenario.socket(&format!("{name}.hba")),
            disks,
        )
    }

    /// As [`Self::start`], at a socket that another had.
    pub fn start_at(
        scenario: &Scenario,
        name: &str,
        socket: &Path,
        disks: &[&Disk],
    ) -> Result<Self> {
        let mut command = Command::new(programs::appliance()?);
        command.arg("serve").arg("--vhost-user").arg(socket);
        for disk in disks {
            let path = disk.path().display();
            command
                .arg("--lun")
                .arg(format!("{path},name={}", disk.serial()));
        }
        let mut process = Process::start(name, &command, &scenario.log(name))?;
        let log = process.log().clone();
        process.wait_for("the appliance's socket", PATIENCE, &log, || {
            Ok(log.text().contains("waiting for a frontend").then_some(()))
        })?;
        let socket = socket.to_owned();
        Ok(Self { process, socket })
    }

    /// The socket for the tenant's QEMU.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its log.
    pub fn log(&self) -> &Log {
        self.process.log()
    }

    /// Ends it as an operator does.
    pub fn stop(mut self) {
        self.process.terminate(PATIENCE);
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.process.kill();
    }
}
