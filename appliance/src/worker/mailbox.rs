//! The session as the shim sets it up and takes it down, request by request.

use std::sync::Arc;

use spec::device::BAR_INFLIGHT;
use spec::inflight;
use spec::mailbox::{BadRequest, Reply, Request, RingSetup};
use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use spec::virtio_scsi::{EVENT_QUEUE, feature};

use super::{Failure, Worker};
use crate::memory::Mapping;
use crate::shim::Asked;
use crate::task::Fate;

/// Virtio features that a tenant's driver may have accepted.
const FEATURES: u64 =
    VERSION_1 | INDIRECT_DESC | EVENT_IDX | feature::INOUT | feature::HOTPLUG | feature::CHANGE;

/// A request of the shim that waits for tasks to end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unfinished {
    Stop(u16),
    /// Until no task uses a memory table before this one.
    Memory(u64),
    Reset,
    Disconnect,
}

impl Worker {
    /// Takes what is in the mailbox and acts on it.
    pub(super) fn serve_mailbox(&mut self) -> Result<(), Failure> {
        while let Some((asked, request)) = self.shim.request()? {
            tracing::debug!(hba = self.shim.hba(), ?request, "mailbox");
            let reply = match request {
                Ok(request) => self.act(asked, request),
                Err(error) => {
                    tracing::error!(
                        hba = self.shim.hba(),
                        "the shim asked for nonsense: {error}"
                    );
                    Some(failed(match error {
                        BadRequest::UnknownOperation(_) => libc::EOPNOTSUPP,
                        BadRequest::Length | BadRequest::Ring => libc::EINVAL,
                    }))
                }
            };
            match reply {
                Some(reply) => self.shim.reply(asked, reply)?,
                None => self.finish_request()?,
            }
        }
        Ok(())
    }

    /// Acts on a request; without a reply it is unfinished.
    fn act(&mut self, asked: Asked, request: Request) -> Option<Reply> {
        let unfinished = match request {
            Request::SetFeatures { features } => {
                let lacking = features & !FEATURES;
                if lacking != 0 {
                    tracing::error!(
                        hba = self.shim.hba(),
                        "the shim asks for virtio features {lacking:#x}, which this appliance does \
                         not have; start the host-shim with --features {FEATURES:#x} at most"
                    );
                    return Some(failed(libc::EOPNOTSUPP));
                }
                self.features = features;
                return Some(Reply::Done);
            }
            Request::SetMemory { generation } => match self.set_memory(generation) {
                Ok(()) => Unfinished::Memory(self.memory),
                Err(errno) => return Some(failed(errno)),
            },
            Request::StartRing(setup) => {
                if setup.ring == EVENT_QUEUE && setup.base.is_none() {
                    // The driver goes on where another appliance left it, and that one may have
                    // had events, or another configuration.
                    self.events.miss();
                }
                let started = self.start_ring(&setup);
                self.ready.insert(setup.ring);
                return Some(started.map_or_else(failed, |()| Reply::Done));
            }
            Request::StopRing { ring } => {
                if !self.rings.stop(ring) {
                    return Some(failed(libc::ENOENT));
                }
                Unfinished::Stop(ring)
            }
            Request::Reset => {
                self.abandon();
                self.events.clear();
                Unfinished::Reset
            }
            Request::Disconnect => {
                self.abandon();
                Unfinished::Disconnect
            }
        };
        self.unfinished = Some((asked, unfinished));
        self.pauses.changed = true;
        None
    }

    /// Answers the unfinished request, if it is finished now.
    pub(super) fn finish_request(&mut self) -> Result<(), Failure> {
        let Some((asked, unfinished)) = self.unfinished else {
            return Ok(());
        };
        let reply = match unfinished {
            Unfinished::Stop(ring) => {
                // The last completions are called for before the shim hears that it is over.
                self.rings.call(&self.shim);
                self.rings.take_stopped(ring).map(Reply::Base)
            }
            Unfinished::Memory(memory) => {
                let in_use = self.tasks.iter().any(|task| task.memory < memory)
                    || self.functions.use_memory_before(memory);
                (!in_use).then_some(Reply::Done)
            }
            Unfinished::Reset => self.tasks.is_empty().then(|| {
                self.host.power_on();
                Reply::Done
            }),
            Unfinished::Disconnect => self.tasks.is_empty().then(|| {
                self.let_memory_go();
                self.host.power_on();
                Reply::Done
            }),
        };
        if let Some(reply) = reply {
            self.unfinished = None;
            self.shim.reply(asked, reply)?;
        }
        Ok(())
    }

    /// Starts a ring, with its record in BAR1 if it is tracked.
    ///
    /// # Errors
    /// The errno for the shim.
    fn start_ring(&mut self, setup: &RingSetup) -> Result<(), i32> {
        let inflight = match setup.inflight {
            Some(_) => Some(self.inflight_memory()?),
            None => None,
        };
        self.rings.start(setup, self.features, inflight, &self.shim)
    }

    /// In-flight memory.
    ///
    /// # Errors
    /// The errno for the shim, after a log line.
    fn inflight_memory(&mut self) -> Result<Arc<Mapping>, i32> {
        if let Some(mapping) = &self.inflight {
            return Ok(Arc::clone(mapping));
        }
        let mapped = self.shim.device().map(BAR_INFLIGHT, inflight::LEN);
        let mapping = Arc::new(mapped.map_err(|error| {
            tracing::error!(
                hba = self.shim.hba(),
                "in-flight memory (BAR1) cannot be mapped: {error}"
            );
            error.raw_os_error().unwrap_or(libc::ENXIO)
        })?);
        self.inflight = Some(Arc::clone(&mapping));
        Ok(mapping)
    }

    /// Takes the memory table of `generation` up.
    ///
    /// # Errors
    /// The errno for the shim, after a log line; the old memory stays then.
    fn set_memory(&mut self, generation: u32) -> Result<(), i32> {
        let memory = self
            .tenant_bar
            .memory(generation, &self.shim)
            .map_err(|refused| {
                tracing::error!(hba = self.shim.hba(), "memory table refused: {refused}");
                refused.errno()
            })?;
        self.memory += 1;
        self.rings.set_memory(memory, &self.shim);
        self.ready.extend(self.rings.started());
        Ok(())
    }

    fn let_memory_go(&mut self) {
        self.rings.set_memory(None, &self.shim);
        self.tenant_bar.let_go();
        self.inflight = None;
    }

    /// Forgets every ring and ends every task without an answer.
    fn abandon(&mut self) {
        self.functions.forget();
        let waiters = self.rings.forget();
        self.release(waiters);
        self.ready.clear();
        self.starved.clear();
        self.features = 0;
        self.events.lose_driver();
        for (name, task) in self.tasks.iter_mut() {
            task.fate = Fate::Abandoned;
            self.io.cancel(name);
        }
    }
}

fn failed(errno: i32) -> Reply {
    Reply::Failed(errno.unsigned_abs())
}
