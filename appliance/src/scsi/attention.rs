//! Unit attentions: what an initiator must be told before anything else.

use spec::scsi::sense::{self, SenseCode};

/// Why a unit attention condition is established (SAM-5 §5.14); the most important comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Power on or a reset of the HBA.
    PowerOn,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// The I_T nexus was lost, or reset by a task management function.
    NexusLoss,
    /// Another initiator cleared the task set.
    CommandsCleared,
    /// The unit has another size.
    CapacityChanged,
    /// Logical units of the target have come or gone.
    ReportedLunsChanged,
}

impl Attention {
    pub(super) const ALL: [Self; 6] = [
        Self::PowerOn,
        Self::LogicalUnitReset,
        Self::NexusLoss,
        Self::CommandsCleared,
        Self::CapacityChanged,
        Self::ReportedLunsChanged,
    ];
}

impl Attention {
    /// Its bit in a set of them.
    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The sense that reports it.
    pub const fn code(self) -> SenseCode {
        match self {
            Self::PowerOn => sense::POWER_ON_OR_RESET,
            Self::LogicalUnitReset => sense::DEVICE_RESET,
            Self::NexusLoss => sense::NEXUS_LOSS,
            Self::CommandsCleared => sense::COMMANDS_CLEARED,
            Self::CapacityChanged => sense::CAPACITY_CHANGED,
            Self::ReportedLunsChanged => sense::REPORTED_LUNS_CHANGED,
        }
    }
}
