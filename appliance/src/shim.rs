//! What a worker and the shim say to each other: the mailbox, calls, ring errors.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use spec::device::{
    self, BAR_INFLIGHT, ERROR, MAGIC, MAGIC_VALUE, MAILBOX_REPLY, MAILBOX_REQUEST, RING_ERROR,
    STATUS, status,
};
use spec::inflight;
use spec::mailbox::{self, BadRequest, Header, Reply};
use spec::session::UnitMark;

use crate::device::Device;
use crate::front::{Asked, Called, Front, Gone, Request, Side, Start, log_retirement};
use crate::log_limit::LogLimit;
use crate::memory::window::{Class, Findings};
use crate::memory::{Mapping, SessionMemory, TableReadError};
use crate::ring::Violation;
use crate::tenant_bar::TenantBar;

/// The shim at the other end of a vhost-pci function.
pub(crate) struct Shim {
    /// Mappings go before the device does.
    tenant_bar: TenantBar,
    /// BAR1, once a ring is tracked there.
    inflight: Option<Arc<Mapping>>,
    side: ShimSide,
    /// Sequence number of the last request that was taken from the mailbox.
    taken: u32,
}

/// What every worker of the HBA has to do with the shim.
pub(crate) struct ShimSide {
    /// A mapping, which goes before the device does.
    session: Arc<SessionMemory>,
    device: Arc<dyn Device>,
    hba: Arc<str>,
    retirements: Cell<LogLimit>,
}

/// A request as it was found in the mailbox.
type Posted = (Asked, Result<mailbox::Request, BadRequest>);

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
    /// The shim behind `device`, whose mailbox holds nothing new. How fast the CPU reads the tenant's
    /// memory is left in `window` when it is known.
    ///
    /// # Errors
    /// What reading a register reports.
    pub fn new(
        device: Arc<dyn Device>,
        session: SessionMemory,
        hba: Arc<str>,
        window: Arc<OnceLock<Findings>>,
    ) -> io::Result<Self> {
        let taken = device.read32(MAILBOX_REQUEST)?;
        Ok(Self {
            tenant_bar: TenantBar::new(window),
            inflight: None,
            side: ShimSide {
                session: Arc::new(session),
                device,
                hba,
                retirements: Cell::new(LogLimit::new(Instant::now())),
            },
            taken,
        })
    }

    /// What another worker has to do with the shim.
    pub fn side(&self) -> ShimSide {
        ShimSide {
            session: Arc::clone(&self.side.session),
            device: Arc::clone(&self.side.device),
            hba: Arc::clone(&self.side.hba),
            retirements: Cell::new(LogLimit::new(Instant::now())),
        }
    }

    /// Name of the HBA.
    pub fn name(&self) -> &Arc<str> {
        &self.side.hba
    }

    /// The function.
    pub fn device(&self) -> &dyn Device {
        &*self.side.device
    }

    /// What is in the mailbox, if it is new.
    fn posted(&mut self) -> Result<Option<Posted>, ShimGone> {
        let sequence = self.side.device.read32(MAILBOX_REQUEST)?;
        if sequence == 0 && self.side.device.read32(STATUS)? & status::BACKEND_UP == 0 {
            return Err(ShimGone::Dropped(self.side.device.read32(ERROR)?));
        }
        if sequence == self.taken || sequence == 0 {
            return Ok(None);
        }
        let magic = self.side.device.read32(MAGIC)?;
        if magic != MAGIC_VALUE {
            return Err(ShimGone::Magic(magic));
        }
        self.taken = sequence;
        let (header, payload) = self.side.session.request();
        let asked = Asked {
            sequence,
            operation: header.operation,
        };
        // A length that was cut to the slot, or a slot of another sequence number, is no request.
        let whole = usize::try_from(header.len).is_ok_and(|len| len == payload.len());
        let request = if whole && header.sequence == sequence {
            mailbox::Request::parse(header.operation, &payload)
        } else {
            Err(BadRequest::Length)
        };
        Ok(Some((asked, request)))
    }

    /// The request with what it is about.
    ///
    /// # Errors
    /// The errno for the shim, after a log line.
    fn prepare(&mut self, posted: mailbox::Request) -> Result<Request, i32> {
        Ok(match posted {
            mailbox::Request::SetFeatures { features } => Request::SetFeatures(features),
            mailbox::Request::SetMemory { generation } => {
                let mut tenant_bar = std::mem::take(&mut self.tenant_bar);
                let memory = tenant_bar.memory(generation, self);
                self.tenant_bar = tenant_bar;
                Request::SetMemory(memory.map_err(|refused| {
                    tracing::error!(hba = &*self.side.hba, "memory table refused: {refused}");
                    refused.errno()
                })?)
            }
            mailbox::Request::StartRing(setup) => {
                self.tenant_bar.probe(&setup, &self.side.hba);
                Request::StartRing(Start {
                    setup,
                    kick: None,
                    inflight: match setup.inflight {
                        Some(_) => Some(self.inflight_memory()?),
                        None => None,
                    },
                    taken_over: setup.base.is_none(),
                })
            }
            mailbox::Request::StopRing { ring } => Request::StopRing(ring),
            mailbox::Request::Reset => Request::Reset,
            mailbox::Request::Disconnect => {
                // What is in use is still held by who uses it.
                self.tenant_bar.let_go();
                self.inflight = None;
                Request::Disconnect
            }
        })
    }

    /// In-flight memory.
    ///
    /// # Errors
    /// The errno for the shim, after a log line.
    fn inflight_memory(&mut self) -> Result<Arc<Mapping>, i32> {
        if let Some(mapping) = &self.inflight {
            return Ok(Arc::clone(mapping));
        }
        let mapped = self.side.device.map(BAR_INFLIGHT, inflight::LEN);
        let mapping = Arc::new(mapped.map_err(|error| {
            tracing::error!(
                hba = &*self.side.hba,
                "in-flight memory (BAR1) cannot be mapped: {error}"
            );
            error.raw_os_error().unwrap_or(libc::ENXIO)
        })?);
        self.inflight = Some(Arc::clone(&mapping));
        Ok(mapping)
    }

    fn answer(&self, asked: Asked, reply: Reply) -> Result<(), ShimGone> {
        let payload = reply.payload();
        let header = Header {
            sequence: asked.sequence,
            operation: asked.operation,
            len: u32::try_from(payload.len()).expect("a reply has at most a few words"),
            status: reply.status(),
        };
        self.side.session.reply(header, &payload);
        self.side.device.write32(MAILBOX_REPLY, asked.sequence)?;
        Ok(())
    }

    /// The memory table of `generation`.
    ///
    /// # Errors
    /// [`TableReadError`].
    pub fn memory_table(
        &self,
        generation: u32,
    ) -> Result<Vec<spec::session::MemoryEntry>, TableReadError> {
        self.side.session.memory_table(generation)
    }
}

