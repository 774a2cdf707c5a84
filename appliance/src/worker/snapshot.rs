//! What a worker tells about itself when it is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{MAX_TASKS, Worker};
use crate::inbox::Question;
use crate::scsi::{LogicalUnit, Place, describe};
use crate::statistics::{
    HbaSnapshot, PauseSnapshot, TaskSnapshot, Totals, UnitSnapshot, WorkerSnapshot,
};
use crate::task::{Fate, Name, Task, Trial};

/// Most commands under way that are told of one by one.
const MAX_TOLD: usize = 64;

impl Worker {
    /// Leaves new commands in their rings, or takes them again.
    pub(super) fn drain(&mut self, drained: bool) {
        self.drained = drained;
        if !drained {
            self.ready.add(std::mem::take(&mut self.starved));
        }
    }

    /// Answers a question, as far as it is about this worker.
    pub(super) fn answer(&self, question: &Question) {
        question.to.add(self.snapshot(question));
    }

    fn snapshot(&self, question: &Question) -> HbaSnapshot {
        let units = self.host.units();
        let mut trace = Vec::new();
        let units = units.map(|(address, unit)| {
            if question.trace.as_deref() == Some(unit.name()) {
                let mut last = self.statistics.trace(address, self.now);
                last.iter_mut()
                    .for_each(|traced| traced.worker = self.line.team.place());
                trace.extend(last);
            }
            let pause = self.pauses.state(unit, self.now);
            let here = |name: &Name| name.place == Place::Unit(address);
            UnitSnapshot {
                lun: unit.name().to_owned(),
                at: address.to_string(),
                in_flight: self.tasks.iter().filter(|task| here(&task.name)).count()
                    + self.functions.commands().filter(|c| here(&c.name)).count(),
                limited: {
                    let held = self.tasks.iter().filter(|task| task.limited);
                    held.filter(|task| here(&task.name)).count()
                },
                counters: self.statistics.counters(address),
                pause: pause.map(|(time, held)| PauseSnapshot {
                    for_ms: millis(time),
                    held,
                }),
            }
        });
        let units = units.collect();
        let in_flight = self.tasks.len() + self.functions.commands().count();
        HbaSnapshot {
            units,
            elsewhere: self.statistics.elsewhere(),
            in_flight,
            most_in_flight: MAX_TASKS,
            window: self.shim.window(),
            rings: self.rings.started().count(),
            polls: self.rings.is_polled(),
            drained: self.drained,
            tasks: match &question.tasks {
                Some(lun) => self.under_way(lun),
                None => Vec::new(),
            },
            trace,
            workers: vec![WorkerSnapshot {
                place: self.line.team.place(),
                cpu: self.line.team.cpu(),
                rings: self.rings.started().into_iter().collect(),
                in_flight,
                polls: self.rings.is_polled(),
                totals: self.totals(),
            }],
        }
    }

    /// What was counted about the HBA since the appliance was started.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.statistics.totals();
        let rings = self.rings.tally();
        totals.calls_trapped += rings.trapped;
        totals.calls_seen += rings.seen;
        totals.calls_signalled += rings.signalled;
        totals.retired += rings.retired;
        totals
    }

    /// Takes note of a command that a disk has had, whatever it waits for now.
    pub(super) fn is_begun(&mut self, name: u64) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.begun.get_or_insert(task.since);
        }
    }

    /// Takes note of the commands that had to wait and that disks have now.
    pub(super) fn note_begun(&mut self) {
        for tag in self.io.take_begun() {
            if let Some(task) = self.tasks.get_mut(tag) {
                task.begun.get_or_insert(self.now);
            }
        }
    }

    /// The oldest commands to a LUN that are under way, whether it is still to be seen or not.
    fn under_way(&self, lun: &str) -> Vec<TaskSnapshot> {
        let tasks = self.tasks.iter();
        // A third-party copy is one to where it writes, too.
        let is_to = |unit: &Arc<LogicalUnit>| unit.name() == lun;
        let tasks = tasks.filter(|task| task.pending.changed().any(is_to));
        let tasks = tasks.map(|task| (task.since, told(task, self.now)));
        let waiters = self.functions.commands();
        let waiters = waiters.filter(|waiter| waiter.pending.unit().name() == lun);
        let waiters = waiters.map(|waiter| {
            let snapshot = TaskSnapshot {
                lun: waiter.pending.unit().name().to_owned(),
                tag: waiter.name.tag,
                command: describe::command(&waiter.command.header.cdb),
                age_ms: millis(self.now.saturating_duration_since(waiter.since)),
                waits: "for the commands of other HBAs that it preempts to end".into(),
            };
            (waiter.since, snapshot)
        });
        let mut all: Vec<_> = tasks.chain(waiters).collect();
        all.sort_by_key(|(since, _)| *since);
        all.truncate(MAX_TOLD);
        all.into_iter().map(|(_, snapshot)| snapshot).collect()
    }
}

fn told(task: &Task, now: Instant) -> TaskSnapshot {
    TaskSnapshot {
        lun: task.pending.unit().name().to_owned(),
        tag: task.name.tag,
        command: describe::command(&task.command.header.cdb),
        age_ms: millis(now.saturating_duration_since(task.since)),
        waits: waits(task).into(),
    }
}

/// What a command waits for.
fn waits(task: &Task) -> &'static str {
    match (task.fate, task.trial) {
        (Fate::Expired { stuck: true }, _) => {
            "for its disk to let go of the tenant's memory: the disk hangs"
        }
        (Fate::Expired { .. }, _) => "for its disk to give it up: it has taken too long",
        (Fate::Fenced, _) => "for nothing: another initiator has reserved the LUN",
        (Fate::Gone, _) => "for its disk to give it up: the LUN was taken away",
        (Fate::Failed(_), _) => "for its disk to give it up: a reset or an abort ends it",
        (Fate::Abandoned, _) => "for its disk to give it up: the driver was reset",
        (Fate::Live, _) if task.limited => "for its turn: a limit keeps it from its disk",
        (Fate::Live, Trial::Held) => "for its disk to be mended: the LUN pauses",
        (Fate::Live, Trial::Tried | Trial::None) => "for its disk",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
