//! `host-shim`: one process per tenant HBA, plus its relay.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use clap::Parser;
use host_shim::cli::{Cli, Command, Run};
use host_shim::sandbox::{Confinement, SandboxError};
use host_shim::supervisor::Supervisor;
use host_shim::{log, privileges, relay, sandbox, signals};
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
        Command::Run(run) => supervise(&run),
        Command::Relay { name, no_sandbox } => relay_for(&name, !no_sandbox),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The supervisor's process.
fn supervise(run: &Run) -> Result<(), Box<dyn Error>> {
    let identity = privileges::identity(run.user.as_deref())?;
    let sockets = run.listen()?;
    if let Some(identity) = identity {
        identity.own(sockets.vhost_user.path())?;
        identity.own(sockets.vfio_user.path())?;
        identity.assume()?;
    }
    privileges::keep_unprivileged()?;
    let supervisor = Supervisor::new(run.config(&sockets)?)?;
    signals::pass_on_to(&supervisor)?;
    confine(run)?;
    log::to_stderr().write_all(format!("{}\n", run.ready_line()).as_bytes())?;
    supervisor.run()?;
    Ok(())
}

/// Takes from the supervisor what it needs no more. Its log has to say where that is not so.
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
    signals::leave_signals_to_the_supervisor()?;
    // A supervisor that is gone by now is noticed by the link.
    privileges::end_with_parent()?;
    privileges::keep_unprivileged()?;
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let listener = UnixListener::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let _span = tracing::error_span!("relay", hba = name).entered();
    if sandbox {
        // The supervisor has said what is missing.
        sandbox::confine_relay()?;
    }
    Ok(relay::serve(link, &listener)?)
}
