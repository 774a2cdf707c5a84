//! Ctrl-C, which ends what follows something and not the console.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::signal::register_signal_handler;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// How often it is looked whether it was pressed.
const LOOK: Duration = Duration::from_millis(50);

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Takes Ctrl-C from now on. A program that is started then has it as ever.
pub(super) fn take() {
    INTERRUPTED.store(false, Ordering::Relaxed);
    // Where it cannot be taken, it ends the program, as it does anyway.
    let _ = register_signal_handler(libc::SIGINT, on_signal);
}

/// Rests for so long; whether to go on after that.
pub(super) fn rest(time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return false;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(LOOK));
    }
}
