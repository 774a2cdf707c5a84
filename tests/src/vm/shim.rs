//! A host shim: one process tree per tenant HBA.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use uuid::Uuid;

use super::appliance_config::ApplianceConfig;
use super::error::Result;
use super::log::Log;
use super::process::Process;
use super::programs;
use super::scenario::Scenario;
use super::storage_vm::RunningStorageVm;

/// How long a shim may take for anything it says in its log.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who a shim is when the harness is root.
const NOBODY: &str = "65534:65534";

/// How to start a shim.
#[derive(Debug, Clone)]
pub struct Shim {
    name: String,
    hba: Uuid,
    tenant: Uuid,
    queues: u16,
    vectors: u16,
    socket: Option<PathBuf>,
    extra: Vec<String>,
}

impl Shim {
    /// The shim of the HBA that `config` calls `name`; an unknown name gets a UUID of its own.
    pub fn new(name: &str, config: &ApplianceConfig) -> Self {
        Self {
            name: name.to_owned(),
            hba: config.uuid(name).unwrap_or_else(Uuid::new_v4),
            tenant: Uuid::new_v4(),
            queues: 4,
            vectors: 16,
            socket: None,
            extra: Vec::new(),
        }
    }

    /// With this many request queues at most.
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// For the HBA `uuid`, whatever the configuration says.
    pub fn hba(mut self, uuid: Uuid) -> Self {
        self.hba = uuid;
        self
    }

    /// Serving the tenant's QEMU on `socket`.
    pub fn vhost_user(mut self, socket: &Path) -> Self {
        self.socket = Some(socket.to_owned());
        self
    }

    /// With one more argument.
    pub fn arg(mut self, argument: &str) -> Self {
        self.extra.push(argument.to_owned());
        self
    }

    /// Starts it, and waits until it listens.
    pub fn start(self, scenario: &Scenario, storage: &RunningStorageVm) -> Result<RunningShim> {
        let mut running = self.launch(scenario, storage)?;
        let socket = running.vhost_user.clone();
        let log = running.process.log().clone();
        running
            .process
            .wait_for("its vhost-user socket", PATIENCE, &log, || {
                Ok(socket.exists().then_some(()))
            })?;
        Ok(running)
    }

    /// Starts it, and does not expect it to stay.
    pub fn launch(self, scenario: &Scenario, storage: &RunningStorageVm) -> Result<RunningShim> {
        let name = &self.name;
        let vhost_user = self
            .socket
            .unwrap_or_else(|| scenario.socket(&format!("{name}.hba")));
        let vfio_user = scenario.socket(&format!("{name}.vfio"));
        let mut command = Command::new(programs::host_shim()?);
        command.args(["run", "--name", name]);
        command.args([
            "--hba",
            &self.hba.to_string(),
            "--tenant",
            &self.tenant.to_string(),
        ]);
        command
            .arg("--vhost-user")
            .arg(&vhost_user)
            .arg("--vfio-user")
            .arg(&vfio_user);
        command
            .arg("--qmp")
            .arg(storage.shim_qmp())
            .arg("--ports")
            .arg(storage.ports().join(","));
        command.args(["--queues", &self.queues.to_string()]);
        command
            .args(["--vectors", &self.vectors.to_string()])
            .args(&self.extra);
        if scenario.is_root()? {
            command.args(["--user", NOBODY]);
        }
        let shim = format!("shim-{name}");
        let process = Process::start(&shim, &command, &scenario.log(&shim))?;
        Ok(RunningShim {
            process,
            vhost_user,
            queues: self.queues,
        })
    }
}

/// A shim that runs; dropping it ends it in order, for a storage VM may go down with a killed one.
#[derive(Debug)]
pub struct RunningShim {
    process: Process,
    vhost_user: PathBuf,
    queues: u16,
}

impl RunningShim {
    /// The socket for the tenant's QEMU.
    pub fn vhost_user(&self) -> &Path {
        &self.vhost_user
    }

    /// How many request queues it offers.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Its log.
    pub fn log(&self) -> &Log {
        self.process.log()
    }

    /// The process id of its supervisor.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it says `pattern`, while it runs.
    pub fn expect_log(&mut self, pattern: &str) -> Result<()> {
        let log = self.process.log().clone();
        self.process.wait_for(
            &format!("the shim to say `{pattern}`"),
            PATIENCE,
            &log,
            || Ok(log.contains(pattern).then_some(())),
        )
    }

    /// Waits until it gives up; what it said.
    pub fn refused(mut self) -> Result<String> {
        self.process.wait(PATIENCE)?;
        Ok(self.process.log().text())
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for RunningShim {
    fn drop(&mut self) {
        self.process.terminate(PATIENCE);
    }
}
