//! The tenant's side of the supervisor: what the relay says, and the eventfds of the rings.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::inflight::BadInflight;
use super::tenant_fd::{TenantEvent, file_facts};
use super::{About, FIRST_KICK, RELAY, Supervisor, raw};
use serde::{Deserialize, Serialize};

use crate::kept::{Kept, KeptFd};
use crate::link::{Ending, FromRelay, LinkError, WireCall};
use crate::session::{Call, CallId, Event, FileFacts};

/// Messages of the relay that are served in one turn of the loop.
const MESSAGES: usize = 64;
/// Characters of the relay's own words that are logged.
const QUOTED: usize = 200;

/// The eventfds of one ring.
#[derive(Debug, Default)]
pub(super) struct RingEvents {
    kick: Option<TenantEvent>,
    call: Option<TenantEvent>,
    error: Option<TenantEvent>,
    /// An interrupt that had no eventfd to go to.
    missed: bool,
}

/// What a next supervisor needs of them; eventfds by their names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RingRecord {
    kick: Option<u64>,
    call: Option<u64>,
    error: Option<u64>,
    missed: bool,
}

impl RingEvents {
    pub fn record(&self) -> RingRecord {
        let name = |event: &Option<TenantEvent>| event.as_ref().map(TenantEvent::name);
        RingRecord {
            kick: name(&self.kick),
            call: name(&self.call),
            error: name(&self.error),
            missed: self.missed,
        }
    }

    /// The eventfds of `record`, but for the kick, which is to be watched.
    pub fn restored(record: &RingRecord, kept: &Kept) -> (Self, Option<TenantEvent>) {
        let find = |name: Option<u64>| name.and_then(|name| kept.get(name)).map(TenantEvent::kept);
        let events = Self {
            kick: None,
            call: find(record.call),
            error: find(record.error),
            missed: record.missed,
        };
        (events, find(record.kick))
    }

    pub fn interrupt(&mut self) {
        match &self.call {
            Some(call) => call.signal(),
            None => self.missed = true,
        }
    }

    pub fn signal_error(&self) {
        if let Some(error) = &self.error {
            error.signal();
        }
    }

    fn set_call(&mut self, call: Option<TenantEvent>) {
        self.call = call;
        if self.call.is_some() && std::mem::take(&mut self.missed) {
            self.interrupt();
        }
    }
}

/// A call that is refused before the session hears of it.
#[derive(Debug, thiserror::Error)]
enum BadCall {
    #[error("vring index {0} of the tenant's QEMU is beyond any HBA")]
    RingIndex(u32),
    #[error("tenant's QEMU sent {0} file descriptors where the protocol has another number")]
    Descriptors(usize),
    #[error("file descriptor from the tenant's QEMU: {0}")]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Inflight(#[from] BadInflight),
}

/// What became of a call.
enum Taken {
    Done,
    /// Done, with a number and a file for the tenant's QEMU.
    Given(u64, KeptFd),
    /// The session answers it.
    Handed,
}

impl Supervisor {
    /// The eventfds of `ring`, which is below the number of rings.
    pub(super) fn ring_events(&mut self, ring: u16) -> &mut RingEvents {
        &mut self.rings[usize::from(ring)]
    }

    /// Serves what the relay has said, but only so much of it in one turn: the storage VM waits.
    pub(super) fn hear_relay(&mut self, now: Instant) {
        self.relay_more = false;
        // What is posted here must be meant for the appliance that is attached now. A call that
        // it has answered is answered before the next one is heard, which the relay may have sent
        // already where the supervisor before this one has answered, too.
        self.settle(now);
        for _ in 0..MESSAGES {
            match self.relay.receive(now) {
                Ok(Some((message, fds))) => {
                    // A sign of life changes nothing that is to be written down.
                    self.changed |= !matches!(message, FromRelay::Alive(_));
                    self.relay_says(now, message, fds);
                }
                Ok(None) => return,
                Err(LinkError::Closed) => return self.relay_failed(now, "it ended"),
                Err(error) => return self.relay_failed(now, &error.to_string()),
            }
            // What follows from one message is done before the next one is heard: a kick that
            // is given up here may come anew there.
            self.settle(now);
            if !self.commit() {
                // A next supervisor would go on as if it had never been said.
                return self.relay_failed(now, "what it said cannot be written down");
            }
            if let Err(error) = self.relay.taken_in() {
                return self.relay_failed(now, &error.to_string());
            }
        }
        self.relay_more = true;
    }

