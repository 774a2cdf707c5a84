//! SIGTERM and SIGINT ask the supervisor for an orderly end, SIGUSR1 for what it has counted.

use std::io;
use std::sync::OnceLock;

use crate::supervisor::{Report, Stop, Supervisor};

static HANDLES: OnceLock<(Stop, Report)> = OnceLock::new();

/// Passes the signals on to `supervisor`; once per process.
///
/// # Errors
/// What `sigaction` gave.
pub fn pass_on_to(supervisor: &Supervisor) -> io::Result<()> {
    let handles = (supervisor.stop_handle(), supervisor.report_handle());
    if HANDLES.set(handles).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        vmm_sys_util::signal::register_signal_handler(signal, handle)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// Writes an eventfd: all that a signal handler may do.
extern "C" fn handle(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    match HANDLES.get() {
        Some((_, report)) if signal == libc::SIGUSR1 => report.report(),
        Some((stop, _)) => stop.stop(),
        None => {}
    }
}

/// For the relay: a Ctrl-C in a terminal goes to both processes, but only the supervisor knows
/// how to end, and it ends the relay.
///
/// # Errors
/// What `sigprocmask` gave.
pub fn leave_signals_to_the_supervisor() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        vmm_sys_util::signal::block_signal(signal)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}
