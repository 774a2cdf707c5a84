//! How a ring can break the rules.

use spec::device::ring_error;

/// What a tenant's ring did that it must not; the ring is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// See [`ring_error::AVAIL_INDEX`].
    #[error("the avail index is further ahead than the ring is long")]
    AvailIndex,
    /// See [`ring_error::DESCRIPTOR_INDEX`].
    #[error("descriptor index {index} is outside a table of {len}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries of the table.
        len: u32,
    },
    /// See [`ring_error::CHAIN_LENGTH`].
    #[error("a chain visits more than {0} descriptors of a table")]
    ChainLength(u32),
    /// As [`Self::ChainLength`], counted in pieces of memory.
    #[error("the buffers of a chain are in more than {0} pieces of the tenant's memory")]
    TooManyPieces(usize),
    /// As [`Self::ChainLength`], counted in bytes.
    #[error("the buffers of a chain have more than 2^32 bytes")]
    TooManyBytes,
    /// See [`ring_error::UNMAPPED`].
    #[error("guest address {0:#x} is not in the tenant's memory")]
    Unmapped(u64),
    /// See [`ring_error::ORDER`].
    #[error("a device-readable buffer follows a device-writable one")]
    Order,
    /// See [`ring_error::INDIRECT`].
    #[error("an indirect table is empty, misshapen, too long, nested or not last in its chain")]
    Indirect,
    /// See [`ring_error::TOO_SHORT`].
    #[error("a request has {have} {kind} bytes where {need} are needed")]
    TooShort {
        /// "readable" or "writable".
        kind: &'static str,
        /// Bytes in the chain.
        have: usize,
        /// Bytes of the header or response.
        need: usize,
    },
    /// See [`ring_error::ZERO_LENGTH`].
    #[error("a buffer has no bytes")]
    ZeroLength,
    /// See [`ring_error::CONFIGURATION`].
    #[error(
        "the ring itself is misaligned, or a part of it not in one piece of the tenant's memory"
    )]
    Configuration,
    /// See [`ring_error::IN_FLIGHT`].
    #[error("the chain at descriptor {0} is made available again while it is in flight")]
    InFlight(u16),
}

impl Violation {
    /// The reason as the RING_ERROR register has it.
    pub const fn reason(self) -> u32 {
        match self {
            Self::AvailIndex => ring_error::AVAIL_INDEX,
            Self::DescriptorIndex { .. } => ring_error::DESCRIPTOR_INDEX,
            Self::ChainLength(_) | Self::TooManyPieces(_) | Self::TooManyBytes => {
                ring_error::CHAIN_LENGTH
            }
            Self::Unmapped(_) => ring_error::UNMAPPED,
            Self::Order => ring_error::ORDER,
            Self::Indirect => ring_error::INDIRECT,
            Self::TooShort { .. } => ring_error::TOO_SHORT,
            Self::ZeroLength => ring_error::ZERO_LENGTH,
            Self::Configuration => ring_error::CONFIGURATION,
            Self::InFlight(_) => ring_error::IN_FLIGHT,
        }
    }
}
