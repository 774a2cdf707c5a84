//! The session of one tenant: what its QEMU asked for, and how far the appliance has followed.
//!
//! A pure state machine, [`Event`]s in and [`Action`]s out. It keeps two records: the *desired*
//! state, which the vhost-user messages add up to, and the *delivered* state, which the appliance
//! was told and acknowledged. Whenever no request is outstanding, `delivery.rs` computes the next
//! one that brings the second closer to the first. An appliance that attaches for the first time,
//! or comes back after a crash, is one to which nothing was delivered yet: there is no other
//! replay code.

mod call;
mod delivery;
mod memory;
mod ring;
mod summary;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spec::mailbox::RingSetup;
use spec::virtio_scsi::EVENT_QUEUE;

pub use call::{Action, Answer, Call, CallId, Event, Inflight, Refused, Step};
use delivery::{Delivered, Outstanding};
pub use memory::{FileFacts, FileId, MemoryError, Region, TenantMemory};
use ring::Ring;
pub use ring::RingAddresses;
pub use summary::Summary;
use waiting::{Until, Waiting};

/// Bit 30: vhost-user's own, in the feature bits of the connection but not of the device.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// QEMU offers these to the guest without asking the backend; `VIRTIO_SCSI_F_T10_PI` only if it is
/// told to.
const UNASKED_FEATURES: u64 =
    spec::virtio_scsi::feature::CHANGE | spec::virtio_scsi::feature::T10_PI;

/// What does not change during a session.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Vrings that the tenant may use.
    pub rings: u16,
    /// Feature bits offered to the tenant's QEMU.
    pub features: u64,
    /// How long an appliance may take to answer, and a tenant's QEMU is kept waiting.
    pub patience: Duration,
    /// The file that the function shows from the start: the only one, and it needs no seal.
    pub trusted: Option<FileId>,
}

/// See the module's text.
#[derive(Debug, Serialize, Deserialize)]
pub struct Session {
    /// A next supervisor is started with the same.
    #[serde(skip)]
    limits: Limits,
    connected: bool,
    features: Option<u64>,
    memory: TenantMemory,
    /// The file of the last connection that had one: rings go on only over the same.
    last_file: Option<FileId>,
    rings: Vec<Ring>,
    /// What the tenant's QEMU has set since it connected and since the last reset.
    inflight: Option<Inflight>,
    waiting: Vec<Waiting>,

    attached: bool,
    /// The attached appliance knows in-flight memory.
    tracks: bool,
    /// The file in BAR2.
    window: Option<FileId>,
    /// The file in BAR1.
    shown_inflight: Option<FileId>,
    delivered: Delivered,
    outstanding: Option<Outstanding>,
    reset_pending: bool,
    disconnect_pending: bool,

    /// None when a record is written.
    #[serde(skip)]
    actions: VecDeque<Action>,
}

impl Session {
    /// A session without a tenant or an appliance.
    pub fn new(limits: Limits) -> Self {
        let rings = usize::from(limits.rings);
        Self {
            limits,
            connected: false,
            features: None,
            memory: TenantMemory::default(),
            last_file: None,
            rings: vec![Ring::default(); rings],
            inflight: None,
            waiting: Vec::new(),
            attached: false,
            tracks: false,
            window: None,
            shown_inflight: None,
            delivered: Delivered::nothing(rings),
            outstanding: None,
            reset_pending: false,
            disconnect_pending: false,
            actions: VecDeque::new(),
        }
    }

    /// A session that goes on from the record that a supervisor of the same limits left.
    pub fn resumed(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// What it was started with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// After a handover: each ring that the appliance runs is kicked and called, since a
    /// notification may have been lost.
    pub fn notify_all(&mut self) {
        let rings: Vec<_> = self
            .ring_indices()
            .filter(|&ring| self.runs(ring))
            .collect();
        for ring in rings {
            self.actions.push_back(Action::Kick(ring));
            self.actions.push_back(Action::Interrupt(ring));
        }
    }

    /// Takes in what happened at `now`; what follows from it is in [`Self::next_action`].
    pub fn handle(&mut self, now: Instant, event: Event) {
        match event {
            Event::Connected => self.connected = true,
            Event::Disconnected => self.disconnect(),
            Event::Call(id, call) => self.call(now, id, call),
            Event::Window(file) => self.window = file,
            Event::Inflight(file) => self.shown_inflight = Some(file),
            Event::Attached { tracks } => {
                self.detach();
                self.attached = true;
                self.tracks = tracks;
            }
            Event::Detached => self.detach(),
            Event::Replied(reply) => self.replied(reply),
            Event::BadReply => self.turn_away(crate::device::Refusal::BadReply),
            Event::Tick => {}
        }
        self.expire(now);
        self.post_next(now);
        self.settle();
    }

    /// The oldest action not taken yet.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|waiting| waiting.deadline);
        let outstanding = self.outstanding.as_ref().map(|step| step.deadline);
        waiting.chain(outstanding).min()
    }

