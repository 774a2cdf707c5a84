//! A logical unit that is made longer while it is used.

use std::io;

use super::LogicalUnit;
use crate::scsi::attention::Attention;

impl LogicalUnit {
    /// Makes its disk `bytes` long, as [`crate::disk::Disk::grow`] does. Establishes the unit
    /// attentions that come of it for everyone, and returns them.
    ///
    /// # Errors
    /// As that.
    pub fn grow(&self, bytes: u64) -> io::Result<Vec<Attention>> {
        let before = self.disk.geometry().blocks;
        self.disk.grow(bytes)?;
        let fixed = self.disk.geometry().blocks != before;
        let mut attentions = self.look();
        if fixed && !attentions.contains(&Attention::CapacityChanged) {
            self.tell(Attention::CapacityChanged);
            attentions.push(Attention::CapacityChanged);
        }
        Ok(attentions)
    }
}
