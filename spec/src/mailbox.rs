//! The mailbox: requests from the shim to the appliance, and their replies.
//!
//! One request is outstanding at a time. The shim writes it into the request slot, sets the
//! MAILBOX_REQUEST register to its sequence number and fires MSI vector 0; the appliance copies
//! the slot, acts, writes the reply slot and then the MAILBOX_REPLY register. Every request
//! brings the appliance one step closer to the session that the shim has recorded, so replaying
//! a session to a new appliance is the same sequence of requests.

use crate::inflight;
use crate::session::MAILBOX_SLOT_LEN;
use crate::virtio_scsi::EVENT_QUEUE;
use crate::wire::{Truncated, le32, le64};

/// Bytes of the header of either slot: sequence, operation, payload length, status.
pub const HEADER_LEN: usize = 16;
/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = MAILBOX_SLOT_LEN - HEADER_LEN;

/// The header of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sequence number of the request, never 0.
    pub sequence: u32,
    /// The operation; a reply repeats it.
    pub operation: u32,
    /// Payload bytes after the header.
    pub len: u32,
    /// 0 in a request; in a reply 0 or a Linux errno value.
    pub status: u32,
}

impl Header {
    /// This header as it stands in the slot.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [self.sequence, self.operation, self.len, self.status];
        for (field, word) in bytes.chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The header in `bytes`; its values are not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Truncated> {
        Ok(Self {
            sequence: le32(bytes, 0)?,
            operation: le32(bytes, 4)?,
            len: le32(bytes, 8)?,
            status: le32(bytes, 12)?,
        })
    }
}

/// Where a vring is and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSetup {
    /// Index of the ring: 0 control, 1 event, 2 and up requests (virtio 1.3 §5.6.2).
    pub ring: u16,
    /// Entries, a power of two.
    pub size: u16,
    /// Avail index of the first request to fetch, for a ring that never ran; `None` for one
    /// that did: it goes on from its used index.
    pub base: Option<u16>,
    /// Offset in BAR1 of its region of in-flight memory, if that is in force for it; never for
    /// the event ring.
    pub inflight: Option<u32>,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the avail ring (virtio 1.3: driver area).
    pub avail_ring: u64,
    /// Guest-physical address of the used ring (virtio 1.3: device area).
    pub used_ring: u64,
}

/// A request of the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The virtio features that the tenant's driver accepted.
    SetFeatures {
        /// Feature bits (virtio 1.3 §2.2).
        features: u64,
    },
    /// The table in session memory has changed; answered when nothing uses the old one.
    SetMemory {
        /// Generation to be found there.
        generation: u32,
    },
    /// Process this ring from now on.
    StartRing(RingSetup),
    /// Stop this ring; answered, with its next avail index, when no request of it is in flight
    /// and nothing of it will be written to the tenant's memory.
    StopRing {
        /// Index of the ring.
        ring: u16,
    },
    /// The tenant's device was reset: every ring is stopped (as by StopRing), features are
    /// forgotten, memory stays.
    Reset,
    /// The tenant is gone: as Reset, and memory is let go.
    Disconnect,
}

/// Operation codes; the vhost-user request number where one says the same.
mod operation {
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEMORY: u32 = 5;
    pub const RESET: u32 = 34;
    pub const START_RING: u32 = 0x100;
    pub const STOP_RING: u32 = 0x101;
    pub const DISCONNECT: u32 = 0x102;
}

/// Value of the base field that stands for "go on from the used index".
const BASE_FROM_USED: u32 = u32::MAX;
/// Value of the in-flight field where there is no in-flight memory; version 1.0 has nothing else.
const NO_INFLIGHT: u32 = 0;
/// Length of a StartRing payload.
const START_RING_LEN: usize = 40;

/// A request slot that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRequest {
    /// An operation that this version does not know.
    UnknownOperation(u32),
    /// The payload is not of the operation's length.
    Length,
    /// A ring index, size, base or in-flight region out of range.
    Ring,
}

impl std::fmt::Display for BadRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownOperation(code) => write!(f, "unknown mailbox operation {code:#x}"),
            Self::Length => f.write_str("payload length does not fit the operation"),
            Self::Ring => f.write_str("ring index, size, base or in-flight region out of range"),
        }
    }
}

