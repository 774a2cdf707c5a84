//! Commands on the blocks of a unit, as operations on its disk.

use super::command::{Check, Command, Extent, Same};
use super::fault::{During, Fault, Work};
use super::lba_status::Ask;
use super::limits::{self, MAX_LBA_STATUS_DESCRIPTORS, MAX_PREFETCH};
use super::pending::Then;
use super::unit::Outcome;
use super::{Buffers, LogicalUnit, capacity, defects, unmap};
use crate::disk::{Abilities, Geometry, Op};

/// Decides on a command of the block commands' standard.
pub fn start(unit: &LogicalUnit, command: Command, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
    let medium = Medium::of(unit);
    // Where nothing can be written, it does not matter whether the blocks exist.
    if medium.geometry.read_only && command.changes_blocks() {
        return match command {
            Command::Unmap { .. } if medium.abilities.thin.is_none() => Err(Fault::InvalidOpcode),
            Command::WriteAtomic { .. } if medium.atomic().is_none() => Err(Fault::InvalidOpcode),
            _ => Err(Fault::WriteProtected),
        };
    }
    let data = |mut data: Vec<u8>, allocation: usize| {
        data.truncate(allocation);
        Ok(Outcome::Data(data))
    };
    let Medium {
        ref geometry,
        ref abilities,
        ..
    } = medium;
    match command {
        Command::ReadCapacity10 => data(capacity::short(geometry), usize::MAX),
        Command::ReadCapacity16 { allocation } => data(
            capacity::long(geometry, abilities, unit.protection()),
            allocation,
        ),
        Command::ReadDefects(wanted) => data(defects::data(&wanted)?, wanted.allocation),
        Command::LbaStatus { lba, allocation } => medium.lba_status(lba, allocation, buffers),
        Command::Read(extent) => read_at(geometry, extent),
        Command::Write { extent, fua } => write_at(geometry, extent, medium.stable(fua)),
        Command::WriteAtomic { extent, fua } => medium.write_atomic(extent, fua),
        Command::WriteVerify(extent) => medium.write_verify(extent),
        Command::Verify { extent, check } => medium.verify(extent, check),
        Command::CompareAndWrite(extent) => medium.compare_and_write(extent),
        Command::Or { extent, fua } => medium.or(extent, fua),
        Command::WriteSame(same) => medium.write_same(same, buffers),
        Command::Unmap { len } => medium.unmap(len, buffers),
        Command::Prefetch(extent) => medium.prefetch(extent),
        Command::Synchronize(extent) => {
            medium.check(extent.lba, extent.blocks.into())?;
            flush(geometry, extent.lba)
        }
        _ => Err(Fault::InvalidOpcode),
    }
}

/// FUA makes no difference: whatever was written is what is read, on stable storage or not.
#[inline]
fn read_at(geometry: &Geometry, extent: Extent) -> Result<Outcome, Fault> {
    transfer(geometry, extent, During::Read, |offset, len| Op::Read {
        offset,
        len,
    })
}

#[inline]
fn write_at(geometry: &Geometry, extent: Extent, fua: bool) -> Result<Outcome, Fault> {
    transfer(geometry, extent, During::Write, |offset, len| Op::Write {
        offset,
        len,
        fua,
        atomic: false,
    })
}

/// An operation that moves each byte of an extent once; nothing if it is empty.
#[inline]
fn transfer(
    geometry: &Geometry,
    extent: Extent,
    during: During,
    op: impl FnOnce(u64, usize) -> Op,
) -> Result<Outcome, Fault> {
    let bytes = bytes(geometry, extent.lba, extent.blocks.into())?;
    if extent.blocks == 0 {
        return Ok(nothing());
    }
    let len = bytes.buffer();
    Ok(Outcome::Disk {
        op: op(bytes.offset, len),
        work: Work {
            during,
            lba: extent.lba,
            blocks: extent.blocks.into(),
            block_size: geometry.block_size,
        },
        then: Then::Moved(len),
    })
}

