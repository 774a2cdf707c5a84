//! The one table of operation codes: which commands there are, which bits of their CDBs mean
//! something, and how they are read.

use spec::scsi::opcode::{self, service_action};

use super::command::{Cdb, Check, Command, Defects, Extent, ModePages, Same};
use super::fault::Fault;
use super::limits::MAX_TRANSFER;

/// A row of the table.
pub struct Opcode {
    pub code: u8,
    pub service_action: Option<u16>,
    /// CDB usage data (SPC-4 §6.35.3) after the operation code and without the service action:
    /// the bits that have a meaning here. The CDB is one byte longer.
    usage: &'static [u8],
    /// Whether byte 1 may still carry a LUN in its upper bits, as SCSI-2 had it: some firmware
    /// puts it there.
    scsi2_lun: bool,
    parse: fn(&Cdb) -> Result<Command, Fault>,
}

/// DPO of byte 1.
const DPO: u8 = 0x10;
/// FUA of byte 1.
const FUA: u8 = 0x08;
const DPO_FUA: u8 = DPO | FUA;
/// BYTCHK of byte 1.
const BYTCHK: u8 = 0x06;
/// GROUP NUMBER, which needs no grouping function to be ignored (SBC-3 §4.22).
const GROUP: u8 = 0x1f;
/// UNMAP, NDOB and ANCHOR of WRITE SAME's byte 1.
const SAME_UNMAP: u8 = 0x08;
const SAME_NDOB: u8 = 0x01;
/// A byte whose every bit means something.
const ALL: u8 = 0xff;

