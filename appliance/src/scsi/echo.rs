//! The echo buffer: what an initiator writes there it can read again, to test the way (SPC-4, WRITE
//! BUFFER, READ BUFFER).

use std::sync::{Mutex, PoisonError};

use super::fault::Fault;

/// Bytes that there is room for.
pub const CAPACITY: u16 = 4096;

/// The echo buffer of one nexus.
#[derive(Debug, Default)]
pub struct Echo(Mutex<Option<Vec<u8>>>);

impl Echo {
    /// Echo buffer descriptor: nobody else overwrites it (EBOS).
    pub fn descriptor() -> Vec<u8> {
        let [high, low] = CAPACITY.to_be_bytes();
        vec![0x01, 0, high, low]
    }

    /// Writes all of it.
    pub fn write(&self, content: Vec<u8>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(content);
    }

    /// What was written last.
    ///
    /// # Errors
    /// [`Fault::Sequence`] if nothing was.
    pub fn read(&self) -> Result<Vec<u8>, Fault> {
        let content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        content.clone().ok_or(Fault::Sequence)
    }
}
