//! Commands: a CDB as a closed type.

use super::copy::Request;
use super::fault::Fault;
use super::opcode::Supports;
use super::persistent::{Action, Ask};
use super::table;
use super::upkeep::Upkeep;

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
    /// Byte of the CDB with UNMAP.
    pub flags_at: u8,
    /// First byte of the CDB with the number of blocks.
    pub blocks_at: u8,
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
    PreventAllowRemoval {
        prevent: bool,
    },
    Reserve,
    Release,
    /// PERSISTENT RESERVE IN.
    ReserveIn {
        ask: Ask,
        allocation: usize,
    },
    /// PERSISTENT RESERVE OUT.
    ReserveOut {
        action: Action,
        /// SCOPE and TYPE, as they stand in the CDB.
        scope_and_type: u8,
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    ReportPortGroups {
        /// The longer header is asked for.
        extended: bool,
        allocation: usize,
    },
    SetPortGroups {
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
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
    CompareAndWrite(Extent),
    Or {
        extent: Extent,
        fua: bool,
    },
    WriteSame(Same),
    Unmap {
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    /// Third-party copy.
    Copy(Request),
    /// No blocks means all to the end of the unit, here and below.
    Prefetch(Extent),
    Synchronize(Extent),
    /// Something about the unit as a whole.
    Upkeep(Upkeep),
}

impl Command {
    /// The command in a CDB, for a unit that can do anything.
    ///
    /// # Errors
    /// As for [`Self::parse_for`].
    pub fn parse(cdb: &Cdb) -> Result<Self, Fault> {
        Self::parse_for(cdb, Supports::ALL)
    }

    /// The command in a CDB, for a unit that supports this.
    ///
    /// # Errors
    /// [`Fault::InvalidOpcode`] if the table does not have it or the unit cannot do it,
    /// [`Fault::InvalidField`] for a bit that is set but has no meaning here (the control byte's
    /// NACA among them), or a field that asks for what there is not.
    pub fn parse_for(cdb: &Cdb, supports: Supports) -> Result<Self, Fault> {
        let row = table::find(cdb).map_err(|fault| {
            // Of a command that the unit does not have, service actions mean nothing.
            let mut rows = table::rows(cdb[0]).iter();
            if rows.any(|row| row.is_supported(supports)) {
                fault
            } else {
                Fault::InvalidOpcode
            }
        })?;
        if !row.is_supported(supports) {
            return Err(Fault::InvalidOpcode);
        }
        if row.service_action.is_some() || !table::is_clean(cdb) {
            row.check(cdb)?;
        }
        row.parse(cdb)
    }

    /// Whether it may be carried out a second time before its first answer, without anybody
    /// seeing more than one that took long (`spec/vhost-pci.md`, D21).
    pub const fn may_be_repeated(&self) -> bool {
        match self {
            // It would find what it wrote itself, and call that a miscompare.
            Self::CompareAndWrite(_) => false,
            // The same bytes in the same blocks.
            Self::Write { .. }
            | Self::WriteAtomic { .. }
            | Self::WriteVerify(_)
            | Self::Or { .. }
            | Self::WriteSame(_)
            | Self::Unmap { .. }
            | Self::Synchronize(_) => true,
            // The keys of the first time may be others by then.
            Self::ReserveOut { .. } => false,
            Self::Copy(request) => request.may_be_repeated(),
            Self::Upkeep(upkeep) => upkeep.may_be_repeated(),
            // What is set is set; reservations are gone with who kept them.
            Self::ModeSelect { .. }
            | Self::StartStop { .. }
            | Self::PreventAllowRemoval { .. }
            | Self::SetPortGroups { .. }
            | Self::Reserve
            | Self::Release => true,
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::ReportLuns { .. }
            | Self::ModeSense(_)
            | Self::ReadDefects(_)
            | Self::ReportOpcodes { .. }
            | Self::ReportTaskManagement { .. }
            | Self::ReserveIn { .. }
            | Self::ReportPortGroups { .. }
            | Self::ReadCapacity10
            | Self::ReadCapacity16 { .. }
            | Self::LbaStatus { .. }
            | Self::Read(_)
            | Self::Verify { .. }
            | Self::Prefetch(_) => true,
        }
    }

    /// Whether it may change what blocks hold. What a third-party copy changes may be another
    /// unit's, and is looked at there.
    pub const fn changes_blocks(&self) -> bool {
        if let Self::Upkeep(upkeep) = self {
            return upkeep.changes_blocks();
        }
        matches!(
            self,
            Self::Write { .. }
                | Self::WriteAtomic { .. }
                | Self::WriteVerify(_)
                | Self::CompareAndWrite(_)
                | Self::Or { .. }
                | Self::WriteSame(_)
                | Self::Unmap { .. }
        )
    }
}

#[cfg(test)]
mod tests;
