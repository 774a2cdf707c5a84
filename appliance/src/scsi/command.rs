//! Commands: the one table of operation codes, by which a CDB becomes a closed type.

use spec::scsi::opcode::{self, service_action};

use super::fault::Fault;

/// A CDB as it comes from the initiator, padded with zeros.
pub type Cdb = [u8; 32];

/// Blocks that a command names; not checked against any disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First logical block address.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u32,
}

/// A command with its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptor: bool,
        allocation: usize,
    },
    /// `page` is `None` for the standard data.
    Inquiry {
        page: Option<u8>,
        allocation: usize,
    },
    ReportLuns {
        select: u8,
        allocation: usize,
    },
    ModeSense {
        /// The 10-byte command, with its longer header.
        long: bool,
        /// Block descriptors of 16 bytes are welcome.
        long_lba: bool,
        no_block_descriptor: bool,
        /// PC: current, changeable, default, saved.
        control: u8,
        page: u8,
        subpage: u8,
        allocation: usize,
    },
    StartStop {
        /// The cache is to be flushed before anything else.
        flush: bool,
    },
    PreventAllowRemoval,
    ReadCapacity10,
    ReadCapacity16 {
        allocation: usize,
    },
    Read(Extent),
    Write {
        extent: Extent,
        fua: bool,
    },
    Synchronize(Extent),
    ReportOpcodes {
        /// REPORTING OPTIONS.
        options: u8,
        opcode: u8,
        service_action: u16,
        timeouts: bool,
        allocation: usize,
    },
}

/// A row of the table.
pub struct Opcode {
    pub code: u8,
    pub service_action: Option<u8>,
    /// CDB usage data (SPC-4 §6.35.3) after the operation code and without the service action:
    /// the bits that have a meaning here. The CDB is one byte longer.
    usage: &'static [u8],
    /// Whether byte 1 may still carry a LUN in its upper bits, as SCSI-2 had it: some firmware
    /// puts it there.
    scsi2_lun: bool,
    parse: fn(&Cdb) -> Result<Command, Fault>,
}

/// Most blocks that one read or write moves: one more than the 10-byte commands can ask for.
pub const MAX_TRANSFER: u32 = 65536;

/// FUA and DPO of byte 1.
const DPO_FUA: u8 = 0x18;
/// GROUP NUMBER, which needs no grouping function to be ignored (SBC-3 §4.22).
const GROUP: u8 = 0x1f;

macro_rules! row {
    ($code:ident, [$($usage:expr),*], $lun:expr, $parse:expr) => {
        Opcode {
            code: opcode::$code,
            service_action: None,
            usage: &[$($usage),*],
            scsi2_lun: $lun,
            parse: $parse,
        }
    };
    ($code:ident / $action:ident, [$($usage:expr),*], $parse:expr) => {
        Opcode {
            code: opcode::$code,
            service_action: Some(service_action::$action),
            usage: &[$($usage),*],
            scsi2_lun: false,
            parse: $parse,
        }
    };
}

