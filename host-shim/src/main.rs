//! `host-shim`: three processes for each HBA of a tenant.

use std::error::Error;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use host_shim::cli::{Cli, Command, Look, Run};
use host_shim::keeper::Keeper;
use host_shim::kept::Kept;
use host_shim::sandbox::{Confinement, SandboxError};
use host_shim::status::find::find;
use host_shim::status::table::table;
use host_shim::supervisor::{KeeperProcess, Report, Stop, Supervisor};
use host_shim::{log, privileges, relay, sandbox, signals, status};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        EnvFilter::try_from_env("HOST_SHIM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log::to_stderr)
        // These would be a panic when standard error is closed.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let ended = match cli.command {
        Command::Run(run) => start(&run),
        Command::Status(look) => show(&look),
        Command::Watch { look, interval } => watch(&look, interval.0),
        Command::Supervise(run) => supervise(&run),
        Command::Keep(run) => keep(&run),
        Command::Relay { name, no_sandbox } => relay_for(&name, !no_sandbox),
        Command::Manual { directory } => {
            manual::write(Cli::command(), &directory).map_err(Into::into)
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The process that the user starts: it takes what needs its rights, gives them up and becomes
/// the keeper.
fn start(run: &Run) -> Result<(), Box<dyn Error>> {
    let identity = privileges::identity(run.user.as_deref())?;
    let sockets = run.listen()?;
    if let Some(identity) = identity {
        identity.own(sockets.vhost_user.path())?;
        identity.own(sockets.vfio_user.path())?;
        if let Some(status) = &sockets.status {
            identity.own(status.path())?;
        }
        identity.assume()?;
    }
    privileges::keep_unprivileged()?;
    let (stop, report) = (Stop::new()?, Report::new()?);
    signals::pass_on_to(stop.clone(), report.clone())?;
    let memory = run.check()?;
    confine(run)?;
    let fds = run.descriptors(sockets, memory)?;
    Ok(Keeper::start(arguments(), fds, stop, report)?.run()?)
}

/// What each shim does.
fn show(look: &Look) -> Result<(), Box<dyn Error>> {
    let found = find(&look.dir).map_err(|error| unreadable(look, &error))?;
    let text = if look.json {
        let mut text = serde_json::to_string_pretty(&found)?;
        text.push('\n');
        text
    } else {
        table(&found)
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// What changes about them, until nobody reads it any more.
fn watch(look: &Look, interval: Duration) -> Result<(), Box<dyn Error>> {
    find(&look.dir).map_err(|error| unreadable(look, &error))?;
    // Anything less would keep every shim busy.
    let interval = interval.max(Duration::from_millis(10));
    let watched = status::watch::watch(&look.dir, interval, look.json, &mut std::io::stdout());
    match watched {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn unreadable(look: &Look, error: &std::io::Error) -> String {
    format!(
        "cannot look for shims in {}: {error}; give the folder of their --vfio-user sockets with \
         --dir",
        look.dir.display()
    )
}

/// The keeper's process, where a supervisor has started it: see
/// [`host_shim::supervisor::KEEPER_COMMAND`]. It has the sandbox of the supervisor.
fn keep(run: &Run) -> Result<(), Box<dyn Error>> {
    privileges::keep_unprivileged()?;
    let (stop, report) = (Stop::new()?, Report::new()?);
    signals::pass_on_to(stop.clone(), report.clone())?;
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let _span = tracing::error_span!("keeper", hba = run.name()).entered();
    Ok(Keeper::follow(arguments(), link, stop, report).run()?)
}

/// The supervisor's process: see [`host_shim::keeper::SUPERVISOR_COMMAND`]. It has the sandbox of
/// the keeper.
fn supervise(run: &Run) -> Result<(), Box<dyn Error>> {
    signals::leave_signals_to_the_keeper()?;
    privileges::keep_unprivileged()?;
    end_without_goodbye();
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let (kept, id) = Kept::by_keeper(link)?;
    let sockets = run.kept_sockets(&kept)?;
    let mut config = run.config(&sockets, kept)?;
    config.keeper = Some(KeeperProcess {
        id,
        arguments: arguments(),
    });
    let supervisor = Supervisor::new(config)?;
    if !supervisor.is_resumed() {
        log::to_stderr().write_all(format!("{}\n", run.ready_line()).as_bytes())?;
    }
    supervisor.run()?;
    Ok(())
}

/// A panic ends the process as SIGKILL would, so that the next supervisor goes on: unwinding
/// would close what it is to go on with.
fn end_without_goodbye() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

/// What `run` was started with.
fn arguments() -> Vec<OsString> {
    std::env::args_os().skip(2).collect()
}

/// Takes from this process what neither it nor a supervisor needs any more. The log has to say
/// where that is not so.
fn confine(run: &Run) -> Result<(), SandboxError> {
    if run.no_sandbox {
        tracing::warn!(
            "--no-sandbox: a tenant that takes over this shim has all that its user has; for \
             debugging only"
        );
        return Ok(());
    }
    if sandbox::confine_supervisor(&run.places())? == Confinement::CallsOnly {
        tracing::warn!(
            "this kernel has no Landlock, or not switched on (lsm=landlock,… on its command \
             line): seccomp alone confines this shim, and the supervisor may use every file that \
             its user may"
        );
    }
    Ok(())
}

/// The relay's process: see [`host_shim::supervisor::RELAY_COMMAND`].
fn relay_for(name: &str, sandbox: bool) -> Result<(), Box<dyn Error>> {
    signals::leave_signals_to_the_keeper()?;
    privileges::keep_unprivileged()?;
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let _lifeline = relay::hold_lifeline(&link)?;
    let listener = UnixListener::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let _span = tracing::error_span!("relay", hba = name).entered();
    if sandbox {
        // The supervisor has said what is missing.
        sandbox::confine_relay()?;
    }
    Ok(relay::serve(link, &listener)?)
}