impl std::error::Error for BadRequest {}

impl From<Truncated> for BadRequest {
    fn from(_: Truncated) -> Self {
        Self::Length
    }
}

impl Request {
    /// The operation code in the header.
    pub const fn operation(&self) -> u32 {
        match self {
            Self::SetFeatures { .. } => operation::SET_FEATURES,
            Self::SetMemory { .. } => operation::SET_MEMORY,
            Self::StartRing(_) => operation::START_RING,
            Self::StopRing { .. } => operation::STOP_RING,
            Self::Reset => operation::RESET,
            Self::Disconnect => operation::DISCONNECT,
        }
    }

    /// The payload after the header.
    pub fn payload(&self) -> Vec<u8> {
        match *self {
            Self::SetFeatures { features } => features.to_le_bytes().to_vec(),
            Self::SetMemory { generation } => generation.to_le_bytes().to_vec(),
            Self::StartRing(setup) => {
                let mut bytes = Vec::with_capacity(START_RING_LEN);
                let base = setup.base.map_or(BASE_FROM_USED, u32::from);
                let inflight = setup.inflight.unwrap_or(NO_INFLIGHT);
                for word in [u32::from(setup.ring), u32::from(setup.size), base, inflight] {
                    bytes.extend(word.to_le_bytes());
                }
                for address in [setup.descriptor_table, setup.avail_ring, setup.used_ring] {
                    bytes.extend(address.to_le_bytes());
                }
                bytes
            }
            Self::StopRing { ring } => u32::from(ring).to_le_bytes().to_vec(),
            Self::Reset | Self::Disconnect => Vec::new(),
        }
    }

    /// The request with this operation code and payload.
    pub fn parse(code: u32, payload: &[u8]) -> Result<Self, BadRequest> {
        let of_len = |len| {
            if payload.len() == len {
                Ok(())
            } else {
                Err(BadRequest::Length)
            }
        };
        match code {
            operation::SET_FEATURES => {
                of_len(8)?;
                Ok(Self::SetFeatures {
                    features: le64(payload, 0)?,
                })
            }
            operation::SET_MEMORY => {
                of_len(4)?;
                Ok(Self::SetMemory {
                    generation: le32(payload, 0)?,
                })
            }
            operation::START_RING => {
                of_len(START_RING_LEN)?;
                let base = match le32(payload, 8)? {
                    BASE_FROM_USED => None,
                    base => Some(u16::try_from(base).map_err(|_| BadRequest::Ring)?),
                };
                let ring = ring_index(le32(payload, 0)?)?;
                let size = ring_size(le32(payload, 4)?)?;
                let tracks = ring != EVENT_QUEUE;
                let inflight = match le32(payload, 12)? {
                    NO_INFLIGHT => None,
                    offset if tracks && inflight::is_region(offset, size) => Some(offset),
                    _ => return Err(BadRequest::Ring),
                };
                Ok(Self::StartRing(RingSetup {
                    ring,
                    size,
                    base,
                    inflight,
                    descriptor_table: le64(payload, 16)?,
                    avail_ring: le64(payload, 24)?,
                    used_ring: le64(payload, 32)?,
                }))
            }
            operation::STOP_RING => {
                of_len(4)?;
                Ok(Self::StopRing {
                    ring: ring_index(le32(payload, 0)?)?,
                })
            }
            operation::RESET => of_len(0).map(|()| Self::Reset),
            operation::DISCONNECT => of_len(0).map(|()| Self::Disconnect),
            unknown => Err(BadRequest::UnknownOperation(unknown)),
        }
    }
}

fn ring_index(value: u32) -> Result<u16, BadRequest> {
    u16::try_from(value)
        .ok()
        .filter(|&ring| usize::from(ring) < crate::device::MAX_RINGS)
        .ok_or(BadRequest::Ring)
}

fn ring_size(value: u32) -> Result<u16, BadRequest> {
    // virtio 1.3 §2.7: a power of two, at most 32768.
    u16::try_from(value)
        .ok()
        .filter(|size| size.is_power_of_two())
        .ok_or(BadRequest::Ring)
}

