//! How many scenarios run at a time.

use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// More would want more RAM than many machines have.
const MOST: usize = 4;

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// The right to run; it goes back with the value.
#[derive(Debug)]
pub struct Turn {
    places: usize,
}

impl Turn {
    /// Waits for one of the places. There is one for each processor, which is what a guest that
    /// boots keeps busy.
    pub fn wait() -> Self {
        Self::take(1)
    }

    /// Waits until nobody else runs.
    pub fn wait_alone() -> Self {
        Self::take(all())
    }

    fn take(places: usize) -> Self {
        let mut taken = GIVEN_BACK
            .wait_while(lock(), |taken| *taken + places > all())
            .unwrap_or_else(PoisonError::into_inner);
        *taken += places;
        Self { places }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock() -= self.places;
        GIVEN_BACK.notify_all();
    }
}

fn all() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MOST)
}

fn lock() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}
