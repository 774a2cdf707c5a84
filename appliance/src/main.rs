//! The storage appliance: serves LUNs to tenants, through vhost-pci functions of this VM or through
//! vhost-user sockets on this host.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use appliance::descriptors;
use appliance::device::discover::Bus;
use appliance::lifecycle::Lifecycle;
use appliance::sockets::Sockets;
use appliance::vhost_user::{Options, Socket};
use appliance::{Appliance, Config};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vmm_sys_util::signal::register_signal_handler;

/// Serves LUNs to tenants, through vhost-pci functions or vhost-user sockets.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// In a storage VM: serves HBAs through vhost-pci functions.
    ///
    /// Serves until SIGTERM or SIGINT; SIGHUP puts a changed configuration into force.
    ///
    /// SIGHUP reads the file again and applies it, all of it or nothing: LUNs and HBAs may come
    /// and go, and HBAs see other LUNs. Tenants are told; their other LUNs notice nothing. What a
    /// LUN is cannot change while it is in the file: take it out, apply, add it again. The log
    /// says what changed, or why nothing did.
    Run {
        /// The configuration (TOML).
        #[arg(long)]
        config: PathBuf,
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
    #[arg(long, default_value = "0", conflicts_with = "config")]
    poll: String,
    /// Take memory of tenants that is not sealed against shrinking (memory-backend-file).
    ///
    /// Whoever can shorten such a file can end this program, and with it the service of every
    /// other tenant.
    #[arg(long)]
    trust_memory: bool,
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
    // What VFIO reports is said again, once and with its context, by ourselves.
    let quiet = |filter: EnvFilter| match "vfio_ioctls=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(quiet(filter))
        .init();
    let result = match Arguments::parse().command {
        Command::Run { config } => run(&config),
        Command::Serve(arguments) => serve(&arguments),
        Command::Check { config } => check(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("appliance: {error}");
            ExitCode::FAILURE
        }
    }
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

fn run(file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    descriptors::raise();
    let appliance = start(Config::read(file)?, Some(file))?;
    Lifecycle::new(&appliance, Bus::new()).run(&STOP);
    Ok(())
}

fn serve(arguments: &Serve) -> Result<(), Box<dyn std::error::Error>> {
    let config = match &arguments.config {
        Some(file) => Config::read(file)?,
        None => Config::of_luns(&arguments.luns, &arguments.poll)?,
    };
    let hbas = hbas_of(arguments, &config)?;
    let limit = descriptors::raise();
    if let Err(error) = descriptors::check(limit, arguments.sockets.len(), config.luns.len()) {
        tracing::warn!("{error}");
    }
    // Before disks are locked: a path that is taken is found out at once.
    let sockets = arguments.sockets.iter().map(|path| Socket::bind(path));
    let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
    let appliance = start(config, arguments.config.as_deref())?;
    let options = Options {
        trust_memory: arguments.trust_memory,
        ..Options::default()
    };
    let mut served = Sockets::new(&appliance, options);
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

/// An appliance that hears signals; on SIGHUP it reads `file` again, if there is one.
fn start(
    config: Config,
    file: Option<&Path>,
) -> Result<Arc<Appliance>, Box<dyn std::error::Error>> {
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
    let Some(file) = file.map(Path::to_owned) else {
        return Ok(appliance);
    };
    // Opening a disk may take long, and must not keep functions from coming and going; nor must
    // it keep us from ending, so nobody waits for this thread.
    let reloaded = Arc::clone(&appliance);
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
    Ok(appliance)
}

/// Puts what is in the file now into force, or says why not.
fn reload(appliance: &Appliance, file: &Path) {
    match Config::read(file) {
        Ok(config) => match appliance.apply(config) {
            Ok(applied) => tracing::info!("{} was applied: {applied}", file.display()),
            Err(error) => tracing::error!("{}: {error}", file.display()),
        },
        Err(error) => tracing::error!("{error}; nothing was changed"),
    }
}
