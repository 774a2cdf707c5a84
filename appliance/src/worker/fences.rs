//! What a task management function, or a reset of the virtio device, waits for when the commands
//! that it ended are back: that nothing of them can reach a disk any more.
//!
//! A write that was cancelled is back at once, but the kernel may still be at it. So before the
//! function is answered, each unit on which it ended writes gets an [`Op::Barrier`]. It waits no
//! longer than a command may take: if a disk hangs beyond that, the function ends with
//! [`response::TARGET_FAILURE`] (SAM-5: SERVICE DELIVERY OR TARGET FAILURE), which promises nothing.
//! A reset of the device has no such answer, and waits for [`RESET_PATIENCE`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::virtio_scsi::response;

use super::Worker;
use crate::disk::{DiskError, Op, Reply, Request};
use crate::fellow::Units;
use crate::scsi::{self, LogicalUnit};
use crate::task_management::{Owed, Scope};

/// What the tag of a fence begins with; tasks have small numbers.
const FENCE: u64 = 1 << 63;

/// How long a reset of the virtio device, or the end of the session, waits for disks. Far less than
/// the shim waits for its answer (10 s unless told otherwise), as the tenant's QEMU stands still
/// meanwhile.
const RESET_PATIENCE: Duration = Duration::from_secs(2);

/// How far a reset of the virtio device is with the disks.
#[derive(Debug)]
pub(super) enum Settling {
    /// The tasks are not all over. On the disks of these units nothing may be left.
    Tasks(Vec<Arc<LogicalUnit>>),
    /// There are fences, for which a function of this number waits, until then.
    Fences { number: u64, until: Instant },
}

/// Until when a function may wait, and what for.
#[derive(Debug)]
pub(crate) struct Patience {
    /// On whose disks nothing may be left when it is answered.
    pub units: Vec<Arc<LogicalUnit>>,
    /// More of these, which other workers of the HBA find.
    pub others: Option<Units>,
    /// When it was begun.
    pub since: Instant,
    /// How long it may take.
    pub limit: Duration,
}

impl Patience {
    /// Takes the units on whose disks nothing may be left, each once.
    pub fn take_units(&mut self) -> Vec<Arc<LogicalUnit>> {
        let mut units = std::mem::take(&mut self.units);
        if let Some(others) = self.others.take() {
            units.append(&mut others.take());
        }
        units.sort_unstable_by_key(Arc::as_ptr);
        units.dedup_by_key(|unit| Arc::as_ptr(unit));
        units
    }
}

/// The fences of one HBA that are under way.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// By their tags: the number of the function that waits for each.
    waiting: BTreeMap<u64, u64>,
    last: u64,
}

impl Fences {
    /// Whether this is the tag of a fence, not of a task.
    pub fn is_fence(tag: u64) -> bool {
        tag & FENCE != 0
    }

    fn add(&mut self, function: u64) -> u64 {
        self.last += 1;
        let tag = FENCE | self.last;
        self.waiting.insert(tag, function);
        tag
    }

    /// The tags of those that nobody waits for but a function of these.
    fn of(&self, functions: &[u64]) -> Vec<u64> {
        let fences = self.waiting.iter();
        let theirs = fences.filter(|(_, function)| functions.contains(function));
        theirs.map(|(&tag, _)| tag).collect()
    }
}

impl Worker {
    /// Puts a fence on each of these units, and pays what is owed when all are through. Returns the
    /// number of the function that waits for them.
    pub(super) fn fence(&mut self, units: &[Arc<LogicalUnit>], owed: Owed) -> u64 {
        let number = self.functions.number();
        for unit in units {
            let tag = self.fences.add(number);
            let (op, data) = (Op::Barrier, None);
            self.io.submit(unit.disk(), Request { tag, op, data });
        }
        if let Some(owed) = self.functions.wait(number, units.len(), owed) {
            self.pay(owed);
        }
        number
    }

    /// Takes note of the units on whose disks nothing may be left when every task has ended, which
    /// are all to be cancelled next.
    pub(super) fn begin_to_settle(&mut self) {
        let everything = Scope::Units(scsi::Scope::Host);
        let units = self.patience(everything, false).units;
        self.settling = Some(Settling::Tasks(units));
    }

    /// Whether every task is over, and nothing of them can reach a disk any more, or that cannot be
    /// waited for any longer.
    pub(super) fn has_settled(&mut self) -> bool {
        if !self.tasks.is_empty() {
            return false;
        }
        match self.settling.take() {
            None => true,
            Some(Settling::Tasks(units)) if units.is_empty() => true,
            Some(Settling::Tasks(units)) => {
                let number = self.fence(&units, Owed::Nothing);
                let until = self.now + RESET_PATIENCE;
                self.settling = Some(Settling::Fences { number, until });
                false
            }
            Some(Settling::Fences { number, .. }) if !self.functions.is_waiting(number) => true,
            Some(Settling::Fences { number, until }) if self.now < until => {
                self.settling = Some(Settling::Fences { number, until });
                false
            }
            Some(Settling::Fences { .. }) => {
                self.withdraw_fences();
                if self.logs_late() {
                    tracing::error!(
                        hba = self.shim.hba(),
                        "a disk hangs, and does not let go of writes from before a reset; they may \
                         land after it"
                    );
                }
                true
            }
        }
    }

    /// When what is left on disks is not waited for any longer.
    pub(super) fn settles_by(&self) -> Option<Instant> {
        match self.settling {
            Some(Settling::Fences { until, .. }) => Some(until),
            _ => None,
        }
    }

    /// Takes note that a fence is through, or that it never will be.
    pub(super) fn fence_done(&mut self, tag: u64, result: &Result<Reply, DiskError>) {
        let Some(function) = self.fences.waiting.remove(&tag) else {
            return;
        };
        if result.is_err()
            && let Some((ring, request)) = self.functions.give_up(function)
        {
            // Of a disk that cannot even be asked nobody knows what it still does.
            let finished = request.answer(response::TARGET_FAILURE);
            self.complete_control(ring, finished);
        }
        self.release(vec![function]);
    }

    /// Withdraws every fence: newer writes would wait behind them for nobody.
    pub(super) fn withdraw_fences(&mut self) {
        for &tag in self.fences.waiting.keys() {
            self.io.cancel(tag);
        }
    }

    /// Whether the log may say that something is late; a driver may have that happen without end.
    fn logs_late(&mut self) -> bool {
        let (logged, silent) = self.late.add(self.now);
        if silent > 0 {
            tracing::warn!(hba = self.shim.hba(), "{silent} more were late before");
        }
        logged
    }

    /// Answers the functions whose time is over.
    pub(super) fn expire_functions(&mut self) {
        let (late, resets) = self.functions.take_late(self.now);
        self.reset_all(resets);
        let numbers: Vec<_> = late.iter().map(|(number, ..)| *number).collect();
        for tag in self.fences.of(&numbers) {
            self.io.cancel(tag);
        }
        for (_, ring, request) in late {
            if self.logs_late() {
                tracing::error!(
                    hba = self.shim.hba(),
                    ?request,
                    "a disk hangs, and does not let go of what the initiator wants ended; it is \
                     told that this failed"
                );
            }
            let finished = request.answer(response::TARGET_FAILURE);
            self.complete_control(ring, finished);
        }
    }
}
