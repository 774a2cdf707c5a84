//! The one table of operation codes: which commands there are, with what is in their CDBs.

use spec::scsi::opcode::{self, service_action};

use super::command::{Cdb, Command, Defects, Extent};
use super::copy::{Format, Request, What};
use super::fault::Fault;
use super::fields::{
    ADDITIONAL_LENGTH, ALL, BYTCHK, DPO, DPO_FUA, DPO_FUAS, GROUP, SAME_NDOB, SAME_UNMAP,
    SERVICE_ACTION_MASK, allocation_32, be16, be32, be64, extent_6, extent_10, extent_12,
    extent_16, extent_32, fua, inquiry, invalid, limited, mode_select, mode_sense, movable,
    read_capacity_10, read_capacity_16, same, start_stop, verify, write_verify,
};
use super::limits::MAX_COMPARE_AND_WRITE;
use super::opcode::{Needs, Opcode};
use super::persistent::{Action, Ask};
use super::upkeep;

/// SCOPE and TYPE where they mean nothing: initiators set them all the same.
const IGNORED: u8 = ALL;

macro_rules! row {
    ($code:ident, [$($usage:expr),* $(,)?], $lun:expr, $parse:expr) => {
        Opcode {
            code: opcode::$code,
            service_action: None,
            usage: &[$($usage),*],
            needs: Needs::Nothing,
            scsi2_lun: $lun,
            parse: $parse,
        }
    };
    ($code:ident / $action:ident, [$($usage:expr),* $(,)?], $parse:expr) => {
        Opcode {
            code: opcode::$code,
            service_action: Some(service_action::$action),
            usage: &[$($usage),*],
            needs: Needs::Nothing,
            scsi2_lun: false,
            parse: $parse,
        }
    };
}

/// A 10-byte command on blocks, with these bits in byte 1.
macro_rules! blocks_10 {
    ($code:ident, $flags:expr, $lun:expr, $parse:expr) => {
        row!(
            $code,
            [$flags, ALL, ALL, ALL, ALL, GROUP, ALL, ALL, 0],
            $lun,
            $parse
        )
    };
}

/// A 12-byte command on blocks.
macro_rules! blocks_12 {
    ($code:ident, $flags:expr, $parse:expr) => {
        row!(
            $code,
            [$flags, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, GROUP, 0],
            false,
            $parse
        )
    };
}

/// A 16-byte command on blocks.
macro_rules! blocks_16 {
    ($code:ident, $flags:expr, $parse:expr) => {
        row!(
            $code,
            [
                $flags, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, GROUP, 0
            ],
            false,
            $parse
        )
    };
}

/// A 32-byte command on blocks: control, group, additional length, service action, flags, LBA,
/// expected tags (which only protection information gives a meaning), length.
macro_rules! blocks_32 {
    ($action:ident, $flags:expr, $parse:expr) => {
        row!(
            VARIABLE_LENGTH / $action,
            [
                0,
                0,
                0,
                0,
                0,
                GROUP,
                ADDITIONAL_LENGTH,
                0,
                0,
                $flags,
                0,
                ALL,
                ALL,
                ALL,
                ALL,
                ALL,
                ALL,
                ALL,
                ALL,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                ALL,
                ALL,
                ALL,
                ALL
            ],
            $parse
        )
    };
}

/// A PERSISTENT RESERVE IN command.
macro_rules! reserve_in {
    ($action:ident, $ask:ident) => {
        row!(
            PERSISTENT_RESERVE_IN / $action,
            [0, 0, 0, 0, 0, 0, ALL, ALL, 0],
            |cdb| {
                Ok(Command::ReserveIn {
                    ask: Ask::$ask,
                    allocation: be16(cdb, 7).into(),
                })
            }
        )
    };
}

