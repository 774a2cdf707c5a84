//! The parameter list of EXTENDED COPY (SPC-4 §6.4, §6.5).

use super::limits::{MAX_CSCDS, MAX_DESCRIPTORS, MAX_SEGMENT, MAX_SEGMENTS};
use super::problem::Problem;
use super::request::Format;
use crate::scsi::fault::Fault;

/// Bytes of every CSCD descriptor that there is.
const CSCD_LEN: usize = 32;
/// Bytes of a segment descriptor before those that its length counts.
const SEGMENT_HEADER: usize = 4;
/// Identification descriptor CSCD descriptor.
pub const IDENTIFICATION: u8 = 0xe4;
/// Segment descriptor: block device to block device.
pub const BLOCK_TO_BLOCK: u8 = 0x02;
/// Segment descriptor: block device with offset to block device with offset.
pub const OFFSET_TO_OFFSET: u8 = 0x0a;

/// What an EXTENDED COPY is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What it is asked for by later; `None` if nobody will.
    pub id: Option<u32>,
    pub cscds: Vec<Cscd>,
    pub segments: Vec<Segment>,
}

/// A unit to copy from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cscd {
    /// PERIPHERAL DEVICE TYPE.
    pub device_type: u8,
    /// CODE SET, ASSOCIATION and DESIGNATOR TYPE, designator: as they stand in the device
    /// identification page.
    pub code_set: u8,
    pub kind: u8,
    pub designator: Vec<u8>,
    /// DISK BLOCK LENGTH.
    pub block_size: u32,
}

/// Blocks to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// CSCD descriptor IDs.
    pub source: u16,
    pub destination: u16,
    /// First blocks.
    pub from: u64,
    pub to: u64,
    pub amount: Amount,
}

/// How much to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Blocks of the source.
    OfSource(u16),
    /// Blocks of the destination (DC).
    OfDestination(u16),
    Bytes(u32),
}

/// Bytes of the list before its descriptors.
pub const fn header_len(format: Format) -> usize {
    match format {
        Format::Lid1 => 16,
        Format::Lid4 => 48,
    }
}