    fn relay_says(&mut self, now: Instant, message: FromRelay, fds: Vec<OwnedFd>) {
        let fds: Vec<_> = fds.into_iter().map(|fd| self.kept.keep(fd)).collect();
        match message {
            FromRelay::Alive(_) => {}
            FromRelay::Connected => {
                self.note(About::Tenant, "tenant connected");
                // Without the duplicate, the connection ends when the relay wants it to.
                if let Err(error) = self.relay.set_tenant(fds.into_iter().next()) {
                    self.complain(&format!("tenant's connection: {error}"));
                }
                self.device.set_frontend_up(true);
                self.session.handle(now, Event::Connected);
            }
            FromRelay::Disconnected(ending) => {
                self.say_goodbye(&ending);
                // Letting go cannot fail.
                let _ = self.relay.set_tenant(None);
                self.tenant_gone(now);
            }
            FromRelay::Call { id, call } => {
                let refused = match self.take_call(now, id, call, fds) {
                    Ok(Taken::Done) => self.relay.answer(id, Some(0), None),
                    Ok(Taken::Given(value, file)) => {
                        self.relay.answer(id, Some(value), Some(file.as_fd()))
                    }
                    Ok(Taken::Handed) => Ok(()),
                    Err(error) => {
                        self.complain(&error.to_string());
                        self.relay.answer(id, None, None)
                    }
                };
                if refused.is_err() {
                    self.relay_failed(now, "it does not take answers");
                }
            }
        }
    }

    /// Why a tenant's connection ended, as far as it can be told.
    fn say_goodbye(&mut self, ending: &Ending) {
        match ending {
            Ending::Closed if self.started && self.session.memory_file().is_none() => self
                .complain(
                    "tenant disconnected before it named its memory: its RAM is private, most \
                     likely; give its QEMU -object memory-backend-memfd,id=mem,size=…,share=on \
                     and -machine …,memory-backend=mem",
                ),
            Ending::Closed => self.note(About::Tenant, "tenant disconnected"),
            // The refusal was reported with its reason.
            Ending::Refused => {}
            Ending::Protocol(reason) => {
                let reason: String = reason.chars().take(QUOTED).collect();
                self.complain(&format!(
                    "tenant's connection dropped: {}; is it QEMU's vhost-user-scsi-pci?",
                    reason.escape_debug()
                ));
            }
        }
    }

    /// The tenant's connection is over.
    pub(super) fn tenant_gone(&mut self, now: Instant) {
        self.started = false;
        self.memory = None;
        self.inflight.forget();
        self.device.set_frontend_up(false);
        self.session.handle(now, Event::Disconnected);
        for ring in 0..self.rings.len() {
            self.rings[ring].call = None;
            self.rings[ring].error = None;
            self.rings[ring].missed = false;
        }
    }

    /// Carries a call out, or hands it to the session, which answers it.
    fn take_call(
        &mut self,
        now: Instant,
        id: CallId,
        call: WireCall,
        mut fds: Vec<KeptFd>,
    ) -> Result<Taken, BadCall> {
        let expected = match &call {
            WireCall::SetMemory(regions) => regions.len()..=regions.len(),
            WireCall::AddRegion(_) | WireCall::SetInflight { .. } => 1..=1,
            WireCall::SetKick(_) | WireCall::SetCall(_) | WireCall::SetErr(_) => 0..=1,
            _ => 0..=0,
        };
        if !expected.contains(&fds.len()) {
            return Err(BadCall::Descriptors(fds.len()));
        }
        let mut files = Vec::new();
        let index = |ring: u32| u16::try_from(ring).map_err(|_| BadCall::RingIndex(ring));
        let call = match call {
            WireCall::SetFeatures(features) => {
                self.started = true;
                Call::SetFeatures(features)
            }
            WireCall::SetMemory(regions) => {
                files = inspect(&mut fds)?;
                let facts = files.iter().map(|(facts, _)| *facts);
                Call::SetMemory(regions.into_iter().zip(facts).collect())
            }
            WireCall::AddRegion(region) => {
                files = inspect(&mut fds)?;
                let (facts, _) = files.first().ok_or(BadCall::Descriptors(0))?;
                Call::AddRegion(region, *facts)
            }
            WireCall::RemoveRegion(region) => Call::RemoveRegion(region),
            WireCall::SetSize(ring, size) => Call::SetSize {
                ring: index(ring)?,
                size,
            },
            WireCall::SetAddresses(ring, addresses) => Call::SetAddresses {
                ring: index(ring)?,
                addresses,
            },
            WireCall::SetBase(ring, base) => Call::SetBase {
                ring: index(ring)?,
                base,
            },
            WireCall::GetBase(ring) => Call::GetBase { ring: index(ring)? },
            WireCall::SetEnabled(ring, enabled) => Call::SetEnabled {
                ring: index(ring)?,
                enabled,
            },
            WireCall::GetInflight(rings, entries) => {
                let (len, file) = self.give_inflight(rings, entries)?;
                return Ok(Taken::Given(len, file));
            }
            WireCall::SetInflight {
                offset,
                len,
                rings,
                entries,
            } => {
                let fd = fds.pop().ok_or(BadCall::Descriptors(0))?;
                Call::SetInflight(self.take_inflight(fd, (offset, len), (rings, entries))?)
            }
            WireCall::ResetDevice => Call::ResetDevice,
            WireCall::SetKick(ring) => {
                let event = tenant_event(fds)?;
                let ring = index(ring)?;
                let present = event.is_some();
                if usize::from(ring) < self.rings.len() {
                    self.set_kick(ring, event);
                }
                Call::SetKick { ring, present }
            }
            WireCall::SetCall(ring) => {
                let event = tenant_event(fds)?;
                self.known_ring(ring)?.set_call(event);
                return Ok(Taken::Done);
            }
            WireCall::SetErr(ring) => {
                let event = tenant_event(fds)?;
                self.known_ring(ring)?.error = event;
                return Ok(Taken::Done);
            }
        };
        self.session.handle(now, Event::Call(id, call));
        self.keep_memory(files);
        Ok(Taken::Handed)
    }

