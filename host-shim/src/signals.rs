//! SIGTERM and SIGINT ask a shim for an orderly end, SIGUSR1 for what it has counted.

use std::io;
use std::sync::OnceLock;

use crate::supervisor::{Report, Stop};

static HANDLES: OnceLock<(Stop, Report)> = OnceLock::new();

/// Passes the signals on to `stop` and `report`; once per process. A process that started this
/// one may have them blocked.
///
/// # Errors
/// What `sigaction` or `sigprocmask` gave.
pub fn pass_on_to(stop: Stop, report: Report) -> io::Result<()> {
    if HANDLES.set((stop, report)).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        vmm_sys_util::signal::register_signal_handler(signal, handle)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        vmm_sys_util::signal::unblock_signal(signal)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
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

/// For supervisor and relay: a Ctrl-C in a terminal goes to all processes, but the keeper passes
/// it on, and only the supervisor knows how to end.
///
/// # Errors
/// What `sigprocmask` gave.
pub fn leave_signals_to_the_keeper() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        match vmm_sys_util::signal::block_signal(signal) {
            // A relay's supervisor has them blocked.
            Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
            Err(error) => return Err(io::Error::other(format!("{error:?}"))),
        }
    }
    Ok(())
}
