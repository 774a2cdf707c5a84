//! What a worker and the shim say to each other: the mailbox, calls, ring errors.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use spec::device::{
    self, ERROR, MAGIC, MAGIC_VALUE, MAILBOX_REPLY, MAILBOX_REQUEST, RING_ERROR, STATUS, status,
};
use spec::mailbox::{BadRequest, Header, Reply, Request};

use crate::device::Device;
use crate::log_limit::LogLimit;
use crate::memory::{SessionMemory, TableReadError};
use crate::ring::Violation;

/// The shim at the other end of a vhost-pci function.
pub(crate) struct Shim {
    /// Session memory; goes before the device does.
    session: SessionMemory,
    device: Arc<dyn Device>,
    hba: Arc<str>,
    /// Sequence number of the last request that was taken from the mailbox.
    taken: u32,
    retirements: Cell<LogLimit>,
}

/// A request of the shim, to be answered by [`Shim::reply`].
#[derive(Debug, Clone, Copy)]
#[must_use = "the shim waits for a reply"]
pub(crate) struct Asked {
    sequence: u32,
    operation: u32,
}

/// A request as it was found in the mailbox.
type Posted = (Asked, Result<Request, BadRequest>);

/// The function does not answer any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimGone {
    /// A register access failed.
    #[error("a register of the function cannot be accessed: {0}")]
    Register(#[from] io::Error),
    /// Registers read as if nothing were there.
    #[error("the function has gone: its MAGIC register now reads {0:#010x}")]
    Magic(u32),
    /// The shim took BACKEND_UP back.
    #[error("the shim has dropped this appliance, with ERROR {0}; see the host-shim's log")]
    Dropped(u32),
}

impl Shim {
    /// The shim behind `device`, whose mailbox holds nothing new.
    ///
    /// # Errors
    /// What reading a register reports.
    pub fn new(device: Arc<dyn Device>, session: SessionMemory, hba: Arc<str>) -> io::Result<Self> {
        let taken = device.read32(MAILBOX_REQUEST)?;
        Ok(Self {
            session,
            device,
            hba,
            taken,
            retirements: Cell::new(LogLimit::new(Instant::now())),
        })
    }

    /// Name of the HBA, for messages.
    pub fn hba(&self) -> &str {
        &self.hba
    }

    /// The function.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// The next request in the mailbox, if there is a new one.
    ///
    /// # Errors
    /// [`ShimGone`].
    pub fn request(&mut self) -> Result<Option<Posted>, ShimGone> {
        let sequence = self.device.read32(MAILBOX_REQUEST)?;
        if sequence == 0 && self.device.read32(STATUS)? & status::BACKEND_UP == 0 {
            return Err(ShimGone::Dropped(self.device.read32(ERROR)?));
        }
        if sequence == self.taken || sequence == 0 {
            return Ok(None);
        }
        let magic = self.device.read32(MAGIC)?;
        if magic != MAGIC_VALUE {
            return Err(ShimGone::Magic(magic));
        }
        self.taken = sequence;
        let (header, payload) = self.session.request();
        let asked = Asked {
            sequence,
            operation: header.operation,
        };
        // A length that was cut to the slot, or a slot of another sequence number, is no request.
        let whole = usize::try_from(header.len).is_ok_and(|len| len == payload.len());
        let request = if whole && header.sequence == sequence {
            Request::parse(header.operation, &payload)
        } else {
            Err(BadRequest::Length)
        };
        Ok(Some((asked, request)))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`ShimGone`].
    pub fn reply(&self, asked: Asked, reply: Reply) -> Result<(), ShimGone> {
        let payload = reply.payload();
        let header = Header {
            sequence: asked.sequence,
            operation: asked.operation,
            len: u32::try_from(payload.len()).expect("a reply has at most a few words"),
            status: reply.status(),
        };
        self.session.reply(header, &payload);
        self.device.write32(MAILBOX_REPLY, asked.sequence)?;
        Ok(())
    }

    /// Interrupts the tenant for `ring`.
    pub fn call(&self, ring: u16) {
        if self.session.call(ring)
            && let Err(error) = self.device.write32(device::doorbell(ring), 1)
        {
            // The mailbox will tell the same, and end the attachment.
            tracing::debug!(hba = &*self.hba, ring, "doorbell: {error}");
        }
    }

    /// Reports that `ring` was retired.
    pub fn retired(&self, ring: u16, violation: Violation) {
        let mut retirements = self.retirements.get();
        let (logged, silent) = retirements.add(Instant::now());
        self.retirements.set(retirements);
        if silent > 0 {
            tracing::warn!(hba = &*self.hba, "{silent} more rings were retired before");
        }
        if logged {
            tracing::warn!(
                hba = &*self.hba,
                ring,
                "ring retired: {violation}; the tenant's driver is at fault, and must reset its HBA"
            );
        }
        let value = u32::from(ring) | violation.reason() << 16;
        if let Err(error) = self.device.write32(RING_ERROR, value) {
            tracing::debug!(hba = &*self.hba, ring, "RING_ERROR: {error}");
        }
    }

    /// The memory table of `generation`.
    ///
    /// # Errors
    /// [`TableReadError`].
    pub fn memory_table(
        &self,
        generation: u32,
    ) -> Result<Vec<spec::session::MemoryEntry>, TableReadError> {
        self.session.memory_table(generation)
    }
}
