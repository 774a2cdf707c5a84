//! Unit attentions: what an initiator must be told before anything else.

use spec::scsi::sense::{self, SenseCode};

/// Why a unit attention condition is established (SAM-5 §5.14); the most important comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Power on or a reset of the HBA.
    PowerOn,
    /// LOGICAL UNIT RESET, by whomever.
    LogicalUnitReset,
    /// The I_T nexus was lost, or reset by a task management function.
    NexusLoss,
    /// Another initiator cleared the task set.
    CommandsCleared,
    /// Another initiator has taken this one's registration away.
    RegistrationsPreempted,
    /// Another initiator has taken all registrations away, with the reservation.
    ReservationsPreempted,
    /// A reservation that let registrants in has ended, or is another.
    ReservationsReleased,
    /// The port by which the unit is reached, or another, is in another state.
    AccessChanged,
    /// Logical units of the target have come or gone.
    ReportedLunsChanged,
    /// The unit holds what it held at another time.
    MediumChanged,
    /// The unit has another size.
    CapacityChanged,
    /// Another initiator changed mode parameters.
    ModeChanged,
    /// Another initiator reset log parameters.
    LogChanged,
    /// Another initiator set the clock.
    TimestampChanged,
    /// Another initiator set identifying information.
    IdentifierChanged,
    /// What is under a thin unit is as full as its threshold says.
    SoftThreshold,
}

impl Attention {
    pub(super) const ALL: [Self; 16] = [
        Self::PowerOn,
        Self::LogicalUnitReset,
        Self::NexusLoss,
        Self::CommandsCleared,
        Self::RegistrationsPreempted,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::AccessChanged,
        Self::ReportedLunsChanged,
        Self::MediumChanged,
        Self::CapacityChanged,
        Self::ModeChanged,
        Self::LogChanged,
        Self::TimestampChanged,
        Self::IdentifierChanged,
        Self::SoftThreshold,
    ];

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
            Self::RegistrationsPreempted => sense::REGISTRATIONS_PREEMPTED,
            Self::ReservationsPreempted => sense::RESERVATIONS_PREEMPTED,
            Self::ReservationsReleased => sense::RESERVATIONS_RELEASED,
            Self::AccessChanged => sense::ASYMMETRIC_ACCESS_CHANGED,
            Self::ReportedLunsChanged => sense::REPORTED_LUNS_CHANGED,
            Self::MediumChanged => sense::MEDIUM_MAY_HAVE_CHANGED,
            Self::CapacityChanged => sense::CAPACITY_CHANGED,
            Self::ModeChanged => sense::MODE_PARAMETERS_CHANGED,
            Self::LogChanged => sense::LOG_PARAMETERS_CHANGED,
            Self::TimestampChanged => sense::TIMESTAMP_CHANGED,
            Self::IdentifierChanged => sense::DEVICE_IDENTIFIER_CHANGED,
            Self::SoftThreshold => sense::SOFT_THRESHOLD_REACHED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attention_has_a_bit_of_its_own_in_the_order_of_importance() {
        let bits: Vec<u32> = Attention::ALL.map(Attention::bit).to_vec();
        let expected: Vec<u32> = (0..16).map(|bit| 1 << bit).collect();
        assert_eq!(bits, expected);
    }
}
