//! What a task management function waits for when the commands that it ended are back: that
//! nothing of them can reach a disk any more.
//!
//! A write that was cancelled is back at once, but the kernel may still be at it. So before the
//! function is answered, each unit on which it ended writes gets an [`Op::Barrier`]. It waits no
//! longer than a command may take: if a disk hangs beyond that, the function ends with
//! [`response::TARGET_FAILURE`] (SAM-5: SERVICE DELIVERY OR TARGET FAILURE), which promises nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::virtio_scsi::response;

use super::Worker;
use crate::disk::{DiskError, Op, Reply, Request};
use crate::scsi::LogicalUnit;
use crate::task_management::Owed;

/// What the tag of a fence begins with; tasks have small numbers.
const FENCE: u64 = 1 << 63;

/// Until when a function may wait, and what for.
#[derive(Debug)]
pub(crate) struct Patience {
    /// On whose disks nothing may be left when it is answered.
    pub units: Vec<Arc<LogicalUnit>>,
    /// When it was begun.
    pub since: Instant,
    /// How long it may take.
    pub limit: Duration,
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
    /// Puts a fence on each of these units, and pays what is owed when all are through.
    pub(super) fn fence(&mut self, units: &[Arc<LogicalUnit>], owed: Owed) {
        let number = self.functions.number();
        for unit in units {
            let tag = self.fences.add(number);
            let (op, data) = (Op::Barrier, None);
            self.io.submit(unit.disk(), Request { tag, op, data });
        }
        if let Some(owed) = self.functions.wait(number, units.len(), owed) {
            self.pay(owed);
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

    /// Answers the functions whose time is over.
    pub(super) fn expire_functions(&mut self) {
        let late = self.functions.take_late(self.now);
        let numbers: Vec<_> = late.iter().map(|(number, ..)| *number).collect();
        for tag in self.fences.of(&numbers) {
            self.io.cancel(tag);
        }
        for (_, ring, request) in late {
            let (logged, silent) = self.late.add(self.now);
            if silent > 0 {
                tracing::warn!(hba = self.shim.hba(), "{silent} more were late before");
            }
            if logged {
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
