//! Whether an operation fits its disk and its buffer.

use crate::disk::{Abilities, Disk, DiskError, Geometry, Op, Protected, Tag};
use crate::memory::Segments;

/// Checks an operation against disk and buffer; `pool` is the size of the bounce pool in bytes.
///
/// # Errors
/// [`DiskError::OutOfRange`] if it does not fit, [`DiskError::Unsupported`] if the disk lacks the
/// ability.
pub fn check(
    disk: &dyn Disk,
    op: &Op,
    data: Option<&Segments>,
    pool: usize,
) -> Result<(), DiskError> {
    let geometry = disk.geometry();
    let block = u64::from(geometry.block_size);
    let size = geometry.blocks.saturating_mul(block);
    let inside = |offset: u64, len: u64| {
        let end = offset.checked_add(len).ok_or(DiskError::OutOfRange)?;
        // Blocks are a power of two, as a rule, and divisions take long.
        let aligned = if block.is_power_of_two() {
            (offset | len) & (block - 1) == 0
        } else {
            offset.is_multiple_of(block) && len.is_multiple_of(block)
        };
        if end > size || !aligned {
            return Err(DiskError::OutOfRange);
        }
        Ok(())
    };
    let (needs, fills) = op.moves(geometry.block_size);
    let needed = needs.ok_or(DiskError::OutOfRange)?.max(fills);
    if data.map_or(0, Segments::len) < needed {
        return Err(DiskError::OutOfRange);
    }
    if let Op::Read { offset, len } = *op {
        // Most are that.
        return inside(offset, bytes(len)?);
    }
    if let Op::Protected(what) = op {
        disk.protected().ok_or(DiskError::Unsupported)?;
        check_prefix(what, block)?;
    }
    match *op.plain() {
        Op::Write {
            offset,
            len,
            atomic: true,
            ..
        } => {
            let len = bytes(len)?;
            inside(offset, len)?;
            check_atomic(disk.abilities(), (offset, len), size, pool)
        }
        Op::Read { offset, len }
        | Op::Write { offset, len, .. }
        | Op::WriteVerify { offset, len }
        | Op::CompareAndWrite { offset, len, .. }
        | Op::Or { offset, len, .. } => inside(offset, bytes(len)?),
        Op::WriteSame { offset, len, .. }
        | Op::Compare { offset, len, .. }
        | Op::Check { offset, len }
        | Op::Zero { offset, len, .. }
        | Op::Mend { offset, len }
        | Op::Prefetch { offset, len } => inside(offset, len),
        Op::Copy {
            ref source,
            from,
            offset,
            len,
            ..
        } => {
            inside(offset, len)?;
            check_source(source.0.geometry(), (from, len))
        }
        Op::Unmap { ref ranges, .. } => {
            if disk.abilities().thin.is_none() {
                return Err(DiskError::Unsupported);
            }
            ranges
                .iter()
                .try_for_each(|&(offset, len)| inside(offset, len))
        }
        // There is at least one extent only before the end.
        Op::Allocation { offset, .. } => inside(offset, block),
        Op::Flush | Op::Barrier | Op::Watch(_) => Ok(()),
        // In another one.
        Op::Protected(_) => Err(DiskError::Unsupported),
    }
}

/// What is copied has to be on its own disk.
fn check_source(geometry: Geometry, (from, len): (u64, u64)) -> Result<(), DiskError> {
    let block = u64::from(geometry.block_size);
    let size = geometry.blocks.saturating_mul(block);
    let aligned = from.is_multiple_of(block) && len.is_multiple_of(block);
    match from.checked_add(len) {
        Some(end) if end <= size && aligned => Ok(()),
        _ => Err(DiskError::OutOfRange),
    }
}

/// Checks that the operation can have tags, and that there is one for each block if there are any.
fn check_prefix(what: &Protected, block: u64) -> Result<(), DiskError> {
    let tags = match what.op {
        Op::Write { atomic: true, .. } => return Err(DiskError::Unsupported),
        Op::Check { .. } | Op::Zero { .. } | Op::Unmap { .. } | Op::Mend { .. }
            if what.prefix == 0 =>
        {
            0
        }
        Op::Read { len, .. }
        | Op::Write { len, .. }
        | Op::WriteVerify { len, .. }
        | Op::Or { len, .. } => bytes(len)? / block,
        // Of both instances.
        Op::CompareAndWrite { len, .. } => (bytes(len)? / block).saturating_mul(2),
        Op::Compare {
            same: false, len, ..
        } => len / block,
        Op::WriteSame { .. } | Op::Compare { .. } => 1,
        _ => return Err(DiskError::Unsupported),
    };
    if what.prefix > 0 && bytes(what.prefix)? / (Tag::LEN as u64) < tags {
        return Err(DiskError::OutOfRange);
    }
    Ok(())
}

fn bytes(len: usize) -> Result<u64, DiskError> {
    u64::try_from(len).map_err(|_| DiskError::OutOfRange)
}

/// A write of nothing needs no window.
fn check_atomic(
    abilities: Abilities,
    (offset, len): (u64, u64),
    size: u64,
    pool: usize,
) -> Result<(), DiskError> {
    let atomic = abilities.atomic.ok_or(DiskError::Unsupported)?;
    let fits = |(offset, len)| {
        let end = u64::checked_add(offset, len);
        end.is_some_and(|end| end <= size) && usize::try_from(len).is_ok_and(|len| len <= pool)
    };
    if len == 0 || atomic.window(offset, len).is_some_and(fits) {
        Ok(())
    } else {
        Err(DiskError::Unsupported)
    }
}
