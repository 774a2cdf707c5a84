//! A SCSI target: logical units, commands, sense; nothing about virtio or disks' insides.

use std::sync::Arc;

use crate::disk::{Disk, DiskError, Op};

/// Data bytes that came with a command: the lengths of the tenant's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes of data-out (tenant to disk).
    pub data_out: usize,
    /// Bytes of data-in (disk to tenant).
    pub data_in: usize,
}

/// What to do with a command.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub enum Step {
    /// It is over.
    Answer(Answer),
    /// Carry `op` out on `disk`, with data-in as its buffer for a read and data-out for a write,
    /// then call [`Pending::finish`].
    Disk {
        /// The disk.
        disk: Arc<dyn Disk>,
        /// The operation.
        op: Op,
        /// Turns the outcome into an answer.
        pending: Pending,
    },
    /// There is no such target (virtio: BAD_TARGET).
    NoTarget,
    /// The buffers are smaller than what the command moves (virtio: OVERRUN).
    Overrun,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SAM status.
    pub status: u8,
    /// Sense data, empty with GOOD status.
    pub sense: Vec<u8>,
    /// Bytes to put into data-in; empty for a READ, whose data the disk has put there.
    pub data: Vec<u8>,
    /// Data bytes of the buffers that were not moved (virtio: residual).
    pub residual: u32,
}

/// A command whose disk operation is under way.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub struct Pending {}

impl Pending {
    /// The answer, now that the operation ended with `result`.
    pub fn finish(self, _result: Result<(), DiskError>) -> Answer {
        todo!()
    }
}

/// A disk with an identity: what several targets may show under a LUN each.
#[derive(Debug)]
pub struct LogicalUnit {}

/// A LUN name that cannot be an identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("LUN name {0:?} must be 1 to 64 characters of printable ASCII without spaces")]
pub struct BadName(pub String);

impl LogicalUnit {
    /// A logical unit whose serial number and NAA identifier come from `name` alone.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(_name: &str, _disk: Arc<dyn Disk>) -> Result<Self, BadName> {
        todo!()
    }
}

/// Why a unit attention condition is established (SAM-5 §5.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Power on or a reset of the HBA: 29h/00h.
    PowerOn,
    /// LOGICAL UNIT RESET: 29h/03h.
    LogicalUnitReset,
    /// I_T nexus loss: 29h/07h.
    NexusLoss,
}

/// What a `lun` field addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A logical unit of this target that exists.
    Unit(u16),
    /// The REPORT LUNS well-known logical unit.
    ReportLuns,
    /// The target exists, but not this logical unit (a TMF: INCORRECT_LUN).
    NoUnit,
    /// There is no such target.
    NoTarget,
}

/// The one SCSI target of a nexus (HBA).
#[derive(Debug)]
pub struct Target {}

/// A LUN above [`Target::MAX_LUN`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("LUN {0} is beyond 16383, the last one that flat addressing reaches")]
pub struct BadLun(pub u16);

impl Target {
    /// A target with these logical units; each starts with a power-on unit attention.
    ///
    /// # Errors
    /// [`BadLun`].
    pub fn new(_units: impl IntoIterator<Item = (u16, Arc<LogicalUnit>)>) -> Result<Self, BadLun> {
        todo!()
    }
    /// What the field addresses; for task management.
    pub fn place(&self, _lun: [u8; 8]) -> Place {
        todo!()
    }
    /// Establishes a unit attention on `lun`, or on all for `None`.
    pub fn establish(&self, _lun: Option<u16>, _attention: Attention) {
        todo!()
    }
    /// Starts a command. Thread-safe; several workers share a target.
    pub fn start(&self, _lun: [u8; 8], _cdb: &[u8; 32], _buffers: Buffers) -> Step {
        todo!()
    }
}
