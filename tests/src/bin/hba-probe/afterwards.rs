//! That nothing is written for a command after its end.

use std::{thread, time::Duration};

use crate::dma::{CANARY, Span};
use crate::error::Result;
use crate::hba::{Hba, Task};
use crate::slow_unit;

/// How long a late write has after the disk is done with everything.
pub const GRACE: Duration = Duration::from_secs(1);

/// Fills the buffers of ended commands with the canary, and has the disk do all that it still has
/// to do; nothing may be written there meanwhile, or in the time after it.
///
/// # Errors
/// Something was, since `event`.
pub fn expect_left_alone(hba: &mut Hba, ended: &[&Task], event: &'static str) -> Result<()> {
    let buffers: Vec<Span> = ended.iter().flat_map(|task| task.buffers()).collect();
    let memory = hba.memory();
    for buffer in &buffers {
        memory.fill(*buffer, CANARY);
    }
    slow_unit::catch_up(hba)?;
    thread::sleep(GRACE);
    memory.expect_untouched(&buffers, "a buffer of an ended command", event)
}
