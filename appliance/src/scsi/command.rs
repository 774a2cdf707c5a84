//! Commands: a CDB as a closed type.

use super::fault::Fault;
use super::table;

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

/// What VERIFY compares the medium with (SBC-4, VERIFY(10): BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing: the blocks are only to be readable.
    Medium,
    /// Data-out, block by block.
    Data,
    /// The one block in data-out.
    SameBlock,
}

/// What WRITE SAME writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Same {
    /// Where; no blocks means all to the end of the unit.
    pub extent: Extent,
    /// The blocks may be given back, if they read as what is written (UNMAP).
    pub unmap: bool,
    /// Zeros, and no data-out (NDOB).
    pub zeros: bool,
}

/// Which mode pages, and how they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModePages {
    /// The 10-byte command, with its longer header.
    pub long: bool,
    /// Block descriptors of 16 bytes are welcome.
    pub long_lba: bool,
    pub no_block_descriptor: bool,
    /// PC: current, changeable, default, saved.
    pub control: u8,
    pub page: u8,
    pub subpage: u8,
    pub allocation: usize,
}

/// Which defects, and how they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defects {
    /// The 12-byte command, with its longer header.
    pub long: bool,
    /// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT, as they stand in the CDB.
    pub wanted: u8,
    pub allocation: usize,
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
    ModeSense(ModePages),
    ModeSelect {
        /// The 10-byte command, with its longer header.
        long: bool,
        /// PF: the list has pages as the standard defines them.
        page_format: bool,
        save: bool,
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    StartStop {
        start: bool,
        /// The cache is to be flushed before anything else.
        flush: bool,
    },
    PreventAllowRemoval,
    Reserve,
    Release,
    ReadDefects(Defects),
    ReportOpcodes {
        /// REPORTING OPTIONS.
        options: u8,
        opcode: u8,
        service_action: u16,
        timeouts: bool,
        allocation: usize,
    },
    ReportTaskManagement {
        /// REPD: the longer form.
        extended: bool,
        allocation: usize,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: usize,
    },
    LbaStatus {
        lba: u64,
        allocation: usize,
    },
    Read(Extent),
    Write {
        extent: Extent,
        fua: bool,
    },
    WriteAtomic {
        extent: Extent,
        fua: bool,
    },
    WriteVerify(Extent),
    Verify {
        extent: Extent,
        check: Check,
    },
    CompareAndWrite {
        extent: Extent,
        fua: bool,
    },
    Or {
        extent: Extent,
        fua: bool,
    },
    WriteSame(Same),
    Unmap {
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    Prefetch(Extent),
    Synchronize {
        extent: Extent,
        /// GOOD as soon as the command is found to be valid.
        immediate: bool,
    },
}

impl Command {
    /// The command in a CDB.
    ///
    /// # Errors
    /// [`Fault::InvalidOpcode`] if the table does not have it, [`Fault::InvalidField`] for a bit
    /// that is set but has no meaning here (the control byte's NACA among them), or a field that
    /// asks for what there is not.
    pub fn parse(cdb: &Cdb) -> Result<Self, Fault> {
        let row = table::find(cdb)?;
        row.check(cdb)?;
        row.parse(cdb)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table::TABLE;
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
