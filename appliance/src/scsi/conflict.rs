//! Which commands a persistent reservation keeps away from whom (SPC-4 and SBC-3, commands that are
//! allowed in the presence of various reservations).

use super::command::Command;
use super::copy::Request;
use super::upkeep::Upkeep;

/// What a persistent reservation leaves an I_T nexus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Standing {
    /// Everything.
    #[default]
    Free = 0,
    /// What only reads: another nexus has a Write Exclusive reservation.
    ReadOnly = 1,
    /// Next to nothing: another nexus has an Exclusive Access reservation.
    Excluded = 2,
}

/// What a command is, in the eyes of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// Allowed to everyone.
    Harmless,
    /// In conflict with Exclusive Access.
    Reads,
    /// In conflict with Write Exclusive, too.
    Changes,
}

impl Standing {
    /// The standing of this number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Free,
            1 => Self::ReadOnly,
            _ => Self::Excluded,
        }
    }

    /// Whether a command of such a nexus is in conflict with the reservation.
    pub const fn forbids(self, command: &Command) -> bool {
        match (self, nature(command)) {
            (Self::Free, _) | (_, Nature::Harmless) | (Self::ReadOnly, Nature::Reads) => false,
            (Self::ReadOnly, Nature::Changes) | (Self::Excluded, _) => true,
        }
    }
}

/// The table. It has no line for "anything else": a command that is new has to be looked up.
const fn nature(command: &Command) -> Nature {
    match command {
        Command::TestUnitReady
        | Command::RequestSense { .. }
        | Command::Inquiry { .. }
        | Command::ReportLuns { .. }
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::ReportPortGroups { .. }
        | Command::Copy(Request::Receive { .. })
        | Command::StartStop { start: true, .. }
        | Command::PreventAllowRemoval { prevent: false }
        // What these do depends on who is registered, which they look at themselves.
        | Command::ReserveIn { .. }
        | Command::ReserveOut { .. }
        | Command::Reserve
        | Command::Release
        | Command::Upkeep(
            Upkeep::LogSense(_)
            | Upkeep::ReportIdentifying { .. }
            | Upkeep::ReportTimestamp { .. },
        ) => Nature::Harmless,
        Command::ModeSense(_)
        | Command::ReadDefects(_)
        | Command::ReportOpcodes { .. }
        | Command::ReportTaskManagement { .. }
        | Command::LbaStatus { .. }
        | Command::Copy(Request::Populate { .. })
        | Command::Read(_)
        | Command::Verify { .. }
        | Command::Prefetch(_)
        | Command::Upkeep(
            Upkeep::ReceiveDiagnostic { .. }
            | Upkeep::ReadEcho { .. }
            | Upkeep::EchoDescriptor { .. },
        ) => Nature::Reads,
        Command::ModeSelect { .. }
        | Command::StartStop { start: false, .. }
        | Command::PreventAllowRemoval { prevent: true }
        | Command::SetPortGroups { .. }
        | Command::Write { .. }
        | Command::WriteAtomic { .. }
        | Command::WriteVerify(_)
        | Command::CompareAndWrite(_)
        | Command::Or { .. }
        | Command::WriteSame(_)
        | Command::Unmap { .. }
        | Command::Copy(
            Request::Extended { .. } | Request::Write { .. } | Request::Abort { .. },
        )
        | Command::Synchronize(_)
        | Command::Upkeep(
            Upkeep::LogSelect { .. }
            | Upkeep::SetIdentifying { .. }
            | Upkeep::SetTimestamp { .. }
            | Upkeep::SendDiagnostic { .. }
            | Upkeep::WriteEcho { .. }
            | Upkeep::Reassign { .. }
            | Upkeep::FormatUnit(_)
            | Upkeep::Sanitize(_)
            | Upkeep::ExitFailureMode { .. },
        ) => Nature::Changes,
    }
}
