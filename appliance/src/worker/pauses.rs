//! Commands that a disk failed but whose unit is to pause: they are held, and tried again until
//! the disk does them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Worker;
use super::limits::MAX_HELD;
use super::mailbox::Unfinished;
use crate::disk::{DiskError, Op, Reply, Request};
use crate::log_limit::LogLimit;
use crate::scsi::{LogicalUnit, Pending};
use crate::task::{Fate, Task, Trial};

/// Time from the first failure to the first trial; it doubles with each that fails.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// Most time between two trials.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);

/// The units of one HBA that pause.
#[derive(Debug)]
pub(super) struct Pauses {
    units: Vec<Paused>,
    /// Held commands may have been ended, or have to be.
    pub(super) changed: bool,
    log: LogLimit,
    /// Of units that cannot pause.
    busy: LogLimit,
}

/// A unit that pauses.
#[derive(Debug)]
struct Paused {
    unit: Arc<LogicalUnit>,
    since: Instant,
    next: Instant,
    interval: Duration,
    /// The last trial failed: only one command is tried at a time.
    fails: bool,
    /// Names of tasks that are held, the next to be tried first.
    held: Vec<u64>,
    /// How many are being tried.
    tried: usize,
    /// The log says that it pauses.
    logged: bool,
}

impl Paused {
    /// Whether something is to be tried when its time has come. As long as a trial is under way
    /// after one that failed, its end is what is waited for.
    fn can_try(&self) -> bool {
        !self.held.is_empty() && (!self.fails || self.tried == 0)
    }
}

impl Pauses {
    pub fn new(now: Instant) -> Self {
        Self {
            units: Vec::new(),
            changed: false,
            log: LogLimit::new(now),
            busy: LogLimit::new(now),
        }
    }

    /// Whether no unit pauses.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// How many tasks of units that pause there are.
    pub fn len(&self) -> usize {
        let held = self.units.iter();
        held.map(|paused| paused.held.len() + paused.tried).sum()
    }

    /// When something is to be tried next.
    pub fn next(&self) -> Option<Instant> {
        let waiting = self.units.iter().filter(|paused| paused.can_try());
        waiting.map(|paused| paused.next).min()
    }

    /// For how long `unit` has paused, and how many of its commands wait; `None` if it does not.
    pub fn state(&self, unit: &Arc<LogicalUnit>, now: Instant) -> Option<(Duration, usize)> {
        let mut units = self.units.iter();
        let paused = units.find(|paused| Arc::ptr_eq(&paused.unit, unit))?;
        let time = now.saturating_duration_since(paused.since);
        Some((time, paused.held.len() + paused.tried))
    }

    fn of(&mut self, unit: &Arc<LogicalUnit>) -> Option<&mut Paused> {
        let mut units = self.units.iter_mut();
        units.find(|paused| Arc::ptr_eq(&paused.unit, unit))
    }

    /// Holds a task that `error` failed.
    fn hold(&mut self, name: u64, unit: &Arc<LogicalUnit>, error: DiskError, now: Instant) {
        if let Some(paused) = self.of(unit) {
            paused.held.push(name);
            return;
        }
        let (logged, silent) = self.log.add(now);
        if silent > 0 {
            tracing::warn!("{silent} more pauses were not logged before");
        }
        if logged {
            tracing::error!(lun = unit.name(), "it pauses: {error}; {}", mend(error));
        }
        self.units.push(Paused {
            unit: Arc::clone(unit),
            since: now,
            next: now + FIRST_INTERVAL,
            interval: FIRST_INTERVAL,
            fails: true,
            held: vec![name],
            tried: 0,
            logged,
        });
    }

    /// Takes note of a task that `error` failed and that cannot be held.
    fn refuse(&mut self, unit: &LogicalUnit, error: DiskError, now: Instant) {
        let (logged, silent) = self.busy.add(now);
        if silent > 0 {
            tracing::warn!("{silent} more answers of BUSY were not logged before");
        }
        if logged {
            tracing::error!(
                lun = unit.name(),
                "it answers BUSY: {error}; {}",
                mend(error)
            );
        }
    }

