//! The clock of a unit, as initiators set and read it (SPC-4, REPORT TIMESTAMP, SET TIMESTAMP).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::fault::Fault;

/// Bytes of the parameter list of SET TIMESTAMP.
pub const LIST_LEN: usize = 12;
/// What 48 bits hold.
const MASK: u64 = 0xffff_ffff_ffff;
/// TIMESTAMP ORIGIN: it began with zero at power on.
const FROM_POWER_ON: u8 = 0;
/// TIMESTAMP ORIGIN: an initiator has set it.
const SET: u8 = 2;

/// Milliseconds since power on, or since what an initiator has said. It begins anew with the
/// appliance.
#[derive(Debug)]
pub struct Clock {
    /// Never set.
    start: Instant,
    reading: Mutex<Reading>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Milliseconds that it read at `since`.
    at: u64,
    since: Instant,
    origin: u8,
}

impl Default for Clock {
    fn default() -> Self {
        let start = Instant::now();
        Self {
            start,
            reading: Mutex::new(Reading {
                at: 0,
                since: start,
                origin: FROM_POWER_ON,
            }),
        }
    }
}

impl Clock {
    /// Milliseconds since power on.
    pub fn up(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Sets it to what a parameter list says.
    ///
    /// # Errors
    /// [`Fault::ParameterListLength`].
    pub fn set(&self, list: &[u8]) -> Result<(), Fault> {
        let bytes = list.get(4..10).filter(|_| list.len() >= LIST_LEN);
        let bytes = bytes.ok_or(Fault::ParameterListLength)?;
        let at = bytes.iter().fold(0, |at, &byte| at << 8 | u64::from(byte));
        *self.reading() = Reading {
            at,
            since: Instant::now(),
            origin: SET,
        };
        Ok(())
    }

    /// REPORT TIMESTAMP parameter data.
    pub fn report(&self) -> Vec<u8> {
        let Reading { at, since, origin } = *self.reading();
        let passed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = at.wrapping_add(passed) & MASK;
        let mut data = vec![0, 10, origin, 0];
        data.extend(&now.to_be_bytes()[2..]);
        data.extend([0, 0]);
        data
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
