//! What stands in front of a worker: how the tenant's side of an HBA is heard, answered and called.
//!
//! There are two: the shim behind a vhost-pci function (`shim`), and a vhost-user socket on the
//! same host (`vhost_user`). Both say the same few things, so a worker does not know which it has.

use std::sync::Arc;
use std::time::Instant;

use spec::mailbox::{Reply, RingSetup};
use spec::session::UnitMark;
use vmm_sys_util::eventfd::EventFd;

use crate::dirty::Logging;
use crate::log_limit::LogLimit;
use crate::memory::window::Class;
use crate::memory::{Mapping, TenantMemory};
use crate::ring::Violation;
use crate::shim::ShimGone;

/// Something that is asked of a worker. One request is outstanding at a time.
#[derive(Debug)]
pub(crate) enum Request {
    /// Use these virtio features.
    SetFeatures(u64),
    /// Use this memory; answered when nothing uses the memory before it.
    SetMemory(Option<Arc<TenantMemory>>),
    /// Process this ring from now on.
    StartRing(Start),
    /// Stop this ring; answered with its next avail index when nothing of it is in flight.
    StopRing(u16),
    /// Mark there what is written to the memory from now on, or nowhere.
    SetLog(Option<Arc<Logging>>),
    /// Stop every ring and forget the features; memory stays.
    Reset,
    /// As Reset, and let the memory go: the tenant is gone.
    Disconnect,
}

/// A ring to be started.
#[derive(Debug)]
pub(crate) struct Start {
    /// Where it is and where it starts.
    pub setup: RingSetup,
    /// What the tenant kicks it by; `None` where kicks come on a vector.
    pub kick: Option<EventFd>,
    /// In-flight memory, where the setup says that the ring is tracked there.
    pub inflight: Option<Arc<Mapping>>,
    /// Whether its driver was served by somebody else before, who may have known more or less.
    pub taken_over: bool,
}

impl Request {
    /// The same for another worker of the HBA; `None` if it is about one ring, which is one
    /// worker's.
    pub fn for_all(&self) -> Option<Self> {
        Some(match self {
            Self::SetFeatures(features) => Self::SetFeatures(*features),
            Self::SetMemory(memory) => Self::SetMemory(memory.clone()),
            Self::SetLog(log) => Self::SetLog(log.clone()),
            Self::Reset => Self::Reset,
            Self::Disconnect => Self::Disconnect,
            Self::StartRing(_) | Self::StopRing(_) => return None,
        })
    }
}

/// A request that waits for [`Front::reply`].
#[derive(Debug, Clone, Copy)]
#[must_use = "somebody waits for a reply"]
pub(crate) struct Asked {
    /// Its number.
    pub sequence: u32,
    /// Its code, where it has one.
    pub operation: u32,
}

/// How a tenant was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Called {
    /// By a write to the function, which traps into the shim.
    Trapped,
    /// By memory that the shim was looking at.
    Seen,
    /// By an eventfd of the tenant.
    Signalled,
}

/// There is nobody in front of the worker any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Gone {
    /// The function does not answer.
    #[error(transparent)]
    Shim(#[from] ShimGone),
    /// The thread that reads the vhost-user socket has ended.
    #[error("the thread of its vhost-user socket has ended, see the log")]
    Socket,
}

/// The tenant's side of one HBA.
pub(crate) trait Front {
    /// Name of the HBA, for messages.
    fn hba(&self) -> &str;

    /// Signalled when the worker must let everything go, if there is such.
    fn release_request(&self) -> Option<&EventFd> {
        None
    }

    /// The next request, if there is a new one. What makes no sense is answered here.
    ///
    /// # Errors
    /// [`Gone`].
    fn request(&mut self) -> Result<Option<(Asked, Request)>, Gone>;

    /// Answers a request.
    ///
    /// # Errors
    /// [`Gone`].
    fn reply(&mut self, asked: Asked, reply: Reply) -> Result<(), Gone>;

    /// Interrupts the tenant for `ring`.
    fn call(&self, ring: u16) -> Called;

    /// What the mapping of the tenant's memory is to the CPU, where that is known.
    fn window(&self) -> Option<Class> {
        None
    }

    /// Reports that `ring` was retired.
    fn retired(&self, ring: u16, violation: Violation);

    /// The mark of a unit in a slot that outlives this machine, if there are such: none where it
    /// shares the fate of the tenant.
    fn mark(&self, _slot: usize) -> UnitMark {
        UnitMark::default()
    }

    /// Writes the mark of a unit.
    fn set_mark(&self, _slot: usize, _mark: UnitMark) {}
}

/// The tenant's side of the rings of a worker that is not the first of its HBA. It is one thread's,
/// and each ring is one worker's.
pub(crate) trait Side: Send {
    /// Name of the HBA, for messages.
    fn hba(&self) -> &str;

    /// As [`Front::call`].
    fn call(&self, ring: u16) -> Called;

    /// As [`Front::retired`].
    fn retired(&self, ring: u16, violation: Violation);

    /// As [`Front::mark`].
    fn mark(&self, _slot: usize) -> UnitMark {
        UnitMark::default()
    }

    /// As [`Front::set_mark`].
    fn set_mark(&self, _slot: usize, _mark: UnitMark) {}
}

/// Writes to the log that a ring was retired, as far as `limit` lets it.
pub(crate) fn log_retirement(limit: &mut LogLimit, hba: &str, ring: u16, violation: Violation) {
    let (logged, silent) = limit.add(Instant::now());
    if silent > 0 {
        tracing::warn!(hba, "{silent} more rings were retired before");
    }
    if logged {
        tracing::warn!(
            hba,
            ring,
            "ring retired: {violation}; the tenant's driver is at fault, and must reset its HBA"
        );
    }
}
