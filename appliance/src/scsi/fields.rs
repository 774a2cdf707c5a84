//! How commands are read from the fields of their CDBs.

use super::command::{Cdb, Check, Command, Extent, ModePages, Same};
use super::fault::Fault;
use super::limits::MAX_TRANSFER;

/// DPO of byte 1.
pub const DPO: u8 = 0x10;
/// FUA of byte 1.
const FUA: u8 = 0x08;
/// FUA_NV of byte 1, which SBC-3 made obsolete: initiators still set it. It asks for no more than
/// FUA does, and is taken for it.
const FUA_NV: u8 = 0x02;
pub const DPO_FUA: u8 = DPO | FUA;
pub const DPO_FUAS: u8 = DPO_FUA | FUA_NV;
/// BYTCHK of byte 1.
pub const BYTCHK: u8 = 0x06;
/// GROUP NUMBER, which needs no grouping function to be ignored (SBC-3 §4.22); six bits since
/// SBC-4.
pub const GROUP: u8 = 0x3f;
/// UNMAP of WRITE SAME's flags.
pub const SAME_UNMAP: u8 = 0x08;
/// NDOB of them. (Of ANCHOR nothing is known here.)
pub const SAME_NDOB: u8 = 0x01;
/// A byte whose every bit means something.
pub const ALL: u8 = 0xff;

/// Where the service action is, in the commands that have one but for the variable length CDB.
pub const SERVICE_ACTION_MASK: u8 = 0x1f;
/// ADDITIONAL CDB LENGTH of the 32-byte CDBs.
pub const ADDITIONAL_LENGTH: u8 = 0x18;

pub fn invalid(byte: u8, bit: u32) -> Fault {
    Fault::InvalidField {
        byte,
        bit: u8::try_from(bit).unwrap_or(7),
    }
}

pub fn be16(cdb: &Cdb, at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

pub fn be32(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

pub fn be64(cdb: &Cdb, at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// A 4-byte allocation length; what does not fit a `usize` is more than any answer has.
pub fn allocation_32(cdb: &Cdb, at: usize) -> usize {
    usize::try_from(be32(cdb, at)).unwrap_or(usize::MAX)
}

pub fn extent_6(cdb: &Cdb) -> Extent {
    Extent {
        lba: u64::from(be32(cdb, 0) & 0x1f_ffff),
        // SBC-3: 0 stands for 256 in the 6-byte commands only.
        blocks: match cdb[4] {
            0 => 256,
            blocks => blocks.into(),
        },
    }
}

pub fn extent_10(cdb: &Cdb) -> Extent {
    Extent {
        lba: be32(cdb, 2).into(),
        blocks: be16(cdb, 7).into(),
    }
}

pub fn extent_12(cdb: &Cdb) -> Extent {
    Extent {
        lba: be32(cdb, 2).into(),
        blocks: be32(cdb, 6),
    }
}

pub fn extent_16(cdb: &Cdb) -> Extent {
    Extent {
        lba: be64(cdb, 2),
        blocks: be32(cdb, 10),
    }
}

pub fn extent_32(cdb: &Cdb) -> Result<Extent, Fault> {
    if cdb[7] != ADDITIONAL_LENGTH {
        return Err(invalid(7, 7));
    }
    Ok(Extent {
        lba: be64(cdb, 12),
        blocks: be32(cdb, 28),
    })
}

/// The extent, unless it is longer than a transfer may be; `byte` is where its length stands.
pub fn movable(extent: Extent, byte: u8) -> Result<Extent, Fault> {
    limited(extent, MAX_TRANSFER, byte)
}

/// The extent, unless it is longer than `most` blocks.
pub fn limited(extent: Extent, most: u32, byte: u8) -> Result<Extent, Fault> {
    // SBC-3 §6.6.3: more than MAXIMUM TRANSFER LENGTH is an invalid field.
    if extent.blocks > most {
        return Err(invalid(byte, 7));
    }
    Ok(extent)
}

pub const fn fua(flags: u8) -> bool {
    flags & (FUA | FUA_NV) != 0
}

pub fn inquiry(cdb: &Cdb) -> Result<Command, Fault> {
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

pub fn mode_sense(cdb: &Cdb, long: bool, long_lba: bool, allocation: usize) -> Command {
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

pub const fn mode_select(cdb: &Cdb, long: bool, len: usize) -> Command {
    Command::ModeSelect {
        long,
        page_format: cdb[1] & 0x10 != 0,
        save: cdb[1] & 0x01 != 0,
        len,
    }
}

pub fn start_stop(cdb: &Cdb) -> Result<Command, Fault> {
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

pub fn read_capacity_10(cdb: &Cdb) -> Result<Command, Fault> {
    // SBC-3 §5.15: without the obsolete PMI bit, the LBA shall be zero.
    if cdb[8] & 1 == 0 && be32(cdb, 2) != 0 {
        return Err(invalid(2, 7));
    }
    Ok(Command::ReadCapacity10)
}

pub fn read_capacity_16(cdb: &Cdb) -> Result<Command, Fault> {
    if cdb[14] & 1 == 0 && be64(cdb, 2) != 0 {
        return Err(invalid(2, 7));
    }
    Ok(Command::ReadCapacity16 {
        allocation: allocation_32(cdb, 10),
    })
}

/// VERIFY; `byte` is where its length stands in the CDB, `flags` the byte with BYTCHK.
pub fn verify(extent: Extent, byte: u8, flags: u8) -> Result<Command, Fault> {
    let check = match (flags & BYTCHK) >> 1 {
        0 => Check::Medium,
        1 => Check::Data,
        3 => Check::SameBlock,
        _ => return Err(invalid(flags_byte(byte), 2)),
    };
    // However little data comes with it, a disk has to read them all.
    let extent = movable(extent, byte)?;
    Ok(Command::Verify { extent, check })
}

/// WRITE AND VERIFY: what was written is compared whatever BYTCHK says.
pub fn write_verify(extent: Extent, byte: u8, flags: u8) -> Result<Command, Fault> {
    // SBC-4, WRITE AND VERIFY(10): 0 and 1 are defined.
    if flags & BYTCHK > 0x02 {
        return Err(invalid(flags_byte(byte), 2));
    }
    Ok(Command::WriteVerify(movable(extent, byte)?))
}

/// Where the flags stand in a CDB whose length stands at `length`.
const fn flags_byte(length: u8) -> u8 {
    if length == 28 { 10 } else { 1 }
}

/// WRITE SAME; `byte` is where its length stands in the CDB, `flags` the byte with UNMAP.
pub const fn same(extent: Extent, byte: u8, flags: u8) -> Command {
    Command::WriteSame(Same {
        extent,
        unmap: flags & SAME_UNMAP != 0,
        zeros: flags & SAME_NDOB != 0,
        flags_at: flags_byte(byte),
        blocks_at: byte,
    })
}
