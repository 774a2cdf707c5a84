//! The rows of these commands in the table of operation codes.

use spec::scsi::opcode::{self, service_action};

use super::{LogPage, Upkeep};
use crate::scsi::command::{Cdb, Command};
use crate::scsi::erase::{FormatUnit, Method, Sanitize};
use crate::scsi::fault::Fault;
use crate::scsi::fields::{ALL, allocation_32, be16, invalid};
use crate::scsi::opcode::{Needs, Opcode};

/// IMMED and AUSE of SANITIZE's byte 1. (Of ZNR nothing is known: there are no zones.)
const SANITIZE_IMMED: u8 = 0x80;
const SANITIZE_AUSE: u8 = 0x20;

/// MODE of READ BUFFER and WRITE BUFFER: echo buffer, and its descriptor.
const ECHO: u8 = 0x0a;
const ECHO_DESCRIPTOR: u8 = 0x0b;

type Parse = fn(&Cdb) -> Result<Command, Fault>;

const fn row(code: u8, usage: &'static [u8], parse: Parse) -> Opcode {
    Opcode {
        code,
        service_action: None,
        usage,
        needs: Needs::Nothing,
        scsi2_lun: false,
        parse,
    }
}

const fn action(
    code: u8,
    service_action: u16,
    usage: &'static [u8],
    needs: Needs,
    parse: Parse,
) -> Opcode {
    Opcode {
        service_action: Some(service_action),
        needs,
        ..row(code, usage, parse)
    }
}

pub const FORMAT_UNIT: Opcode = row(opcode::FORMAT_UNIT, &[0x3f, 0, 0, 0x03, 0], |cdb| {
    // FMTPINFO has no bits in the row: units with protection information take it from the CDB
    // before. CMPLST and DEFECT LIST FORMAT are about a list that has to be empty.
    let has_list = cdb[1] & 0x10 != 0;
    // FFMT: 00b and 01b are understood.
    if cdb[4] & 0x02 != 0 {
        return Err(invalid(4, 1));
    }
    if cdb[1] & 0x0f != 0 && !has_list {
        return Err(invalid(1, 3));
    }
    Ok(Command::Upkeep(Upkeep::FormatUnit(FormatUnit {
        has_list,
        long: cdb[1] & 0x20 != 0,
        fast: cdb[4] & 0x01 != 0,
    })))
});

pub const REASSIGN_BLOCKS: Opcode = row(opcode::REASSIGN_BLOCKS, &[0x03, 0, 0, 0, 0], |cdb| {
    Ok(Command::Upkeep(Upkeep::Reassign {
        long_lba: cdb[1] & 0x02 != 0,
        long_list: cdb[1] & 0x01 != 0,
    }))
});

pub const RECEIVE_DIAGNOSTIC_RESULTS: Opcode = row(
    opcode::RECEIVE_DIAGNOSTIC_RESULTS,
    &[0x01, ALL, ALL, ALL, 0],
    |cdb| {
        let has_page = cdb[1] & 0x01 != 0;
        if !has_page && cdb[2] != 0 {
            return Err(invalid(2, 7));
        }
        Ok(Command::Upkeep(Upkeep::ReceiveDiagnostic {
            page: has_page.then_some(cdb[2]),
            allocation: be16(cdb, 3).into(),
        }))
    },
);

pub const SEND_DIAGNOSTIC: Opcode = row(opcode::SEND_DIAGNOSTIC, &[0x17, 0, ALL, ALL, 0], |cdb| {
    // SELF-TEST CODE has no bits in the row: the default self-test is all there is. DEVOFFL and
    // UNITOFFL would let it do what it does not do.
    Ok(Command::Upkeep(Upkeep::SendDiagnostic {
        self_test: cdb[1] & 0x04 != 0,
        page_format: cdb[1] & 0x10 != 0,
        len: be16(cdb, 3).into(),
    }))
});

pub const WRITE_BUFFER: Opcode = row(
    opcode::WRITE_BUFFER,
    &[0x1f, 0, 0, 0, 0, ALL, ALL, ALL, 0],
    |cdb| {
        // Nothing else may be written: there is no microcode here that tenants could replace.
        if cdb[1] & 0x1f != ECHO {
            return Err(invalid(1, 4));
        }
        Ok(Command::Upkeep(Upkeep::WriteEcho {
            len: length_24(cdb),
        }))
    },
);

pub const READ_BUFFER: Opcode = row(
    opcode::READ_BUFFER,
    &[0x1f, 0, 0, 0, 0, ALL, ALL, ALL, 0],
    |cdb| {
        let allocation = length_24(cdb);
        Ok(Command::Upkeep(match cdb[1] & 0x1f {
            ECHO => Upkeep::ReadEcho { allocation },
            ECHO_DESCRIPTOR => Upkeep::EchoDescriptor { allocation },
            _ => return Err(invalid(1, 4)),
        }))
    },
);