/// A reply of the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// The ring is stopped; its next avail index.
    Base(u16),
    /// It failed, with a Linux errno value (not 0).
    Failed(u32),
}

impl Reply {
    /// The status in the header.
    pub const fn status(&self) -> u32 {
        match self {
            Self::Done | Self::Base(_) => 0,
            Self::Failed(errno) => *errno,
        }
    }

    /// The payload after the header.
    pub fn payload(&self) -> Vec<u8> {
        match self {
            Self::Base(base) => u32::from(*base).to_le_bytes().to_vec(),
            Self::Done | Self::Failed(_) => Vec::new(),
        }
    }

    /// The reply to `request` in a slot with this header and payload; `None` if it is not one.
    pub fn parse(request: &Request, header: &Header, payload: &[u8]) -> Option<Self> {
        if header.operation != request.operation() {
            return None;
        }
        match (header.status, request, payload.len()) {
            (0, Request::StopRing { .. }, 4) => le32(payload, 0)
                .ok()
                .and_then(|base| u16::try_from(base).ok())
                .map(Self::Base),
            (0, Request::StopRing { .. }, _) => None,
            (0, _, 0) => Some(Self::Done),
            (0, _, _) => None,
            (errno, _, _) => Some(Self::Failed(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP: RingSetup = RingSetup {
        ring: 2,
        size: 128,
        base: Some(7),
        inflight: None,
        descriptor_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x1_0000_3000,
    };

    #[test]
    fn every_request_survives_its_bytes() {
        for request in [
            Request::SetFeatures {
                features: 0x1_3000_0006,
            },
            Request::SetMemory { generation: 9 },
            Request::StartRing(SETUP),
            Request::StartRing(RingSetup {
                base: None,
                inflight: Some(4096),
                ..SETUP
            }),
            Request::StopRing { ring: 127 },
            Request::Reset,
            Request::Disconnect,
        ] {
            assert_eq!(
                Request::parse(request.operation(), &request.payload()),
                Ok(request)
            );
        }
    }

    #[test]
    fn a_request_of_the_wrong_shape_is_refused() {
        assert_eq!(
            Request::parse(99, &[]),
            Err(BadRequest::UnknownOperation(99))
        );
        assert_eq!(Request::parse(2, &[0; 7]), Err(BadRequest::Length));
        assert_eq!(
            Request::parse(0x101, &128u32.to_le_bytes()),
            Err(BadRequest::Ring)
        );
        let odd_size = Request::StartRing(RingSetup { size: 100, ..SETUP });
        assert_eq!(
            Request::parse(0x100, &odd_size.payload()),
            Err(BadRequest::Ring)
        );
        for offset in [64, 4097, 0x10_0000 - 64] {
            let bad = Request::StartRing(RingSetup {
                inflight: Some(offset),
                ..SETUP
            });
            assert_eq!(Request::parse(0x100, &bad.payload()), Err(BadRequest::Ring));
        }
        let tracked_events = Request::StartRing(RingSetup {
            ring: 1,
            inflight: Some(4096),
            ..SETUP
        });
        assert_eq!(
            Request::parse(0x100, &tracked_events.payload()),
            Err(BadRequest::Ring)
        );
    }

    #[test]
    fn a_reply_must_fit_its_request() {
        let stop = Request::StopRing { ring: 2 };
        let header = |status, len| Header {
            sequence: 1,
            operation: 0x101,
            len,
            status,
        };
        let base = 5u32.to_le_bytes();
        assert_eq!(
            Reply::parse(&stop, &header(0, 4), &base),
            Some(Reply::Base(5))
        );
        assert_eq!(Reply::parse(&stop, &header(0, 0), &[]), None);
        assert_eq!(
            Reply::parse(&stop, &header(5, 0), &[]),
            Some(Reply::Failed(5))
        );
        assert_eq!(Reply::parse(&Request::Reset, &header(0, 0), &[]), None);
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let header = Header {
            sequence: 1,
            operation: 2,
            len: 3,
            status: 4,
        };
        assert_eq!(Header::from_bytes(&header.to_bytes()), Ok(header));
    }
}
