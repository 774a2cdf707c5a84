//! A logical unit: a disk with an identity.

use std::sync::Arc;

use super::command::{Command, Extent};
use super::fault::{During, Fault};
use super::identity::{BadName, Identity};
use super::{inquiry, mode, report};
use crate::disk::{Disk, Geometry, Op};

/// A disk with an identity, which several targets may show under a LUN each.
#[derive(Debug)]
pub struct LogicalUnit {
    identity: Identity,
    disk: Arc<dyn Disk>,
}

/// What a command comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// GOOD, with this data, which is at most as long as the command allows.
    Data(Vec<u8>),
    Disk {
        op: Op,
        during: During,
        lba: u64,
        /// Bytes that the operation moves.
        len: usize,
    },
}

impl LogicalUnit {
    /// A logical unit whose serial number and identifiers come from `name` alone: they are the
    /// same for every appliance that shows it.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str, disk: Arc<dyn Disk>) -> Result<Self, BadName> {
        Ok(Self {
            identity: Identity::new(name)?,
            disk,
        })
    }

    /// Its name, which is also its serial number.
    pub fn name(&self) -> &str {
        self.identity.name()
    }

    /// The disk under it.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Decides on a command that the target has not answered by itself.
    pub(super) fn execute(&self, command: Command) -> Result<Outcome, Fault> {
        let geometry = self.disk.geometry();
        let nothing = || Ok(Outcome::Data(Vec::new()));
        let data = |mut data: Vec<u8>, allocation: usize| {
            data.truncate(allocation);
            Ok(Outcome::Data(data))
        };
        match command {
            Command::TestUnitReady | Command::PreventAllowRemoval => nothing(),
            Command::Inquiry { page, allocation } => data(
                match page {
                    None => inquiry::standard(inquiry::DISK),
                    Some(page) => inquiry::vital(page, &self.identity, &geometry)?,
                },
                allocation,
            ),
            Command::ModeSense { allocation, .. } => {
                data(mode::sense(&command, &geometry)?, allocation)
            }
            Command::ReadCapacity10 => data(report::capacity_10(&geometry), usize::MAX),
            Command::ReadCapacity16 { allocation } => {
                data(report::capacity_16(&geometry), allocation)
            }
            Command::ReportOpcodes { allocation, .. } => {
                data(report::opcodes(&command)?, allocation)
            }
            Command::Read(extent) => transfer(&geometry, extent, During::Read, false),
            Command::Write { .. } if geometry.read_only => Err(Fault::WriteProtected),
            Command::Write { extent, fua } => transfer(&geometry, extent, During::Write, fua),
            Command::Synchronize(extent) => {
                check(&geometry, extent)?;
                flush(&geometry, extent.lba)
            }
            Command::StartStop { flush: true } => flush(&geometry, 0),
            Command::StartStop { flush: false } => nothing(),
            Command::RequestSense { .. } | Command::ReportLuns { .. } => {
                debug_assert!(false, "the target answers {command:?}");
                Err(Fault::InvalidOpcode)
            }
        }
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

fn flush(geometry: &Geometry, lba: u64) -> Result<Outcome, Fault> {
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