/// GOOD, and nothing was to be done.
const fn nothing() -> Outcome {
    Outcome::Data(Vec::new())
}

/// Puts on stable storage what was written: all of it, whichever blocks are meant.
///
/// With IMMED too the answer waits for the disk: so nobody is told GOOD who would have to be told
/// of the failure later, by a deferred error.
pub fn flush(geometry: &Geometry, lba: u64) -> Result<Outcome, Fault> {
    if geometry.read_only {
        return Ok(nothing());
    }
    Ok(Outcome::Disk {
        op: Op::Flush,
        work: Work {
            during: During::Flush,
            lba,
            blocks: 0,
            block_size: geometry.block_size,
        },
        then: Then::Moved(0),
    })
}

/// The blocks of a unit, as they are while one command is decided on.
struct Medium {
    geometry: Geometry,
    abilities: Abilities,
    /// Writes are done before they are on stable storage.
    write_cache: bool,
}

/// Blocks of the unit in bytes.
#[derive(Debug, Clone, Copy)]
struct Bytes {
    offset: u64,
    len: u64,
}

impl Bytes {
    /// The length as that of a buffer.
    #[inline]
    fn buffer(self) -> usize {
        // No buffer is that long, so that it is an overrun.
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }
}

/// Checks that blocks are on the medium; where there are none of them, that the first would be.
#[inline]
fn check(geometry: &Geometry, lba: u64, blocks: u64) -> Result<(), Fault> {
    let end = lba.checked_add(blocks);
    if lba >= geometry.blocks || end.is_none_or(|end| end > geometry.blocks) {
        return Err(Fault::OutOfRange {
            lba: lba.max(geometry.blocks),
        });
    }
    Ok(())
}

/// Blocks that are on the medium, in bytes.
#[inline]
fn bytes(geometry: &Geometry, lba: u64, blocks: u64) -> Result<Bytes, Fault> {
    check(geometry, lba, blocks)?;
    let block_size = u64::from(geometry.block_size);
    let offset = lba.checked_mul(block_size);
    let len = blocks.checked_mul(block_size);
    match (offset, len) {
        (Some(offset), Some(len)) => Ok(Bytes { offset, len }),
        _ => Err(Fault::OutOfRange { lba }),
    }
}

impl Medium {
    fn of(unit: &LogicalUnit) -> Self {
        Self {
            geometry: unit.disk().geometry(),
            abilities: unit.disk().abilities(),
            write_cache: unit.write_cache(),
        }
    }

    fn check(&self, lba: u64, blocks: u64) -> Result<(), Fault> {
        check(&self.geometry, lba, blocks)
    }

    fn bytes(&self, lba: u64, blocks: u64) -> Result<Bytes, Fault> {
        bytes(&self.geometry, lba, blocks)
    }

    /// An operation on an extent; nothing if it is empty.
    fn operate(
        &self,
        extent: Extent,
        during: During,
        op: impl FnOnce(Bytes) -> Op,
    ) -> Result<Outcome, Fault> {
        let bytes = self.bytes(extent.lba, extent.blocks.into())?;
        if extent.blocks == 0 {
            return Ok(nothing());
        }
        let op = op(bytes);
        let moved = op.data_out(self.geometry.block_size).unwrap_or(usize::MAX);
        let moved = moved.saturating_add(op.data_in());
        Ok(Outcome::Disk {
            work: self.work(during, extent.lba, extent.blocks.into()),
            op,
            then: Then::Moved(moved),
        })
    }

    fn work(&self, during: During, lba: u64, blocks: u64) -> Work {
        Work {
            during,
            lba,
            blocks,
            block_size: self.geometry.block_size,
        }
    }

    /// Whether a write has to be on stable storage before its answer.
    fn stable(&self, fua: bool) -> bool {
        fua || !self.write_cache
    }

    fn atomic(&self) -> Option<limits::AtomicLimits> {
        limits::atomic(&self.abilities, &self.geometry)
    }

