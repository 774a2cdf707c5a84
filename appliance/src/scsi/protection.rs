//! Protection information: what a command's PROTECT field asks for (SBC-4, RDPROTECT, WRPROTECT
//! and VRPROTECT fields).

use super::command::Cdb;
use super::fault::Fault;
use super::pending::Then;
use super::unit::Outcome;
use crate::disk::{Checks, Op, Protected, Protection, Tag};

/// RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT of byte 1.
pub const PROTECT: u8 = 0xe0;

/// Protection information that goes with a command, beside its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tags {
    /// Bytes from the tenant to us, before data-out.
    pub out: usize,
    /// Bytes from us to the tenant, before data-in.
    pub back: usize,
    /// The CDB's field.
    pub(super) field: u8,
}

impl Tags {
    /// So many bytes before data-out and before data-in.
    pub const fn new(out: usize, back: usize) -> Self {
        Self {
            out,
            back,
            field: 0,
        }
    }
}

/// Whether the commands with this operation code have the field. Those with 32 bytes have another,
/// which is for type 2 alone.
const fn has_field(opcode: u8) -> bool {
    use spec::scsi::opcode as code;
    matches!(
        opcode,
        code::READ_10
            | code::READ_12
            | code::READ_16
            | code::WRITE_10
            | code::WRITE_12
            | code::WRITE_16
            | code::WRITE_AND_VERIFY_10
            | code::WRITE_AND_VERIFY_12
            | code::WRITE_AND_VERIFY_16
            | code::VERIFY_10
            | code::VERIFY_12
            | code::VERIFY_16
            | code::WRITE_SAME_10
            | code::WRITE_SAME_16
    )
}

/// Bits of byte 1 that a unit with protection information knows beyond those of others.
pub const fn flags(opcode: u8) -> u8 {
    if has_field(opcode) { PROTECT } else { 0 }
}

/// The field of a CDB, and the CDB without it.
pub const fn take_field(cdb: &Cdb) -> (u8, Cdb) {
    let mut rest = *cdb;
    if !has_field(cdb[0]) {
        return (0, rest);
    }
    rest[1] &= !PROTECT;
    (cdb[1] >> 5, rest)
}

/// What a field asks for: whether tags are moved, and what of them is checked.
///
/// # Errors
/// [`Fault::InvalidField`] for a value that is reserved.
const fn meaning(field: u8) -> Result<(bool, Checks), Fault> {
    Ok(match field {
        0 => (false, Checks::ALL),
        1 | 5 => (true, Checks::ALL),
        2 => (true, checks_of(false, true)),
        3 => (true, checks_of(false, false)),
        4 => (true, checks_of(true, false)),
        _ => return Err(FIELD),
    })
}

const fn checks_of(guard: bool, reference: bool) -> Checks {
    Checks { guard, reference }
}

const FIELD: Fault = Fault::InvalidField { byte: 1, bit: 7 };

/// The operation with its tags, for a disk that has them.
///
/// # Errors
/// [`Fault::InvalidField`] if the field asks for what there is not.
pub fn apply(outcome: Outcome, tags: Tags) -> Result<Outcome, Fault> {
    let (moves, checks) = meaning(tags.field)?;
    let Outcome::Disk { op, work, then } = outcome else {
        return Ok(outcome);
    };
    // The blocks whose tags are moved, and the room there is for them.
    let block_size = u64::from(work.block_size);
    let (op, needed, room) = match op {
        Op::Flush | Op::Barrier => return Ok(Outcome::Disk { op, work, then }),
        // Copies would move data without its tags.
        Op::Copy { .. } | Op::Watch(_) | Op::Unmap { .. } | Op::Allocation { .. } => {
            return Err(Fault::InvalidOpcode);
        }
        // Where nothing is fetched ahead, there is nothing to be done.
        Op::Prefetch { .. } => return Ok(Outcome::Data(Vec::new())),
        Op::Read { len, .. } => (op, len as u64 / block_size, tags.back),
        Op::Write { len, .. } | Op::WriteVerify { len, .. } => {
            (op, len as u64 / block_size, tags.out)
        }
        Op::WriteSame { .. } => (op, 1, tags.out),
        // Zeros that were given, with a tag.
        Op::Zero {
            offset, len, fua, ..
        } if moves && !matches!(then, Then::Moved(0)) => {
            (Op::WriteSame { offset, len, fua }, 1, tags.out)
        }
        // VERIFY without data checks what is on the medium, and moves nothing.
        Op::Check { .. } => (op, 0, 0),
        // Neither data with tags to compare with, nor tags for zeros that nobody sent.
        _ if moves => return Err(FIELD),
        _ => (op, 0, 0),
    };
    let prefix = if moves && needed > 0 { room } else { 0 };
    if moves && needed > (room / Tag::LEN) as u64 {
        // With the field, but without tags where virtio has them (virtio 1.3 §5.6.6.1).
        return match room {
            0 => Err(FIELD),
            _ => Ok(Outcome::Overrun),
        };
    }
    let op = Op::Protected(Box::new(Protected { op, checks, prefix }));
    Ok(Outcome::Disk { op, work, then })
}

/// P_TYPE and PROT_EN of READ CAPACITY(16) data.
pub const fn capacity_flags(protection: Protection) -> u8 {
    match protection {
        Protection::Type1 => 0x01,
        Protection::Type3 => 0x05,
    }
}

/// SPT, GRD_CHK, APP_CHK and REF_CHK of the extended INQUIRY data.
pub const fn extended_inquiry_flags(protection: Protection) -> u8 {
    match protection {
        // SPT 000b: type 1.
        Protection::Type1 => 0x04 | 0x01,
        // SPT 100b: type 3. Its reference tags are the initiators' own.
        Protection::Type3 => 0x20 | 0x04,
    }
}

#[cfg(test)]
mod tests;
