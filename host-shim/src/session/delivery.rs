//! The next message that brings the appliance closer to the session.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use spec::mailbox::{Reply, Request, RingSetup};
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;

use super::ring::{same_ring, setup};
use super::{Action, Session, Step};
use crate::device::Refusal;

/// What the appliance was told and acknowledged.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Delivered {
    pub features: Option<u64>,
    /// Version of the memory table.
    pub memory: Option<u64>,
    #[serde(with = "setup::each")]
    pub rings: Vec<Option<RingSetup>>,
}

impl Delivered {
    /// Nothing, to an HBA of this many rings.
    pub fn nothing(rings: usize) -> Self {
        Self {
            features: None,
            memory: None,
            rings: vec![None; rings],
        }
    }

    pub fn is_nothing(&self) -> bool {
        self.features.is_none() && self.memory.is_none() && self.rings.iter().all(Option::is_none)
    }

    pub fn ring(&self, ring: u16) -> Option<RingSetup> {
        self.rings.get(usize::from(ring)).copied().flatten()
    }
}

/// A step that was posted and has no reply yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outstanding {
    pub change: Change,
    #[serde(with = "crate::moment")]
    pub deadline: Instant,
    /// The ring that it is about was forgotten meanwhile: the reply says nothing about the one
    /// that has its number now.
    pub obsolete: bool,
}

/// What is delivered once the reply is there.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Change {
    Disconnect,
    Reset,
    Features(u64),
    Memory(u64),
    Start {
        #[serde(with = "setup")]
        setup: RingSetup,
        /// Whether the ring was live before, and tracked; it is again if the appliance refuses it.
        was_live: bool,
        was_tracked: bool,
    },
    Stop(u16),
}

impl Session {
    /// Whether the appliance sees the memory that the session is about.
    pub(super) fn may_deliver(&self) -> bool {
        let inflight = self.inflight.map(|memory| memory.file);
        self.connected
            && self.window.is_some()
            && self.window == self.memory_file()
            && (inflight.is_none() || inflight == self.shown_inflight)
    }

    pub(super) fn outstanding_ring(&self) -> Option<u16> {
        match self.outstanding.as_ref()?.change {
            Change::Start { setup, .. } => Some(setup.ring),
            Change::Stop(ring) => Some(ring),
            _ => None,
        }
    }

    /// Posts the next step, if there is one and the appliance can take it.
    pub(super) fn post_next(&mut self, now: Instant) {
        if !self.attached || self.outstanding.is_some() {
            return;
        }
        if !self.tracks && self.may_deliver() && self.needs_tracking() {
            return self.turn_away(Refusal::Untracked);
        }
        let Some(change) = self.next_change() else {
            return;
        };
        let step = match change {
            Change::Disconnect => Step::Request(Request::Disconnect),
            Change::Reset => Step::Request(Request::Reset),
            Change::Features(features) => Step::Request(Request::SetFeatures { features }),
            Change::Memory(_) => Step::Memory(self.memory.entries()),
            Change::Start { setup, .. } => {
                // From here on the appliance may move the used index.
                let ring = &mut self.rings[usize::from(setup.ring)];
                ring.live = true;
                ring.tracked = setup.inflight.is_some();
                Step::Request(Request::StartRing(setup))
            }
            Change::Stop(ring) => Step::Request(Request::StopRing { ring }),
        };
        match change {
            Change::Disconnect => self.disconnect_pending = false,
            Change::Reset => self.reset_pending = false,
            _ => {}
        }
        self.outstanding = Some(Outstanding {
            change,
            deadline: now + self.limits.patience,
            obsolete: false,
        });
        self.actions.push_back(Action::Post(step));
    }

    /// Whether a ring is to go on that was left in flight as only in-flight memory tells.
    fn needs_tracking(&self) -> bool {
        self.ring_indices().any(|index| {
            let ring = self.ring(index);
            ring.live && ring.tracked && self.wanted(index).is_some()
        })
    }

    fn next_change(&self) -> Option<Change> {
        if self.disconnect_pending {
            return Some(Change::Disconnect);
        }
        if self.reset_pending {
            return Some(Change::Reset);
        }
        if !self.may_deliver() {
            return None;
        }
        let features = self.device_features();
        let features_change = features.filter(|_| self.delivered.features != features);
        let stop = self.ring_indices().find(|&index| {
            self.delivered.ring(index).is_some_and(|running| {
                let stays = self
                    .wanted(index)
                    .is_some_and(|wanted| same_ring(&running, &wanted));
                !stays || features_change.is_some()
            })
        });
        if let Some(ring) = stop {
            return Some(Change::Stop(ring));
        }
        if let Some(features) = features_change {
            return Some(Change::Features(features));
        }
        let version = self.memory.version();
        if self.delivered.memory != Some(version) {
            return Some(Change::Memory(version));
        }
        // The control ring last: its functions are about what the others have in flight.
        let rings = self.ring_indices();
        let soon = rings.clone().any(|index| self.comes_soon(index));
        rings
            .clone()
            .skip(1)
            .chain(rings.take(if soon { 0 } else { 1 }))
            .find_map(|index| {
                let ring = self.ring(index);
                if self.delivered.ring(index).is_some() || ring.refused {
                    return None;
                }
                Some(Change::Start {
                    setup: self.wanted(index)?,
                    was_live: ring.live,
                    was_tracked: ring.tracked,
                })
            })
    }