/// Every command there is, in the order of operation codes.
pub const TABLE: &[Opcode] = &[
    row!(TEST_UNIT_READY, [0, 0, 0, 0, 0], true, |_| {
        Ok(Command::TestUnitReady)
    }),
    row!(REQUEST_SENSE, [0x01, 0, 0, 0xff, 0], true, |cdb| {
        Ok(Command::RequestSense {
            descriptor: cdb[1] & 1 != 0,
            allocation: cdb[4].into(),
        })
    }),
    row!(READ_6, [0x1f, 0xff, 0xff, 0xff, 0], true, |cdb| {
        Ok(Command::Read(extent_6(cdb)))
    }),
    row!(WRITE_6, [0x1f, 0xff, 0xff, 0xff, 0], true, |cdb| {
        Ok(Command::Write {
            extent: extent_6(cdb),
            fua: false,
        })
    }),
    row!(INQUIRY, [0x01, 0xff, 0xff, 0xff, 0], true, inquiry),
    row!(MODE_SENSE_6, [0x08, 0xff, 0xff, 0xff, 0], true, |cdb| {
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
        [0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0],
        true,
        read_capacity_10
    ),
    row!(
        READ_10,
        [DPO_FUA, 0xff, 0xff, 0xff, 0xff, GROUP, 0xff, 0xff, 0],
        false,
        |cdb| Ok(Command::Read(extent_10(cdb)))
    ),
    row!(
        WRITE_10,
        [DPO_FUA, 0xff, 0xff, 0xff, 0xff, GROUP, 0xff, 0xff, 0],
        false,
        |cdb| {
            Ok(Command::Write {
                extent: extent_10(cdb),
                fua: fua(cdb),
            })
        }
    ),
    row!(
        SYNCHRONIZE_CACHE_10,
        [0x06, 0xff, 0xff, 0xff, 0xff, GROUP, 0xff, 0xff, 0],
        true,
        |cdb| Ok(Command::Synchronize(extent_10(cdb)))
    ),
    row!(
        MODE_SENSE_10,
        [0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0],
        true,
        |cdb| {
            let long_lba = cdb[1] & 0x10 != 0;
            Ok(mode_sense(cdb, true, long_lba, be16(cdb, 7).into()))
        }
    ),
    row!(
        READ_16,
        [
            DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP,
            0
        ],
        false,
        |cdb| Ok(Command::Read(limited(extent_16(cdb), 10)?))
    ),
    row!(
        WRITE_16,
        [
            DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP,
            0
        ],
        false,
        |cdb| {
            Ok(Command::Write {
                extent: limited(extent_16(cdb), 10)?,
                fua: fua(cdb),
            })
        }
    ),
    row!(
        SYNCHRONIZE_CACHE_16,
        [
            0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP, 0
        ],
        false,
        |cdb| Ok(Command::Synchronize(extent_16(cdb)))
    ),
    row!(
        SERVICE_ACTION_IN_16 / READ_CAPACITY_16,
        [
            0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0
        ],
        read_capacity_16
    ),
    row!(
        REPORT_LUNS,
        [0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
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
        [0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
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
        READ_12,
        [
            DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP, 0
        ],
        false,
        |cdb| Ok(Command::Read(limited(extent_12(cdb), 6)?))
    ),
    row!(
        WRITE_12,
        [
            DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP, 0
        ],
        false,
        |cdb| {
            Ok(Command::Write {
                extent: limited(extent_12(cdb), 6)?,
                fua: fua(cdb),
            })
        }
    ),
];

/// Where the service action is, in the commands of the table that have one.
const SERVICE_ACTION_MASK: u8 = 0x1f;

impl Command {
    /// The command in a CDB.
    ///
    /// # Errors
    /// [`Fault::InvalidOpcode`] if the table does not have it, [`Fault::InvalidField`] for a bit
    /// that is set but has no meaning here (the control byte's NACA among them), or a field that
    /// asks for what there is not.
    pub fn parse(cdb: &Cdb) -> Result<Self, Fault> {
        let mut service_actions = false;
        let row = TABLE.iter().find(|row| {
            row.code == cdb[0]
                && row.service_action.is_none_or(|action| {
                    service_actions = true;
                    action == cdb[1] & SERVICE_ACTION_MASK
                })
        });
        let Some(row) = row else {
            return Err(if service_actions {
                // SPC-4 §4.3.4.2: an unsupported service action is an invalid field.
                Fault::InvalidField { byte: 1, bit: 4 }
            } else {
                Fault::InvalidOpcode
            });
        };
        for (byte, (&bits, &meaning)) in (1..).zip(cdb[1..].iter().zip(row.usage)) {
            let mut allowed = meaning;
            if byte == 1 {
                allowed |= match row.service_action {
                    Some(_) => SERVICE_ACTION_MASK,
                    None if row.scsi2_lun => 0xe0,
                    None => 0,
                };
            }
            let wrong = bits & !allowed;
            if let Some(bit) = wrong.checked_ilog2() {
                return Err(invalid(byte, bit));
            }
        }
        (row.parse)(cdb)
    }
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
        if let Some(action) = self.service_action {
            data[1] = action;
        }
        data
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

/// The extent, unless it is longer than a transfer may be; `byte` is where its length stands.
fn limited(extent: Extent, byte: u8) -> Result<Extent, Fault> {
    // SBC-3 §6.6.3: more than MAXIMUM TRANSFER LENGTH is an invalid field.
    if extent.blocks > MAX_TRANSFER {
        return Err(invalid(byte, 7));
    }
    Ok(extent)
}

const fn fua(cdb: &Cdb) -> bool {
    cdb[1] & 0x08 != 0
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
    Command::ModeSense {
        long,
        long_lba,
        no_block_descriptor: cdb[1] & 0x08 != 0,
        control: cdb[2] >> 6,
        page: cdb[2] & 0x3f,
        subpage: cdb[3],
        allocation,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cdb(bytes: &[u8]) -> Cdb {
        let mut cdb = [0; 32];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    fn parse(bytes: &[u8]) -> Result<Command, Fault> {
        Command::parse(&cdb(bytes))
    }

    fn read(lba: u64, blocks: u32) -> Result<Command, Fault> {
        Ok(Command::Read(Extent { lba, blocks }))
    }

    #[test]
    fn reads_of_every_length_name_their_blocks() {
        assert_eq!(parse(&[0x08, 0x1f, 2, 3, 4, 0]), read(0x1f_0203, 4));
        assert_eq!(parse(&[0x08, 0, 0, 1, 0, 0]), read(1, 256));
        assert_eq!(
            parse(&[0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]),
            read(0x0102_0304, 0x0506)
        );
        assert_eq!(
            parse(&[0xa8, 0, 1, 2, 3, 4, 0, 0, 7, 8, 0, 0]),
            read(0x0102_0304, 0x0708)
        );
        assert_eq!(
            parse(&[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 11, 12, 0, 0]),
            read(0x0102_0304_0506_0708, 0x0b0c)
        );
    }

    #[test]
    fn a_transfer_longer_than_the_limit_is_an_invalid_field() {
        assert_eq!(
            parse(&[0xa8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]),
            Err(Fault::InvalidField { byte: 6, bit: 7 })
        );
        assert_eq!(
            parse(&[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0]),
            Err(Fault::InvalidField { byte: 10, bit: 7 })
        );
        assert_eq!(
            parse(&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
            read(0, 65536)
        );
    }

    #[test]
    fn force_unit_access_is_heard() {
        let write = |fua| {
            Ok(Command::Write {
                extent: Extent { lba: 0, blocks: 1 },
                fua,
            })
        };
        assert_eq!(parse(&[0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0]), write(true));
        assert_eq!(parse(&[0x2a, 0x10, 0, 0, 0, 0, 0, 0, 1, 0]), write(false));
    }

    #[test]
    fn protection_and_naca_are_invalid_fields() {
        assert_eq!(
            parse(&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0]),
            Err(Fault::InvalidField { byte: 1, bit: 5 })
        );
        assert_eq!(
            parse(&[0x00, 0, 0, 0, 0, 0x04]),
            Err(Fault::InvalidField { byte: 5, bit: 2 })
        );
    }

    #[test]
    fn a_scsi_2_lun_in_byte_1_does_no_harm() {
        assert_eq!(parse(&[0x00, 0xe0, 0, 0, 0, 0]), Ok(Command::TestUnitReady));
        assert_eq!(
            parse(&[0x12, 0x20, 0, 0, 36, 0]),
            Ok(Command::Inquiry {
                page: None,
                allocation: 36
            })
        );
    }

    #[test]
    fn what_the_table_lacks_is_no_command() {
        assert_eq!(parse(&[0x83]), Err(Fault::InvalidOpcode));
        assert_eq!(
            parse(&[0xa3, 0x0a]),
            Err(Fault::InvalidField { byte: 1, bit: 4 })
        );
    }

    #[test]
    fn bytes_after_the_cdb_do_not_matter() {
        assert_eq!(
            parse(&[0x00, 0, 0, 0, 0, 0, 0xff, 0xff]),
            Ok(Command::TestUnitReady)
        );
    }

    #[test]
    fn the_table_is_in_order_and_has_lengths_by_group() {
        let keys: Vec<_> = TABLE
            .iter()
            .map(|row| (row.code, row.service_action))
            .collect();
        assert!(keys.is_sorted());
        for row in TABLE {
            // SPC-4 §4.2.5.1: the group code says how long the CDB is.
            let len = match row.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("group {group}"),
            };
            assert_eq!(row.cdb_len(), len, "{:#x}", row.code);
        }
    }

    proptest! {
        #[test]
        fn no_cdb_makes_the_parser_panic(bytes: [u8; 32]) {
            let _ = Command::parse(&bytes);
        }
    }
}