/// A PERSISTENT RESERVE OUT command, with the bits of SCOPE and TYPE that it looks at.
macro_rules! reserve_out {
    ($code:ident, $action:ident, $scope_and_type:expr) => {
        row!(
            PERSISTENT_RESERVE_OUT / $code,
            [0, $scope_and_type, 0, 0, ALL, ALL, ALL, ALL, 0],
            |cdb| {
                Ok(Command::ReserveOut {
                    action: Action::$action,
                    scope_and_type: cdb[2],
                    len: allocation_32(cdb, 5),
                })
            }
        )
    };
}

/// A THIRD-PARTY COPY OUT command on a parameter list, with a list identifier in the CDB.
macro_rules! use_token {
    ($action:ident, $request:ident) => {
        row!(
            THIRD_PARTY_COPY_OUT / $action,
            [
                0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, GROUP, 0
            ],
            |cdb| {
                Ok(Command::Copy(Request::$request {
                    list: be32(cdb, 6),
                    len: allocation_32(cdb, 10),
                }))
            }
        )
    };
}

/// An EXTENDED COPY command.
macro_rules! extended_copy {
    ($action:ident, $format:ident) => {
        row!(
            THIRD_PARTY_COPY_OUT / $action,
            [0, 0, 0, 0, 0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
            |cdb| {
                Ok(Command::Copy(Request::Extended {
                    format: Format::$format,
                    len: allocation_32(cdb, 10),
                }))
            }
        )
    };
}

/// A THIRD-PARTY COPY IN command, with a list identifier of one byte or of four.
macro_rules! receive_copy {
    ($action:ident, $what:ident, 1) => {
        row!(
            THIRD_PARTY_COPY_IN / $action,
            [0, ALL, 0, 0, 0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
            |cdb| Ok(receive(cdb, What::$what, cdb[2].into()))
        )
    };
    ($action:ident, $what:ident, 4) => {
        row!(
            THIRD_PARTY_COPY_IN / $action,
            [0, ALL, ALL, ALL, ALL, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
            |cdb| Ok(receive(cdb, What::$what, be32(cdb, 2)))
        )
    };
}

fn receive(cdb: &Cdb, what: What, list: u32) -> Command {
    Command::Copy(Request::Receive {
        what,
        list,
        allocation: allocation_32(cdb, 10),
    })
}

/// Every command there is, in the order of operation codes.
pub const TABLE: &[Opcode] = &[
    row!(TEST_UNIT_READY, [0, 0, 0, 0, 0], true, |_| {
        Ok(Command::TestUnitReady)
    }),
    row!(REQUEST_SENSE, [0x01, 0, 0, ALL, 0], true, |cdb| {
        Ok(Command::RequestSense {
            descriptor: cdb[1] & 1 != 0,
            allocation: cdb[4].into(),
        })
    }),
    upkeep::FORMAT_UNIT,
    upkeep::REASSIGN_BLOCKS,
    row!(READ_6, [0x1f, ALL, ALL, ALL, 0], true, |cdb| {
        Ok(Command::Read(extent_6(cdb)))
    }),
    row!(WRITE_6, [0x1f, ALL, ALL, ALL, 0], true, |cdb| {
        Ok(Command::Write {
            extent: extent_6(cdb),
            fua: false,
        })
    }),
    row!(INQUIRY, [0x01, ALL, ALL, ALL, 0], true, inquiry),
    row!(MODE_SELECT_6, [0x11, 0, 0, ALL, 0], true, |cdb| {
        Ok(mode_select(cdb, false, cdb[4].into()))
    }),
    row!(RESERVE_6, [0, 0, 0, 0, 0], true, |_| Ok(Command::Reserve)),
    row!(RELEASE_6, [0, 0, 0, 0, 0], true, |_| Ok(Command::Release)),
    row!(MODE_SENSE_6, [0x08, ALL, ALL, ALL, 0], true, |cdb| {
        Ok(mode_sense(cdb, false, false, cdb[4].into()))
    }),
    row!(START_STOP_UNIT, [0x01, 0, 0x0f, 0xf7, 0], true, start_stop),
    upkeep::RECEIVE_DIAGNOSTIC_RESULTS,
    upkeep::SEND_DIAGNOSTIC,
    row!(
        PREVENT_ALLOW_MEDIUM_REMOVAL,
        [0, 0, 0, 0x03, 0],
        true,
        |cdb| {
            Ok(Command::PreventAllowRemoval {
                prevent: cdb[4] & 0x03 != 0,
            })
        }
    ),
    row!(
        READ_CAPACITY_10,
        [0, ALL, ALL, ALL, ALL, 0, 0, 0x01, 0],
        true,
        read_capacity_10
    ),
    blocks_10!(READ_10, DPO_FUAS, false, |cdb| Ok(Command::Read(
        extent_10(cdb)
    ))),
    blocks_10!(WRITE_10, DPO_FUAS, false, |cdb| {
        Ok(Command::Write {
            extent: extent_10(cdb),
            fua: fua(cdb[1]),
        })
    }),
    blocks_10!(WRITE_AND_VERIFY_10, DPO | BYTCHK, false, |cdb| {
        write_verify(extent_10(cdb), 1, cdb[1])
    }),
    blocks_10!(VERIFY_10, DPO | BYTCHK, false, |cdb| {
        verify(extent_10(cdb), 1, cdb[1])
    }),
    blocks_10!(PRE_FETCH_10, 0x02, false, |cdb| {
        Ok(Command::Prefetch(extent_10(cdb)))
    }),
    blocks_10!(SYNCHRONIZE_CACHE_10, 0x06, true, |cdb| {
        Ok(Command::Synchronize(extent_10(cdb)))
    }),
    row!(
        READ_DEFECT_DATA_10,
        [0, 0x1f, 0, 0, 0, 0, ALL, ALL, 0],
        true,
        |cdb| {
            Ok(Command::ReadDefects(Defects {
                long: false,
                wanted: cdb[2],
                allocation: be16(cdb, 7).into(),
            }))
        }
    ),
    upkeep::WRITE_BUFFER,
    upkeep::READ_BUFFER,
    Opcode {
        needs: Needs::ThinToUnmap,
        ..blocks_10!(WRITE_SAME_10, SAME_UNMAP, false, |cdb| {
            Ok(same(extent_10(cdb), 7, cdb[1] & !SAME_NDOB))
        })
    },
    Opcode {
        needs: Needs::Thin,
        ..row!(UNMAP, [0, 0, 0, 0, 0, GROUP, ALL, ALL, 0], false, |cdb| {
            Ok(Command::Unmap {
                len: be16(cdb, 7).into(),
            })
        })
    },
    upkeep::SANITIZE_OVERWRITE,
    upkeep::SANITIZE_BLOCK_ERASE,
    upkeep::SANITIZE_EXIT_FAILURE_MODE,
    upkeep::LOG_SELECT,
    upkeep::LOG_SENSE,
    row!(
        MODE_SELECT_10,
        [0x11, 0, 0, 0, 0, 0, ALL, ALL, 0],
        true,
        |cdb| Ok(mode_select(cdb, true, be16(cdb, 7).into()))
    ),
    row!(RESERVE_10, [0, 0, 0, 0, 0, 0, 0, 0, 0], true, |_| Ok(
        Command::Reserve
    )),
    row!(RELEASE_10, [0, 0, 0, 0, 0, 0, 0, 0, 0], true, |_| Ok(
        Command::Release
    )),
    row!(
        MODE_SENSE_10,
        [0x18, ALL, ALL, 0, 0, 0, ALL, ALL, 0],
        true,
        |cdb| {
            let long_lba = cdb[1] & 0x10 != 0;
            Ok(mode_sense(cdb, true, long_lba, be16(cdb, 7).into()))
        }
    ),
    reserve_in!(READ_KEYS, Keys),
    reserve_in!(READ_RESERVATION, Reservation),
    reserve_in!(REPORT_CAPABILITIES, Capabilities),
    reserve_in!(READ_FULL_STATUS, FullStatus),
    reserve_out!(REGISTER, Register, IGNORED),
    reserve_out!(RESERVE, Reserve, ALL),
    reserve_out!(RELEASE, Release, ALL),
    reserve_out!(CLEAR, Clear, IGNORED),
    reserve_out!(PREEMPT, Preempt, ALL),
    reserve_out!(PREEMPT_AND_ABORT, PreemptAndAbort, ALL),
    reserve_out!(REGISTER_AND_IGNORE_EXISTING_KEY, RegisterAndIgnore, IGNORED),
    reserve_out!(REGISTER_AND_MOVE, RegisterAndMove, IGNORED),
    blocks_32!(READ_32, DPO_FUAS, |cdb| {
        Ok(Command::Read(movable(extent_32(cdb)?, 28)?))
    }),
    blocks_32!(VERIFY_32, DPO | BYTCHK, |cdb| {
        verify(extent_32(cdb)?, 28, cdb[10])
    }),
    blocks_32!(WRITE_32, DPO_FUAS, |cdb| {
        Ok(Command::Write {
            extent: movable(extent_32(cdb)?, 28)?,
            fua: fua(cdb[10]),
        })
    }),
    blocks_32!(WRITE_AND_VERIFY_32, DPO | BYTCHK, |cdb| {
        write_verify(extent_32(cdb)?, 28, cdb[10])
    }),
    Opcode {
        needs: Needs::ThinToUnmap,
        ..blocks_32!(WRITE_SAME_32, SAME_UNMAP | SAME_NDOB, |cdb| {
            Ok(same(extent_32(cdb)?, 28, cdb[10]))
        })
    },
    extended_copy!(EXTENDED_COPY_LID1, Lid1),
    extended_copy!(EXTENDED_COPY_LID4, Lid4),
    use_token!(POPULATE_TOKEN, Populate),
    use_token!(WRITE_USING_TOKEN, Write),
    row!(
        THIRD_PARTY_COPY_OUT / COPY_OPERATION_ABORT,
        [0, ALL, ALL, ALL, ALL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        |cdb| Ok(Command::Copy(Request::Abort { list: be32(cdb, 2) }))
    ),
    receive_copy!(RECEIVE_COPY_STATUS_LID1, StatusLid1, 1),
    receive_copy!(RECEIVE_COPY_DATA_LID1, DataLid1, 1),
    receive_copy!(RECEIVE_COPY_OPERATING_PARAMETERS, OperatingParameters, 1),
    receive_copy!(RECEIVE_COPY_FAILURE_DETAILS_LID1, FailureDetails, 1),
    receive_copy!(RECEIVE_COPY_STATUS_LID4, StatusLid4, 4),
    receive_copy!(RECEIVE_COPY_DATA_LID4, DataLid4, 4),
    receive_copy!(RECEIVE_ROD_TOKEN_INFORMATION, Token, 4),
    blocks_16!(READ_16, DPO_FUAS, |cdb| {
        Ok(Command::Read(movable(extent_16(cdb), 10)?))
    }),
    row!(
        COMPARE_AND_WRITE,
        [
            DPO_FUAS, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0, 0, ALL, GROUP, 0
        ],
        false,
        |cdb| {
            let extent = Extent {
                lba: be64(cdb, 2),
                blocks: cdb[13].into(),
            };
            let extent = limited(extent, MAX_COMPARE_AND_WRITE.into(), 13)?;
            Ok(Command::CompareAndWrite(extent))
        }
    ),
    blocks_16!(WRITE_16, DPO_FUAS, |cdb| {
        Ok(Command::Write {
            extent: movable(extent_16(cdb), 10)?,
            fua: fua(cdb[1]),
        })
    }),
    blocks_16!(ORWRITE_16, DPO_FUAS, |cdb| {
        Ok(Command::Or {
            extent: movable(extent_16(cdb), 10)?,
            fua: fua(cdb[1]),
        })
    }),
    blocks_16!(WRITE_AND_VERIFY_16, DPO | BYTCHK, |cdb| {
        write_verify(extent_16(cdb), 10, cdb[1])
    }),
    blocks_16!(VERIFY_16, DPO | BYTCHK, |cdb| {
        verify(extent_16(cdb), 10, cdb[1])
    }),
    blocks_16!(PRE_FETCH_16, 0x02, |cdb| {
        Ok(Command::Prefetch(extent_16(cdb)))
    }),
    blocks_16!(SYNCHRONIZE_CACHE_16, 0x06, |cdb| {
        Ok(Command::Synchronize(extent_16(cdb)))
    }),
    Opcode {
        needs: Needs::ThinToUnmap,
        ..blocks_16!(WRITE_SAME_16, SAME_UNMAP | SAME_NDOB, |cdb| {
            Ok(same(extent_16(cdb), 10, cdb[1]))
        })
    },
    Opcode {
        needs: Needs::Atomic,
        // ATOMIC BOUNDARY has to be 0, as MAXIMUM ATOMIC BOUNDARY SIZE says.
        ..row!(
            WRITE_ATOMIC_16,
            [
                DPO_FUA, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0, ALL, ALL, GROUP, 0
            ],
            false,
            |cdb| {
                Ok(Command::WriteAtomic {
                    extent: Extent {
                        lba: be64(cdb, 2),
                        blocks: be16(cdb, 12).into(),
                    },
                    fua: fua(cdb[1]),
                })
            }
        )
    },
    row!(
        SERVICE_ACTION_IN_16 / READ_CAPACITY_16,
        [
            0, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0x01, 0
        ],
        read_capacity_16
    ),
    row!(
        SERVICE_ACTION_IN_16 / GET_LBA_STATUS,
        [
            0, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0
        ],
        |cdb| {
            Ok(Command::LbaStatus {
                lba: be64(cdb, 2),
                allocation: allocation_32(cdb, 10),
            })
        }
    ),
    row!(
        REPORT_LUNS,
        [0, ALL, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
        false,
        |cdb| {
            Ok(Command::ReportLuns {
                select: cdb[2],
                allocation: allocation_32(cdb, 6),
            })
        }
    ),
    upkeep::REPORT_IDENTIFYING_INFORMATION,
    Opcode {
        needs: Needs::Ports,
        ..row!(
            MAINTENANCE_IN / REPORT_TARGET_PORT_GROUPS,
            [0xe0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
            |cdb| {
                // PARAMETER DATA FORMAT: 000b and 001b are defined.
                let format = cdb[1] >> 5;
                if format > 1 {
                    return Err(invalid(1, 7));
                }
                Ok(Command::ReportPortGroups {
                    extended: format == 1,
                    allocation: allocation_32(cdb, 6),
                })
            }
        )
    },
    row!(
        MAINTENANCE_IN / REPORT_SUPPORTED_OPERATION_CODES,
        [0, 0x87, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0],
        |cdb| {
            Ok(Command::ReportOpcodes {
                options: cdb[2] & 7,
                opcode: cdb[3],
                service_action: be16(cdb, 4),
                timeouts: cdb[2] & 0x80 != 0,
                allocation: allocation_32(cdb, 6),
            })
        }
    ),
    row!(
        MAINTENANCE_IN / REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS,
        [0, 0x80, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
        |cdb| {
            Ok(Command::ReportTaskManagement {
                extended: cdb[2] & 0x80 != 0,
                allocation: allocation_32(cdb, 6),
            })
        }
    ),
    upkeep::REPORT_TIMESTAMP,
    upkeep::SET_IDENTIFYING_INFORMATION,
    Opcode {
        needs: Needs::Ports,
        ..row!(
            MAINTENANCE_OUT / SET_TARGET_PORT_GROUPS,
            [0, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
            |cdb| Ok(Command::SetPortGroups {
                len: allocation_32(cdb, 6),
            })
        )
    },
    upkeep::SET_TIMESTAMP,
    blocks_12!(READ_12, DPO_FUAS, |cdb| {
        Ok(Command::Read(movable(extent_12(cdb), 6)?))
    }),
    blocks_12!(WRITE_12, DPO_FUAS, |cdb| {
        Ok(Command::Write {
            extent: movable(extent_12(cdb), 6)?,
            fua: fua(cdb[1]),
        })
    }),
    blocks_12!(WRITE_AND_VERIFY_12, DPO | BYTCHK, |cdb| {
        write_verify(extent_12(cdb), 6, cdb[1])
    }),
    blocks_12!(VERIFY_12, DPO | BYTCHK, |cdb| {
        verify(extent_12(cdb), 6, cdb[1])
    }),
    row!(
        READ_DEFECT_DATA_12,
        [0x1f, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0],
        false,
        |cdb| {
            Ok(Command::ReadDefects(Defects {
                long: true,
                wanted: cdb[1],
                allocation: allocation_32(cdb, 6),
            }))
        }
    ),
];

/// Index of its first row, with the number of its rows, for every operation code.
const INDEX: [(usize, usize); 256] = index();

const fn index() -> [(usize, usize); 256] {
    let mut index = [(0, 0); 256];
    let mut row = 0;
    while row < TABLE.len() {
        let entry = &mut index[TABLE[row].code as usize];
        if entry.1 == 0 {
            entry.0 = row;
        }
        assert!(entry.0 + entry.1 == row, "rows of a code stand together");
        entry.1 += 1;
        row += 1;
    }
    index
}

/// Bits of the CDB that have no meaning for the only row of an operation code without service
/// actions, as four words: in most commands none of them is set, and that is seen at once.
static STRAYS: [[u64; 4]; 256] = strays();

const fn strays() -> [[u64; 4]; 256] {
    let mut all = [[0; 4]; 256];
    let mut row = 0;
    while row < TABLE.len() {
        let Opcode { code, usage, .. } = &TABLE[row];
        let strays = &mut all[*code as usize];
        let mut at = 0;
        while at < usage.len() {
            let byte = at + 1;
            strays[byte / 8] |= ((!usage[at]) as u64) << (8 * (byte % 8));
            at += 1;
        }
        row += 1;
    }
    all
}

/// Whether a CDB of a row without service actions has no bit without a meaning.
#[inline]
pub fn is_clean(cdb: &Cdb) -> bool {
    let strays = &STRAYS[usize::from(cdb[0])];
    let words = cdb.as_chunks::<8>().0.iter();
    let stray = words.zip(strays).fold(0, |all, (word, strays)| {
        all | u64::from_le_bytes(*word) & strays
    });
    stray == 0
}

/// All rows of an operation code.
#[inline]
pub fn rows(code: u8) -> &'static [Opcode] {
    let (first, len) = INDEX[usize::from(code)];
    &TABLE[first..first + len]
}

/// The row of a CDB.
///
/// # Errors
/// [`Fault::InvalidOpcode`] or, for a service action that there is not,
/// [`Fault::InvalidField`].
#[inline]
pub fn find(cdb: &Cdb) -> Result<&'static Opcode, Fault> {
    let rows = rows(cdb[0]);
    let first = rows.first().ok_or(Fault::InvalidOpcode)?;
    if first.service_action.is_none() {
        return Ok(first);
    }
    find_action(cdb, first, rows)
}

/// As [`find`], among rows with service actions.
#[inline(never)]
fn find_action(
    cdb: &Cdb,
    first: &Opcode,
    rows: &'static [Opcode],
) -> Result<&'static Opcode, Fault> {
    // SPC-4 §4.3.4.2: an unsupported service action is an invalid field.
    let (action, unknown) = if first.is_variable() {
        (be16(cdb, 8), invalid(8, 7))
    } else {
        ((cdb[1] & SERVICE_ACTION_MASK).into(), invalid(1, 4))
    };
    rows.iter()
        .find(|row| row.service_action == Some(action))
        .ok_or(unknown)
}
