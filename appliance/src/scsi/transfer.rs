//! READ and WRITE with nothing in their way, which nearly all commands are.
//!
//! What `target` and `unit` decide about these commands, one thing after the other, is looked at here
//! all at once, and never otherwise. Whatever is out of the ordinary is left to them.

use spec::scsi::opcode;
use spec::virtio_scsi::task_attribute;

use super::command::{Cdb, Extent};
use super::fault::{During, Work};
use super::fields::{extent_10, extent_16, fua};
use super::limits::MAX_TRANSFER;
use super::nexus::Nexus;
use super::statistics::Deed;
use super::{LogicalUnit, Room, table};
use crate::disk::Op;

/// A READ or WRITE of blocks that there are, with a buffer of just their length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    extent: Extent,
    block_size: u32,
    /// First byte on the disk.
    offset: u64,
    /// Bytes to move, at least one.
    len: usize,
    writes: bool,
    /// It is to be on stable storage when it is done.
    fua: bool,
}

impl Transfer {
    /// The transfer that a command of `nexus` to `unit` is, if it is one and may be carried out.
    #[inline]
    pub(super) fn of(
        (unit, nexus): (&LogicalUnit, &Nexus),
        attribute: u8,
        cdb: &Cdb,
        room: Room,
    ) -> Option<Self> {
        let (extent, writes) = decode(cdb)?;
        if attribute > task_attribute::HEAD_OF_QUEUE || !unit.lets_by(nexus, writes) {
            return None;
        }
        let geometry = unit.disk().geometry();
        let end = extent.lba.checked_add(extent.blocks.into())?;
        if end > geometry.blocks || writes && geometry.read_only {
            return None;
        }
        let block_size = u64::from(geometry.block_size);
        let offset = extent.lba.checked_mul(block_size)?;
        let len = u64::from(extent.blocks).checked_mul(block_size)?;
        let len = usize::try_from(len).ok()?;
        let fits = if writes {
            room.data_out == len && room.data_in == 0
        } else {
            room.data_in == len && room.data_out == 0
        };
        fits.then_some(Self {
            extent,
            block_size: geometry.block_size,
            offset,
            len,
            writes,
            fua: writes && (fua(cdb[1]) || !unit.write_cache()),
        })
    }

    /// Whether it changes blocks.
    #[inline]
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// Bytes that it moves.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Blocks that it moves.
    #[inline]
    pub(super) fn blocks(&self) -> u64 {
        self.extent.blocks.into()
    }

    /// What it is counted as.
    #[inline]
    pub(super) fn deed(&self) -> Deed {
        if self.writes { Deed::Write } else { Deed::Read }
    }

    /// What its disk is to do.
    #[inline]
    pub fn op(&self) -> Op {
        let Self { offset, len, .. } = *self;
        if self.writes {
            Op::Write {
                offset,
                len,
                fua: self.fua,
                atomic: false,
            }
        } else {
            Op::Read { offset, len }
        }
    }

    /// What is told when the disk fails.
    #[inline]
    pub(super) fn work(&self) -> Work {
        Work {
            during: if self.writes {
                During::Write
            } else {
                During::Read
            },
            lba: self.extent.lba,
            blocks: self.blocks(),
            block_size: self.block_size,
        }
    }
}

/// The extent of a READ or WRITE without a bit that has no meaning, and whether it is written.
#[inline]
fn decode(cdb: &Cdb) -> Option<(Extent, bool)> {
    let (extent, writes) = match cdb[0] {
        opcode::READ_10 => (extent_10(cdb), false),
        opcode::WRITE_10 => (extent_10(cdb), true),
        opcode::READ_16 => (extent_16(cdb), false),
        opcode::WRITE_16 => (extent_16(cdb), true),
        _ => return None,
    };
    let usual = (1..=MAX_TRANSFER).contains(&extent.blocks);
    (usual && table::is_clean(cdb)).then_some((extent, writes))
}

#[cfg(test)]
mod tests;
