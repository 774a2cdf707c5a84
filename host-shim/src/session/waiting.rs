//! Calls whose answer depends on the appliance.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Action, Answer, CallId, Refused, Session};

/// What a waiting call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Until {
    /// The appliance has no older table than this version.
    Memory(u64),
    /// The ring is stopped and its base known.
    Stopped(u16),
}

/// A call whose answer depends on the appliance.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub id: CallId,
    pub until: Until,
    #[serde(with = "crate::moment")]
    pub deadline: Instant,
}

impl Session {
    /// Refuses calls that waited too long, and turns away an appliance that took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let seconds = self.limits.patience.as_secs();
        let due = |waiting: &Waiting| waiting.deadline <= now;
        for waiting in self.waiting.extract_if(.., |waiting| due(waiting)) {
            let refused = match waiting.until {
                Until::Memory(_) => Refused::MemoryNotTaken { seconds },
                Until::Stopped(ring) => Refused::NotStopped {
                    ring,
                    seconds,
                    reason: if self.attached {
                        "the appliance has not finished its requests (is a disk hung?)"
                    } else {
                        "no appliance is attached (is the storage VM up?)"
                    },
                },
            };
            self.actions
                .push_back(Action::Answer(waiting.id, Err(refused)));
        }
        if self
            .outstanding
            .as_ref()
            .is_some_and(|step| step.deadline <= now)
        {
            self.turn_away(crate::device::Refusal::Timeout);
        }
    }

    /// Refuses every call that waits for the appliance to take its memory table.
    pub(super) fn refuse_memory_calls(&mut self) {
        let of_memory = |waiting: &mut Waiting| matches!(waiting.until, Until::Memory(_));
        for waiting in self.waiting.extract_if(.., of_memory) {
            self.actions
                .push_back(Action::Answer(waiting.id, Err(Refused::MemoryInUse)));
        }
    }

    /// Answers the calls whose condition is met.
    pub(super) fn settle(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|call| {
            let answer = match call.until {
                Until::Memory(version) => self.memory_taken(version).then_some(Answer::Done),
                Until::Stopped(ring) => self.is_stopped(ring).then(|| {
                    self.rings[usize::from(ring)].base_asked = false;
                    Answer::Base(self.ring(ring).base)
                }),
            };
            let Some(answer) = answer else { return true };
            self.actions.push_back(Action::Answer(call.id, Ok(answer)));
            false
        });
        self.waiting = waiting;
    }

    /// Whether no appliance uses a table older than `version`.
    fn memory_taken(&self, version: u64) -> bool {
        let out_of_reach = !self.may_deliver();
        let idle = self.outstanding.is_none() && self.delivered.is_nothing();
        let taken = self.delivered.memory.is_some_and(|taken| taken >= version);
        !self.attached || (out_of_reach && idle) || taken
    }

    fn is_stopped(&self, ring: u16) -> bool {
        !self.ring(ring).live && !self.runs(ring) && self.outstanding_ring() != Some(ring)
    }
}
