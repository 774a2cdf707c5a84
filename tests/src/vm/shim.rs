//! A host shim: one process tree per tenant HBA.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use uuid::Uuid;

use super::appliance_config::ApplianceConfig;
use super::error::{Error, FileContext, Result};
use super::log::Log;
use super::process::{Process, run};
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
        self.launch(scenario, storage)?.listening()
    }

    /// Starts it, and does not expect it to stay.
    pub fn launch(self, scenario: &Scenario, storage: &RunningStorageVm) -> Result<RunningShim> {
        let mut command = Command::new(programs::host_shim()?);
        command
            .arg("run")
            .arg("--qmp")
            .arg(storage.shim_qmp())
            .arg("--ports")
            .arg(storage.ports().join(","));
        self.run(scenario, command)
    }

    /// Starts it for a tenant whose RAM is the file `memory`, to be part of a storage VM from the
    /// start; waits until it listens.
    pub fn start_cold(self, scenario: &Scenario, memory: &Path) -> Result<RunningShim> {
        let mut command = Command::new(programs::host_shim()?);
        command.arg("run").arg("--trust-memory-file").arg(memory);
        self.run(scenario, command)?.listening()
    }

    fn run(self, scenario: &Scenario, mut command: Command) -> Result<RunningShim> {
        let name = &self.name;
        let vhost_user = self
            .socket
            .unwrap_or_else(|| scenario.socket(&format!("{name}.hba")));
        let vfio_user = scenario.socket(&format!("{name}.vfio"));
        command
            .args(["--name", name])
            .args(["--hba", &self.hba.to_string()])
            .args(["--tenant", &self.tenant.to_string()])
            .arg("--vhost-user")
            .arg(&vhost_user)
            .arg("--vfio-user")
            .arg(&vfio_user)
            .args(["--queues", &self.queues.to_string()])
            .args(["--vectors", &self.vectors.to_string()])
            .args(&self.extra);
        if scenario.is_root()? {
            command.args(["--user", NOBODY]);
        }
        let shim = format!("shim-{name}");
        let process = Process::start(&shim, &command, &scenario.log(&shim))?;
        Ok(RunningShim {
            name: self.name,
            process,
            vhost_user,
            vfio_user,
            queues: self.queues,
        })
    }
}

/// A shim that runs; dropping it ends it in order, for a storage VM may go down with a killed one.
#[derive(Debug)]
pub struct RunningShim {
    name: String,
    process: Process,
    vhost_user: PathBuf,
    vfio_user: PathBuf,
    queues: u16,
}

/// Notifications since a shim started.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// Kicks of the tenant.
    pub kicks: u64,
    /// Interrupts of the tenant.
    pub calls: u64,
    /// Interrupts that had to wake the shim.
    pub trapped_doorbells: u64,
}

/// What a process costs.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// CPU time so far, in clock ticks (10 ms).
    pub ticks: u64,
}

impl RunningShim {
    /// The socket for the tenant's QEMU.
    pub fn vhost_user(&self) -> &Path {
        &self.vhost_user
    }

    /// The socket for the storage VM's QEMU.
    pub fn vfio_user(&self) -> &Path {
        &self.vfio_user
    }

    /// How many request queues it offers.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Its log.
    pub fn log(&self) -> &Log {
        self.process.log()
    }

    /// The process id of its keeper, which is what was started.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has counted up to now.
    pub fn counted(&mut self) -> Result<Counted> {
        let log = self.process.log().clone();
        let before = log.count("counted");
        self.process.signal("USR1")?;
        self.process.wait_for("its counters", PATIENCE, &log, || {
            let text = log.text();
            let line = text
                .lines()
                .rfind(|line| line.contains("counted"))
                .filter(|_| log.count("counted") > before);
            Ok(line.and_then(Counted::parse))
        })
    }

    /// What its keeper, its supervisor and its relay cost.
    pub fn footprints(&self) -> Result<[Footprint; 3]> {
        let [keeper, supervisor, relay] = self.processes()?;
        Ok([
            Footprint::of(keeper)?,
            Footprint::of(supervisor)?,
            Footprint::of(relay)?,
        ])
    }