impl Front for Shim {
    fn hba(&self) -> &str {
        &self.side.hba
    }

    fn release_request(&self) -> Option<&EventFd> {
        self.side.device.release_request()
    }

    fn request(&mut self) -> Result<Option<(Asked, Request)>, Gone> {
        while let Some((asked, posted)) = self.posted()? {
            tracing::debug!(hba = &*self.side.hba, ?posted, "mailbox");
            let prepared = posted.map_err(|error| {
                tracing::error!(
                    hba = &*self.side.hba,
                    "the shim asked for nonsense: {error}"
                );
                match error {
                    BadRequest::UnknownOperation(_) => libc::EOPNOTSUPP,
                    BadRequest::Length | BadRequest::Ring => libc::EINVAL,
                }
            });
            match prepared.and_then(|posted| self.prepare(posted)) {
                Ok(request) => return Ok(Some((asked, request))),
                Err(errno) => self.answer(asked, Reply::Failed(errno.unsigned_abs()))?,
            }
        }
        Ok(None)
    }

    fn reply(&mut self, asked: Asked, reply: Reply) -> Result<(), Gone> {
        Ok(self.answer(asked, reply)?)
    }

    fn call(&self, ring: u16) -> Called {
        self.side.call(ring)
    }

    fn window(&self) -> Option<Class> {
        self.tenant_bar.class()
    }

    fn retired(&self, ring: u16, violation: Violation) {
        self.side.retired(ring, violation);
    }

    fn mark(&self, slot: usize) -> UnitMark {
        self.side.mark(slot)
    }

    fn set_mark(&self, slot: usize, mark: UnitMark) {
        self.side.set_mark(slot, mark);
    }
}

impl Side for ShimSide {
    fn hba(&self) -> &str {
        &self.hba
    }

    fn call(&self, ring: u16) -> Called {
        if !self.session.call(ring) {
            return Called::Seen;
        }
        if let Err(error) = self.device.write32(device::doorbell(ring), 1) {
            // The mailbox will tell the same, and end the attachment.
            tracing::debug!(hba = &*self.hba, ring, "doorbell: {error}");
        }
        Called::Trapped
    }

    fn retired(&self, ring: u16, violation: Violation) {
        let mut retirements = self.retirements.get();
        log_retirement(&mut retirements, &self.hba, ring, violation);
        self.retirements.set(retirements);
        let value = u32::from(ring) | violation.reason() << 16;
        if let Err(error) = self.device.write32(RING_ERROR, value) {
            tracing::debug!(hba = &*self.hba, ring, "RING_ERROR: {error}");
        }
    }

    fn mark(&self, slot: usize) -> UnitMark {
        self.session.mark(slot)
    }

    fn set_mark(&self, slot: usize, mark: UnitMark) {
        self.session.set_mark(slot, mark);
    }
}
