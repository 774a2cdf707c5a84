//! Commands that take too long.

use std::time::{Duration, Instant};

use super::Worker;
use crate::scsi::Place;
use crate::task::{Fate, Name, Trial};
use crate::task_management::Waiter;

/// How often tasks are looked at while there are any.
const PERIOD: Duration = Duration::from_secs(1);

impl Worker {
    /// How long the loop may sleep: for ever if nothing is to be done and no task is under way.
    pub(super) fn rest(&self) -> Option<Duration> {
        let rest = self.rest_from_work();
        let Some(by) = self.rings.calls_by() else {
            return rest;
        };
        let left = by.saturating_duration_since(self.now);
        Some(rest.map_or(left, |rest| rest.min(left)))
    }

    /// As [`Self::rest`], but for calls that are held back.
    fn rest_from_work(&self) -> Option<Duration> {
        if !self.ready.is_empty() || self.rings.is_polled() {
            Some(Duration::ZERO)
        } else if let Some(until) = self.settles_by() {
            // Nothing else is under way.
            Some(until.saturating_duration_since(self.now))
        } else if self.tasks.is_empty() && !self.functions.has_limits() {
            None
        } else {
            let look = PERIOD.saturating_sub(self.now.saturating_duration_since(self.looked));
            let trial = self.pauses.next();
            let trial = trial.map(|next| next.saturating_duration_since(self.now));
            let limited = self.limits.next();
            let limited = limited.map(|next| next.saturating_duration_since(self.now));
            Some(trial.into_iter().chain(limited).fold(look, Duration::min))
        }
    }

    /// Cancels the tasks whose time is over, if it is time to look.
    pub(super) fn expire(&mut self) {
        let nothing = self.tasks.is_empty() && !self.functions.has_limits();
        if nothing || self.now.saturating_duration_since(self.looked) < PERIOD {
            return;
        }
        self.looked = self.now;
        let mut late = Vec::new();
        for (tag, task) in self.tasks.iter_mut() {
            let taken = self.now.saturating_duration_since(task.since);
            // Who waits for the operator may wait for long.
            if taken < task.patience || task.trial == Trial::Held {
                continue;
            }
            match &mut task.fate {
                Fate::Live => {
                    self.io.cancel(tag);
                    task.fate = Fate::Expired { stuck: false };
                    late.push((task.name, taken, false));
                }
                Fate::Expired { stuck } if !*stuck => {
                    *stuck = true;
                    late.push((task.name, taken, true));
                }
                Fate::Fenced
                | Fate::Expired { .. }
                | Fate::Gone
                | Fate::Failed(_)
                | Fate::Abandoned => {}
            }
        }
        let now = self.now;
        let is_late = |waiter: &Waiter| {
            now.saturating_duration_since(waiter.since) >= waiter.pending.unit().patience()
        };
        for waiter in self.functions.take_commands(is_late) {
            let taken = now.saturating_duration_since(waiter.since);
            late.push((waiter.name, taken, false));
            let finished = waiter.command.answer(&waiter.pending.expired(), 0);
            self.complete(waiter.ring, &finished, waiter.name, Vec::new());
        }
        self.expire_functions();
        // What was held has no disk that gives it up.
        self.pauses.changed |= !late.is_empty();
        for (name, taken, stuck) in late {
            self.log_late(name, taken, stuck, self.now);
        }
    }

    fn log_late(&mut self, name: Name, taken: Duration, stuck: bool, now: Instant) {
        let (logged, silent) = self.late.add(now);
        if silent > 0 {
            tracing::warn!(
                hba = self.shim.hba(),
                "{silent} more commands were late before"
            );
        }
        let Place::Unit(address) = name.place else {
            return;
        };
        if !logged {
            return;
        }
        let unit = self.unit(address);
        let lun = unit.as_ref().map_or("gone", |unit| unit.name());
        let seconds = taken.as_secs();
        let (hba, tag) = (self.shim.hba(), name.tag);
        if stuck {
            tracing::error!(
                hba,
                lun,
                at = %address,
                tag,
                "a command has taken {seconds} s, and its disk does not let go of the tenant's \
                 memory; it is answered when it does"
            );
        } else {
            tracing::warn!(
                hba,
                lun,
                at = %address,
                tag,
                "a command has taken {seconds} s, which is too long; it is given up"
            );
        }
    }
}
