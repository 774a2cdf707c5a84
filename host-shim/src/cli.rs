//! The command line.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use crate::device::{Profile, ProfileError};
use crate::keeper::SUPERVISOR_COMMAND;
use crate::kept::{Kept, name};
use crate::listener::{ListenError, Listener};
use crate::plug::QmpPlug;
use crate::ports::{PortNameError, Ports};
use crate::sandbox::Places;
use crate::status;
use crate::supervisor::{Config, DEFAULT_FEATURES, KEEPER_COMMAND, Plug, RelayKind, default_time};

/// Gives a tenant's virtio-scsi HBA to a storage VM, as a vhost-pci device.
#[derive(Debug, Parser)]
#[command(name = "host-shim", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one HBA until SIGTERM or SIGINT.
    Run(Box<Run>),
    /// Shows what each shim of this machine does.
    Status(Look),
    /// Shows what changes about the shims of this machine, as it happens.
    Watch {
        /// Where and how.
        #[command(flatten)]
        look: Look,
        /// Seconds from one look to the next.
        #[arg(long, default_value_t = Seconds(Duration::from_secs(1)), value_name = "SECONDS")]
        interval: Seconds,
    },
    /// Started by `run` for itself, with its arguments.
    #[command(hide = true, name = SUPERVISOR_COMMAND)]
    Supervise(Box<Run>),
    /// Started by `supervise` when its keeper is gone, with the same arguments.
    #[command(hide = true, name = KEEPER_COMMAND)]
    Keep(Box<Run>),
    /// Started by `supervise` for itself.
    #[command(hide = true)]
    Relay {
        /// Name of the HBA.
        #[arg(long)]
        name: String,
        /// Leave out the sandbox.
        #[arg(long)]
        no_sandbox: bool,
    },
    /// Writes man pages and shell completions, for packages.
    #[command(hide = true)]
    Manual {
        /// Folder to make them in.
        directory: PathBuf,
    },
}

/// Where to look for shims, and how to show them.
#[derive(Debug, Args)]
pub struct Look {
    /// Folder of their status sockets: that of their --vfio-user sockets, or of --status.
    #[arg(long, value_name = "DIR", default_value = status::DEFAULT_FOLDER)]
    pub dir: PathBuf,
    /// JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// One HBA.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the HBA, for logs and for the device's id in the storage VM.
    #[arg(long, value_parser = name)]
    name: String,
    /// UUID of the HBA: the I_T nexus that the appliance's configuration names.
    #[arg(long)]
    hba: Uuid,
    /// UUID of the tenant, shown to the storage VM; nothing depends on it.
    #[arg(long)]
    tenant: Option<Uuid>,
    /// Socket for the tenant's QEMU (-chardev socket,path=…,reconnect-ms=1000).
    #[arg(long, value_name = "SOCKET")]
    vhost_user: PathBuf,
    /// Socket for the storage VM's QEMU, which connects when the device is plugged.
    #[arg(long, value_name = "SOCKET")]
    vfio_user: PathBuf,
    /// QMP socket of the storage VM, for shims only.
    #[arg(
        long,
        value_name = "SOCKET",
        requires = "ports",
        required_unless_present = "trust_memory_file",
        conflicts_with = "trust_memory_file"
    )]
    qmp: Option<PathBuf>,
    /// Ids of the storage VM's pcie-root-port devices that shims may use.
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    ports: Vec<String>,
    /// Directory of the root ports' lock files; the same for all shims of a storage VM
    /// [default: that of the QMP socket].
    #[arg(long, value_name = "DIR")]
    port_locks: Option<PathBuf>,
    /// The tenant's memory, a file known beforehand and written by the operator alone: the
    /// device is cold-plugged (-device vfio-user-pci) and QMP not used.
    #[arg(long, value_name = "FILE")]
    trust_memory_file: Option<PathBuf>,
    /// Request queues that the tenant may use.
    #[arg(long, default_value_t = 8)]
    queues: u16,
    /// MSI vectors of the device: a power of two up to 32.
    #[arg(long, default_value_t = spec::device::DEFAULT_VECTORS)]
    vectors: usize,
    /// Seconds that the appliance may take to answer, or to finish a queue's requests.
    #[arg(long, default_value_t = Seconds(default_time::DRAIN), value_name = "SECONDS")]
    drain_timeout: Seconds,
    /// Seconds after which a plugged device without an appliance is reported.
    #[arg(long, default_value_t = Seconds(default_time::ATTACH), value_name = "SECONDS")]
    attach_timeout: Seconds,
    /// Seconds that the device stays plugged after the tenant disconnected; more than its QEMU
    /// takes to reconnect.
    #[arg(long, default_value_t = Seconds(default_time::GRACE), value_name = "SECONDS")]
    grace: Seconds,
    /// Microseconds for which completions are polled after the last, where that is not in vain; 0:
    /// never.
    #[arg(long, default_value_t = Microseconds(default_time::DOORBELL_POLL), value_name = "MICROSECONDS")]
    doorbell_poll_us: Microseconds,
    /// Virtio feature bits offered to the tenant, as a number.
    #[arg(long, value_parser = features, default_value_t = DEFAULT_FEATURES, hide_default_value = true)]
    features: u64,
    /// Socket at which `host-shim status` asks, for the shim's user and root; its name has to end
    /// with .status [default: that of --vfio-user, with .status at its end].
    #[arg(long, value_name = "SOCKET", value_parser = status_socket)]
    status: Option<PathBuf>,
    /// User to become when started as root: a name, or UID:GID.
    #[arg(long)]
    pub user: Option<String>,
    /// For debugging: give up neither files nor system calls.
    #[arg(long)]
    pub no_sandbox: bool,
}

