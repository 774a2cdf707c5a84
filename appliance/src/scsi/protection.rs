//! Protection information: what a command's PROTECT field asks for (SBC-4, RDPROTECT, WRPROTECT,
//! VRPROTECT and ORPROTECT fields).

use super::command::Cdb;
use super::fault::Fault;
use super::pending::Then;
use super::unit::Outcome;
use crate::disk::{Checks, Op, Protected, Protection, Tag};

/// RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT of byte 1.
const PROTECT: u8 = 0xe0;
/// FMTPINFO of FORMAT UNIT's byte 1.
const FMTPINFO: u8 = 0xc0;

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

/// Bits of byte 1 that a unit with protection information knows beyond those of others.
pub const fn flags(opcode: u8) -> u8 {
    use spec::scsi::opcode as code;
    match opcode {
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
        | code::COMPARE_AND_WRITE
        | code::ORWRITE_16
        | code::WRITE_SAME_10
        | code::WRITE_SAME_16 => PROTECT,
        code::FORMAT_UNIT => FMTPINFO,
        _ => 0,
    }
}

/// The field of a CDB, and the CDB without it.
pub const fn take_field(cdb: &Cdb) -> (u8, Cdb) {
    let mut rest = *cdb;
    let flags = flags(cdb[0]);
    rest[1] &= !flags;
    let field = match flags {
        0 => 0,
        flags => (cdb[1] & flags) >> flags.trailing_zeros(),
    };
    (field, rest)
}

/// What a field asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meaning {
    /// Tags are moved.
    moves: bool,
    /// What of them is checked (SBC-4, tables 67, 68, 125, 127 and 133).
    checks: Checks,
    /// What of them VERIFY compares (SBC-4, table 128).
    compares: Checks,
}

/// What a field asks for.
///
/// # Errors
/// [`Fault::InvalidField`] for a value that is reserved.
const fn meaning(field: u8) -> Result<Meaning, Fault> {
    let (moves, checks, compares) = match field {
        0 => (false, Checks::ALL, checks_of(false, false)),
        1 => (true, Checks::ALL, Checks::ALL),
        2 => (true, checks_of(false, true), checks_of(false, true)),
        3 => (true, checks_of(false, false), Checks::ALL),
        4 => (true, checks_of(true, false), Checks::ALL),
        5 => (true, Checks::ALL, checks_of(true, false)),
        _ => return Err(FIELD),
    };
    Ok(Meaning {
        moves,
        checks,
        compares,
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
    let Meaning {
        moves,
        checks,
        compares,
    } = meaning(tags.field)?;
    let Outcome::Disk { op, work, then } = outcome else {
        return Ok(outcome);
    };
    // The blocks whose tags are moved, and the room there is for them.
    let block_size = u64::from(work.block_size);
    let has_data = !matches!(then, Then::Moved(0));
    let (op, needed, room) = match op {
        Op::Flush | Op::Barrier => return Ok(Outcome::Disk { op, work, then }),
        // Third-party copies are begun elsewhere; which blocks are allocated is not known.
        Op::Copy { .. } | Op::Watch(_) | Op::Allocation { .. } => {
            return Err(Fault::InvalidOpcode);
        }
        // Where nothing is fetched ahead, there is nothing to be done.
        Op::Prefetch { .. } => return Ok(Outcome::Data(Vec::new())),
        Op::Read { len, .. } => (op, len as u64 / block_size, tags.back),
        Op::Write { len, .. } | Op::WriteVerify { len, .. } | Op::Or { len, .. } => {
            (op, len as u64 / block_size, tags.out)
        }
        // Of both instances.
        Op::CompareAndWrite { len, .. } => {
            (op, (len as u64 / block_size).saturating_mul(2), tags.out)
        }
        Op::Compare {
            same: false, len, ..
        } => (op, len / block_size, tags.out),
        Op::WriteSame { .. } | Op::Compare { .. } => (op, 1, tags.out),
        // Zeros that were given, with a tag.
        Op::Zero {
            offset, len, fua, ..
        } if moves && has_data => (Op::WriteSame { offset, len, fua }, 1, tags.out),
        // VERIFY without data checks what is on the medium, and moves nothing.
        Op::Check { .. } => (op, 0, 0),
        // No tags for zeros that nobody sent.
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
    let op = Op::Protected(Box::new(Protected {
        // NDOB: as if zeros had been sent with tags of ones (SBC-4 §5.53).
        unchecked: matches!(op, Op::Zero { .. }) && !has_data,
        op,
        checks,
        compares,
        prefix,
    }));
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
