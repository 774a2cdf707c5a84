//! Commands that are over a limit: they are held before the disk until they may go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use uuid::Uuid;
use vmm_sys_util::eventfd::EventFd;

use super::{MAX_TASKS, Worker};
use crate::disk::{Disk, DiskError, Op, Request};
use crate::inbox::Limited;
use crate::limit::{Cost, Meter, Seat, pass};
use crate::scsi::LogicalUnit;
use crate::task::{Fate, Task};

/// Most tasks that are held for a limit or a pause, so that other units always have some.
pub(super) const MAX_HELD: usize = MAX_TASKS / 2;

/// What limits one HBA, and what it holds because of that.
#[derive(Debug)]
pub(super) struct Limits {
    /// All units are limited: the HBA is, or its group may be.
    on: bool,
    weight: u32,
    own: Option<Seat>,
    group: Option<Seat>,
    /// Those of units that were limited once, or all.
    queues: Vec<Queue>,
    /// Which of them has its turn.
    turn: usize,
    held: usize,
    /// Something held is kept by what all units share, so that none of them may go before it.
    kept_for_all: bool,
    /// When something may go on.
    next: Option<Instant>,
    /// The HBA, which shares limits with others as one, however many workers it has.
    hba: Uuid,
    /// Wakes the worker.
    bell: Weak<EventFd>,
}

/// What is held of one unit.
#[derive(Debug)]
struct Queue {
    unit: Arc<LogicalUnit>,
    seat: Seat,
    /// In the order in which they came.
    held: VecDeque<Held>,
}

/// What a task waits to have done.
#[derive(Debug)]
pub(super) struct Held {
    /// Of the task.
    name: u64,
    disk: Arc<dyn Disk>,
    op: Op,
    cost: Cost,
}

impl Limits {
    /// None yet, of the HBA with this UUID; `bell` wakes the worker.
    pub fn new(hba: Uuid, bell: Weak<EventFd>) -> Self {
        Self {
            on: false,
            weight: 1,
            own: None,
            group: None,
            queues: Vec::new(),
            turn: 0,
            held: 0,
            kept_for_all: false,
            next: None,
            hba,
            bell,
        }
    }

    /// Whether what is done on `unit` may be limited.
    #[inline]
    pub fn concern(&self, unit: &LogicalUnit) -> bool {
        self.on | unit.meter().is_limited()
    }

    /// How many tasks are held.
    pub fn len(&self) -> usize {
        self.held
    }

    /// When something held may go on.
    #[inline]
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Limits the HBA in this way from now on.
    pub fn set(&mut self, limited: &Limited, now: Instant) {
        let Limited { own, group, weight } = limited;
        if self.weight != *weight {
            self.weight = *weight;
            let seats = self.queues.iter().map(|queue| &queue.seat);
            for seat in seats.chain(&self.group) {
                seat.set_weight(*weight);
            }
        }
        let (hba, bell) = (self.hba, &self.bell);
        seat_at(&mut self.own, Some(own), |meter| {
            Seat::new(meter, hba, 1, bell)
        });
        seat_at(&mut self.group, group.as_ref(), |meter| {
            Seat::new(meter, hba, *weight, bell)
        });
        self.on = own.is_limited() || group.is_some();
        self.look(now);
    }

    /// Looks anew at what is held: a limit is another, or the turn of this worker has come.
    pub fn look(&mut self, now: Instant) {
        if self.held > 0 {
            self.next = Some(now);
        }
    }

    /// Whether what costs so much on `unit` may go on at once; if not, it is to be held.
    fn admit(&mut self, unit: &Arc<LogicalUnit>, cost: Cost, now: Instant) -> bool {
        let at = self.queue_of(unit);
        let queue = &self.queues[at];
        if self.kept_for_all || !queue.held.is_empty() {
            return false;
        }
        let seats = [Some(&queue.seat), self.own.as_ref(), self.group.as_ref()];
        match pass(seats, cost, now, false) {
            Ok(()) => true,
            Err(kept) => {
                self.kept_for_all = kept.by_others;
                self.come_at(kept.until);
                false
            }
        }
    }

