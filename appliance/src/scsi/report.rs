//! What the unit reports of itself: capacity and operation codes.

use super::command::Command;
use super::fault::Fault;
use super::table::{Opcode, TABLE};
use crate::disk::Geometry;

/// READ CAPACITY(10) data (SBC-3 §5.15).
pub fn capacity_10(geometry: &Geometry) -> Vec<u8> {
    // More than 32 bits of LBA: all ones, "use READ CAPACITY(16)".
    let last = u32::try_from(geometry.blocks - 1).unwrap_or(u32::MAX);
    [last.to_be_bytes(), geometry.block_size.to_be_bytes()].concat()
}

/// READ CAPACITY(16) data (SBC-3 §5.16).
pub fn capacity_16(geometry: &Geometry) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[0..8].copy_from_slice(&(geometry.blocks - 1).to_be_bytes());
    data[8..12].copy_from_slice(&geometry.block_size.to_be_bytes());
    // LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT, four bits.
    let per_physical = geometry.physical_block_size / geometry.block_size;
    let exponent = per_physical.checked_ilog2().unwrap_or(0).min(15);
    data[13] = u8::try_from(exponent).unwrap_or(0);
    data
}

/// Data for a [`Command::ReportOpcodes`] (SPC-4 §6.35).
pub fn opcodes(command: &Command) -> Result<Vec<u8>, Fault> {
    let Command::ReportOpcodes {
        options,
        opcode,
        service_action,
        timeouts,
        ..
    } = *command
    else {
        return Err(Fault::InvalidOpcode);
    };
    if options == 0 {
        return Ok(all(timeouts));
    }
    let mut with_code = TABLE.iter().filter(|row| row.code == opcode).peekable();
    let known = with_code.peek();
    let has_actions = known.is_some_and(|row| row.service_action.is_some());
    let is_known = known.is_some();
    let wanted = with_code.find(|row| match row.service_action {
        None => options == 1 || options == 3 && service_action == 0,
        Some(action) => options != 1 && action == service_action,
    });
    let wrong_field = match options {
        1 => has_actions,
        2 => is_known && !has_actions,
        3 => false,
        _ => return Err(Fault::InvalidField { byte: 2, bit: 2 }),
    };
    if wrong_field {
        // With or without a service action, against what the operation code has.
        return Err(Fault::InvalidField { byte: 3, bit: 7 });
    }
    Ok(one(wanted, timeouts))
}

/// All_commands parameter data.
fn all(timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for row in TABLE {
        let action = row.service_action.unwrap_or(0);
        let flags = u8::from(row.service_action.is_some()) | u8::from(timeouts) << 1;
        list.extend([row.code, 0]);
        list.extend(action.to_be_bytes());
        list.extend([0, flags]);
        list.extend(cdb_len(row).to_be_bytes());
        if timeouts {
            list.extend(no_timeouts());
        }
    }
    let len = u32::try_from(list.len()).unwrap_or(u32::MAX);
    let mut data = len.to_be_bytes().to_vec();
    data.extend(list);
    data
}

/// One_command parameter data.
fn one(row: Option<&Opcode>, timeouts: bool) -> Vec<u8> {
    let Some(row) = row else {
        return vec![0, 0x01, 0, 0]; // SUPPORT: not supported
    };
    // SUPPORT: supported as the standard says; CTDP.
    let mut data = vec![0, 0x03 | u8::from(timeouts) << 7];
    data.extend(cdb_len(row).to_be_bytes());
    data.extend(row.usage_data());
    if timeouts {
        data.extend(no_timeouts());
    }
    data
}

fn cdb_len(row: &Opcode) -> u16 {
    u16::try_from(row.cdb_len()).unwrap_or(0)
}

/// A command timeouts descriptor that names none.
const fn no_timeouts() -> [u8; 12] {
    [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}
