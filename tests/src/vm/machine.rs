//! A running virtual machine.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use serde_json::json;

use super::accelerator::Accelerator;
use super::agent::{self, Agent, Job};
use super::error::{Error, Result};
use super::log::Log;
use super::process::Process;
use super::qemu::Qemu;
use super::qmp::Qmp;
use super::scenario::Scenario;

/// How long a guest may take from power-on to its agent, on a slow machine under TCG.
pub const BOOT: Duration = Duration::from_secs(180);
/// How long a command in a guest may take unless it is said otherwise.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a guest may take from its power button to its end, on a slow machine under TCG.
const POWER_OFF: Duration = Duration::from_secs(60);
/// How long QEMU may take until its sockets are there.
const SOCKETS: Duration = Duration::from_secs(20);

/// A QEMU with its guest; dropping it kills it.
///
/// `NAME.console.log` in the scenario's directory keeps the guest's serial console,
/// `NAME.qemu.log` what QEMU itself says.
#[derive(Debug)]
pub struct Machine {
    name: String,
    process: Process,
    console: Log,
    console_socket: PathBuf,
    qmp: Qmp,
    agent: Agent,
    started: Instant,
}

impl Machine {
    /// Starts QEMU with `arguments`, beside those that every machine has.
    pub fn start(scenario: &Scenario, name: &str, arguments: &[String]) -> Result<Self> {
        Self::begin(scenario, name, arguments)?.connect()
    }

    /// Starts QEMU, and does not expect it to stay.
    pub fn begin(scenario: &Scenario, name: &str, arguments: &[String]) -> Result<Starting> {
        let qemu = Qemu::find()?;
        let accelerator = Accelerator::choose(&qemu)?;
        let console = Log::at(scenario.log(&format!("{name}.console")));
        let socket = |kind: &str| scenario.socket(&format!("{name}.{kind}"));
        let starting = Starting {
            console_socket: socket("console"),
            qmp_socket: socket("qmp"),
            agent_socket: socket("agent"),
            name: name.to_owned(),
            started: Instant::now(),
            process: {
                let mut command = qemu.command();
                command.args(accelerator.arguments());
                command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-name", name]);
                // First the caller's: a vIOMMU must come before the devices behind it.
                command.args(arguments);
                command.arg("-chardev").arg(format!(
                    "socket,id=console,server=on,wait=off,path={},logfile={}",
                    socket("console").display(),
                    console.path().display()
                ));
                command.args(["-serial", "chardev:console", "-qmp"]);
                command.arg(format!(
                    "unix:{},server=on,wait=off",
                    socket("qmp").display()
                ));
                command.arg("-chardev").arg(format!(
                    "socket,id=agent,server=on,wait=off,path={}",
                    socket("agent").display()
                ));
                command.args(["-device", "virtio-serial-pci,max_ports=2", "-device"]);
                command.arg(format!("virtserialport,chardev=agent,name={}", agent::PORT));
                Process::start(name, &command, &scenario.log(&format!("{name}.qemu")))?
            },
            console,
        };
        Ok(starting)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the guest wrote to its serial console.
    pub fn console(&self) -> &Log {
        &self.console
    }

    /// A socket that is the other end of the guest's serial line.
    pub fn console_socket(&self) -> &Path {
        &self.console_socket
    }

    /// QEMU's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// When QEMU was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Waits until `pattern` is on the console.
    pub fn wait_console(&mut self, pattern: &str, timeout: Duration) -> Result<()> {
        let console = self.console.clone();
        let awaited = format!("`{pattern}` on the console of {}", self.name);
        self.process.wait_for(&awaited, timeout, &console, || {
            Ok(console.contains(pattern).then_some(()))
        })
    }

    /// Waits until the guest runs commands.
    pub fn wait_booted(&mut self) -> Result<()> {
        self.wait_boot_after(0, "power-on")
    }

    /// Runs a shell command in the guest, which must succeed; gives what it printed.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.start_sh(command)?.succeed(COMMAND)
    }

    /// Starts a shell command in the guest.
    pub fn start_sh(&mut self, command: &str) -> Result<Job> {
        self.agent.start(command)
    }

    /// Resets the machine as its reset button would, and waits until it has booted again.
    pub fn reset(&mut self) -> Result<()> {
        let boots = self.boots();
        self.qmp.execute("system_reset", json!({}))?;
        self.wait_boot_after(boots, "its reset")
    }

    /// Runs a command in the guest that ends in a reboot, and waits until it has booted again.
    pub fn reboot_with(&mut self, command: &str) -> Result<()> {
        let boots = self.boots();
        // The agent goes down with the guest, so there may be no reply.
        let _lost = self.start_sh(command)?;
        self.wait_boot_after(boots, command)
    }

    /// How often the guest has booted.
    fn boots(&self) -> usize {
        self.console.count(agent::GREETING)
    }

    fn wait_boot_after(&mut self, boots: usize, cause: &str) -> Result<()> {
        let console = self.console.clone();
        let awaited = format!("{} to boot after {cause}", self.name);
        // Not by a command to the agent: a firmware with a driver for its port (OVMF) eats it.
        self.process.wait_for(&awaited, BOOT, &console, || {
            Ok((console.count(agent::GREETING) > boots).then_some(()))
        })?;
        self.sh("true").map(drop)
    }

    /// Presses the power button, and waits until the guest has switched the machine off; gives
    /// how QEMU ended.
    pub fn power_off(&mut self) -> Result<ExitStatus> {
        self.qmp.execute("system_powerdown", json!({}))?;
        self.process.wait(POWER_OFF)
    }

    /// Kills QEMU with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// A QEMU that was started but may not stay: its sockets are not there yet.
#[derive(Debug)]
pub struct Starting {
    name: String,
    process: Process,
    console: Log,
    console_socket: PathBuf,
    qmp_socket: PathBuf,
    agent_socket: PathBuf,
    started: Instant,
}

impl Starting {
    /// Waits for QEMU's sockets; then it is a machine.
    pub fn connect(mut self) -> Result<Machine> {
        let log = self.process.log().clone();
        // The agent's port comes after the monitor in QEMU's start, so both are there with it.
        let (qmp, agent) = self.process.wait_for("its sockets", SOCKETS, &log, || {
            let connected = Qmp::connect(&self.qmp_socket)
                .and_then(|qmp| Ok((qmp, Agent::connect(&self.name, &self.agent_socket)?)));
            match connected {
                Ok(connected) => Ok(Some(connected)),
                Err(Error::File { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        let Self {
            name,
            process,
            console,
            console_socket,
            started,
            ..
        } = self;
        Ok(Machine {
            name,
            process,
            console,
            console_socket,
            qmp,
            agent,
            started,
        })
    }

    /// Waits until QEMU gives up; what it said.
    pub fn refused(mut self, timeout: Duration) -> Result<String> {
        self.process.wait(timeout)?;
        Ok(self.process.log().text())
    }
}