    /// All limits are looked at here, since they are the disk's; blocks that are not there are a
    /// fault before any of them.
    fn write_atomic(&self, extent: Extent, fua: bool) -> Result<Outcome, Fault> {
        let atomic = self.atomic().ok_or(Fault::InvalidOpcode)?;
        self.check(extent.lba, extent.blocks.into())?;
        let Extent { lba, blocks } = extent;
        if blocks > atomic.max || !blocks.is_multiple_of(atomic.granularity) {
            return Err(Fault::InvalidField { byte: 12, bit: 7 });
        }
        let is_aligned = lba.is_multiple_of(atomic.granularity.into());
        if blocks != 0 && !(is_aligned && self.has_atomic_window(extent)?) {
            return Err(Fault::InvalidField { byte: 2, bit: 7 });
        }
        self.operate(extent, During::Write, |bytes| Op::Write {
            offset: bytes.offset,
            len: bytes.buffer(),
            fua: self.stable(fua),
            atomic: true,
        })
    }

    /// Whether the disk can write blocks at once, with those around them that it needs for that.
    fn has_atomic_window(&self, extent: Extent) -> Result<bool, Fault> {
        let Bytes { offset, len } = self.bytes(extent.lba, extent.blocks.into())?;
        let window = self
            .abilities
            .atomic
            .and_then(|atomic| atomic.window(offset, len));
        let block_size = u64::from(self.geometry.block_size);
        let is_on_medium =
            |(start, len)| u64::saturating_add(start, len) / block_size <= self.geometry.blocks;
        Ok(window.is_some_and(is_on_medium))
    }

    fn write_verify(&self, extent: Extent) -> Result<Outcome, Fault> {
        self.operate(extent, During::Write, |bytes| Op::WriteVerify {
            offset: bytes.offset,
            len: bytes.buffer(),
        })
    }

    fn verify(&self, extent: Extent, check: Check) -> Result<Outcome, Fault> {
        self.operate(
            extent,
            During::Verify,
            |Bytes { offset, len }| match check {
                Check::Medium => Op::Check { offset, len },
                Check::Data | Check::SameBlock => Op::Compare {
                    offset,
                    len,
                    same: check == Check::SameBlock,
                },
            },
        )
    }

    /// On stable storage with FUA or without: were the write cache to end meanwhile, it could not
    /// be tried again, as it would miscompare with itself.
    fn compare_and_write(&self, extent: Extent) -> Result<Outcome, Fault> {
        self.operate(extent, During::CompareAndWrite, |bytes| {
            Op::CompareAndWrite {
                offset: bytes.offset,
                len: bytes.buffer(),
                fua: true,
            }
        })
    }

    fn or(&self, extent: Extent, fua: bool) -> Result<Outcome, Fault> {
        self.operate(extent, During::Write, |bytes| Op::Or {
            offset: bytes.offset,
            len: bytes.buffer(),
            fua: self.stable(fua),
        })
    }

    fn write_same(&self, same: Same, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
        let Same {
            extent: Extent { lba, blocks },
            unmap,
            zeros,
            flags_at,
            blocks_at,
        } = same;
        // SBC-4, WRITE SAME(10): only a unit with provisioning management may have the bit.
        if unmap && self.abilities.thin.is_none() {
            return Err(Fault::InvalidField {
                byte: flags_at,
                bit: 3,
            });
        }
        // WSNZ is 0 (SBC-4, Block Limits VPD page): no blocks means all there are from here on.
        let blocks = match blocks {
            0 => self.geometry.blocks.saturating_sub(lba),
            blocks => blocks.into(),
        };
        let Bytes { offset, len } = self.bytes(lba, blocks)?;
        if blocks > limits::write_same(&self.geometry) {
            return Err(Fault::InvalidField {
                byte: blocks_at,
                bit: 7,
            });
        }
        let fua = self.stable(false);
        let (zeros, moved) = if zeros {
            (true, 0)
        } else {
            let block = the_block(buffers, self.geometry.block_size)?;
            (block.iter().all(|&byte| byte == 0), block.len())
        };
        // Blocks that were given back read as zeros (LBPRZ), so only zeros may be given back.
        let op = if zeros {
            Op::Zero {
                offset,
                len,
                unmap,
                fua,
            }
        } else {
            Op::WriteSame { offset, len, fua }
        };
        Ok(Outcome::Disk {
            op,
            work: self.work(During::Write, lba, blocks),
            then: Then::Moved(moved),
        })
    }