    /// The ids of its keeper, its supervisor and its relay, none of which was replaced.
    pub fn processes(&self) -> Result<[u32; 3]> {
        let supervisor = only_child(self.id())?;
        Ok([self.id(), supervisor, only_child(supervisor)?])
    }

    fn listening(mut self) -> Result<Self> {
        let socket = self.vhost_user.clone();
        let log = self.process.log().clone();
        self.process
            .wait_for("its vhost-user socket", PATIENCE, &log, || {
                Ok(socket.exists().then_some(()))
            })?;
        Ok(self)
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

    /// Kills its supervisor with SIGKILL, and waits for the next.
    pub fn kill_supervisor(&mut self) -> Result<()> {
        self.kill("supervisor", only_child)
    }

    /// Kills its relay with SIGKILL, and waits for the next.
    pub fn kill_relay(&mut self) -> Result<()> {
        // It outlives the supervisor that started it, and is nobody's child then.
        let name = self.name.clone();
        self.kill("relay", |_| relay_of(&name))
    }

    fn kill(&mut self, what: &str, find: impl Fn(u32) -> Result<u32>) -> Result<()> {
        let id = self.id();
        let killed = find(id)?;
        let kill = format!("kill -KILL {killed}");
        run("kill", Command::new("sh").args(["-c", &kill]))?;
        let log = self.process.log().clone();
        self.process
            .wait_for(&format!("the next {what}"), PATIENCE, &log, || {
                Ok(find(id).ok().filter(|next| *next != killed))
            })
            .map(drop)
    }
}

/// The process that `parent` has started; there has to be one.
fn only_child(parent: u32) -> Result<u32> {
    let children = PathBuf::from(format!("/proc/{parent}/task/{parent}/children"));
    let child = fs::read_to_string(&children).file("read", &children)?;
    child.trim().parse().map_err(|_| Error::Unexpected {
        what: children.display().to_string(),
        problem: format!("should name one process, not `{}`", child.trim()),
    })
}

/// The relay of the HBA `name`; scenarios run one after the other.
fn relay_of(name: &str) -> Result<u32> {
    let processes = fs::read_dir("/proc").file("read", Path::new("/proc"))?;
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_it = |id: &u32| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        words.next() == Some(b"relay") && words.any(|word| word == name.as_bytes())
    };
    ids.into_iter()
        .find(is_it)
        .ok_or_else(|| Error::Unexpected {
            what: format!("the relay of {name}"),
            problem: "should be a process".to_owned(),
        })
}

impl Counted {
    /// The counters in a line of the log: `… kicks=1 calls=2 trapped_doorbells=3`.
    fn parse(line: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        Some(Self {
            kicks: value("kicks")?,
            calls: value("calls")?,
            trapped_doorbells: value("trapped_doorbells")?,
        })
    }
}

impl Footprint {
    /// Of the process `id`, as proc(5) tells it.
    fn of(id: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{id}/{file}");
            fs::read_to_string(&path).file("read", &path)
        };
        let status = read("status")?;
        let resident = status.lines().find_map(|line| {
            let value = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
            value.parse().ok()
        });
        // The fields after the name in parentheses; utime and stime are the 14th and 15th of all.
        let stat = read("stat")?;
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().skip(11).take(2))
            .into_iter()
            .flatten()
            .filter_map(|field| field.parse().ok())
            .collect();
        match (resident, fields.as_slice()) {
            (Some(resident_kib), [user, system]) => Ok(Self {
                resident_kib,
                ticks: user + system,
            }),
            _ => Err(Error::Unexpected {
                what: format!("/proc/{id}"),
                problem: "lacks VmRSS or CPU times".to_owned(),
            }),
        }
    }
}

impl Drop for RunningShim {
    fn drop(&mut self) {
        self.process.terminate(PATIENCE);
    }
}