    /// Takes note of a trial that is over, and whether it showed that the disk works or fails.
    fn tried(&mut self, unit: &Arc<LogicalUnit>, works: Option<bool>, now: Instant) {
        let Some(paused) = self.of(unit) else {
            return;
        };
        paused.tried = paused.tried.saturating_sub(1);
        match works {
            Some(true) => {
                paused.fails = false;
                (paused.next, paused.interval) = (now, FIRST_INTERVAL);
            }
            Some(false) => paused.fails = true,
            // It was given up.
            None => {}
        }
    }

    /// Forgets units without commands; they pause no longer.
    fn end(&mut self, now: Instant) {
        self.units.retain(|paused| {
            let over = paused.held.is_empty() && paused.tried == 0;
            if over && paused.logged {
                let seconds = now.saturating_duration_since(paused.since).as_secs();
                tracing::info!(
                    lun = paused.unit.name(),
                    "it pauses no longer, after {seconds} s"
                );
            }
            !over
        });
    }

    /// The names of those that are to be tried now.
    fn due(&mut self, now: Instant) -> Vec<u64> {
        let mut due = Vec::new();
        for paused in &mut self.units {
            if now < paused.next || !paused.can_try() {
                continue;
            }
            let trying = if paused.fails {
                // Each has its turn, should one of them never work.
                paused.interval = (2 * paused.interval).min(LONGEST_INTERVAL);
                paused.next = now + paused.interval;
                vec![paused.held.remove(0)]
            } else {
                std::mem::take(&mut paused.held)
            };
            paused.tried += trying.len();
            due.extend(trying);
        }
        due
    }
}

/// What the operator can do about it.
fn mend(error: DiskError) -> &'static str {
    match error {
        DiskError::NoSpace => "free some under its disk, and it goes on by itself",
        DiskError::Gone => {
            "if the device comes back as another, take the LUN out of the configuration, apply \
             that, and add it again"
        }
        _ => {
            "it goes on by itself when the disk works again; otherwise take the LUN out of the \
             configuration, apply that, and mend or replace the disk"
        }
    }
}

/// What a task that may be held is to be tried with again; `None` for one that may not. What was
/// not flushed the first time no second flush brings back, and COMPARE AND WRITE could find what
/// it wrote itself.
pub(super) fn again(pending: &Pending, op: &Op) -> Option<Op> {
    // A copy would begin anew, and its source may be what it has written itself.
    let is_once = pending.is_copy() || matches!(op.plain(), Op::Flush | Op::CompareAndWrite { .. });
    let may = pending.unit().pauses() && !is_once;
    may.then(|| op.clone())
}

/// Whether it is an error that the operator can mend, or that may pass.
fn can_be_mended(error: DiskError) -> bool {
    matches!(
        error,
        DiskError::NoSpace | DiskError::Gone | DiskError::Io(_)
    )
}

impl Worker {
    /// Takes note of how a task ended; `None` if it is held, and so has not ended.
    pub(super) fn hold(
        &mut self,
        name: u64,
        result: Result<Reply, DiskError>,
    ) -> Option<Result<Reply, DiskError>> {
        if result.is_ok() && self.pauses.is_empty() {
            return Some(result);
        }
        let (must_end, now) = (self.must_end(name), self.now);
        let Some(task) = self.tasks.get_mut(name) else {
            return Some(result);
        };
        let held = match result {
            Err(error) if task.fate == Fate::Live && task.again.is_some() => {
                can_be_mended(error).then_some(error)
            }
            _ => None,
        };
        let unit = Arc::clone(task.pending.unit());
        if std::mem::replace(&mut task.trial, Trial::None) == Trial::Tried {
            let works = match held {
                Some(_) => Some(false),
                None => result.is_ok().then_some(true),
            };
            self.pauses.tried(&unit, works, now);
        }
        let is_full = self.pauses.len() + self.limits.len() >= MAX_HELD;
        match held {
            Some(error) if must_end || is_full => {
                self.pauses.refuse(&unit, error, now);
                Some(Err(DiskError::Busy))
            }
            Some(error) => {
                task.trial = Trial::Held;
                self.pauses.hold(name, &unit, error, now);
                None
            }
            None => {
                self.pauses.end(now);
                Some(result)
            }
        }
    }