    /// Every descriptor is looked at before anything is given back.
    fn unmap(&self, len: usize, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
        if self.abilities.thin.is_none() {
            return Err(Fault::InvalidOpcode);
        }
        if len == 0 {
            return Ok(nothing());
        }
        if buffers.data_out.len() < len {
            return Ok(Outcome::Overrun);
        }
        let mut list = vec![0; len];
        buffers.data_out.read_at(0, &mut list);
        let mut ranges = Vec::new();
        let (mut first, mut total) = (None, 0);
        for (lba, blocks) in unmap::descriptors(&list)? {
            let blocks = u64::from(blocks);
            // SBC-4, UNMAP: nothing at the very end is nothing outside.
            if blocks == 0 && lba == self.geometry.blocks {
                continue;
            }
            let Bytes { offset, len } = self.bytes(lba, blocks)?;
            if blocks > 0 {
                unmap::join(&mut ranges, (offset, len));
                first = first.or(Some(lba));
                total += blocks;
            }
        }
        let Some(first) = first else {
            return Ok(Outcome::Done { moved: len });
        };
        Ok(Outcome::Disk {
            op: Op::Unmap {
                ranges: ranges.into(),
                fua: self.stable(false),
            },
            work: self.work(During::Write, first, total),
            then: Then::Moved(len),
        })
    }

    /// GOOD, never CONDITION MET: that would promise that the blocks are in a cache (SBC-4,
    /// PRE-FETCH(10)), and a disk may have none, or drop them at once. For the same reason it may
    /// fetch fewer.
    fn prefetch(&self, extent: Extent) -> Result<Outcome, Fault> {
        let blocks = match extent.blocks {
            0 => self.geometry.blocks.saturating_sub(extent.lba),
            blocks => blocks.into(),
        };
        self.check(extent.lba, blocks)?;
        let blocks = blocks.min(MAX_PREFETCH);
        let Bytes { offset, len } = self.bytes(extent.lba, blocks)?;
        Ok(Outcome::Disk {
            op: Op::Prefetch { offset, len },
            work: self.work(During::Read, extent.lba, blocks),
            then: Then::Moved(0),
        })
    }

    fn lba_status(
        &self,
        lba: u64,
        allocation: usize,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        let Bytes { offset, .. } = self.bytes(lba, 1)?;
        let ask = Ask {
            lba,
            blocks: self.geometry.blocks,
            block_size: self.geometry.block_size,
            limit: Ask::limit(allocation, MAX_LBA_STATUS_DESCRIPTORS),
            allocation,
        };
        if !self.abilities.thin.is_some_and(|thin| thin.mapped) {
            return Ok(Outcome::Data(ask.unknown()));
        }
        // How long the data is, the disk decides: there has to be room for the longest.
        if buffers.data_in < ask.most() {
            return Ok(Outcome::Overrun);
        }
        Ok(Outcome::Disk {
            op: Op::Allocation {
                offset,
                limit: ask.limit,
            },
            work: self.work(During::Read, lba, 1),
            then: Then::LbaStatus(ask),
        })
    }
}

/// The one block that WRITE SAME has as its data; a buffer of any other length is refused, since
/// one of the two is not what was meant.
fn the_block(buffers: Buffers<'_>, block_size: u32) -> Result<Vec<u8>, Fault> {
    let len = buffers.data_out.len();
    if u32::try_from(len) != Ok(block_size) {
        return Err(Fault::DataOutLength);
    }
    let mut block = vec![0; len];
    buffers.data_out.read_at(0, &mut block);
    Ok(block)
}

#[cfg(test)]
mod tests;
