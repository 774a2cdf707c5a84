//! SIGTERM and SIGINT ask the supervisor for an orderly end.

use std::io;
use std::sync::OnceLock;

use crate::supervisor::Stop;

static STOP: OnceLock<Stop> = OnceLock::new();

/// Lets both signals stop the supervisor behind `stop`; once per process.
///
/// # Errors
/// What `sigaction` gave.
pub fn stop_on_signals(stop: Stop) -> io::Result<()> {
    if STOP.set(stop).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        vmm_sys_util::signal::register_signal_handler(signal, handle)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// Writes an eventfd: all that a signal handler may do.
extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(stop) = STOP.get() {
        stop.stop();
    }
}

/// For the relay: a Ctrl-C in a terminal goes to both processes, but only the supervisor knows
/// how to end, and it ends the relay.
///
/// # Errors
/// What `sigprocmask` gave.
pub fn leave_signals_to_the_supervisor() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        vmm_sys_util::signal::block_signal(signal)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}
