//! What the tenant's QEMU asks of a session, stripped of file descriptors.

use serde::{Deserialize, Serialize};
use spec::inflight::Regions;
use spec::mailbox::{Reply, Request};
use spec::session::MemoryEntry;

use super::memory::{FileFacts, FileId, MemoryError, Region};
use super::ring::RingAddresses;
use crate::device::Refusal;

/// Names a call until it is answered.
pub type CallId = u64;

/// A vhost-user message that changes the session or waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// SET_FEATURES.
    SetFeatures(u64),
    /// SET_MEM_TABLE: regions, each with its file.
    SetMemory(Vec<(Region, FileFacts)>),
    /// ADD_MEM_REG.
    AddRegion(Region, FileFacts),
    /// REM_MEM_REG.
    RemoveRegion(Region),
    /// SET_VRING_NUM.
    SetSize {
        /// Index of the ring.
        ring: u16,
        /// Entries.
        size: u32,
    },
    /// SET_VRING_ADDR.
    SetAddresses {
        /// Index of the ring.
        ring: u16,
        /// In addresses of the tenant's QEMU.
        addresses: RingAddresses,
    },
    /// SET_VRING_BASE.
    SetBase {
        /// Index of the ring.
        ring: u16,
        /// Next avail index.
        base: u32,
    },
    /// GET_VRING_BASE: stops the ring.
    GetBase {
        /// Index of the ring.
        ring: u16,
    },
    /// SET_VRING_KICK.
    SetKick {
        /// Index of the ring.
        ring: u16,
        /// Whether an eventfd came along.
        present: bool,
    },
    /// SET_VRING_ENABLE.
    SetEnabled {
        /// Index of the ring.
        ring: u16,
        /// On or off.
        enabled: bool,
    },
    /// SET_INFLIGHT_FD.
    SetInflight(Inflight),
    /// RESET_DEVICE.
    ResetDevice,
}

/// In-flight memory as the tenant's QEMU has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inflight {
    /// Which file it is.
    pub file: FileId,
    /// Where the rings' regions are in it.
    #[serde(with = "regions")]
    pub regions: Regions,
}

/// Regions as they are asked for: rings and entries.
mod regions {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use spec::inflight::Regions;

    /// Writes `regions`.
    pub(super) fn serialize<S: Serializer>(regions: &Regions, to: S) -> Result<S::Ok, S::Error> {
        (regions.rings(), regions.entries()).serialize(to)
    }

    /// Reads what [`serialize`] wrote.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Regions, D::Error> {
        let (rings, entries) = Deserialize::deserialize(from)?;
        Regions::new(rings, entries).ok_or_else(|| D::Error::custom("no room for such regions"))
    }
}

impl Call {
    /// The ring that the call is about, if it is about one.
    pub fn ring(&self) -> Option<u16> {
        match *self {
            Self::SetSize { ring, .. }
            | Self::SetAddresses { ring, .. }
            | Self::SetBase { ring, .. }
            | Self::GetBase { ring }
            | Self::SetKick { ring, .. }
            | Self::SetEnabled { ring, .. } => Some(ring),
            Self::SetFeatures(_)
            | Self::SetMemory(_)
            | Self::AddRegion(..)
            | Self::RemoveRegion(_)
            | Self::SetInflight(_)
            | Self::ResetDevice => None,
        }
    }
}

/// A good answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The ring's next avail index.
    Base(u16),
}

/// Why a call is refused; the tenant's connection is dropped then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Memory that the storage VM cannot have.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring index out of range.
    #[error(
        "tenant uses vring {ring}, this HBA has {rings}; lower num_queues of vhost-user-scsi-pci, \
         or raise --queues"
    )]
    NoSuchRing {
        /// Index of the ring.
        ring: u16,
        /// Rings of the HBA.
        rings: u16,
    },
    /// A ring size that virtio does not have.
    #[error(
        "vring {ring} has {size} entries; a split ring has a power of two up to 32768 \
         (virtqueue_size of vhost-user-scsi-pci)"
    )]
    RingSize {
        /// Index of the ring.
        ring: u16,
        /// Entries.
        size: u32,
    },
    /// A base that is not a 16-bit index.
    #[error(
        "vring {ring} is to start at {base}, which is no avail index; is packed=on? turn it off"
    )]
    RingBase {
        /// Index of the ring.
        ring: u16,
        /// The base.
        base: u32,
    },
    /// A ring was started, and no memory named: QEMU leaves out RAM that it does not share.
    #[error(
        "tenant started vring {ring} without naming any memory: its RAM is private, most likely; \
         give its QEMU -object memory-backend-memfd,id=mem,size=…,share=on and \
         -machine …,memory-backend=mem"
    )]
    NoMemory {
        /// Index of the ring.
        ring: u16,
    },
    /// An enabled ring lies outside the memory table.
    #[error("vring {ring} lies outside the tenant's memory table; the tenant's QEMU is at fault")]
    RingOutsideMemory {
        /// Index of the ring.
        ring: u16,
    },
    /// Features that were not offered.
    #[error(
        "tenant negotiated virtio features {0:#x}, which were not offered (bit 34: packed=on, \
         bit 26: migration); turn them off at vhost-user-scsi-pci"
    )]
    Features(u64),
    /// No appliance stopped the ring in time.
    #[error(
        "vring {ring} could not be stopped within {seconds} s: {reason}; the HBA failed, the \
         tenant's connection is dropped"
    )]
    NotStopped {
        /// Index of the ring.
        ring: u16,
        /// The limit in seconds.
        seconds: u64,
        /// What held it up.
        reason: &'static str,
    },
    /// The appliance failed before it took the new memory table.
    #[error(
        "the appliance failed before it took the tenant's new memory table, and may still use the \
         old one; the tenant's connection is dropped"
    )]
    MemoryInUse,
    /// The appliance did not take the new memory table in time.
    #[error(
        "the appliance did not take the tenant's new memory table within {seconds} s; the HBA \
         failed, the tenant's connection is dropped"
    )]
    MemoryNotTaken {
        /// The limit in seconds.
        seconds: u64,
    },
}

/// Something that happened to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The tenant's QEMU connected.
    Connected,
    /// The tenant's QEMU is gone; calls without an answer need none.
    Disconnected,
    /// The tenant's QEMU asks for something.
    Call(CallId, Call),
    /// The function now shows this file in BAR2, or none.
    Window(Option<FileId>),
    /// The function now shows this file in BAR1.
    Inflight(FileId),
    /// An appliance attached; it knows nothing.
    Attached {
        /// Whether it is of a version that knows in-flight memory.
        tracks: bool,
    },
    /// The appliance is gone.
    Detached,
    /// The appliance's reply to the last step.
    Replied(Reply),
    /// What the appliance wrote is not a reply to the last step.
    BadReply,
    /// Time passed: see [`super::Session::deadline`].
    Tick,
}

/// What a session asks of its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer this call.
    Answer(CallId, Result<Answer, Refused>),
    /// Post this to the appliance.
    Post(Step),
    /// Fire the ring's kick, as if the tenant had.
    Kick(u16),
    /// Interrupt the tenant for the ring.
    Interrupt(u16),
    /// Watch the ring's kick eventfd no more.
    ForgetKick(u16),
    /// Turn the appliance away; it is detached from now on.
    TurnAway(Refusal),
    /// The appliance refused to run a ring, with this errno.
    RingRefused(u16, u32),
    /// The tenant reset its HBA: retired rings are forgiven.
    ForgiveRings,
}

/// One message to the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Publish this table, then send SetMemory with its generation.
    Memory(Vec<MemoryEntry>),
    /// Send this.
    Request(Request),
}