/// A command line that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The numbers of the HBA.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The root ports.
    #[error(transparent)]
    Ports(#[from] PortNameError),
    /// Neither of the two ways into the storage VM.
    #[error("give --qmp and --ports, or --trust-memory-file")]
    NoWay,
    /// The tenant's memory file.
    #[error("--trust-memory-file {path}: {error}")]
    MemoryFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The keeper does not have what it must have.
    #[error("the keeper has not kept the socket of {0}")]
    NotKept(PathBuf),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The sockets of an HBA; their paths are removed when it is dropped.
#[derive(Debug)]
pub struct Sockets {
    /// For the tenant's QEMU.
    pub vhost_user: Listener,
    /// For the storage VM's QEMU.
    pub vfio_user: Listener,
    /// For those who ask what the shim does.
    pub status: Option<Listener>,
}

impl Run {
    /// Listens on the sockets.
    ///
    /// # Errors
    /// [`ListenError`] naming the one that cannot be had.
    pub fn listen(&self) -> Result<Sockets, ListenError> {
        Ok(Sockets {
            vhost_user: Listener::bind(&self.vhost_user)?,
            vfio_user: Listener::bind(&self.vfio_user)?,
            status: match &self.status {
                Some(path) => Some(Listener::bind_private(path)?),
                // Nobody has asked for it.
                None => Listener::bind_private(&self.status_path())
                    .inspect_err(|error| {
                        tracing::warn!("host-shim status does not find this shim: {error}");
                    })
                    .ok(),
            },
        })
    }

    /// Looks for mistakes in the flags, and opens the tenant's memory where it is known.
    ///
    /// # Errors
    /// [`SetupError`] naming what is wrong.
    pub fn check(&self) -> Result<Option<OwnedFd>, SetupError> {
        self.profile()?;
        let memory = self.memory_file()?;
        if memory.is_none() {
            self.qmp_plug()?;
        }
        Ok(memory)
    }

    /// What the supervisor is to have from the start, by its names: sockets, their locks, and
    /// the tenant's memory.
    ///
    /// # Errors
    /// What duplicating a descriptor gave.
    pub fn descriptors(
        &self,
        sockets: Sockets,
        memory: Option<OwnedFd>,
    ) -> Result<BTreeMap<u64, OwnedFd>, SetupError> {
        let mut fds = BTreeMap::new();
        fds.extend(memory.map(|memory| (name::TRUSTED_MEMORY, memory)));
        let status = sockets.status;
        let status = status.map(|listener| (listener, name::STATUS, name::STATUS_LOCK));
        let both = [
            (sockets.vhost_user, name::VHOST_USER, name::VHOST_USER_LOCK),
            (sockets.vfio_user, name::VFIO_USER, name::VFIO_USER_LOCK),
        ];
        for (listener, socket, lock) in both.into_iter().chain(status) {
            let (listening, locked) = listener.hand_over()?;
            fds.insert(socket, listening);
            fds.insert(lock, locked);
        }
        Ok(fds)
    }

    /// The sockets that `kept` has.
    ///
    /// # Errors
    /// [`SetupError`] if one is missing.
    pub fn kept_sockets(&self, kept: &Kept) -> Result<Sockets, SetupError> {
        let find = |path: &Path, socket, lock| {
            kept.get(socket)
                .zip(kept.get(lock))
                .ok_or_else(|| SetupError::NotKept(path.to_owned()))
                .and_then(|(socket, lock)| Ok(Listener::taken(path, &socket, lock)?))
        };
        Ok(Sockets {
            vhost_user: find(&self.vhost_user, name::VHOST_USER, name::VHOST_USER_LOCK)?,
            vfio_user: find(&self.vfio_user, name::VFIO_USER, name::VFIO_USER_LOCK)?,
            status: match kept.get(name::STATUS) {
                Some(_) => {
                    let path = self.status_path();
                    Some(find(&path, name::STATUS, name::STATUS_LOCK)?)
                }
                None => None,
            },
        })
    }

    /// The supervisor's configuration.
    ///
    /// # Errors
    /// [`SetupError`] naming what is wrong.
    pub fn config(&self, sockets: &Sockets, kept: Kept) -> Result<Config, SetupError> {
        let plug = match kept.get(name::TRUSTED_MEMORY) {
            Some(memory) => Plug::Cold(memory),
            None => self.qmp_plug()?,
        };
        let mut config = Config::new(
            self.profile()?,
            sockets.vhost_user.socket().try_clone()?,
            sockets.vfio_user.socket().try_clone()?,
            RelayKind::Process {
                sandbox: !self.no_sandbox,
            },
            plug,
        );
        config.features = self.features;
        config.drain_timeout = self.drain_timeout.0;
        config.attach_timeout = self.attach_timeout.0;
        config.grace = self.grace.0;
        config.doorbell_poll = self.doorbell_poll_us.0;
        let status = sockets.status.as_ref();
        let status = status.map(|listener| listener.socket().try_clone());
        config.status = status.transpose()?;
        config.kept = kept;
        Ok(config)
    }

    fn profile(&self) -> Result<Profile, ProfileError> {
        let mut profile = Profile::new(&self.name, self.hba);
        profile.tenant = self.tenant;
        profile.rings = self
            .queues
            .saturating_add(spec::virtio_scsi::FIRST_REQUEST_QUEUE);
        profile.vectors = self.vectors;
        profile.check()?;
        Ok(profile)
    }

    /// The folders that the supervisor goes on to use.
    pub fn places(&self) -> Places<'_> {
        let mut places = Places {
            sockets: vec![folder(&self.vhost_user), folder(&self.vfio_user)],
            locks: Vec::new(),
        };
        places.sockets.extend(self.status.as_deref().map(folder));
        places.locks.extend(self.qmp.as_deref().map(folder));
        places.locks.extend(self.port_locks.as_deref());
        places
    }

    fn memory_file(&self) -> Result<Option<OwnedFd>, SetupError> {
        let Some(path) = &self.trust_memory_file else {
            return Ok(None);
        };
        let file = File::options().read(true).write(true).open(path);
        file.map(|file| Some(file.into()))
            .map_err(|error| SetupError::MemoryFile {
                path: path.clone(),
                error,
            })
    }

    fn qmp_plug(&self) -> Result<Plug, SetupError> {
        let qmp = self.qmp.clone().ok_or(SetupError::NoWay)?;
        let ports = Ports::new(self.ports.clone(), &qmp, self.port_locks.as_deref())?;
        Ok(Plug::Qmp(Box::new(QmpPlug::new(
            &self.name,
            &qmp,
            ports,
            &self.vfio_user,
        ))))
    }

    fn status_path(&self) -> PathBuf {
        let given = self.status.clone();
        given.unwrap_or_else(|| status::beside(&self.vfio_user))
    }

    /// Name of the HBA.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The line that says that tenants may come.
    pub fn ready_line(&self) -> String {
        format!(
            "host-shim {}: ready, tenant socket {}",
            self.name,
            self.vhost_user.display()
        )
    }
}

