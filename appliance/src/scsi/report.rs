//! REPORT SUPPORTED …: what a unit can be asked for.

use std::time::Duration;

use super::command::Command;
use super::fault::Fault;
use super::opcode::{Opcode, Supports};
use super::table::{self, TABLE};

/// Time for an answer to come back, beyond that which the unit takes at most.
const WAY_BACK: Duration = Duration::from_secs(5);

/// What is reported of every command of a unit.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    pub supports: Supports,
    /// How long a command may take before the unit gives it up.
    pub patience: Duration,
}

/// Data for a [`Command::ReportOpcodes`] (SPC-4 §6.35).
pub fn opcodes(command: &Command, unit: Unit) -> Result<Vec<u8>, Fault> {
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
        return Ok(unit.all(timeouts));
    }
    let rows = table::rows(opcode);
    let mut rows = rows
        .iter()
        .filter(|row| row.is_supported(unit.supports))
        .peekable();
    let is_known = rows.peek().is_some();
    let has_actions = rows.peek().is_some_and(|row| row.service_action.is_some());
    let wanted = rows.find(|row| match row.service_action {
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
    Ok(unit.one(wanted, timeouts))
}

/// Data for a [`Command::ReportTaskManagement`] (SPC-4 §6.36).
pub fn task_management(extended: bool, allocation: usize) -> Result<Vec<u8>, Fault> {
    if allocation < 4 {
        return Err(Fault::InvalidField { byte: 6, bit: 7 });
    }
    // ABORT TASK, ABORT TASK SET, CLEAR ACA, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK;
    // QUERY TASK SET, I_T NEXUS RESET.
    let mut data = vec![0xfc, 0x03, 0, 0];
    if extended {
        // TMFTMOV is 0: none of them has a timeout to tell.
        data[3] = 12;
        data.resize(16, 0);
    }
    Ok(data)
}

impl Unit {
    /// All_commands parameter data.
    fn all(self, timeouts: bool) -> Vec<u8> {
        let mut list = Vec::new();
        for row in TABLE.iter().filter(|row| row.is_supported(self.supports)) {
            let action = row.service_action.unwrap_or(0);
            let flags = u8::from(row.service_action.is_some()) | u8::from(timeouts) << 1;
            list.extend([row.code, 0]);
            list.extend(action.to_be_bytes());
            list.extend([0, flags]);
            list.extend(cdb_len(row).to_be_bytes());
            if timeouts {
                list.extend(self.timeouts());
            }
        }
        let len = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let mut data = len.to_be_bytes().to_vec();
        data.extend(list);
        data
    }

    /// One_command parameter data.
    fn one(self, row: Option<&Opcode>, timeouts: bool) -> Vec<u8> {
        let Some(row) = row else {
            return vec![0, 0x01, 0, 0]; // SUPPORT: not supported
        };
        // SUPPORT: supported as the standard says; CTDP.
        let mut data = vec![0, 0x03 | u8::from(timeouts) << 7];
        data.extend(cdb_len(row).to_be_bytes());
        data.extend(row.usage_data(self.supports));
        if timeouts {
            data.extend(self.timeouts());
        }
        data
    }

    /// A command timeouts descriptor: no NOMINAL COMMAND PROCESSING TIMEOUT, since the disk
    /// underneath names none; a RECOMMENDED COMMAND TIMEOUT by which the unit has surely
    /// answered.
    fn timeouts(self) -> [u8; 12] {
        let recommended = self.patience.saturating_add(WAY_BACK);
        let whole = recommended
            .as_secs()
            .saturating_add(u64::from(recommended.subsec_nanos() > 0));
        let [a, b, c, d] = u32::try_from(whole).unwrap_or(u32::MAX).to_be_bytes();
        [0, 10, 0, 0, 0, 0, 0, 0, a, b, c, d]
    }
}

fn cdb_len(row: &Opcode) -> u16 {
    u16::try_from(row.cdb_len()).unwrap_or(0)
}
