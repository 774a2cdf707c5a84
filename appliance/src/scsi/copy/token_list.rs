//! The parameter lists of POPULATE TOKEN and WRITE USING TOKEN (SBC-4 §5.12, §5.59).

use super::limits::{DEFAULT_INACTIVITY, MAX_INACTIVITY, MAX_RANGES};
use super::problem::Problem;
use crate::scsi::fault::Fault;

/// Bytes of a token.
pub const TOKEN_LEN: usize = 512;
/// Bytes of a range descriptor.
const RANGE_LEN: usize = 16;
/// Bytes of a list before its range descriptors.
const POPULATE_HEADER: usize = 16;
const WRITE_HEADER: usize = 536;
/// Point in time copy ROD types: that which the copy manager likes best, that which is revoked by a
/// change, and any.
pub const POINT_IN_TIME: u32 = 0x0080_0000;
pub const CHANGE_VULNERABLE: u32 = 0x0080_0001;
const ANY_POINT_IN_TIME: u32 = 0x0080_ffff;

/// Blocks of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub lba: u64,
    pub blocks: u32,
    /// Where its descriptor stands in the list.
    pub at: u16,
}

/// What a POPULATE TOKEN is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Populate {
    /// Seconds without use after which the token expires.
    pub inactivity: u32,
    pub ranges: Vec<Range>,
}

/// What a WRITE USING TOKEN is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// DEL_TKN.
    pub delete: bool,
    /// OFFSET INTO ROD, in blocks of the unit that is written to.
    pub offset: u64,
    pub token: Box<[u8; TOKEN_LEN]>,
    pub ranges: Vec<Range>,
}

/// Most bytes of a list: what it can say of itself.
pub const MOST: usize = 2 + u16::MAX as usize;

const fn invalid(byte: u16, bit: u8) -> Fault {
    Fault::InvalidParameter { byte, bit }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The list of a POPULATE TOKEN.
///
/// # Errors
/// As the standard has them, but for blocks that are not there.
pub fn populate(bytes: &[u8]) -> Result<Populate, Fault> {
    if bytes.len() < POPULATE_HEADER {
        return Err(Fault::ParameterListLength);
    }
    if number(&bytes[..2]) < 0x1e {
        return Err(invalid(0, 7));
    }
    let inactivity = match u32::try_from(number(&bytes[4..8])) {
        Ok(0) => DEFAULT_INACTIVITY,
        Ok(seconds) if seconds <= MAX_INACTIVITY => seconds,
        _ => return Err(invalid(4, 7)),
    };
    // RTV.
    let kinds = [POINT_IN_TIME, CHANGE_VULNERABLE, ANY_POINT_IN_TIME].map(u64::from);
    if bytes[2] & 0x02 != 0 && !kinds.contains(&number(&bytes[8..12])) {
        return Err(invalid(8, 7));
    }
    Ok(Populate {
        inactivity,
        ranges: ranges(bytes, POPULATE_HEADER)?,
    })
}

/// The list of a WRITE USING TOKEN.
///
/// # Errors
/// As the standard has them, but for blocks that are not there and the token.
pub fn write(bytes: &[u8]) -> Result<Write, Fault> {
    let token = bytes
        .get(16..16 + TOKEN_LEN)
        .and_then(|token| token.try_into().ok());
    let Some(token) = token.filter(|_| bytes.len() >= WRITE_HEADER) else {
        return Err(Fault::ParameterListLength);
    };
    if number(&bytes[..2]) < 0x226 {
        return Err(invalid(0, 7));
    }
    Ok(Write {
        delete: bytes[2] & 0x02 != 0,
        offset: number(&bytes[8..16]),
        token: Box::new(token),
        ranges: ranges(bytes, WRITE_HEADER)?,
    })
}

/// The range descriptors of a list that has so many bytes before them, the last two of which say
/// how long they are. What is not there as a whole is none.
fn ranges(bytes: &[u8], header: usize) -> Result<Vec<Range>, Fault> {
    let at = |byte: usize| u16::try_from(byte).unwrap_or(u16::MAX);
    let len = usize::try_from(number(&bytes[header - 2..header])).unwrap_or(usize::MAX);
    if len < RANGE_LEN {
        return Err(invalid(at(header - 2), 7));
    }
    let rest = &bytes[header..];
    let here = &rest[..len.min(rest.len())];
    if here.len() / RANGE_LEN > usize::from(MAX_RANGES) {
        return Err(Fault::Copy(Problem::TooManySegments));
    }
    let starts = (header..).step_by(RANGE_LEN);
    let ranges: Vec<_> = starts
        .zip(here.chunks_exact(RANGE_LEN))
        .map(|(start, descriptor)| Range {
            lba: number(&descriptor[..8]),
            blocks: u32::try_from(number(&descriptor[8..12])).unwrap_or(u32::MAX),
            at: at(start),
        })
        .collect();
    match overlap(&ranges) {
        Some(at) => Err(invalid(at, 7)),
        None => Ok(ranges),
    }
}

/// Where a range begins of which blocks are in another one, too.
fn overlap(ranges: &[Range]) -> Option<u16> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| range.blocks > 0).collect();
    sorted.sort_by_key(|range| range.lba);
    let mut pairs = sorted.iter().zip(sorted.iter().skip(1));
    let end = |range: &Range| u128::from(range.lba) + u128::from(range.blocks);
    pairs
        .find(|(before, after)| end(before) > after.lba.into())
        .map(|(_, after)| after.at)
}

#[cfg(test)]
mod tests;
