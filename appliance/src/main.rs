//! The storage appliance: serves LUNs to tenants through vhost-pci functions of this VM.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use appliance::device::discover::Bus;
use appliance::lifecycle::Lifecycle;
use appliance::{Appliance, Config};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use vmm_sys_util::signal::register_signal_handler;

/// Serves LUNs to tenants through vhost-pci functions.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
    /// Checks the configuration, without touching a disk.
    Check {
        /// The configuration (TOML).
        #[arg(long)]
        config: PathBuf,
    },
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
    // What VFIO and the rings report is said again, once and with its context, by ourselves.
    let quiet = |filter: EnvFilter| {
        ["vfio_ioctls=off", "virtio_queue=off"]
            .into_iter()
            .filter_map(|directive| directive.parse().ok())
            .fold(filter, EnvFilter::add_directive)
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(quiet(filter))
        .init();
    let result = match Arguments::parse().command {
        Command::Run { config } => run(&config),
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

fn run(config: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        register_signal_handler(signal, on_signal)?;
    }
    let appliance = Arc::new(Appliance::new(Config::read(config)?)?);
    eprintln!(
        "appliance {}: ready, {} LUNs for {} HBAs",
        appliance.name(),
        appliance.luns(),
        appliance.hbas()
    );
    // Opening a disk may take long, and must not keep functions from coming and going; nor must
    // it keep us from ending, so nobody waits for this thread.
    let (reloaded, file) = (Arc::clone(&appliance), config.to_owned());
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
    Lifecycle::new(&appliance, Bus::new()).run(&STOP);
    Ok(())
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