    /// The file of the tenant's memory, if the connection has named one.
    pub fn memory_file(&self) -> Option<FileId> {
        self.memory.file().map(|facts| facts.id)
    }

    /// Whether the function is of use to the storage VM: a ring is started, or one is being
    /// stopped whose base only an appliance can tell.
    pub fn has_work(&self) -> bool {
        let base_is_due = |ring: u16| self.ring(ring).base_asked && self.ring(ring).live;
        self.ring_indices()
            .any(|ring| self.should_run(ring) || base_is_due(ring))
    }

    /// Whether the appliance has been told everything there is to tell.
    pub fn is_settled(&self) -> bool {
        self.outstanding.is_none()
            && (!self.attached || !(self.reset_pending || self.disconnect_pending))
    }

    /// Whether the appliance was told to run `ring` and has not stopped it since.
    pub fn runs(&self, ring: u16) -> bool {
        self.delivered.ring(ring).is_some()
    }

    /// Virtio features that the tenant's driver accepted.
    fn device_features(&self) -> Option<u64> {
        self.features.map(|features| features & !PROTOCOL_FEATURES)
    }

    fn ring_indices(&self) -> std::ops::Range<u16> {
        0..self.limits.rings
    }

    fn ring(&self, ring: u16) -> &Ring {
        &self.rings[usize::from(ring)]
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.disown_outstanding();
        self.features = None;
        self.memory.clear();
        self.inflight = None;
        self.waiting.clear();
        for index in self.ring_indices() {
            self.forget_kick(index);
            self.rings[usize::from(index)].disconnect();
        }
        self.actions.push_back(Action::ForgiveRings);
        self.reset_pending = false;
        self.disconnect_pending =
            !self.delivered.is_nothing() || self.outstanding.is_some() || self.disconnect_pending;
    }

    fn forget_kick(&mut self, ring: u16) {
        if std::mem::take(&mut self.rings[usize::from(ring)].kick) {
            self.actions.push_back(Action::ForgetKick(ring));
        }
    }

    fn call(&mut self, now: Instant, id: CallId, call: Call) {
        match self.record(call) {
            Ok(Recorded::Answered(answer)) => {
                self.actions.push_back(Action::Answer(id, Ok(answer)));
            }
            Ok(Recorded::Waits(until)) => self.waiting.push(Waiting {
                id,
                until,
                deadline: now + self.limits.patience,
            }),
            Err(refused) => self.actions.push_back(Action::Answer(id, Err(refused))),
        }
    }

    /// Changes the desired state as `call` says.
    fn record(&mut self, call: Call) -> Result<Recorded, Refused> {
        if let Some(ring) = call.ring().filter(|&ring| ring >= self.limits.rings) {
            return Err(Refused::NoSuchRing {
                ring,
                rings: self.limits.rings,
            });
        }
        match call {
            Call::SetFeatures(features) => {
                let allowed = self.limits.features | PROTOCOL_FEATURES | UNASKED_FEATURES;
                if features & !allowed != 0 {
                    return Err(Refused::Features(features & !allowed));
                }
                self.features = Some(features);
            }
            Call::SetMemory(regions) => {
                self.memory.replace(&regions, self.limits.trusted)?;
                return Ok(self.memory_changed());
            }
            Call::AddRegion(region, facts) => {
                self.memory.add(region, facts, self.limits.trusted)?;
                return Ok(self.memory_changed());
            }
            Call::RemoveRegion(region) => {
                self.memory.remove(&region)?;
                return Ok(self.memory_changed());
            }
            Call::SetSize { ring, size } => {
                let entries = Ring::checked_size(size).ok_or(Refused::RingSize { ring, size })?;
                self.change(ring).size = Some(entries);
            }
            Call::SetAddresses { ring, addresses } => {
                self.change(ring).addresses = Some(addresses);
            }
            Call::SetBase { ring, base } => {
                let index = u16::try_from(base).map_err(|_| Refused::RingBase { ring, base })?;
                self.change(ring).base = index;
            }
            Call::GetBase { ring } => return Ok(self.stop_for_base(ring)),
            Call::SetKick { ring, present } => {
                self.change(ring).kick = present;
                self.check_place(ring)?;
            }
            Call::SetEnabled { ring, enabled } => {
                let changed = self.change(ring);
                changed.enabled = enabled;
                changed.was_enabled |= enabled;
                self.check_place(ring)?;
            }
            Call::SetInflight(inflight) => self.inflight = Some(inflight),
            Call::ResetDevice => self.reset(),
        }
        Ok(Recorded::Answered(Answer::Done))
    }

