//! Work in the background that is done for a command, to be ended with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the command keeps; when it is dropped, nothing more is begun for it.
#[derive(Debug)]
pub struct Errand(Arc<Mutex<bool>>);

/// What the thread keeps that does the work.
#[derive(Debug)]
pub struct Runner(Arc<Mutex<bool>>);

impl Errand {
    /// A new one, with what its thread needs.
    pub fn new() -> (Self, Runner) {
        let over = Arc::new(Mutex::new(false));
        (Self(Arc::clone(&over)), Runner(over))
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        *lock(&self.0) = true;
    }
}

impl Runner {
    /// Whether nobody waits for it any more.
    pub fn is_over(&self) -> bool {
        *lock(&self.0)
    }

    /// Has `begin` begin something, unless the command is over; whether it was begun. What was, the
    /// command's end comes after: a barrier that is put behind the end finds it.
    pub fn begin(&self, begin: impl FnOnce()) -> bool {
        let over = lock(&self.0);
        if !*over {
            begin();
        }
        !*over
    }
}

fn lock(over: &Mutex<bool>) -> MutexGuard<'_, bool> {
    over.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_begun_once_the_command_is_over() {
        let (errand, runner) = Errand::new();
        let mut begun = 0;
        assert!(runner.begin(|| begun += 1) && !runner.is_over());
        drop(errand);
        assert!(!runner.begin(|| begun += 1) && runner.is_over());
        assert_eq!(begun, 1);
    }
}