    fn come_at(&mut self, until: Instant) {
        self.next = Some(self.next.map_or(until, |next| next.min(until)));
    }

    fn queue_of(&mut self, unit: &Arc<LogicalUnit>) -> usize {
        let mut queues = self.queues.iter();
        if let Some(at) = queues.position(|queue| Arc::ptr_eq(&queue.unit, unit)) {
            return at;
        }
        self.queues.push(Queue {
            unit: Arc::clone(unit),
            seat: Seat::new(unit.meter(), self.hba, self.weight, &self.bell),
            held: VecDeque::new(),
        });
        self.queues.len() - 1
    }

    fn hold(&mut self, unit: &Arc<LogicalUnit>, held: Held) {
        let at = self.queue_of(unit);
        self.queues[at].held.push_back(held);
        self.held += 1;
    }

    /// The next that may go on, if one may. Each unit has its turn.
    fn let_go(&mut self, now: Instant) -> Option<Held> {
        (self.next, self.kept_for_all) = (None, false);
        let count = self.queues.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let queue = &mut self.queues[at];
            let Some(first) = queue.held.front() else {
                continue;
            };
            let seats = [Some(&queue.seat), self.own.as_ref(), self.group.as_ref()];
            let more = queue.held.len() > 1;
            match pass(seats, first.cost, now, more) {
                Ok(()) => {
                    self.turn = at + 1;
                    self.held -= 1;
                    // More may.
                    self.next = Some(now);
                    return queue.held.pop_front();
                }
                Err(kept) => {
                    self.come_at(kept.until);
                    if kept.by_others {
                        self.kept_for_all = true;
                        break;
                    }
                }
            }
        }
        None
    }

    /// Forgets held tasks of these names, then units that are not `shown` any more.
    fn forget(
        &mut self,
        names: &BTreeMap<u64, DiskError>,
        shown: impl Fn(&Arc<LogicalUnit>) -> bool,
    ) {
        let before = self.held;
        self.held = 0;
        for queue in &mut self.queues {
            queue.held.retain(|held| !names.contains_key(&held.name));
            self.held += queue.held.len();
        }
        self.queues
            .retain(|queue| !queue.held.is_empty() || shown(&queue.unit));
        if self.held < before {
            self.withdraw();
        }
    }

    /// Gives up the turns of what is not held.
    fn withdraw(&mut self) {
        for queue in self.queues.iter().filter(|queue| queue.held.is_empty()) {
            queue.seat.withdraw();
        }
        if self.held == 0 {
            (self.next, self.kept_for_all) = (None, false);
            for seat in self.own.iter().chain(&self.group) {
                seat.withdraw();
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = u64> {
        let held = self.queues.iter().flat_map(|queue| &queue.held);
        held.map(|held| held.name)
    }
}

/// Has a seat be at `meter`, if there is one; `sit` takes it.
fn seat_at(
    seat: &mut Option<Seat>,
    meter: Option<&Arc<Meter>>,
    sit: impl FnOnce(&Arc<Meter>) -> Seat,
) {
    let is_there = |meter: &Arc<Meter>| seat.as_ref().is_some_and(|seat| seat.is_at(meter));
    match meter {
        Some(meter) if is_there(meter) => {}
        Some(meter) => *seat = Some(sit(meter)),
        None => *seat = None,
    }
}

impl Worker {
    /// Whether no more tasks are to be held.
    pub(super) fn holds_enough(&self) -> bool {
        self.limits.len() + self.pauses.len() >= MAX_HELD
    }

    /// What `op` costs on `unit`, if it is over a limit now.
    pub(super) fn over_limit(&mut self, unit: &Arc<LogicalUnit>, op: &Op) -> Option<Cost> {
        let cost = Cost::of(op)?;
        (!self.limits.admit(unit, cost, self.now)).then_some(cost)
    }

    /// Gives up the turn of a command that was over a limit, and is not held.
    pub(super) fn not_held(&mut self) {
        self.limits.withdraw();
        self.limits.look(self.now);
    }

    /// Holds a task until it may have `op` done.
    pub(super) fn hold_over(&mut self, name: u64, disk: Arc<dyn Disk>, op: Op, cost: Cost) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.limited = true;
        // If the shim waits for it, it has to go back.
        self.pauses.changed |= self.unfinished.is_some();
        let held = Held {
            name,
            disk,
            op,
            cost,
        };
        self.limits.hold(task.pending.unit(), held);
    }

    /// Has the next part of a task done: at once, or when its unit may.
    pub(super) fn go_on(&mut self, name: u64, disk: Arc<dyn Disk>, op: Op) {
        if let Some(task) = self.tasks.get(name)
            && self.limits.concern(task.pending.unit())
        {
            let unit = Arc::clone(task.pending.unit());
            if let Some(cost) = self.over_limit(&unit, &op) {
                return self.hold_over(name, disk, op, cost);
            }
        }
        self.is_begun(name);
        let task = self.tasks.get(name);
        let data = task.and_then(|task| task.pending.buffer());
        let tag = name;
        self.io.submit(&disk, Request { tag, op, data });
    }

    /// Has done what may go on now.
    pub(super) fn let_limited_go(&mut self) {
        if self.limits.next().is_none_or(|next| self.now < next) {
            return;
        }
        while let Some(held) = self.limits.let_go(self.now) {
            let Some(task) = self.tasks.get_mut(held.name) else {
                continue;
            };
            task.limited = false;
            task.begun.get_or_insert(self.now);
            let Held { name, disk, op, .. } = held;
            if self.is_fenced(name) {
                self.disk_done(name, Err(DiskError::Cancelled));
                continue;
            }
            let Some(task) = self.tasks.get_mut(name) else {
                continue;
            };
            if task.pending.is_copy() {
                // Each part has its time: what others of the copy were held for does not count.
                task.since = self.now;
            }
            let data = task.pending.buffer();
            let data = data.or_else(|| Some(task.command.data_for(&op).0.into_owned()));
            let (hba, tag) = (self.shim.hba(), name);
            tracing::trace!(hba, tag = task.name.tag, ?op, "submit, held before");
            self.io.submit(&disk, Request { tag, op, data });
        }
    }

    /// Whether a reservation that came while a task was held keeps it from its disk; then it is to
    /// end so.
    pub(super) fn is_fenced(&mut self, name: u64) -> bool {
        let Some(task) = self.tasks.get_mut(name) else {
            return false;
        };
        if !task.is_live() {
            return false;
        }
        if task.pending.is_copy() {
            // It may be about other units than its own.
            return !task.pending.may_go_on();
        }
        let cdb = &task.command.header.cdb;
        let fenced = self.host.is_reserved_against(task.name.place, cdb);
        if fenced {
            task.fate = Fate::Fenced;
        }
        fenced
    }

    /// Ends held tasks that were cancelled, or that have to go back.
    pub(super) fn end_limited(&mut self) {
        let ended = self.limits.names().filter_map(|name| {
            if !self.tasks.get(name).is_some_and(Task::is_live) {
                Some((name, DiskError::Cancelled))
            } else if self.shim_waits(name) {
                Some((name, DiskError::Busy))
            } else {
                None
            }
        });
        let ended: BTreeMap<_, _> = ended.collect();
        let host = &self.host;
        let shown = |unit: &Arc<LogicalUnit>| host.units().any(|(_, seen)| Arc::ptr_eq(seen, unit));
        self.limits.forget(&ended, shown);
        self.limits.look(self.now);
        for (name, error) in ended {
            if let Some(task) = self.tasks.get_mut(name) {
                task.limited = false;
                // Its disk has had no part in how long it took.
                task.begun.get_or_insert(self.now);
                if error == DiskError::Busy {
                    // BUSY would say that nothing was done.
                    task.pending.interrupt();
                }
            }
            self.disk_done(name, Err(error));
        }
    }
}
