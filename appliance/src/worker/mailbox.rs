//! The session as the shim sets it up and takes it down, request by request.

use std::sync::Arc;

use spec::mailbox::Reply;
use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use spec::virtio_scsi::{EVENT_QUEUE, feature};

use super::{Failure, KICK, Worker};
use crate::front::{Asked, Request, Start};
use crate::memory::TenantMemory;
use crate::ring_set::RingSet;
use crate::task::Fate;

/// Virtio features that are offered.
pub(crate) const FEATURES: u64 =
    VERSION_1 | INDIRECT_DESC | EVENT_IDX | feature::INOUT | feature::HOTPLUG | feature::CHANGE;
/// Virtio features that a tenant's driver may have accepted: QEMU offers T10_PI by itself, where
/// it is told to.
pub(crate) const ACCEPTED: u64 = FEATURES | feature::T10_PI;

/// A request of the shim that waits for tasks to end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unfinished {
    /// Another worker of the HBA is to act on it.
    Elsewhere,
    /// This is the reply, if the others say the same.
    Said(Reply),
    Stop(u16),
    /// Until no task uses a memory table before this one.
    Memory(u64),
    Reset,
    Disconnect,
}

/// What becomes of a request.
enum Next {
    /// It is answered.
    Reply(Reply),
    /// It waits for something.
    Finish(Unfinished),
}

impl Worker {
    /// Takes what is in the mailbox and acts on it.
    pub(super) fn serve_mailbox(&mut self) -> Result<(), Failure> {
        while let Some((asked, request)) = self.shim.request()? {
            let team = &mut self.line.team;
            let elsewhere = match &request {
                Request::StartRing(start) => team.other_of(start.setup.ring),
                Request::StopRing(ring) => team.other_of(*ring),
                all => {
                    team.ask_all(all);
                    None
                }
            };
            match elsewhere {
                Some(place) => {
                    team.ask(place, request);
                    self.unfinished = Some((asked, Unfinished::Elsewhere));
                }
                None => self.act_on(asked, request)?,
            }
        }
        Ok(())
    }