/// A length of three bytes, from byte 6 on.
fn length_24(cdb: &Cdb) -> usize {
    usize::from(cdb[6]) << 16 | usize::from(be16(cdb, 7))
}

const SANITIZE_USAGE: &[u8] = &[SANITIZE_IMMED | SANITIZE_AUSE, 0, 0, 0, 0, 0, ALL, ALL, 0];

fn sanitize(cdb: &Cdb, method: Method) -> Command {
    Command::Upkeep(Upkeep::Sanitize(Sanitize {
        method,
        immediate: cdb[1] & SANITIZE_IMMED != 0,
        unrestricted: cdb[1] & SANITIZE_AUSE != 0,
        len: be16(cdb, 7).into(),
    }))
}

pub const SANITIZE_OVERWRITE: Opcode = action(
    opcode::SANITIZE,
    service_action::SANITIZE_OVERWRITE,
    SANITIZE_USAGE,
    Needs::State,
    |cdb| Ok(sanitize(cdb, Method::Overwrite)),
);

pub const SANITIZE_BLOCK_ERASE: Opcode = action(
    opcode::SANITIZE,
    service_action::SANITIZE_BLOCK_ERASE,
    SANITIZE_USAGE,
    Needs::State,
    |cdb| Ok(sanitize(cdb, Method::BlockErase)),
);

pub const SANITIZE_EXIT_FAILURE_MODE: Opcode = action(
    opcode::SANITIZE,
    service_action::SANITIZE_EXIT_FAILURE_MODE,
    SANITIZE_USAGE,
    Needs::State,
    |cdb| {
        let len = be16(cdb, 7).into();
        Ok(Command::Upkeep(Upkeep::ExitFailureMode { len }))
    },
);

pub const LOG_SELECT: Opcode = row(
    opcode::LOG_SELECT,
    &[0x03, ALL, ALL, 0, 0, 0, ALL, ALL, 0],
    |cdb| {
        // SP: nothing can be saved.
        if cdb[1] & 0x01 != 0 {
            return Err(invalid(1, 0));
        }
        Ok(Command::Upkeep(Upkeep::LogSelect {
            reset: cdb[1] & 0x02 != 0,
            page: cdb[2] & 0x3f,
            subpage: cdb[3],
            len: be16(cdb, 7).into(),
        }))
    },
);

pub const LOG_SENSE: Opcode = row(
    opcode::LOG_SENSE,
    &[0, ALL, ALL, 0, ALL, ALL, ALL, ALL, 0],
    |cdb| {
        Ok(Command::Upkeep(Upkeep::LogSense(LogPage {
            control: cdb[2] >> 6,
            page: cdb[2] & 0x3f,
            subpage: cdb[3],
            pointer: be16(cdb, 5),
            allocation: be16(cdb, 7).into(),
        })))
    },
);

/// IDENTIFYING INFORMATION TYPE of byte 10.
const TYPE: u8 = 0xfe;

pub const REPORT_IDENTIFYING_INFORMATION: Opcode = action(
    opcode::MAINTENANCE_IN,
    service_action::REPORT_IDENTIFYING_INFORMATION,
    &[0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, TYPE, 0],
    Needs::State,
    |cdb| {
        Ok(Command::Upkeep(Upkeep::ReportIdentifying {
            kind: cdb[10] >> 1,
            allocation: allocation_32(cdb, 6),
        }))
    },
);

pub const SET_IDENTIFYING_INFORMATION: Opcode = action(
    opcode::MAINTENANCE_OUT,
    service_action::SET_IDENTIFYING_INFORMATION,
    &[0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, TYPE, 0],
    Needs::State,
    |cdb| {
        Ok(Command::Upkeep(Upkeep::SetIdentifying {
            kind: cdb[10] >> 1,
            len: allocation_32(cdb, 6),
        }))
    },
);

pub const REPORT_TIMESTAMP: Opcode = action(
    opcode::MAINTENANCE_IN,
    service_action::REPORT_TIMESTAMP,
    &[0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
    Needs::Nothing,
    |cdb| {
        Ok(Command::Upkeep(Upkeep::ReportTimestamp {
            allocation: allocation_32(cdb, 6),
        }))
    },
);

pub const SET_TIMESTAMP: Opcode = action(
    opcode::MAINTENANCE_OUT,
    service_action::SET_TIMESTAMP,
    &[0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
    Needs::Nothing,
    |cdb| {
        Ok(Command::Upkeep(Upkeep::SetTimestamp {
            len: allocation_32(cdb, 6),
        }))
    },
);