    /// Keeps a descriptor of the file that the session has accepted, to be shown in BAR2.
    fn keep_memory(&mut self, files: Vec<(FileFacts, KeptFd)>) {
        let Some(accepted) = self.session.memory_file() else {
            return;
        };
        if self.memory.as_ref().is_some_and(|(id, _)| *id == accepted) {
            return;
        }
        let file = files.into_iter().find(|(facts, _)| facts.id == accepted);
        if let Some((facts, fd)) = file {
            self.memory = Some((facts.id, fd));
        }
    }

    /// Watches `event` as the kick of `ring`, instead of the one before.
    pub(super) fn set_kick(&mut self, ring: u16, event: Option<TenantEvent>) {
        let registry = self.poll.registry();
        let kick = &mut self.rings[usize::from(ring)].kick;
        // The eventfd lives on in the tenant's QEMU, so closing ours does not end the watch.
        if let Some(old) = kick.take()
            && let Err(error) = registry.deregister(&mut SourceFd(&raw(&old)))
        {
            tracing::debug!(ring, %error, "kick eventfd");
        }
        if let Some(event) = event {
            let token = Token(FIRST_KICK + usize::from(ring));
            match registry.register(&mut SourceFd(&raw(&event)), token, Interest::READABLE) {
                Ok(()) => {
                    *kick = Some(event);
                    // A kick that the one before has got and nobody has seen is not lost.
                    if self.session.runs(ring) {
                        self.device.kick(ring);
                    }
                }
                Err(error) => tracing::error!(hba = %self.name, ring, %error, "kick eventfd"),
            }
        }
    }

    /// The tenant kicked: tell the appliance, if it runs the ring. If it does not yet, the ring
    /// is kicked when it does.
    pub(super) fn kicked(&mut self, ring: usize) {
        let Some(kick) = self.rings.get(ring).and_then(|events| events.kick.as_ref()) else {
            return;
        };
        if let Ok(ring) = u16::try_from(ring)
            && kick.take()
            && self.session.runs(ring)
        {
            self.counters.kicks += 1;
            self.device.kick(ring);
        }
    }

    /// Starts a relay when there is none, pings the one there is. A relay that cannot be started
    /// is tried again: the storage VM has its function meanwhile, and must not lose it.
    pub(super) fn keep_relay(&mut self, now: Instant) {
        if self.stopping.is_some() {
            return;
        }
        if let Err(reason) = self.relay.tick(now) {
            self.relay_failed(now, reason);
        }
        if self.relay.take_breach() {
            self.complain(
                "relay was ended by its sandbox, for a system call that no relay makes: the \
                 tenant's QEMU may have taken it over. The kernel's audit log names the call \
                 (type=1326, or SECCOMP)",
            );
        }
        let watched = self.relay.start(now).and_then(|started| {
            let Some(fd) = self.relay.link_fd().filter(|_| started) else {
                return Ok(());
            };
            self.changed = true;
            self.poll
                .registry()
                .register(&mut SourceFd(&fd), RELAY, Interest::READABLE)
        });
        if let Err(error) = watched {
            self.changed = true;
            self.relay.kill();
            self.complain(&format!(
                "relay cannot be started: {error}; it is tried again, no tenant is served meanwhile"
            ));
        }
    }

    /// Ends a relay that is of no use any more; the next one is started in a moment.
    pub(super) fn relay_failed(&mut self, now: Instant, reason: &str) {
        if self.relay.link_fd().is_none() {
            return;
        }
        self.complain(&format!(
            "relay failed: {reason}; it is started again, the tenant's QEMU must reconnect \
             (-chardev …,reconnect-ms=1000)"
        ));
        self.changed = true;
        self.relay.kill();
        self.tenant_gone(now);
    }

    fn known_ring(&mut self, ring: u32) -> Result<&mut RingEvents, BadCall> {
        usize::try_from(ring)
            .ok()
            .and_then(|ring| self.rings.get_mut(ring))
            .ok_or(BadCall::RingIndex(ring))
    }
}

/// What the kernel says about each of the files, which are taken from `fds`.
fn inspect(fds: &mut Vec<KeptFd>) -> Result<Vec<(FileFacts, KeptFd)>, BadCall> {
    fds.drain(..).map(|fd| Ok((file_facts(&fd)?, fd))).collect()
}

/// The eventfd among `fds`, if there is one.
fn tenant_event(fds: Vec<KeptFd>) -> Result<Option<TenantEvent>, BadCall> {
    Ok(fds.into_iter().next().map(TenantEvent::new).transpose()?)
}