    /// Acts on a request, and answers it when what it asks for is so on every worker of the HBA.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn act_on(&mut self, asked: Asked, request: Request) -> Result<(), Failure> {
        match self.act(request) {
            Next::Reply(reply) if self.line.team.is_waiting() => {
                self.unfinished = Some((asked, Unfinished::Said(reply)));
            }
            Next::Reply(reply) => self.shim.reply(asked, reply)?,
            Next::Finish(unfinished) => {
                self.unfinished = Some((asked, unfinished));
                self.pauses.changed = true;
                self.finish_request()?;
            }
        }
        Ok(())
    }

    /// Acts on a request.
    fn act(&mut self, request: Request) -> Next {
        match request {
            Request::SetFeatures(features) => {
                let lacking = features & !ACCEPTED;
                if lacking != 0 {
                    tracing::error!(
                        hba = self.shim.hba(),
                        "the shim asks for virtio features {lacking:#x}, which this appliance does \
                         not have; start the host-shim with --features {FEATURES:#x} at most"
                    );
                    return Next::Reply(failed(libc::EOPNOTSUPP));
                }
                self.features = features;
                Next::Reply(Reply::Done)
            }
            Request::SetMemory(memory) => {
                self.set_memory(memory);
                Next::Finish(Unfinished::Memory(self.memory))
            }
            Request::StartRing(start) => {
                let started = self.start_ring(&start);
                Next::Reply(started.map_or_else(failed, |()| Reply::Done))
            }
            Request::StopRing(ring) => {
                if !self.rings.stop(ring) {
                    return Next::Reply(failed(libc::ENOENT));
                }
                self.io.unwatch(KICK + u64::from(ring));
                Next::Finish(Unfinished::Stop(ring))
            }
            Request::SetLog(log) => {
                self.rings.set_log(log);
                Next::Reply(Reply::Done)
            }
            Request::Reset => {
                self.statistics.hba.resets += u64::from(self.line.team.is_first());
                self.abandon();
                self.events.clear();
                Next::Finish(Unfinished::Reset)
            }
            Request::Disconnect => {
                self.statistics.hba.disconnects += u64::from(self.line.team.is_first());
                self.abandon();
                Next::Finish(Unfinished::Disconnect)
            }
        }
    }

    /// Starts a ring, and looks at it soon.
    ///
    /// # Errors
    /// The errno to answer with; the ring does not run then.
    fn start_ring(&mut self, start: &Start) -> Result<(), i32> {
        let ring = start.setup.ring;
        if ring == EVENT_QUEUE && start.taken_over {
            // The driver goes on where somebody else left it, who may have had events, or another
            // configuration.
            self.events.miss();
        }
        let inflight = start.inflight.clone();
        self.rings
            .start(&start.setup, self.features, inflight, &*self.shim)?;
        self.ready.insert(ring);
        if let Some(kick) = &start.kick
            && let Err(error) = self.io.watch(kick, KICK + u64::from(ring))
        {
            tracing::error!(
                hba = self.shim.hba(),
                ring,
                "its kicks cannot be watched: {error}"
            );
            self.rings.discard(ring);
            return Err(error.raw_os_error().unwrap_or(libc::EIO));
        }
        Ok(())
    }

    /// Answers the unfinished request, if it is finished now.
    pub(super) fn finish_request(&mut self) -> Result<(), Failure> {
        let Some((asked, unfinished)) = self.unfinished else {
            return Ok(());
        };
        let together = !self.line.team.is_waiting();
        let reply = match unfinished {
            Unfinished::Elsewhere => self.line.team.reply(),
            Unfinished::Said(reply) => together.then_some(reply),
            Unfinished::Stop(ring) => {
                // The last completions are called for before the shim hears that it is over.
                self.rings.call_for_all(&*self.shim);
                self.rings.take_stopped(ring).map(Reply::Base)
            }
            Unfinished::Memory(memory) => {
                let in_use = self.tasks.iter().any(|task| task.memory < memory)
                    || self.functions.use_memory_before(memory);
                (!in_use && together).then_some(Reply::Done)
            }
            Unfinished::Reset => (self.has_settled() && together).then(|| {
                self.rings.mark_orphans();
                self.power_on();
                Reply::Done
            }),
            Unfinished::Disconnect => (self.has_settled() && together).then(|| {
                self.rings.mark_orphans();
                self.rings.set_memory(None, &*self.shim);
                self.rings.set_log(None);
                self.power_on();
                Reply::Done
            }),
        };
        if let Some(reply) = reply {
            self.unfinished = None;
            let reply = self.line.team.together(reply);
            self.shim.reply(asked, reply)?;
        }
        Ok(())
    }

    /// The units are as after power on, now that no worker of the HBA carries anything out.
    fn power_on(&self) {
        if self.line.team.is_first() {
            self.host.power_on();
        }
    }

    /// Takes other memory up.
    fn set_memory(&mut self, memory: Option<Arc<TenantMemory>>) {
        self.memory += 1;
        self.rings.set_memory(memory, &*self.shim);
        self.ready.add(self.rings.started());
    }

    /// Forgets every ring and ends every task without an answer.
    fn abandon(&mut self) {
        // What has ended before is back.
        self.rings.call_for_all(&*self.shim);
        let resets = self.functions.forget();
        self.reset_all(resets);
        // What others of the HBA want of commands that are forgotten is so.
        self.early.clear();
        self.withdraw_fences();
        self.begin_to_settle();
        for ring in self.rings.started() {
            self.io.unwatch(KICK + u64::from(ring));
        }
        let waiters = self.rings.forget();
        self.release(waiters);
        self.ready = RingSet::default();
        self.starved = RingSet::default();
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
