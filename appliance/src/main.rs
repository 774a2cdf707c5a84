//! The storage appliance: serves LUNs to tenants, through vhost-pci functions of this VM or through
//! vhost-user sockets on this host.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use appliance::config::{Listen, Poll};
use appliance::control::{self, Book, DEFAULT_PATH, Desk, Logs, Server};
use appliance::device::discover::Bus;
use appliance::lifecycle::Lifecycle;
use appliance::metrics::Serving;
use appliance::sockets::Sockets;
use appliance::vhost_user::{Options, Socket};
use appliance::{Appliance, Config, OnlyHba, console, descriptors, metrics};
use clap::{Args, CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use vmm_sys_util::signal::register_signal_handler;

/// Serves LUNs to tenants, through vhost-pci functions or vhost-user sockets.
#[derive(Parser)]
#[command(name = "appliance", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// In a storage VM: serves HBAs through vhost-pci functions.
    ///
    /// Serves until SIGTERM or SIGINT, which flush what write-back LUNs have acknowledged, so that
    /// the VM may be switched off then; SIGHUP puts a changed configuration into force.
    ///
    /// SIGHUP reads the file again and applies it, all of it or nothing: LUNs and HBAs may come
    /// and go, and HBAs see other LUNs. Tenants are told; their other LUNs notice nothing. What a
    /// LUN is cannot change while it is in the file: take it out, apply, add it again. The log
    /// says what changed, or why nothing did.
    Run {
        /// The configuration (TOML).
        #[arg(long)]
        config: PathBuf,
        /// Socket to be controlled by, as with `appliance console`; for this user and root alone.
        #[arg(long, value_name = "PATH")]
        control: Option<PathBuf>,
        #[command(flatten)]
        metrics: Metrics,
    },
    /// On the tenant's host: serves HBAs through vhost-user sockets, without a storage VM.
    ///
    /// The tenant's QEMU connects with -chardev socket,id=hba0,path=PATH,reconnect-ms=1000 -device
    /// vhost-user-scsi-pci,chardev=hba0, and needs shared memory: -object
    /// memory-backend-memfd,id=mem,size=...,share=on -machine ...,memory-backend=mem. Signals are
    /// as for `run`.
    Serve(Serve),
    /// Checks the configuration, without touching a disk.
    Check {
        /// The configuration (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Looks after an appliance that runs: with a command does it, without asks for some.
    ///
    /// `appliance console help` says what there is. Ends with 0 when all is well, 1 if something
    /// was refused, 2 for a command that there is not, 3 if the appliance does not answer.
    Console(Console),
    /// Writes man pages and shell completions, for packages.
    #[command(hide = true)]
    Manual {
        /// Folder to make them in.
        directory: PathBuf,
    },
}

#[derive(Args)]
struct Metrics {
    /// Where to serve metrics (OpenMetrics, by HTTP at /metrics) to whoever comes there: as
    /// 127.0.0.1:9177, or an absolute path for a unix socket. In the place of the configuration's
    /// [metrics] listen; without both, nowhere.
    #[arg(long, value_name = "ADDRESS:PORT|PATH")]
    metrics: Option<Listen>,
}

#[derive(Args)]
struct Console {
    /// The socket of its --control, or that of a virtio-serial port of its VM.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    control: PathBuf,
    /// Results as JSON, for programs.
    #[arg(long)]
    json: bool,
    /// Let the command `shell` start one on this terminal, as whoever has started the console.
    #[arg(long)]
    allow_shell: bool,
    /// The command, and what it needs.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<String>,
}

#[derive(Args)]
struct Serve {
    /// Socket to listen on, for one HBA; may be repeated.
    #[arg(long = "vhost-user", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,
    /// The configuration (TOML).
    #[arg(long, required_unless_present = "luns", conflicts_with = "luns")]
    config: Option<PathBuf>,
    /// Name of the HBA that is served at a socket, once for each --vhost-user and in their order;
    /// not needed if there is one socket, and one HBA in the configuration.
    #[arg(long = "hba", value_name = "NAME", requires = "config")]
    hbas: Vec<String>,
    /// In the place of a configuration: a LUN of the only HBA; may be repeated, for LUN 0, 1 and
    /// so on. Keys are those of a [[lun]], such as cache=write-back or read_only=true.
    #[arg(long = "lun", value_name = "PATH[,KEY=VALUE...]")]
    luns: Vec<String>,
    /// With --lun: microseconds for which to look for requests after work before sleeping, or
    /// "always" for a processor of its own.
    #[arg(long, default_value_t = Poll::USUAL.to_string(), conflicts_with = "config")]
    poll: String,
    /// With --lun: how many threads the HBA has, over which its request queues are spread.
    #[arg(long, default_value = "1", value_name = "N", conflicts_with = "config")]
    workers: u64,
    /// With --lun: the CPU on which each of these stays, as many as --workers says.
    #[arg(
        long,
        value_name = "CPU,CPU,...",
        value_delimiter = ',',
        conflicts_with = "config"
    )]
    pin: Vec<u64>,
    /// Take memory of tenants that is not sealed against shrinking (memory-backend-file).
    ///
    /// Whoever can shorten such a file can end this program, and with it the service of every
    /// other tenant.
    #[arg(long)]
    trust_memory: bool,
    /// Socket to be controlled by, as with `appliance console`; for this user and root alone.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    metrics: Metrics,
}