    /// Whether the tenant's QEMU has set a request ring up, and has only to enable it: it sets up
    /// all rings before it enables the first, which is the control ring.
    fn comes_soon(&self, index: u16) -> bool {
        let ring = self.ring(index);
        let is_set_up = ring.kick && ring.size.is_some() && ring.addresses.is_some();
        index >= FIRST_REQUEST_QUEUE && is_set_up && !ring.was_enabled && !self.is_started(index)
    }

    /// How the appliance should run the ring now, if it should.
    ///
    /// A ring that an appliance left without saying where, and whose base the tenant's QEMU
    /// asks for, is run once more, so that the appliance can say it.
    fn wanted(&self, index: u16) -> Option<RingSetup> {
        let ring = self.ring(index);
        let learn_base = ring.base_asked && ring.live && self.delivered.ring(index).is_none();
        let run = !ring.base_asked && self.is_started(index);
        (learn_base || run).then(|| self.setup(index)).flatten()
    }

    /// Takes in the reply to the outstanding step.
    pub(super) fn replied(&mut self, reply: Reply) {
        let Some(Outstanding {
            change, obsolete, ..
        }) = self.outstanding.take()
        else {
            return;
        };
        match (change, reply) {
            (Change::Start { .. }, Reply::Failed(_)) if obsolete => {}
            (
                Change::Start {
                    setup,
                    was_live,
                    was_tracked,
                },
                Reply::Failed(errno),
            ) => {
                let ring = &mut self.rings[usize::from(setup.ring)];
                ring.live &= was_live;
                ring.tracked = was_tracked;
                ring.refused = true;
                self.actions
                    .push_back(Action::RingRefused(setup.ring, errno));
            }
            (_, Reply::Failed(_)) => self.turn_away(Refusal::RequestFailed),
            (Change::Stop(ring), Reply::Base(base)) => {
                self.delivered.rings[usize::from(ring)] = None;
                if !obsolete {
                    let ring = &mut self.rings[usize::from(ring)];
                    ring.base = base;
                    ring.live = false;
                }
            }
            (Change::Stop(_), Reply::Done) | (_, Reply::Base(_)) => {
                self.turn_away(Refusal::BadReply);
            }
            (change, Reply::Done) => self.delivered_now(change),
        }
    }

    fn delivered_now(&mut self, change: Change) {
        let delivered = &mut self.delivered;
        if matches!(change, Change::Disconnect | Change::Reset) {
            // What was reported until now was of rings that are no more.
            self.actions.push_back(Action::ForgiveRings);
        }
        match change {
            Change::Disconnect => *delivered = Delivered::nothing(delivered.rings.len()),
            Change::Reset => {
                delivered.features = None;
                delivered.rings.fill(None);
            }
            Change::Features(features) => delivered.features = Some(features),
            Change::Memory(version) => delivered.memory = Some(version),
            Change::Start { setup, .. } => {
                delivered.rings[usize::from(setup.ring)] = Some(setup);
                // Neither side may wait for a notification that was lost on the way here.
                self.actions.push_back(Action::Kick(setup.ring));
                self.actions.push_back(Action::Interrupt(setup.ring));
            }
            Change::Stop(_) => {}
        }
    }

    /// Turns the appliance away; the session goes on as without one.
    ///
    /// It may not have heard of that yet, and still use the memory that it was given: whoever
    /// waits for it to take another table is not told that it has.
    pub(super) fn turn_away(&mut self, reason: Refusal) {
        self.actions.push_back(Action::TurnAway(reason));
        let given = self.outstanding.as_ref().map(|step| step.change);
        if self.delivered.memory.is_some() || matches!(given, Some(Change::Memory(_))) {
            self.refuse_memory_calls();
        }
        self.detach();
    }

    /// The appliance is gone: nothing is delivered, nobody will reply.
    pub(super) fn detach(&mut self) {
        self.attached = false;
        // The next appliance must not get what this one was to be told.
        self.actions
            .retain(|action| !matches!(action, Action::Post(_)));
        self.outstanding = None;
        self.reset_pending = false;
        self.disconnect_pending = false;
        self.delivered = Delivered::nothing(self.rings.len());
        for ring in &mut self.rings {
            ring.refused = false;
        }
    }
}
