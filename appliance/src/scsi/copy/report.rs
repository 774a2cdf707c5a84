//! What THIRD-PARTY COPY IN tells: what became of a copy, and what copies there can be.

use super::limits::{MAX_CSCDS, MAX_DESCRIPTORS, MAX_OPERATIONS, MAX_SEGMENT, MAX_SEGMENTS};
use super::list::{BLOCK_TO_BLOCK, IDENTIFICATION, OFFSET_TO_OFFSET};
use super::records::{Origin, Record, Records, State};
use super::request::{Format, What};
use crate::scsi::fault::Fault;

/// TRANSFER COUNT UNITS: bytes, logical blocks.
const BYTES: u8 = 0x00;
const BLOCKS: u8 = 0xf1;
/// ESTIMATED STATUS UPDATE DELAY of a copy that is over, and of one of which it is not known.
const OVER: u32 = 0xffff_fffe;
const UNKNOWN: u32 = 0xffff_ffff;

/// The data of a THIRD-PARTY COPY IN command.
///
/// # Errors
/// [`Fault::InvalidField`] for a list identifier that is not known.
pub fn data(what: What, id: u32, records: &Records, block_size: u32) -> Result<Vec<u8>, Fault> {
    let at = match what {
        What::OperatingParameters => return Ok(operating_parameters(block_size)),
        _ => 2,
    };
    let is_old = matches!(
        what,
        What::StatusLid1 | What::DataLid1 | What::FailureDetails
    );
    let record = records
        .of(id)
        .filter(|record| !is_old || record.origin == Origin::Extended(Format::Lid1))
        .ok_or(Fault::InvalidField { byte: at, bit: 7 })?;
    Ok(match what {
        What::StatusLid1 => status_lid1(record),
        What::FailureDetails => failure_details(record),
        // Nothing is ever held.
        What::DataLid1 => vec![0; 4],
        What::StatusLid4 => sized(status_lid4(record)),
        What::DataLid4 => {
            let mut data = status_lid4(record);
            data.extend([0; 4]);
            sized(data)
        }
        What::Token | What::OperatingParameters => {
            let mut data = status_lid4(record);
            match &record.token {
                Some(token) => {
                    let len = u32::try_from(token.bytes().len() + 2).unwrap_or(0);
                    data.extend(len.to_be_bytes());
                    data.extend([0; 2]);
                    data.extend(token.bytes());
                }
                None => data.extend([0; 4]),
            }
            sized(data)
        }
    })
}

/// The data with its length without these four bytes before it: AVAILABLE DATA.
fn sized(rest: Vec<u8>) -> Vec<u8> {
    let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let mut data = len.to_be_bytes().to_vec();
    data.extend(rest);
    data
}

fn status_lid1(record: &Record) -> Vec<u8> {
    let status = match record.state {
        State::InForeground => 0,
        State::Completed => 1,
        State::Failed | State::Partial | State::Terminated => 2,
    };
    let mut data = vec![status];
    data.extend(record.segments.to_be_bytes());
    data.push(BYTES);
    data.extend(
        u32::try_from(record.count)
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    sized(data)
}

fn failure_details(record: &Record) -> Vec<u8> {
    if record.sense.is_empty() {
        return vec![0; 4];
    }
    let mut data = vec![0; 52];
    data.extend([record.status, 0]);
    data.extend(u16::try_from(record.sense.len()).unwrap_or(0).to_be_bytes());
    data.extend(&record.sense);
    sized(data)
}

/// The shared status header, without its first four bytes.
fn status_lid4(record: &Record) -> Vec<u8> {
    let (action, units) = match record.origin {
        Origin::Extended(Format::Lid1) => (0x00, BYTES),
        Origin::Extended(Format::Lid4) => (0x01, BYTES),
        Origin::Populate => (0x10, BLOCKS),
        Origin::Write => (0x11, BLOCKS),
    };
    let delay = match record.state {
        State::InForeground => UNKNOWN,
        _ => OVER,
    };
    let sense_len = u8::try_from(record.sense.len()).unwrap_or(0);
    let mut data = vec![action, record.state as u8, 0, 0];
    data.extend(delay.to_be_bytes());
    data.extend([record.status, sense_len, sense_len, units]);
    data.extend(record.count.to_be_bytes());
    data.extend(record.segments.to_be_bytes());
    data.extend([0; 6]);
    data.extend(&record.sense[..usize::from(sense_len)]);
    data
}

fn operating_parameters(block_size: u32) -> Vec<u8> {
    let granularity = granularity(block_size);
    let mut data = vec![0x01, 0, 0, 0]; // SNLID
    data.extend(MAX_CSCDS.to_be_bytes());
    data.extend(MAX_SEGMENTS.to_be_bytes());
    data.extend(MAX_DESCRIPTORS.to_be_bytes());
    data.extend(MAX_SEGMENT.to_be_bytes());
    // No inline data, held data or stream devices.
    data.extend([0; 12]);
    data.extend([0, 0]);
    data.extend(u16::from(MAX_OPERATIONS).to_be_bytes());
    data.push(MAX_OPERATIONS);
    data.extend([granularity, 0, 0]);
    data.extend([0, 0, 0, 3, BLOCK_TO_BLOCK, OFFSET_TO_OFFSET, IDENTIFICATION]);
    sized(data)
}

/// DATA SEGMENT GRANULARITY: the exponent of what a segment is a multiple of.
pub fn granularity(block_size: u32) -> u8 {
    u8::try_from(block_size.trailing_zeros()).unwrap_or(0)
}