macro_rules! row {
    ($code:ident, [$($usage:expr),* $(,)?], $lun:expr, $parse:expr) => {
        Opcode {
            code: opcode::$code,
            service_action: None,
            usage: &[$($usage),*],
            scsi2_lun: $lun,
            parse: $parse,
        }
    };
    ($code:ident / $action:ident, [$($usage:expr),* $(,)?], $parse:expr) => {
        Opcode {
            code: opcode::$code,
            service_action: Some(service_action::$action),
            usage: &[$($usage),*],
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
                0, 0, 0, 0, 0, GROUP, ALL, 0, 0, $flags, 0, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL,
                0, 0, 0, 0, 0, 0, 0, 0, ALL, ALL, ALL, ALL
            ],
            $parse
        )
    };
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
    row!(
        PREVENT_ALLOW_MEDIUM_REMOVAL,
        [0, 0, 0, 0x03, 0],
        true,
        |_| Ok(Command::PreventAllowRemoval)
    ),
    row!(
        READ_CAPACITY_10,
        [0, ALL, ALL, ALL, ALL, 0, 0, 0x01, 0],
        true,
        read_capacity_10
    ),
    blocks_10!(READ_10, DPO_FUA, false, |cdb| Ok(Command::Read(extent_10(
        cdb
    )))),
    blocks_10!(WRITE_10, DPO_FUA, false, |cdb| {
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
        Ok(Command::Synchronize {
            extent: extent_10(cdb),
            immediate: cdb[1] & 0x02 != 0,
        })
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
    blocks_10!(WRITE_SAME_10, SAME_UNMAP, false, |cdb| {
        Ok(Command::WriteSame(same(
            extent_10(cdb),
            cdb[1] & !SAME_NDOB,
        )))
    }),
    row!(UNMAP, [0, 0, 0, 0, 0, GROUP, ALL, ALL, 0], false, |cdb| {
        Ok(Command::Unmap {
            len: be16(cdb, 7).into(),
        })
    }),
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
    blocks_32!(READ_32, DPO_FUA, |cdb| {
        Ok(Command::Read(limited(extent_32(cdb)?, 28)?))
    }),
    blocks_32!(VERIFY_32, DPO | BYTCHK, |cdb| {
        verify(extent_32(cdb)?, 28, cdb[10])
    }),
    blocks_32!(WRITE_32, DPO_FUA, |cdb| {
        Ok(Command::Write {
            extent: limited(extent_32(cdb)?, 28)?,
            fua: fua(cdb[10]),
        })
    }),
    blocks_32!(WRITE_AND_VERIFY_32, DPO | BYTCHK, |cdb| {
        write_verify(extent_32(cdb)?, 28, cdb[10])
    }),
    blocks_32!(WRITE_SAME_32, SAME_UNMAP | SAME_NDOB, |cdb| {
        Ok(Command::WriteSame(same(extent_32(cdb)?, cdb[10])))
    }),
    blocks_16!(READ_16, DPO_FUA, |cdb| {
        Ok(Command::Read(limited(extent_16(cdb), 10)?))
    }),
    row!(
        COMPARE_AND_WRITE,
        [
            DPO_FUA, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0, 0, ALL, GROUP, 0
        ],
        false,
        |cdb| {
            Ok(Command::CompareAndWrite {
                extent: Extent {
                    lba: be64(cdb, 2),
                    blocks: cdb[13].into(),
                },
                fua: fua(cdb[1]),
            })
        }
    ),
    blocks_16!(WRITE_16, DPO_FUA, |cdb| {
        Ok(Command::Write {
            extent: limited(extent_16(cdb), 10)?,
            fua: fua(cdb[1]),
        })
    }),
    blocks_16!(ORWRITE_16, DPO_FUA, |cdb| {
        Ok(Command::Or {
            extent: limited(extent_16(cdb), 10)?,
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
        Ok(Command::Synchronize {
            extent: extent_16(cdb),
            immediate: cdb[1] & 0x02 != 0,
        })
    }),
    blocks_16!(WRITE_SAME_16, SAME_UNMAP | SAME_NDOB, |cdb| {
        Ok(Command::WriteSame(same(extent_16(cdb), cdb[1])))
    }),
    row!(
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
    ),
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
    blocks_12!(READ_12, DPO_FUA, |cdb| {
        Ok(Command::Read(limited(extent_12(cdb), 6)?))
    }),
    blocks_12!(WRITE_12, DPO_FUA, |cdb| {
        Ok(Command::Write {
            extent: limited(extent_12(cdb), 6)?,
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

/// Where the service action is, in the commands that have one but for the variable length CDB.
const SERVICE_ACTION_MASK: u8 = 0x1f;
/// ADDITIONAL CDB LENGTH of the 32-byte CDBs.
const ADDITIONAL_LENGTH: u8 = 0x18;

/// The row of a CDB.
///
/// # Errors
/// [`Fault::InvalidOpcode`] or, for a service action that there is not,
/// [`Fault::InvalidField`].
pub fn find(cdb: &Cdb) -> Result<&'static Opcode, Fault> {
    let variable = cdb[0] == opcode::VARIABLE_LENGTH;
    let action = if variable {
        be16(cdb, 8)
    } else {
        (cdb[1] & SERVICE_ACTION_MASK).into()
    };
    let mut rows = TABLE.iter().filter(|row| row.code == cdb[0]).peekable();
    let has_actions = rows
        .peek()
        .ok_or(Fault::InvalidOpcode)?
        .service_action
        .is_some();
    rows.find(|row| row.service_action.is_none_or(|code| code == action))
        .ok_or({
            // SPC-4 §4.3.4.2: an unsupported service action is an invalid field.
            match (has_actions, variable) {
                (false, _) => Fault::InvalidOpcode,
                (true, false) => invalid(1, 4),
                (true, true) => invalid(8, 7),
            }
        })
}

impl Opcode {
    /// Bytes of the CDB.
    pub fn cdb_len(&self) -> usize {
        self.usage.len() + 1
    }

    /// The CDB usage data that REPORT SUPPORTED OPERATION CODES returns: operation code, service
    /// action, and a mask of the bits that have a meaning.
    pub fn usage_data(&self) -> Vec<u8> {
        let mut data = vec![self.code];
        data.extend(self.usage);
        match self.service_action {
            Some(action) if self.is_variable() => {
                data[8..10].copy_from_slice(&action.to_be_bytes());
            }
            Some(action) => data[1] = u8::try_from(action).unwrap_or(SERVICE_ACTION_MASK),
            None => {}
        }
        data
    }

    /// Checks that every bit which is set has a meaning.
    ///
    /// # Errors
    /// [`Fault::InvalidField`].
    pub fn check(&self, cdb: &Cdb) -> Result<(), Fault> {
        for (byte, (&bits, &meaning)) in (1..).zip(cdb[1..].iter().zip(self.usage)) {
            let mut allowed = meaning;
            match (byte, self.service_action) {
                (8 | 9, Some(_)) if self.is_variable() => allowed = ALL,
                (1, Some(_)) if !self.is_variable() => allowed |= SERVICE_ACTION_MASK,
                (1, None) if self.scsi2_lun => allowed |= 0xe0,
                _ => {}
            }
            let wrong = bits & !allowed;
            if let Some(bit) = wrong.checked_ilog2() {
                return Err(invalid(byte, bit));
            }
        }
        Ok(())
    }

    /// The command in a CDB of this row.
    ///
    /// # Errors
    /// [`Fault::InvalidField`].
    pub fn parse(&self, cdb: &Cdb) -> Result<Command, Fault> {
        (self.parse)(cdb)
    }

    fn is_variable(&self) -> bool {
        self.code == opcode::VARIABLE_LENGTH
    }
}

fn invalid(byte: u8, bit: u32) -> Fault {
    Fault::InvalidField {
        byte,
        bit: u8::try_from(bit).unwrap_or(7),
    }
}

fn be16(cdb: &Cdb, at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn be32(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

fn be64(cdb: &Cdb, at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// A 4-byte allocation length; what does not fit a `usize` is more than any answer has.
fn allocation_32(cdb: &Cdb, at: usize) -> usize {
    usize::try_from(be32(cdb, at)).unwrap_or(usize::MAX)
}

fn extent_6(cdb: &Cdb) -> Extent {
    Extent {
        lba: u64::from(be32(cdb, 0) & 0x1f_ffff),
        // SBC-3: 0 stands for 256 in the 6-byte commands only.
        blocks: match cdb[4] {
            0 => 256,
            blocks => blocks.into(),
        },
    }
}

fn extent_10(cdb: &Cdb) -> Extent {
    Extent {
        lba: be32(cdb, 2).into(),
        blocks: be16(cdb, 7).into(),
    }
}

fn extent_12(cdb: &Cdb) -> Extent {
    Extent {
        lba: be32(cdb, 2).into(),
        blocks: be32(cdb, 6),
    }
}

fn extent_16(cdb: &Cdb) -> Extent {
    Extent {
        lba: be64(cdb, 2),
        blocks: be32(cdb, 10),
    }
}

fn extent_32(cdb: &Cdb) -> Result<Extent, Fault> {
    if cdb[7] != ADDITIONAL_LENGTH {
        return Err(invalid(7, 7));
    }
    Ok(Extent {
        lba: be64(cdb, 12),
        blocks: be32(cdb, 28),
    })
}

/// The extent, unless it is longer than a transfer may be; `byte` is where its length stands.
fn limited(extent: Extent, byte: u8) -> Result<Extent, Fault> {
    // SBC-3 §6.6.3: more than MAXIMUM TRANSFER LENGTH is an invalid field.
    if extent.blocks > MAX_TRANSFER {
        return Err(invalid(byte, 7));
    }
    Ok(extent)
}

const fn fua(flags: u8) -> bool {
    flags & FUA != 0
}

fn inquiry(cdb: &Cdb) -> Result<Command, Fault> {
    let vital = cdb[1] & 1 != 0;
    if !vital && cdb[2] != 0 {
        // SPC-4 §6.6.1: a page code without EVPD.
        return Err(invalid(2, 7));
    }
    Ok(Command::Inquiry {
        page: vital.then_some(cdb[2]),
        allocation: be16(cdb, 3).into(),
    })
}

fn mode_sense(cdb: &Cdb, long: bool, long_lba: bool, allocation: usize) -> Command {
    Command::ModeSense(ModePages {
        long,
        long_lba,
        no_block_descriptor: cdb[1] & 0x08 != 0,
        control: cdb[2] >> 6,
        page: cdb[2] & 0x3f,
        subpage: cdb[3],
        allocation,
    })
}

const fn mode_select(cdb: &Cdb, long: bool, len: usize) -> Command {
    Command::ModeSelect {
        long,
        page_format: cdb[1] & 0x10 != 0,
        save: cdb[1] & 0x01 != 0,
        len,
    }
}

fn start_stop(cdb: &Cdb) -> Result<Command, Fault> {
    // SBC-3 §5.25: POWER CONDITION, and LOEJ (no removable medium), ask for what there is not.
    if cdb[4] & 0xf0 != 0 {
        return Err(invalid(4, 7));
    }
    if cdb[4] & 0x02 != 0 {
        return Err(invalid(4, 1));
    }
    let (start, no_flush) = (cdb[4] & 1 != 0, cdb[4] & 4 != 0);
    Ok(Command::StartStop {
        start,
        flush: !start && !no_flush,
    })
}

fn read_capacity_10(cdb: &Cdb) -> Result<Command, Fault> {
    // SBC-3 §5.15: without the obsolete PMI bit, the LBA shall be zero.
    if cdb[8] & 1 == 0 && be32(cdb, 2) != 0 {
        return Err(invalid(2, 7));
    }
    Ok(Command::ReadCapacity10)
}

fn read_capacity_16(cdb: &Cdb) -> Result<Command, Fault> {
    if cdb[14] & 1 == 0 && be64(cdb, 2) != 0 {
        return Err(invalid(2, 7));
    }
    Ok(Command::ReadCapacity16 {
        allocation: allocation_32(cdb, 10),
    })
}

/// VERIFY; `byte` is where its length stands in the CDB, `flags` the byte with BYTCHK.
fn verify(extent: Extent, byte: u8, flags: u8) -> Result<Command, Fault> {
    let check = match (flags & BYTCHK) >> 1 {
        0 => Check::Medium,
        1 => Check::Data,
        3 => Check::SameBlock,
        _ => return Err(invalid(flags_byte(byte), 2)),
    };
    let extent = match check {
        Check::Data => limited(extent, byte)?,
        Check::Medium | Check::SameBlock => extent,
    };
    Ok(Command::Verify { extent, check })
}

/// WRITE AND VERIFY: what was written is compared whatever BYTCHK says.
fn write_verify(extent: Extent, byte: u8, flags: u8) -> Result<Command, Fault> {
    // SBC-4, WRITE AND VERIFY(10): 0 and 1 are defined.
    if flags & BYTCHK > 0x02 {
        return Err(invalid(flags_byte(byte), 2));
    }
    Ok(Command::WriteVerify(limited(extent, byte)?))
}

/// Where the flags stand in a CDB whose length stands at `length`.
const fn flags_byte(length: u8) -> u8 {
    if length == 28 { 10 } else { 1 }
}

fn same(extent: Extent, flags: u8) -> Same {
    Same {
        extent,
        unmap: flags & SAME_UNMAP != 0,
        zeros: flags & SAME_NDOB != 0,
    }
}