    /// Whether others wait for the end of a task: the shim, or commands to other units whose
    /// answers must not overtake it. Then it is not held, but given back for the initiator to
    /// repeat it.
    fn must_end(&self, name: u64) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        let has_others = || self.host.units().nth(1).is_some();
        self.shim_waits(name) || self.rings.keeps_order(task.ring) && has_others()
    }

    /// Whether the shim waits for the end of a task.
    pub(super) fn shim_waits(&self, name: u64) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        match self.unfinished {
            Some((_, Unfinished::Stop(ring))) => task.ring == ring,
            Some((_, Unfinished::Memory(memory))) => task.memory < memory,
            Some((_, Unfinished::Reset | Unfinished::Disconnect)) => true,
            Some((_, Unfinished::Elsewhere | Unfinished::Said(_))) | None => false,
        }
    }

    /// Ends what is held but was ended meanwhile, and tries again what is due.
    pub(super) fn try_held(&mut self) {
        if std::mem::take(&mut self.pauses.changed) {
            self.end_held();
            self.end_limited();
        }
        if self.pauses.next().is_none_or(|next| self.now < next) {
            return;
        }
        for name in self.pauses.due(self.now) {
            let Some(task) = self.tasks.get_mut(name) else {
                continue;
            };
            let Some(op) = task.again.clone() else {
                continue;
            };
            task.trial = Trial::Tried;
            if self.is_fenced(name) {
                self.disk_done(name, Err(DiskError::Cancelled));
                continue;
            }
            let Some(task) = self.tasks.get_mut(name) else {
                continue;
            };
            // Its time begins anew: that of the pause does not count.
            task.since = self.now;
            let data = Some(task.command.data_for(&op).0.into_owned());
            let disk = Arc::clone(task.pending.unit().disk());
            let request = Request {
                tag: name,
                op,
                data,
            };
            self.io.submit(&disk, request);
        }
    }

    /// Ends held tasks that were cancelled, or that have to go back.
    fn end_held(&mut self) {
        let mut ended = Vec::new();
        let tasks = &self.tasks;
        for paused in &mut self.pauses.units {
            paused.held.retain(|&name| {
                let stays = tasks.get(name).is_some_and(Task::is_live);
                if !stays {
                    ended.push((name, DiskError::Cancelled));
                }
                stays
            });
        }
        let held = self.pauses.units.iter().flat_map(|paused| &paused.held);
        let back: Vec<_> = held.copied().filter(|&name| self.must_end(name)).collect();
        for paused in &mut self.pauses.units {
            paused.held.retain(|name| !back.contains(name));
        }
        ended.extend(back.into_iter().map(|name| (name, DiskError::Busy)));
        for (name, error) in ended {
            if let Some(task) = self.tasks.get_mut(name) {
                task.trial = Trial::None;
            }
            self.disk_done(name, Err(error));
        }
        self.pauses.end(self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::{Shape, unit};

    #[test]
    fn while_one_command_is_tried_after_a_failure_no_time_is_waited_for() {
        let start = Instant::now();
        let mut pauses = Pauses::new(start);
        let unit = Arc::new(unit(Shape::PLAIN));
        for name in [1, 2] {
            pauses.hold(name, &unit, DiskError::NoSpace, start);
        }
        let first = start + Duration::from_millis(100);
        assert_eq!(pauses.next(), Some(first));
        assert_eq!(pauses.due(first), [1]);
        assert_eq!(pauses.next(), None);

        let end = first + Duration::from_secs(30);
        pauses.tried(&unit, Some(true), end);
        assert_eq!(pauses.next(), Some(end));
        assert_eq!(pauses.due(end), [2]);
    }
}