/// Most bytes of a list.
pub fn most(format: Format) -> usize {
    let descriptors = usize::try_from(MAX_DESCRIPTORS).unwrap_or(usize::MAX);
    header_len(format).saturating_add(descriptors)
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// A fault at this byte of the list.
fn invalid(byte: usize, bit: u8) -> Fault {
    Fault::InvalidParameter {
        byte: u16::try_from(byte).unwrap_or(u16::MAX),
        bit,
    }
}

/// The list that was sent.
///
/// # Errors
/// [`Fault::ParameterListLength`] if something is not there as a whole, [`Fault::Copy`] for what
/// there is not or too much of, [`Fault::InvalidParameter`] for anything else.
pub fn parse(format: Format, bytes: &[u8]) -> Result<List, Fault> {
    let header = header_len(format);
    if bytes.len() < header {
        return Err(Fault::ParameterListLength);
    }
    let (cscds_len, segments_len, inline_len) = match format {
        Format::Lid1 => (be16(bytes, 2).into(), be32(bytes, 8), be32(bytes, 12)),
        Format::Lid4 => (
            be16(bytes, 42).into(),
            be16(bytes, 44).into(),
            be16(bytes, 46).into(),
        ),
    };
    let id = id(format, bytes)?;
    let descriptors = u32::saturating_add(cscds_len, segments_len);
    if descriptors > MAX_DESCRIPTORS {
        return Err(Fault::ParameterListLength);
    }
    let index = |len: u32| usize::try_from(len).unwrap_or(usize::MAX);
    let end_of_cscds = header.saturating_add(index(cscds_len));
    let end = end_of_cscds.saturating_add(index(segments_len));
    if end.saturating_add(index(inline_len)) > bytes.len() {
        return Err(Fault::ParameterListLength);
    }
    if inline_len > 0 {
        return Err(Fault::Copy(Problem::InlineData));
    }
    let cscds = bytes.get(header..end_of_cscds);
    let segments = bytes.get(end_of_cscds..end);
    let (Some(cscds), Some(segments)) = (cscds, segments) else {
        return Err(Fault::ParameterListLength);
    };
    if cscds.len() % CSCD_LEN != 0 {
        return Err(Fault::ParameterListLength);
    }
    if cscds.len() / CSCD_LEN > usize::from(MAX_CSCDS) {
        return Err(Fault::Copy(Problem::TooManyCscds));
    }
    let segments = split(segments)?;
    let cscds = (header..).step_by(CSCD_LEN).zip(cscds.chunks(CSCD_LEN));
    let cscds = cscds.map(|(at, descriptor)| cscd(at, descriptor));
    let mut at = end_of_cscds;
    let segments = segments.into_iter().map(|descriptor| {
        let begin = at;
        at += descriptor.len();
        segment(begin, descriptor)
    });
    Ok(List {
        id,
        cscds: cscds.collect::<Result<_, _>>()?,
        segments: segments.collect::<Result<_, _>>()?,
    })
}

/// The list identifier, if it is to be kept (LIST ID USAGE).
fn id(format: Format, bytes: &[u8]) -> Result<Option<u32>, Fault> {
    let (id, at) = match format {
        Format::Lid1 => (u32::from(bytes[0]), 0),
        Format::Lid4 => {
            // PARAMETER LIST FORMAT, HEADER CSCD DESCRIPTOR LIST LENGTH and TYPE CODE.
            if bytes[0] != 0x01 {
                return Err(invalid(0, 7));
            }
            if be16(bytes, 2) != 0x20 {
                return Err(invalid(2, 7));
            }
            if bytes[16] != 0xff {
                return Err(invalid(16, 7));
            }
            // G_SENSE asks for sense data with GOOD, which there is not.
            if bytes[15] & 0x02 != 0 {
                return Err(invalid(15, 1));
            }
            (be32(bytes, 20), 20)
        }
    };
    match bytes[1] >> 3 & 3 {
        0 | 2 => Ok(Some(id)),
        3 if id == 0 => Ok(None),
        3 => Err(invalid(at, 7)),
        _ => Err(invalid(1, 4)),
    }
}

/// The segment descriptors, each with its header.
fn split(mut bytes: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    let mut segments = Vec::new();
    while !bytes.is_empty() {
        if bytes.len() < SEGMENT_HEADER {
            return Err(Fault::ParameterListLength);
        }
        let len = SEGMENT_HEADER + usize::from(be16(bytes, 2));
        let (segment, rest) = bytes
            .split_at_checked(len)
            .ok_or(Fault::ParameterListLength)?;
        if segments.len() == usize::from(MAX_SEGMENTS) {
            return Err(Fault::Copy(Problem::TooManySegments));
        }
        segments.push(segment);
        bytes = rest;
    }
    Ok(segments)
}

/// A CSCD descriptor at this byte of the list. LU ID TYPE, NUL and RELATIVE INITIATOR PORT
/// IDENTIFIER say nothing here: there is one way to a unit, and it is named by its designator.
fn cscd(at: usize, bytes: &[u8]) -> Result<Cscd, Fault> {
    if bytes[0] != IDENTIFICATION {
        return Err(Fault::Copy(Problem::UnsupportedCscd));
    }
    let len = usize::from(bytes[7]);
    let designator = bytes[8..28].get(..len).ok_or(invalid(at + 7, 7))?;
    Ok(Cscd {
        device_type: bytes[1] & 0x1f,
        code_set: bytes[4] & 0x0f,
        kind: bytes[5] & 0x3f,
        designator: designator.to_vec(),
        block_size: be32(bytes, 28) & 0xff_ffff,
    })
}

/// A segment descriptor at this byte of the list.
fn segment(at: usize, bytes: &[u8]) -> Result<Segment, Fault> {
    let (code, flags) = (bytes[0], bytes[1]);
    let is_right = |len| bytes.len() == len;
    // CAT is no matter, since whatever is copied fills whole blocks. Of the others (FCO asks for
    // what cannot be told before it is tried) none is known.
    let reserved = |known: u8| match (flags & !known).checked_ilog2() {
        Some(bit) => Err(invalid(at + 1, u8::try_from(bit).unwrap_or(7))),
        None => Ok(()),
    };
    let amount = match code {
        BLOCK_TO_BLOCK => {
            if !is_right(28) {
                return Err(invalid(at + 2, 7));
            }
            reserved(0x03)?;
            let blocks = be16(bytes, 10);
            if flags & 0x02 == 0 {
                Amount::OfSource(blocks)
            } else {
                Amount::OfDestination(blocks)
            }
        }
        OFFSET_TO_OFFSET => {
            if !is_right(32) {
                return Err(invalid(at + 2, 7));
            }
            // DC says nothing here (SPC-4 §6.4.6.1).
            reserved(0x03)?;
            // DATA SEGMENT GRANULARITY is a block.
            for offset in [28, 30] {
                if be16(bytes, offset) != 0 {
                    return Err(invalid(at + offset, 7));
                }
            }
            let len = be32(bytes, 8);
            if len > MAX_SEGMENT {
                return Err(invalid(at + 8, 7));
            }
            Amount::Bytes(len)
        }
        _ => return Err(Fault::Copy(Problem::UnsupportedSegment)),
    };
    Ok(Segment {
        source: be16(bytes, 4),
        destination: be16(bytes, 6),
        from: be64(bytes, 12),
        to: be64(bytes, 20),
        amount,
    })
}

#[cfg(test)]
mod tests;