    /// The ring, to be set up anew: what the appliance refused may be fine now.
    fn change(&mut self, ring: u16) -> &mut Ring {
        let ring = &mut self.rings[usize::from(ring)];
        ring.refused = false;
        ring
    }

    /// A ring that was told to run must be where the appliance can find it.
    fn check_place(&self, index: u16) -> Result<(), Refused> {
        let ring = self.ring(index);
        let described = ring.size.is_some() && ring.addresses.is_some();
        if self.is_started(index) && described && ring.setup(index, &self.memory).is_none() {
            return Err(if self.memory.is_empty() {
                Refused::NoMemory { ring: index }
            } else {
                Refused::RingOutsideMemory { ring: index }
            });
        }
        Ok(())
    }

    /// What the appliance needs to run the ring.
    fn setup(&self, index: u16) -> Option<RingSetup> {
        let setup = self.ring(index).setup(index, &self.memory)?;
        // Buffers of the event ring go back as they are fetched: its used index tells everything.
        let tracked = self
            .inflight
            .filter(|_| self.tracks && index != EVENT_QUEUE);
        Some(RingSetup {
            inflight: tracked.and_then(|memory| memory.regions.offset(index, setup.size)),
            ..setup
        })
    }

    /// Whether the tenant wants the ring to run, wherever it is.
    fn is_started(&self, index: u16) -> bool {
        let ring = self.ring(index);
        // Without PROTOCOL_FEATURES there is no SET_VRING_ENABLE: rings start enabled.
        self.features
            .is_some_and(|features| ring.enabled || features & PROTOCOL_FEATURES == 0)
            && ring.kick
    }

    /// Whether the ring is to run and everything about it is known.
    fn should_run(&self, index: u16) -> bool {
        self.is_started(index) && self.ring(index).setup(index, &self.memory).is_some()
    }

    fn memory_changed(&mut self) -> Recorded {
        let file = self.memory_file();
        if file.is_some() && file != self.last_file {
            // Another tenant process: nothing of what ran before is in this memory.
            self.last_file = file;
            for ring in &mut self.rings {
                ring.live = false;
            }
        }
        for ring in &mut self.rings {
            ring.refused = false;
        }
        Recorded::Waits(Until::Memory(self.memory.version()))
    }

    /// GET_VRING_BASE stops the ring. Its answer waits until its base is known: where no
    /// appliance ran it, that is the recorded one; where one did, the one that it names.
    fn stop_for_base(&mut self, index: u16) -> Recorded {
        let in_use = self.runs(index) || self.outstanding_ring() == Some(index);
        self.forget_kick(index);
        let ring = &mut self.rings[usize::from(index)];
        if ring.live || in_use {
            ring.base_asked = true;
            Recorded::Waits(Until::Stopped(index))
        } else {
            Recorded::Answered(Answer::Base(ring.base))
        }
    }

    /// The reply to what is outstanding is about rings as they were up to now.
    fn disown_outstanding(&mut self) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.obsolete = true;
        }
    }

    fn reset(&mut self) {
        self.disown_outstanding();
        for index in self.ring_indices() {
            self.forget_kick(index);
            self.rings[usize::from(index)].reset();
        }
        self.features = None;
        self.inflight = None;
        self.reset_pending = self.delivered.features.is_some()
            || self.delivered.rings.iter().any(Option::is_some)
            || self.outstanding.is_some();
        self.actions.push_back(Action::ForgiveRings);
    }
}

/// What became of a call.
enum Recorded {
    Answered(Answer),
    Waits(Until),
}
