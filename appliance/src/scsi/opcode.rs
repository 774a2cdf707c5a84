//! One command of the table: what it is called, which bits it has, which units know it.

use spec::scsi::opcode;

use super::command::{Cdb, Command};
use super::fault::Fault;
use super::fields::{ALL, SAME_UNMAP, SERVICE_ACTION_MASK, invalid};
use super::limits;
use super::protection;
use crate::disk::{Abilities, Geometry};

/// A row of the table.
pub struct Opcode {
    pub code: u8,
    pub service_action: Option<u16>,
    /// CDB usage data (SPC-4 §6.35.3) after the operation code and without the service action:
    /// the bits that have a meaning here. The CDB is one byte longer.
    pub usage: &'static [u8],
    /// What the unit has to support for this.
    pub needs: Needs,
    /// Whether byte 1 may still carry a LUN in its upper bits, as SCSI-2 had it: some firmware
    /// puts it there.
    pub scsi2_lun: bool,
    pub parse: fn(&Cdb) -> Result<Command, Fault>,
}

/// What not every unit supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Thin provisioning.
    Thin,
    /// Thin provisioning, for the UNMAP bit alone.
    ThinToUnmap,
    /// Atomic writes.
    Atomic,
    /// Being shared: several ports to reach it by.
    Ports,
    /// A folder in which what it does is written down.
    State,
}

/// What of that a unit supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supports {
    pub thin: bool,
    pub atomic: bool,
    /// It is shared, so that some ports may be better than others.
    pub ports: bool,
    /// What it does is written down.
    pub state: bool,
    /// Its blocks have protection information.
    pub protection: bool,
}

impl Supports {
    /// All of it, but for protection information, which takes commands away, too.
    pub const ALL: Self = Self {
        thin: true,
        atomic: true,
        ports: true,
        state: true,
        protection: false,
    };

    /// What a unit with such a disk supports.
    pub fn of(abilities: &Abilities, geometry: &Geometry) -> Self {
        Self {
            thin: abilities.thin.is_some(),
            atomic: limits::atomic(abilities, geometry).is_some(),
            ports: false,
            state: false,
            protection: false,
        }
    }
}

impl Opcode {
    /// Bytes of the CDB.
    pub fn cdb_len(&self) -> usize {
        self.usage.len() + 1
    }

    /// Whether a unit that supports this has the command.
    pub const fn is_supported(&self, supports: Supports) -> bool {
        // SBC-4 §4.21.2.3, §4.21.2.5: with protection of type 1 or 3 the 32-byte commands are none.
        if supports.protection && self.is_variable() {
            return false;
        }
        match self.needs {
            Needs::Nothing | Needs::ThinToUnmap => true,
            Needs::Thin => supports.thin,
            Needs::Atomic => supports.atomic,
            Needs::Ports => supports.ports,
            Needs::State => supports.state,
        }
    }

    /// The CDB usage data that REPORT SUPPORTED OPERATION CODES returns for a unit that supports
    /// this: operation code, service action, and a mask of the bits that have a meaning.
    pub fn usage_data(&self, supports: Supports) -> Vec<u8> {
        let mut data = vec![self.code];
        data.extend(self.usage);
        if self.needs == Needs::ThinToUnmap && !supports.thin {
            data[if self.is_variable() { 10 } else { 1 }] &= !SAME_UNMAP;
        }
        if supports.protection {
            data[1] |= protection::flags(self.code);
        }
        match self.service_action {
            Some(action) if self.is_variable() => {
                data[8..10].copy_from_slice(&action.to_be_bytes());
            }
            Some(action) => data[1] |= u8::try_from(action).unwrap_or(SERVICE_ACTION_MASK),
            None => {}
        }
        data
    }

    /// Checks that every bit which is set has a meaning. (UNMAP is for the unit to refuse, after
    /// it looked whether it may be written to.)
    ///
    /// # Errors
    /// [`Fault::InvalidField`].
    pub fn check(&self, cdb: &Cdb) -> Result<(), Fault> {
        let usage = cdb[1..].iter().zip(self.usage);
        let stray = usage.fold(0, |all, (bits, meaning)| all | (bits & !meaning));
        if stray == 0 {
            // As it should be. What follows allows more, and no less.
            return Ok(());
        }
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

    /// Whether its CDB is the variable length CDB.
    pub const fn is_variable(&self) -> bool {
        self.code == opcode::VARIABLE_LENGTH
    }
}
