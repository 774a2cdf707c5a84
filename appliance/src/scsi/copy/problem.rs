//! Why a copy is refused, or ends before its time, and what is told of it.

use spec::scsi::sense::{self, SenseCode};

/// Why a third-party copy command did not end with GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// More CSCD descriptors than the limit.
    TooManyCscds,
    /// A CSCD descriptor of a type that there is not.
    UnsupportedCscd,
    /// More segment or range descriptors than the limit.
    TooManySegments,
    /// A segment descriptor of a type that there is not.
    UnsupportedSegment,
    /// Inline data, which no descriptor of ours uses.
    InlineData,
    /// A copy with this list identifier is under way.
    InProgress,
    /// More is to be copied than one command may, or more copies are under way than can be.
    NoResources,
    /// No more tokens can be kept.
    NoRoomForToken,
    /// A token of a type that there is not.
    TokenType,
    /// A token that says that it has another length.
    TokenLength,
    /// No token that this HBA was given, or of a unit that it does not see any more.
    TokenUnknown,
    /// What the token stands for is not as it was.
    TokenRevoked,
    /// The token was not used for too long.
    TokenExpired,
    /// The token stands for less than what was to be written; so many blocks were.
    Underrun { blocks: u64 },
    /// A unit that it copies from or to was taken away.
    Gone,
    /// COPY OPERATION ABORT has ended it.
    Terminated,
    /// A segment failed.
    Segment {
        cause: Cause,
        /// Number of its descriptor, from 0 on.
        segment: u16,
        /// Blocks of the destination that were not written, if any were.
        residual: Option<u64>,
    },
}

/// Why a segment failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// This byte of its descriptor asks for what there is not.
    Field(u16),
    /// This byte of its descriptor names a CSCD descriptor that is not in the list.
    NoCscd(u16),
    /// No unit that this HBA sees has that designator.
    Unreachable,
    /// The unit is no disk.
    DeviceType,
    /// What is read does not fill blocks of the destination.
    Inexact,
    /// The unit it is read from, or the one it is written to, does not let it, or has failed.
    Device,
}

/// What sense data tells of the segment that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// For COMMAND-SPECIFIC INFORMATION.
    pub number: u16,
    /// The byte of its descriptor that is wrong.
    pub byte: Option<u16>,
}

impl Segment {
    /// Sense-key specific data of COPY ABORTED: SKSV, SD, BPV, bit; byte (SPC-4 §4.5.2.4.5).
    pub fn pointer(self) -> Option<[u8; 3]> {
        let [high, low] = self.byte?.to_be_bytes();
        Some([0x80 | 0x20 | 0x08 | 7, high, low])
    }
}

impl Problem {
    /// What the initiator sees.
    pub const fn code(self) -> SenseCode {
        match self {
            Self::TooManyCscds => sense::TOO_MANY_TARGET_DESCRIPTORS,
            Self::UnsupportedCscd => sense::UNSUPPORTED_TARGET_DESCRIPTOR,
            Self::TooManySegments => sense::TOO_MANY_SEGMENT_DESCRIPTORS,
            Self::UnsupportedSegment => sense::UNSUPPORTED_SEGMENT_DESCRIPTOR,
            Self::InlineData => sense::INLINE_DATA_LENGTH_EXCEEDED,
            Self::InProgress => sense::OPERATION_IN_PROGRESS,
            Self::NoResources => sense::INSUFFICIENT_RESOURCES,
            Self::NoRoomForToken => sense::INSUFFICIENT_TOKEN_RESOURCES,
            Self::TokenType => sense::UNSUPPORTED_TOKEN_TYPE,
            Self::TokenLength => sense::INVALID_TOKEN_LENGTH,
            Self::TokenUnknown => sense::TOKEN_UNKNOWN,
            Self::TokenRevoked => sense::TOKEN_REVOKED,
            Self::TokenExpired => sense::TOKEN_EXPIRED,
            // SBC-4 §4.28.2: ILLEGAL REQUEST if nothing was written.
            Self::Underrun { blocks: 0 } => sense::NOTHING_TO_COPY,
            Self::Underrun { .. } => sense::COPY_TARGET_UNDERRUN,
            Self::Gone => sense::COPY_TARGET_NOT_REACHABLE,
            Self::Terminated => sense::COPY_ABORTED,
            Self::Segment { cause, .. } => match cause {
                Cause::Field(_) => sense::COPY_ABORTED,
                Cause::NoCscd(_) => sense::UNREACHABLE_COPY_TARGET,
                Cause::Unreachable => sense::COPY_TARGET_NOT_REACHABLE,
                Cause::DeviceType => sense::INCORRECT_COPY_TARGET_TYPE,
                Cause::Inexact => sense::UNEXPECTED_INEXACT_SEGMENT,
                Cause::Device => sense::THIRD_PARTY_DEVICE_FAILURE,
            },
        }
    }

    /// INFORMATION.
    pub const fn information(self) -> Option<u64> {
        match self {
            Self::Underrun { blocks } => Some(blocks),
            Self::Segment { residual, .. } => residual,
            _ => None,
        }
    }

    /// The segment that it is about.
    pub const fn segment(self) -> Option<Segment> {
        match self {
            Self::Segment { cause, segment, .. } => Some(Segment {
                number: segment,
                byte: match cause {
                    Cause::Field(byte) | Cause::NoCscd(byte) => Some(byte),
                    _ => None,
                },
            }),
            _ => None,
        }
    }
}
