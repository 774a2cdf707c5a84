//! The servers that are compared, and how each is started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use tests::vm::process::{Process, run};
use tests::vm::{programs, progress, qemu, store};

use super::cpu::{self, Time};
use super::disks::{BYTES, Medium};
use super::error::Result;
use super::measure::Served;
use super::slots::Kind;

/// The crate that is compared, and the version that its figures are of.
const VHOST_DEVICE_SCSI: &str = "vhost-device-scsi";
const VHOST_DEVICE_SCSI_VERSION: &str = "0.1.0";
/// How long a server polls after work, at most, where the driver polls.
const POLL: Duration = Duration::from_millis(1);
/// How long a server may take to open its socket.
const START: Duration = Duration::from_secs(20);
/// How long one may take to end.
const END: Duration = Duration::from_secs(5);

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// `appliance serve`.
    Ours,
    /// `appliance serve` without bounce buffers.
    InPlace,
    /// qemu-storage-daemon's vhost-user-blk export, with an iothread.
    Qsd,
    /// The crate of this name.
    VhostDeviceScsi,
    /// A thread of this program that answers at once.
    Floor,
    /// No server: io_uring of this program on the same file.
    Raw,
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::InPlace => "ours, in place",
            Self::Qsd => "qemu-storage-daemon",
            Self::VhostDeviceScsi => VHOST_DEVICE_SCSI,
            Self::Floor => "generator's limit",
            Self::Raw => "raw io_uring",
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Self::Qsd => Kind::Blk,
            _ => Kind::Scsi,
        }
    }

    /// Whether it can serve `medium`, and if not, why. The crate opens files through the page
    /// cache only, so that it has nothing to show where O_DIRECT is compared.
    pub fn lacks(self, medium: Medium) -> Option<&'static str> {
        match (self, medium) {
            (Self::InPlace, Medium::Null | Medium::Tmpfs) => Some("it is for O_DIRECT"),
            (Self::VhostDeviceScsi, Medium::Null) => Some("it has no null disk"),
            (Self::VhostDeviceScsi, Medium::Direct) => Some("it has no O_DIRECT"),
            (Self::Floor, Medium::Tmpfs | Medium::Direct) => Some("it has no disk"),
            (Self::Raw, Medium::Null) => Some("it needs a file"),
            _ => None,
        }
    }

    /// The largest ring that it takes.
    pub fn most_entries(self) -> u16 {
        match self {
            Self::VhostDeviceScsi => 128,
            _ => 1024,
        }
    }
}

/// The programs of the servers, found, fetched or built once.
pub struct Programs {
    ours: Option<PathBuf>,
    vhost_device_scsi: Option<PathBuf>,
}

impl Programs {
    /// What `servers` need.
    ///
    /// # Errors
    /// Something cannot be had.
    pub fn prepare(servers: &[Server]) -> Result<Self> {
        let has = |server| servers.contains(&server);
        if has(Server::Qsd) {
            // Fetched now, so that no measurement waits for it.
            qemu::storage_daemon()?;
        }
        let ours = has(Server::Ours) || has(Server::InPlace);
        let ours = ours.then(programs::appliance).transpose()?;
        let crates = has(Server::VhostDeviceScsi).then(vhost_device_scsi);
        Ok(Self {
            ours,
            vhost_device_scsi: crates.transpose()?,
        })
    }

    /// Starts `server` on `medium`, whose file is `file`, at `socket`; waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    ///
    /// # Panics
    /// If it is none of a process, or was not prepared.
    pub fn start(
        &self,
        server: Server,
        file: Option<&Path>,
        socket: &Path,
        polled: bool,
    ) -> Result<Running> {
        let command = match server {
            Server::Ours | Server::InPlace => {
                let lun = match file {
                    None => format!("kind=null,size={BYTES}"),
                    Some(file) if server == Server::InPlace => {
                        format!("{},bounce=false", file.display())
                    }
                    Some(file) => file.display().to_string(),
                };
                ours(
                    self.ours.as_deref().expect("prepared"),
                    &lun,
                    socket,
                    polled,
                )
            }
            Server::Qsd => qsd(file, socket, polled)?,
            Server::VhostDeviceScsi => {
                let program = self.vhost_device_scsi.as_deref().expect("prepared");
                let mut command = Command::new(program);
                command.arg("--socket-path").arg(socket).args(file);
                command
            }
            Server::Floor | Server::Raw => unreachable!("it is no process"),
        };
        Running::start(server, &command, &[socket])
    }
}

