//! `host-shim`: one process per tenant HBA, plus its relay.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use clap::Parser;
use host_shim::cli::{Cli, Command, Run};
use host_shim::supervisor::Supervisor;
use host_shim::{log, privileges, relay, signals};
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
        Command::Relay { name } => relay_for(&name),
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
    log::to_stderr().write_all(format!("{}\n", run.ready_line()).as_bytes())?;
    supervisor.run()?;
    Ok(())
}

/// The relay's process: see [`host_shim::supervisor::RELAY_COMMAND`].
fn relay_for(name: &str) -> Result<(), Box<dyn Error>> {
    signals::leave_signals_to_the_supervisor()?;
    // A supervisor that is gone by now is noticed by the link.
    privileges::end_with_parent()?;
    privileges::keep_unprivileged()?;
    let link = std::io::stdin().as_fd().try_clone_to_owned()?;
    let listener = UnixListener::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let _span = tracing::error_span!("relay", hba = name).entered();
    Ok(relay::serve(link, &listener)?)
}