/// The folder of a file; of "/", which is none, itself.
fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}

/// A name that can be part of an id in QEMU.
fn name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= 64
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    fits.then(|| text.to_owned())
        .ok_or_else(|| "use letters, digits, '-', '.' and '_', 64 at most".to_owned())
}

/// A path that `host-shim status` finds.
fn status_socket(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let ends = path.extension().is_some_and(|end| end == status::EXTENSION);
    ends.then_some(path)
        .ok_or_else(|| format!("its name has to end with .{}", status::EXTENSION))
}

/// A time that is given in seconds, with a fraction perhaps.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub Duration);

impl FromStr for Seconds {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
        (0.0..=86400.0)
            .contains(&seconds)
            .then(|| Self(Duration::from_secs_f64(seconds)))
            .ok_or("0 to 86400 seconds")
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_secs_f64().fmt(f)
    }
}

/// A time that is given in microseconds.
#[derive(Debug, Clone, Copy)]
struct Microseconds(Duration);

impl FromStr for Microseconds {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .ok()
            .filter(|&micros| micros <= 1_000_000)
            .map(|micros| Self(Duration::from_micros(micros)))
            .ok_or("0 to 1000000 microseconds")
    }
}

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_micros().fmt(f)
    }
}

/// Feature bits: decimal, or hexadecimal with 0x.
fn features(text: &str) -> Result<u64, String> {
    let bits = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| "not a number")?;
    let unknown = bits & !DEFAULT_FEATURES;
    if unknown == 0 {
        Ok(bits)
    } else {
        Err(format!(
            "bits {unknown:#x} are not implemented; those that are: {DEFAULT_FEATURES:#x}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::ring::VERSION_1;

    const HBA: &str = "2f0c4fd2-4f6c-4b3c-9d3b-111111111111";

    fn parse(more: &[&str]) -> Result<Box<Run>, clap::Error> {
        let args = [
            "host-shim",
            "run",
            "--name",
            "t1",
            "--hba",
            HBA,
            "--vhost-user",
            "/run/t1.vhost",
            "--vfio-user",
            "/run/t1.vfio",
        ];
        let cli = Cli::try_parse_from(args.iter().chain(more))?;
        match cli.command {
            Command::Run(run) => Ok(run),
            _ => panic!("not run"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_readme() {
        let run = parse(&["--qmp", "/run/qmp", "--ports", "rp0,rp1"]).unwrap();
        assert_eq!(run.ports, ["rp0", "rp1"]);
        assert_eq!((run.queues, run.vectors), (8, 16));
        assert_eq!(run.drain_timeout.0, Duration::from_secs(10));
        assert_eq!(run.attach_timeout.0, Duration::from_secs(30));
        assert_eq!(run.grace.0, Duration::from_secs(3));
        assert_eq!(run.doorbell_poll_us.0, Duration::from_micros(50));
        assert_eq!(run.features, DEFAULT_FEATURES);
        assert_eq!(run.user, None);
        assert_eq!(run.status_path(), Path::new("/run/t1.vfio.status"));
        assert_eq!(
            run.ready_line(),
            "host-shim t1: ready, tenant socket /run/t1.vhost"
        );
    }

    #[test]
    fn either_qmp_with_ports_or_a_trusted_file_is_needed() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--qmp", "/run/qmp"]).is_err());
        assert!(parse(&["--trust-memory-file", "/dev/shm/t1"]).is_ok());
        assert!(
            parse(&[
                "--trust-memory-file",
                "/dev/shm/t1",
                "--qmp",
                "/q",
                "--ports",
                "rp0"
            ])
            .is_err()
        );
    }

    #[test]
    fn the_sandbox_leaves_open_the_folders_of_sockets_and_locks() {
        let run = parse(&[
            "--qmp",
            "/vm/qmp",
            "--ports",
            "rp0",
            "--port-locks",
            "/locks",
        ])
        .unwrap();
        let places = run.places();
        assert_eq!(places.sockets, [Path::new("/run"), Path::new("/run")]);
        assert_eq!(places.locks, [Path::new("/vm"), Path::new("/locks")]);

        let apart = ["--trust-memory-file", "/f", "--status", "/status/t1.status"];
        let run = parse(&apart).unwrap();
        assert_eq!(run.places().sockets[2..], [Path::new("/status")]);
        let unfound = ["--trust-memory-file", "/f", "--status", "/status/t1"];
        assert!(parse(&unfound).is_err());

        let cold = parse(&["--trust-memory-file", "/dev/shm/t1"]).unwrap();
        assert!(cold.places().locks.is_empty());
    }

    #[test]
    fn features_that_are_not_implemented_are_refused() {
        let with = |bits| parse(&["--trust-memory-file", "/f", "--features", bits]);
        assert_eq!(with("0x100000000").unwrap().features, VERSION_1);
        let error = with("0x400000000").unwrap_err().to_string();
        assert!(error.contains("0x400000000"), "{error}");
    }
}
