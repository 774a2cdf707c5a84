//! What the storage VM did to the function, as the supervisor gets to know it.

use serde::{Deserialize, Serialize};
use spec::version::Version;

use super::record;

/// Something that the storage VM did to the function.
///
/// Events are derived from state, not queued: what happens twice before it is taken is told
/// once, so a peer cannot make them pile up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The function was reset (by QEMU, by a function level reset or by the RESET register). If
    /// an appliance was attached, [`DeviceEvent::BackendDown`] follows.
    Reset,
    /// The appliance is gone: it said so, or its interrupts or its QEMU are. A request that was
    /// outstanding will not be answered.
    BackendDown,
    /// An appliance was turned away by the function itself; STATUS and ERROR tell it so.
    Refused(Refusal),
    /// This many MSI vectors are enabled now.
    VectorsChanged(usize),
    /// An appliance of this version is attached; its vrings and its memory are unknown to it.
    BackendUp {
        /// What it wrote into DRIVER_VERSION.
        version: Version,
    },
    /// The appliance says that the reply slot answers the request with this number; see
    /// [`super::VhostPci::reply`].
    Reply {
        /// As the appliance wrote it: unchecked.
        sequence: u32,
    },
    /// The appliance retired a ring.
    RingError {
        /// Index of the ring, below the number of rings.
        ring: u16,
        /// A [`spec::device::ring_error`], as the appliance wrote it: unchecked.
        reason: u16,
    },
    /// The appliance rang the trapped doorbell: interrupt the tenant for this ring.
    Doorbell {
        /// Index of the ring, below the number of rings.
        ring: u16,
    },
}

/// Why an appliance is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Its version does not work with ours.
    #[error(
        "the appliance speaks vhost-pci {appliance}, this shim {shim}: they work together one \
         minor version apart at most; upgrade the older one"
    )]
    Version {
        /// The appliance's version.
        #[serde(with = "record::version")]
        appliance: Version,
        /// The function's version.
        #[serde(with = "record::version")]
        shim: Version,
    },
    /// It knows nothing of in-flight memory, by which the one before it left rings.
    #[error(
        "the appliance knows no in-flight memory (vhost-pci 1.1), and the tenant's rings were left \
         by one that does: it would lose requests; start an appliance of version 1.1 or later, or \
         let the tenant reset its HBA"
    )]
    Untracked,
    /// It set BACKEND_UP without having enabled MSI.
    #[error(
        "the appliance set BACKEND_UP before it enabled MSI; enable the vectors (and bus master) \
         first"
    )]
    NoVectors,
    /// It answered a request with an error.
    #[error("the appliance could not do what the tenant's session asks for; see its log")]
    RequestFailed,
    /// It did not answer a request in time.
    #[error("the appliance did not answer in time; is it or its storage hung?")]
    Timeout,
    /// Its reply was not one.
    #[error("the appliance's reply does not fit the request; is it of another version?")]
    BadReply,
}

impl Refusal {
    /// The value of the ERROR register.
    pub const fn code(&self) -> u32 {
        use spec::device::error;
        match self {
            Self::Version { .. } | Self::Untracked => error::VERSION,
            Self::NoVectors => error::NO_VECTORS,
            Self::RequestFailed => error::REQUEST_FAILED,
            Self::Timeout => error::TIMEOUT,
            Self::BadReply => error::BAD_REPLY,
        }
    }
}