/// Where this side polls, a worker that looks for requests for a while after work.
fn ours(program: &Path, lun: &str, socket: &Path, polled: bool) -> Command {
    let mut command = Command::new(program);
    command.arg("serve").arg("--vhost-user").arg(socket);
    command.arg("--lun").arg(lun);
    if polled {
        command.arg("--poll").arg(POLL.as_micros().to_string());
    }
    command.env("RUST_LOG", "warn");
    command
}

/// An export with an iothread of its own, which polls for at most 32 us unless told otherwise.
fn qsd(file: Option<&Path>, socket: &Path, polled: bool) -> Result<Command> {
    let mut command = qemu::storage_daemon()?;
    let polling = if polled {
        format!(",poll-max-ns={}", POLL.as_nanos())
    } else {
        String::new()
    };
    command
        .arg("--object")
        .arg(format!("iothread,id=io0{polling}"));
    let disk = match file {
        None => format!("driver=null-co,node-name=n0,size={BYTES},read-zeroes=off"),
        Some(file) => format!(
            "driver=file,node-name=n0,aio=io_uring,cache.direct=on,filename={}",
            file.display()
        ),
    };
    command.arg("--blockdev").arg(disk);
    command.arg("--export").arg(format!(
        "type=vhost-user-blk,id=e0,node-name=n0,addr.type=unix,addr.path={},writable=on,\
         num-queues=1,iothread=io0",
        socket.display()
    ));
    Ok(command)
}

/// The crate's program, built from the registry.
fn vhost_device_scsi() -> Result<PathBuf> {
    let root = store::keep(VHOST_DEVICE_SCSI, VHOST_DEVICE_SCSI_VERSION, |root| {
        let _step = progress::step("building vhost-device-scsi");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut install = Command::new(cargo);
        install.args(["install", VHOST_DEVICE_SCSI, "--locked", "--version"]);
        install.arg(VHOST_DEVICE_SCSI_VERSION);
        install.arg("--root").arg(root);
        install.arg("--target-dir").arg(root.join("build"));
        run("cargo install", &mut install)?;
        // Building it left some hundred MiB.
        let _ = std::fs::remove_dir_all(root.join("build"));
        Ok(())
    })?;
    Ok(root.join("bin").join(VHOST_DEVICE_SCSI))
}

/// A server's process; it ends with this value.
pub struct Running(Process);

impl Running {
    /// Starts `command`; waits until it listens at each of `sockets`, beside the first of which its
    /// log is.
    ///
    /// # Errors
    /// It does not start.
    ///
    /// # Panics
    /// Without a socket.
    pub fn start(server: Server, command: &Command, sockets: &[&Path]) -> Result<Self> {
        let log = sockets[0].with_extension("log");
        let mut process = Process::start(server.name(), command, &log)?;
        let context = process.log().clone();
        process.wait_for("its socket", START, &context, || {
            Ok(sockets.iter().all(|socket| socket.exists()).then_some(()))
        })?;
        Ok(Self(process))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // In order: the kernel puts the files of who was killed away some time later, and with them
        // the lock that the next server waits for.
        self.0.terminate(END);
    }
}

impl Served for Running {
    fn cpu(&self) -> Option<Time> {
        cpu::time(self.0.id())
    }

    fn gone(&mut self) -> Option<String> {
        let status = self.0.ended()?;
        Some(format!(" ({status}):\n{}", self.0.log().tail()))
    }
}
