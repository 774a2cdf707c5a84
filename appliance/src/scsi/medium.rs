//! Commands on the blocks of a unit, as operations on its disk.

use super::command::{Command, Extent};
use super::fault::{During, Fault};
use super::unit::Outcome;
use super::{Buffers, LogicalUnit, report};
use crate::disk::{Geometry, Op};

/// Decides on a command of the block commands' standard.
pub fn start(
    unit: &LogicalUnit,
    command: Command,
    _buffers: Buffers<'_>,
) -> Result<Outcome, Fault> {
    let geometry = unit.disk().geometry();
    let data = |mut data: Vec<u8>, allocation: usize| {
        data.truncate(allocation);
        Ok(Outcome::Data(data))
    };
    match command {
        Command::ReadCapacity10 => data(report::capacity_10(&geometry), usize::MAX),
        Command::ReadCapacity16 { allocation } => data(report::capacity_16(&geometry), allocation),
        Command::Read(extent) => transfer(&geometry, extent, During::Read, false),
        Command::Write { .. } if geometry.read_only => Err(Fault::WriteProtected),
        Command::Write { extent, fua } => {
            let fua = fua || !unit.write_cache();
            transfer(&geometry, extent, During::Write, fua)
        }
        Command::Synchronize { extent, .. } => {
            check(&geometry, extent)?;
            flush(&geometry, extent.lba)
        }
        _ => Err(Fault::InvalidOpcode),
    }
}

fn check(geometry: &Geometry, extent: Extent) -> Result<(), Fault> {
    let end = extent.lba.checked_add(extent.blocks.into());
    // SBC-3: an LBA beyond the last block is out of range even if nothing is moved.
    if extent.lba >= geometry.blocks || end.is_none_or(|end| end > geometry.blocks) {
        return Err(Fault::OutOfRange {
            lba: extent.lba.max(geometry.blocks),
        });
    }
    Ok(())
}

fn transfer(
    geometry: &Geometry,
    extent: Extent,
    during: During,
    fua: bool,
) -> Result<Outcome, Fault> {
    check(geometry, extent)?;
    let out_of_range = Fault::OutOfRange { lba: extent.lba };
    let block_size = u64::from(geometry.block_size);
    let offset = extent.lba.checked_mul(block_size).ok_or(out_of_range)?;
    let len = u64::from(extent.blocks) * block_size;
    let len = usize::try_from(len).map_err(|_| out_of_range)?;
    Ok(Outcome::Disk {
        op: match during {
            During::Read | During::Flush => Op::Read { offset, len },
            During::Write => Op::Write {
                offset,
                len,
                fua,
                atomic: false,
            },
        },
        during,
        lba: extent.lba,
        len,
    })
}

pub fn flush(geometry: &Geometry, lba: u64) -> Result<Outcome, Fault> {
    if geometry.read_only {
        return Ok(Outcome::Data(Vec::new()));
    }
    Ok(Outcome::Disk {
        op: Op::Flush,
        during: During::Flush,
        lba,
        len: 0,
    })
}
