use proptest::prelude::*;

use super::super::table::{TABLE, rows};
use super::*;

fn cdb(bytes: &[u8]) -> Cdb {
    let mut cdb = [0; 32];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn parse(bytes: &[u8]) -> Result<Command, Fault> {
    Command::parse(&cdb(bytes))
}

/// A 32-byte CDB with this service action, these flags, LBA 0x0102030405060708 and 9 blocks.
fn cdb_32(action: u8, flags: u8) -> Cdb {
    let mut cdb = cdb(&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, action, flags, 0]);
    cdb[12..20].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    cdb[31] = 9;
    cdb
}

const EXTENT_32: Extent = Extent {
    lba: 0x0102_0304_0506_0708,
    blocks: 9,
};

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
    assert_eq!(Command::parse(&cdb_32(9, 0)), Ok(Command::Read(EXTENT_32)));
}

#[test]
fn commands_of_32_bytes_are_told_apart_by_their_service_action() {
    let parsed = |action, flags| Command::parse(&cdb_32(action, flags)).unwrap();
    assert_eq!(
        parsed(0x0a, 0x06),
        Command::Verify {
            extent: EXTENT_32,
            check: Check::SameBlock
        }
    );
    assert_eq!(
        parsed(0x0b, 0x18),
        Command::Write {
            extent: EXTENT_32,
            fua: true
        }
    );
    assert_eq!(parsed(0x0c, 0x02), Command::WriteVerify(EXTENT_32));
    assert_eq!(
        parsed(0x0d, 0x09),
        Command::WriteSame(Same {
            extent: EXTENT_32,
            unmap: true,
            zeros: true,
            flags_at: 10,
            blocks_at: 28,
        })
    );
    // XDREAD(32) is none of ours.
    assert_eq!(
        Command::parse(&cdb_32(3, 0)),
        Err(Fault::InvalidField { byte: 8, bit: 7 })
    );
}

#[test]
fn a_variable_length_cdb_of_another_length_is_an_invalid_field() {
    let mut short = cdb_32(9, 0);
    short[7] = 0x10;
    assert_eq!(
        Command::parse(&short),
        Err(Fault::InvalidField { byte: 7, bit: 7 })
    );
    let mut tagged = cdb_32(9, 0);
    tagged[20] = 1;
    assert_eq!(
        Command::parse(&tagged),
        Err(Fault::InvalidField { byte: 20, bit: 0 }),
        "a reference tag without protection information"
    );
}

#[test]
fn byte_checks_that_are_reserved_are_invalid_fields() {
    // BYTCHK 10b of VERIFY; 10b and 11b of WRITE AND VERIFY.
    for (first, flags) in [(0x2f, 0x04), (0x2e, 0x04), (0x2e, 0x06)] {
        assert_eq!(
            parse(&[first, flags, 0, 0, 0, 0, 0, 0, 1, 0]),
            Err(Fault::InvalidField { byte: 1, bit: 2 })
        );
    }
    assert_eq!(
        Command::parse(&cdb_32(0x0c, 0x06)),
        Err(Fault::InvalidField { byte: 10, bit: 2 })
    );
}

#[test]
fn an_anchor_is_an_invalid_field() {
    assert_eq!(
        parse(&[0x93, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
        Err(Fault::InvalidField { byte: 1, bit: 4 })
    );
    assert_eq!(
        parse(&[0x41, 0x10, 0, 0, 0, 0, 0, 0, 1, 0]),
        Err(Fault::InvalidField { byte: 1, bit: 4 })
    );
    assert_eq!(
        parse(&[0x42, 0x01, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(Fault::InvalidField { byte: 1, bit: 0 })
    );
}

#[test]
fn what_a_unit_does_not_support_is_no_command_of_its() {
    let neither = Supports {
        thin: false,
        atomic: false,
        ports: false,
        state: false,
        protection: false,
    };
    let opcode = |code| Command::parse_for(&cdb(&[code, 0xff]), neither);
    assert_eq!(opcode(0x42), Err(Fault::InvalidOpcode), "UNMAP");
    assert_eq!(opcode(0x9c), Err(Fault::InvalidOpcode), "WRITE ATOMIC(16)");
    let groups = Command::parse_for(&cdb(&[0xa3, 0x0a]), neither);
    assert_eq!(
        groups,
        Err(Fault::InvalidOpcode),
        "REPORT TARGET PORT GROUPS"
    );
    let erase = Command::parse_for(&cdb(&[0x48, 0x02]), neither);
    assert_eq!(erase, Err(Fault::InvalidOpcode), "SANITIZE");
    assert_eq!(parse(&[0x42]), Ok(Command::Unmap { len: 0 }));
    assert!(parse(&[0x9c]).is_ok());
    assert!(parse(&[0x48, 0x02]).is_ok());
}

#[test]
fn all_rows_are_found_by_their_code() {
    for code in 0..=0xff {
        let found = rows(code).len();
        let there = TABLE.iter().filter(|row| row.code == code).count();
        assert_eq!(found, there, "{code:#x}");
        assert!(rows(code).iter().all(|row| row.code == code));
    }
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
    // Nor is one verified, however little data comes with it.
    assert_eq!(
        parse(&[0x8f, 0x06, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0]),
        Err(Fault::InvalidField { byte: 10, bit: 7 })
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
    // FUA_NV, which SBC-2 had.
    assert_eq!(parse(&[0x2a, 0x02, 0, 0, 0, 0, 0, 0, 1, 0]), write(true));
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
    assert_eq!(parse(&[0x8c]), Err(Fault::InvalidOpcode));
    assert_eq!(
        parse(&[0xa3, 0x0b]),
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
            // Group 3 has the variable length CDB alone, of which ours have 32 bytes.
            3 if row.code == 0x7f => 32,
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
