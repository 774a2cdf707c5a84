//! A logical unit as one HBA sees it, to copy from or to.

use std::sync::Arc;

use crate::scsi::command::{Command, Extent};
use crate::scsi::fault::Fault;
use crate::scsi::nexus::Nexus;
use crate::scsi::{Address, LogicalUnit};

/// A unit with the HBA's relation to it.
#[derive(Debug, Clone)]
pub struct Seat {
    pub address: Address,
    pub unit: Arc<LogicalUnit>,
    pub nexus: Arc<Nexus>,
}

/// Which blocks are read or written is looked at elsewhere.
const NOTHING: Extent = Extent { lba: 0, blocks: 0 };

impl Seat {
    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.unit.disk().geometry().block_size.into()
    }

    /// Checks that a READ of the HBA would be let at its blocks now.
    ///
    /// # Errors
    /// What that would end with.
    pub fn may_read(&self) -> Result<(), Fault> {
        self.may(&Command::Read(NOTHING))
    }

    /// Checks that a WRITE of the HBA would be let at its blocks now.
    ///
    /// # Errors
    /// What that would end with.
    pub fn may_write(&self) -> Result<(), Fault> {
        self.may(&Command::Write {
            extent: NOTHING,
            fua: true,
        })?;
        if self.unit.disk().geometry().read_only {
            return Err(Fault::WriteProtected);
        }
        Ok(())
    }

    fn may(&self, command: &Command) -> Result<(), Fault> {
        if self.unit.is_reserved_against(&self.nexus, command) {
            return Err(Fault::Reserved);
        }
        self.nexus.access().check(command)?;
        self.unit.check_whole(command)?;
        self.unit.check_not_erased(command)?;
        self.unit.check_medium(command)
    }

    /// First byte and length of blocks; `None` if they are not on the medium. The capacity is told
    /// as it is now, and looked at again by the disk.
    pub fn bytes(&self, lba: u64, blocks: u64) -> Option<(u64, u64)> {
        let geometry = self.unit.disk().geometry();
        let end = lba.checked_add(blocks)?;
        if lba >= geometry.blocks || end > geometry.blocks {
            return None;
        }
        let block_size = u64::from(geometry.block_size);
        Some((
            lba.checked_mul(block_size)?,
            blocks.checked_mul(block_size)?,
        ))
    }
}
