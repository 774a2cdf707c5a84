//! Commands about a unit as a whole: its logs, its clock, its names, its tests, its medium.

mod rows;

use super::erase::{FormatUnit, Sanitize};
pub use rows::*;

/// Which log page, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPage {
    /// PC: threshold, cumulative, default threshold, default cumulative values.
    pub control: u8,
    pub page: u8,
    pub subpage: u8,
    /// PARAMETER POINTER: the first parameter that is wanted.
    pub pointer: u16,
    pub allocation: usize,
}

/// A command with its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upkeep {
    LogSense(LogPage),
    LogSelect {
        /// PCR: the parameters are to be reset.
        reset: bool,
        page: u8,
        subpage: u8,
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    ReportIdentifying {
        /// IDENTIFYING INFORMATION TYPE.
        kind: u8,
        allocation: usize,
    },
    SetIdentifying {
        kind: u8,
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    ReportTimestamp {
        allocation: usize,
    },
    SetTimestamp {
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    SendDiagnostic {
        self_test: bool,
        /// PF: the list has pages as the standard defines them.
        page_format: bool,
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    ReceiveDiagnostic {
        /// The page, if the CDB names one.
        page: Option<u8>,
        allocation: usize,
    },
    WriteEcho {
        /// PARAMETER LIST LENGTH in bytes.
        len: usize,
    },
    ReadEcho {
        allocation: usize,
    },
    /// READ BUFFER: what is to be known of the echo buffer.
    EchoDescriptor {
        allocation: usize,
    },
    Reassign {
        /// LONGLBA: addresses of 8 bytes.
        long_lba: bool,
        /// LONGLIST: the list's length has 4 bytes.
        long_list: bool,
    },
    FormatUnit(FormatUnit),
    Sanitize(Sanitize),
    ExitFailureMode {
        /// PARAMETER LIST LENGTH, which has to be 0.
        len: usize,
    },
}

impl Upkeep {
    /// Whether it may change what blocks hold.
    pub const fn changes_blocks(&self) -> bool {
        matches!(
            self,
            Self::Reassign { .. } | Self::FormatUnit(_) | Self::Sanitize(_)
        )
    }

    /// Whether it may be carried out a second time before its first answer.
    pub const fn may_be_repeated(&self) -> bool {
        match self {
            // The first one may be under way, or have ended long before somebody wrote something.
            Self::FormatUnit(_) | Self::Sanitize(_) | Self::ExitFailureMode { .. } => false,
            // The blocks that could not be read can be by then.
            Self::Reassign { .. } => true,
            // What is set is set.
            Self::LogSelect { .. }
            | Self::SetIdentifying { .. }
            | Self::SetTimestamp { .. }
            | Self::WriteEcho { .. }
            | Self::SendDiagnostic { .. } => true,
            Self::LogSense(_)
            | Self::ReportIdentifying { .. }
            | Self::ReportTimestamp { .. }
            | Self::ReceiveDiagnostic { .. }
            | Self::ReadEcho { .. }
            | Self::EchoDescriptor { .. } => true,
        }
    }

    /// Whether it says nothing of the blocks, so that it does not matter what has become of them.
    pub const fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::LogSense(_)
                | Self::LogSelect { .. }
                | Self::ReportIdentifying { .. }
                | Self::SetIdentifying { .. }
                | Self::ReportTimestamp { .. }
                | Self::SetTimestamp { .. }
                | Self::ReceiveDiagnostic { .. }
                | Self::WriteEcho { .. }
                | Self::ReadEcho { .. }
                | Self::EchoDescriptor { .. }
        )
    }
}