/// Set by SIGTERM and SIGINT.
static STOP: AtomicBool = AtomicBool::new(false);
/// Set by SIGHUP.
static RELOAD: AtomicBool = AtomicBool::new(false);
/// How often it is looked at whether SIGHUP came.
const RELOAD_PERIOD: Duration = Duration::from_millis(200);

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = if signal == libc::SIGHUP {
        &RELOAD
    } else {
        &STOP
    };
    flag.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run {
            config,
            control,
            metrics,
        } => run(&config, control.as_deref(), &metrics),
        Command::Serve(arguments) => serve(&arguments),
        Command::Check { config } => check(&config),
        Command::Manual { directory } => {
            manual::write(Arguments::command(), &directory).map_err(Into::into)
        }
        Command::Console(Console {
            control,
            json,
            allow_shell,
            words,
        }) => {
            let options = console::Options { json, allow_shell };
            return console::run(&control, options, &words);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("appliance: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the log to standard error, and keeps its last lines.
fn log() -> Logs {
    let given = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let given = given.filter(|given| EnvFilter::try_new(given).is_ok());
    // What VFIO reports is said again, once and with its context, by ourselves.
    let base = given.unwrap_or_else(|| "info".into()) + ",vfio_ioctls=off";
    let logs = Logs::default();
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(logs.filter(&base))
        .with(to_stderr)
        .with(logs.layer())
        .init();
    logs
}

fn check(config: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let Config {
        name, luns, hbas, ..
    } = Config::read(config)?;
    println!(
        "{}: good: appliance {name}, {} LUNs for {} HBAs",
        config.display(),
        luns.len(),
        hbas.len()
    );
    Ok(())
}

fn run(
    file: &Path,
    control: Option<&Path>,
    metrics: &Metrics,
) -> Result<(), Box<dyn std::error::Error>> {
    let logs = log();
    descriptors::raise();
    let (config, text) = Config::read_with_text(file)?;
    let (desk, _metrics) = start(config, text, Some(file), logs, metrics)?;
    let _server = match control {
        Some(path) => Some(Server::start(path, Arc::clone(&desk))?),
        None => default_server(&desk),
    };
    control::serve_port(Arc::clone(&desk))?;
    Lifecycle::new(desk.appliance(), Bus::new()).run(&STOP);
    Ok(())
}

/// A control socket where nobody said that there is to be one: tenants are served without, too.
fn default_server(desk: &Arc<Desk>) -> Option<Server> {
    let path = Path::new(DEFAULT_PATH);
    let folder = path.parent().unwrap_or(path);
    // If it cannot be made, what follows says so.
    let _ = std::fs::create_dir_all(folder);
    Server::start(path, Arc::clone(desk))
        .inspect_err(|error| tracing::warn!("{error}; it can be given with --control"))
        .ok()
}

fn serve(arguments: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let logs = log();
    let (config, text) = match &arguments.config {
        Some(file) => Config::read_with_text(file)?,
        None => {
            let hba = OnlyHba {
                poll: arguments.poll.clone(),
                workers: arguments.workers,
                pin: arguments.pin.clone(),
            };
            (
                Config::of_luns(&arguments.luns, &hba)?,
                Config::text_of_luns(&arguments.luns, &hba),
            )
        }
    };
    let hbas = hbas_of(arguments, &config)?;
    let limit = descriptors::raise();
    let (sockets, luns) = (arguments.sockets.len(), config.luns.len());
    let workers = config.hbas.iter().map(|hba| hba.workers.count - 1).sum();
    if let Err(error) = descriptors::check(limit, sockets, luns, workers) {
        tracing::warn!("{error}");
    }
    // Before disks are locked: a path that is taken is found out at once.
    let sockets = arguments.sockets.iter().map(|path| Socket::bind(path));
    let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
    let file = arguments.config.as_deref();
    let (desk, _metrics) = start(config, text, file, logs, &arguments.metrics)?;
    let path = arguments.control.as_deref();
    let server = path.map(|path| Server::start(path, Arc::clone(&desk)));
    let _server = server.transpose()?;
    let options = Options {
        trust_memory: arguments.trust_memory,
        ..Options::default()
    };
    let mut served = Sockets::new(desk.appliance(), options);
    for (socket, hba) in sockets.into_iter().zip(hbas) {
        served.add(socket, &hba)?;
    }
    served.run(&STOP);
    Ok(())
}

/// The HBA for each socket.
fn hbas_of(arguments: &Serve, config: &Config) -> Result<Vec<String>, String> {
    let names: Vec<_> = config.hbas.iter().map(|hba| hba.name.clone()).collect();
    let sockets = arguments.sockets.len();
    match &arguments.hbas[..] {
        [] if names.len() == 1 && sockets == 1 => Ok(names),
        given if given.len() == sockets => Ok(given.to_vec()),
        given => Err(format!(
            "{sockets} --vhost-user and {} --hba: name the HBA of each socket, in the same order; \
             the configuration has {}",
            given.len(),
            names.join(", ")
        )),
    }
}

/// An appliance that hears signals, with its desk and its metrics; on SIGHUP it reads `file` again,
/// if there is one.
fn start(
    config: Config,
    text: String,
    file: Option<&Path>,
    logs: Logs,
    Metrics { metrics }: &Metrics,
) -> Result<(Arc<Desk>, Serving), Box<dyn std::error::Error>> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        register_signal_handler(signal, on_signal)?;
    }
    let appliance = Arc::new(Appliance::new(config)?);
    eprintln!(
        "appliance {}: ready, {} LUNs for {} HBAs",
        appliance.name(),
        appliance.luns(),
        appliance.hbas()
    );
    let book = Book::new(appliance, text, file.map(Path::to_owned));
    let desk = Arc::new(Desk::new(Arc::new(book), logs));
    let serving = metrics::serve(&desk, metrics.clone());
    let serving = serving.map_err(|error| format!("no metrics: {error}"))?;
    let Some(file) = file.map(Path::to_owned) else {
        return Ok((desk, serving));
    };
    // Opening a disk may take long, and must not keep functions from coming and going; nor must
    // it keep us from ending, so nobody waits for this thread.
    let reloaded = Arc::clone(&desk);
    std::thread::Builder::new()
        .name("reload".into())
        .spawn(move || {
            loop {
                std::thread::sleep(RELOAD_PERIOD);
                if RELOAD.swap(false, Ordering::Relaxed) {
                    reload(&reloaded, &file);
                }
            }
        })?;
    Ok((desk, serving))
}

/// Puts what is in the file now into force, or says why not.
fn reload(desk: &Desk, file: &Path) {
    match desk.reload() {
        Ok(applied) => tracing::info!("{} was applied: {applied}", file.display()),
        Err(failure) => tracing::error!("reading the configuration again: {failure}"),
    }
}
