//! Task management as the worker carries it out (SAM-5 §7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spec::scsi::opcode::{self, service_action};
use spec::virtio_scsi::response;

use super::{Left, Marking, Patience, Worker};
use crate::disk::{Op, Request};
use crate::fellow::{ForFunction, Told, Units};
use crate::inbox::{EndTasks, Message, Receipt};
use crate::ring::Chain;
use crate::scsi::{self, Address, Answer, Attention, Begun, LogicalUnit, Registrant};
use crate::task::{Command, Fate, Name, Task, Trial};
use crate::task_management::{ControlRequest, Owed, Plan, Reset, Scope, Waiter};

impl Worker {
    /// A request of the control queue.
    pub(super) fn control(&mut self, ring: u16, chain: Chain) {
        let head = chain.head;
        let request = match ControlRequest::parse(chain) {
            Ok(request) => request,
            Err(violation) => return self.reject(ring, head, violation),
        };
        if let Some(function) = request.function() {
            self.statistics.hba.managed(function);
        }
        tracing::debug!(hba = self.shim.hba(), ring, ?request, "task management");
        let plan = request.plan(&self.host);
        let answer = match plan {
            Plan::Answer(code) => code,
            Plan::Query(scope) if self.line.team.count() == 0 => {
                if self.has_task(scope) {
                    response::FUNCTION_SUCCEEDED
                } else {
                    response::OK
                }
            }
            Plan::Query(_)
            | Plan::Abort(_)
            | Plan::Clear(_)
            | Plan::ResetUnit(_)
            | Plan::ResetNexus(_)
                if !self.functions.has_room() =>
            {
                response::FUNCTION_REJECTED
            }
            Plan::Query(scope) => return self.query(ring, request, scope),
            Plan::Abort(scope) => {
                let with = (response::ABORTED, None);
                return self.end(ring, request, scope, with, None);
            }
            Plan::Clear(unit) => {
                // All initiators share the task set (SPC-4: TST 000b of the control mode page), and
                // the others are told (TAS 0).
                let others = Some((unit, Some(Attention::CommandsCleared)));
                let scope = Scope::Units(scsi::Scope::Unit(unit));
                let with = (response::ABORTED, None);
                return self.end(ring, request, scope, with, others);
            }
            Plan::ResetUnit(unit) => {
                let scope = scsi::Scope::Unit(unit);
                let attention = Attention::LogicalUnitReset;
                let with = (response::RESET, Some(Reset { scope, attention }));
                let others = Some((unit, None));
                return self.end(ring, request, Scope::Units(scope), with, others);
            }
            Plan::ResetNexus(target) => {
                let scope = scsi::Scope::Target(target);
                let attention = Attention::NexusLoss;
                let with = (response::RESET, Some(Reset { scope, attention }));
                return self.end(ring, request, Scope::Units(scope), with, None);
            }
        };
        let finished = request.answer(answer);
        self.complete_control(ring, finished);
    }

    /// Fetches what is on the request queues now: a driver that sends a function after a command
    /// means that command, too. What finds no room any more is answered BUSY, so that functions
    /// get through when a disk hangs and every task is taken. So is everything while the HBA is
    /// drained: left in the ring, a command would be carried out after the function that ended it.
    pub(super) fn catch_up(&mut self) {
        let mut chains = Vec::new();
        for ring in self.rings.started() {
            let mut left = self.rings.waiting_commands(ring);
            while left > 0 {
                let limit = left.min(super::BATCH).min(self.rings.room(ring));
                if limit == 0 {
                    self.ready.insert(ring);
                    break;
                }
                let more = self.rings.fetch(ring, limit, &mut chains, &*self.shim);
                self.statistics.hba.fetched(ring, chains.len());
                // None if the ring was retired.
                left = if chains.is_empty() {
                    0
                } else {
                    left - chains.len().min(left)
                };
                for chain in &mut chains {
                    if !self.drained && self.tasks.room() > 0 {
                        self.command(ring, chain, false);
                    } else {
                        self.turn_away(ring, chain);
                    }
                }
                chains.clear();
                if left == 0 && more == Left::More {
                    self.ready.insert(ring);
                }
            }
        }
    }

    /// Answers a command for which there is no room.
    fn turn_away(&mut self, ring: u16, chain: &mut Chain) {
        if let Err(violation) = Command::check(chain, self.features) {
            return self.reject(ring, chain.head, violation);
        }
        let command = Command::of(chain, self.features, self.now);
        let name = Name {
            place: self.host.place(command.header.lun),
            tag: command.header.tag,
        };
        let busy = Answer::busy(command.buffers());
        let finished = command.answer(&busy, 0);
        self.complete(ring, &finished, name, Vec::new());
    }

    /// Whether there is a task of `scope` on the rings of this worker.
    pub(super) fn has_task(&mut self, scope: Scope) -> bool {
        self.tasks.iter().any(|task| scope.has(task.name))
            || self
                .functions
                .commands()
                .any(|waiter| scope.has(waiter.name))
            || self.rings.held().any(|(name, _)| scope.has(name))
    }

    /// Answers `request` with whether there is a task of `scope`, when every worker has looked.
    fn query(&mut self, ring: u16, request: ControlRequest, scope: Scope) {
        let number = self.functions.number();
        let found = Arc::new(AtomicBool::new(self.has_task(scope)));
        let count = self.query_fellows(scope, &found, number);
        let owed = Owed::Answer {
            ring,
            memory: self.memory,
            request,
            found: Some(found),
            reset: None,
            patience: self.patience_for(Vec::new()),
        };
        if let Some(owed) = self.functions.wait(number, count, owed) {
            self.pay(owed);
        }
    }

    /// Ends the tasks of `scope` with a virtio-scsi response, those that `others` have for a unit
    /// too, and answers `request` when all of them have gone back to their rings. A reset is at
    /// once where no other worker of the HBA has commands to fetch that were sent before.
    fn end(
        &mut self,
        ring: u16,
        request: ControlRequest,
        scope: Scope,
        (with, mut reset): (u8, Option<Reset>),
        others: Option<(Address, Option<Attention>)>,
    ) {
        if self.line.team.count() == 0 {
            self.reset_all(reset.take());
        }
        let number = self.functions.number();
        // Before they are cancelled: what is over then is not known any more.
        let mut patience = self.patience(scope, others.is_some());
        let mut count = self.end_tasks(scope, Fate::Failed(with), number);
        if self.line.team.count() > 0 {
            let units = patience.others.insert(Units::default()).clone();
            let of_all = others.is_some();
            let function = Some(ForFunction { of_all, units });
            count += self.end_at_fellows((scope, Fate::Failed(with)), function, number);
        }
        count += self.wait_for_held(scope, number);
        if let Some((address, attention)) = others
            && let Some(unit) = self.unit(address)
        {
            count += self.end_those_of_others(&unit, None, (with, attention), number);
        }
        let owed = Owed::Answer {
            ring,
            memory: self.memory,
            request,
            found: None,
            reset,
            patience,
        };
        if let Some(owed) = self.functions.wait(number, count, owed) {
            self.pay(owed);
        }
    }

    /// Does to units what resets do beside ending tasks.
    pub(super) fn reset_all(&self, resets: impl IntoIterator<Item = Reset>) {
        for Reset { scope, attention } in resets {
            self.host.reset(scope, attention);
        }
    }

    /// How long a function may take that ends the tasks of `scope`, and on which units nothing may
    /// be left then: where it ends writes, its own or those `of_all` initiators, and for a reset of
    /// a target or all of them also where writes were given up before.
    pub(super) fn patience(&self, scope: Scope, of_all: bool) -> Patience {
        let mut units: Vec<Arc<LogicalUnit>> = Vec::new();
        let ended = self.tasks.iter().filter(|task| scope.takes(task));
        let changing = ended.filter(|task| task.changes);
        units.extend(changing.flat_map(|task| task.pending.changed()).cloned());
        if let Scope::Units(scope) = scope {
            let left = |unit: &LogicalUnit| {
                let file = unit.disk().file_for(&Op::Barrier);
                file.is_ok_and(|file| file.has_abandoned())
            };
            let is_reset = matches!(scope, scsi::Scope::Target(_) | scsi::Scope::Host);
            let shown = self.host.units().filter(|(address, _)| scope.has(*address));
            let marked = shown.filter(|(_, unit)| of_all || is_reset && left(unit));
            units.extend(marked.map(|(_, unit)| Arc::clone(unit)));
        }
        units.sort_unstable_by_key(Arc::as_ptr);
        units.dedup_by_key(|unit| Arc::as_ptr(unit));
        self.patience_for(units)
    }

    /// How long a function may take when whose commands are back nothing may be left on `units`.
    fn patience_for(&self, units: Vec<Arc<LogicalUnit>>) -> Patience {
        // It may wait for commands of other units, where answers keep their order.
        let shown = self.host.units().map(|(_, unit)| unit);
        let limits = shown.chain(&units).map(|unit| unit.patience());
        Patience {
            since: self.now,
            limit: limits.max().unwrap_or_default(),
            units,
            others: None,
        }
    }

    /// Has the others end tasks of a unit, all of them or those of some initiators, with a
    /// virtio-scsi response, of which they are told. Function `number` waits for each of them;
    /// returns how many they are.
    fn end_those_of_others(
        &self,
        unit: &Arc<LogicalUnit>,
        whose: Option<Arc<[Registrant]>>,
        (with, attention): (u8, Option<Attention>),
        number: u64,
    ) -> usize {
        let me = self.line.inbox.outbox();
        let mut others = self.line.roster.neighbours(unit, self.line.team.first());
        if whose.is_some() {
            // What is left of those that linger is waited for at the unit's own disk, and may be
            // at quite another.
            others.retain(|other| !other.lingers());
        }
        for other in &others {
            other.send(Message::End(EndTasks {
                unit: Arc::clone(unit),
                whose: whose.clone(),
                with,
                attention,
                receipt: Receipt::new(number, me.clone()),
            }));
        }
        others.len()
    }

    /// Ends the tasks of initiators whose registrations were preempted, or of everyone, and goes
    /// on with the command that did that when they have ended.
    pub(super) fn preempt(&mut self, preempted: Option<Vec<Registrant>>, waiter: Waiter) {
        let number = self.functions.number();
        let told = (response::ABORTED, Some(Attention::CommandsCleared));
        let unit = Arc::clone(waiter.pending.unit());
        let mut count = 0;
        if preempted.is_none() {
            // Its own, too: one that is held would be tried again later.
            for address in self.host.addresses_of(&unit, None) {
                let scope = Scope::Units(scsi::Scope::Unit(address));
                let fate = Fate::Failed(told.0);
                count += self.end_tasks(scope, fate, number);
                count += self.end_at_fellows((scope, fate), None, number);
            }
        }
        count += self.end_those_of_others(&unit, preempted.map(Into::into), told, number);
        let owed = Owed::Command(Box::new(waiter));
        if let Some(owed) = self.functions.wait(number, count, owed) {
            self.pay(owed);
        }
    }

    /// Ends tasks because another initiator wants it. It hears of their end, not of their going
    /// back, which may wait for disks that it does not know. Each worker of this HBA ends its own;
    /// this initiator was told of them where `told` says so.
    pub(super) fn end_for_another(&mut self, end: EndTasks, told: &Arc<Told>) {
        let EndTasks {
            unit,
            whose,
            with,
            attention,
            receipt,
        } = end;
        let number = self.functions.number();
        let addresses = self.host.addresses_of(&unit, whose.as_deref());
        let mut count = 0;
        for address in addresses {
            let scope = scsi::Scope::Unit(address);
            let ended = self.end_tasks(Scope::Units(scope), Fate::Failed(with), number);
            if ended > 0
                && let Some(attention) = attention
                && told.is_first(address)
            {
                self.host.establish(scope, attention);
            }
            count += ended;
        }
        if self.line.team.is_first() {
            let end = |receipt| EndTasks {
                unit: Arc::clone(&unit),
                whose: whose.clone(),
                with,
                attention,
                receipt,
            };
            count += self.pass_on_end(end, told, number);
        }
        // Dropped when there is nothing to wait for.
        let _ = self.functions.wait(number, count, Owed::Receipt(receipt));
    }

    /// Cancels the tasks of `scope`, which get this fate; function `number` waits for each of them.
    /// Returns how many they are.
    pub(super) fn end_tasks(&mut self, scope: Scope, fate: Fate, number: u64) -> usize {
        let mut count = 0;
        // What they have asked of others has happened all the same.
        for waiter in self
            .functions
            .take_commands(|waiter| scope.has(waiter.name))
        {
            let Waiter {
                ring,
                name,
                command,
                ..
            } = waiter;
            let finished = match fate {
                Fate::Failed(response) => command.fail(response),
                _ => command.fail(response::ABORTED),
            };
            self.complete(ring, &finished, name, Vec::new());
        }
        self.pauses.changed = true;
        // Those whose ring is gone are ending already, and nobody hears of them; but whoever waits
        // for the disk waits for them, too.
        let tasks = self.tasks.iter_mut();
        for (name, task) in tasks.filter(|(_, task)| scope.takes(task)) {
            // Once is enough: a thousand tasks on a disk that hangs, and functions without
            // end, would keep us busy.
            if task.fate == Fate::Live {
                self.io.cancel(name);
            }
            task.fate = task.fate.or(fate);
            task.waiters.push(number);
            count += 1;
        }
        count
    }

    /// Lets function `number` wait for the commands of `scope` that have ended but are held back.
    /// Returns on how many rings there are any: each has but one note of it, as they may be many.
    pub(super) fn wait_for_held(&mut self, scope: Scope, number: u64) -> usize {
        let mut count = 0;
        for waiters in self.rings.last_held(|name| scope.has(name)) {
            waiters.push(number);
            count += 1;
        }
        count
    }

    /// Does what is owed, now that the tasks are back.
    pub(super) fn pay(&mut self, owed: Owed) {
        match owed {
            Owed::Answer {
                ring,
                memory,
                request,
                found,
                reset,
                mut patience,
            } => {
                self.reset_all(reset);
                let units = patience.take_units();
                if !units.is_empty() {
                    let owed = Owed::Answer {
                        ring,
                        memory,
                        request,
                        found,
                        reset: None,
                        patience,
                    };
                    self.fence(&units, owed);
                    return;
                }
                let is_there = found.is_some_and(|found| found.load(Ordering::Acquire));
                let finished = request.answer(if is_there {
                    response::FUNCTION_SUCCEEDED
                } else {
                    response::OK
                });
                // Ends here: nothing waits for a control request.
                self.complete_control(ring, finished);
            }
            Owed::Command(waiter) => self.settle(*waiter),
            Owed::Nothing | Owed::Receipt(_) | Owed::Fellow(_) => {}
            Owed::Change(change) => self.show_change(*change),
            Owed::Events { gone, come } => {
                self.announce_gone(gone);
                if come {
                    self.announce_come(gone);
                }
            }
        }
    }

    /// Answers a command that has ended those of others when nothing of them can land any more:
    /// what they had cancelled is back, but the kernel may still be at it, and so it may be at
    /// what an HBA left that does not see the unit now. From then on nothing of theirs changes it.
    fn settle(&mut self, waiter: Waiter) {
        let Waiter {
            ring,
            name,
            memory,
            command,
            pending,
            since,
        } = waiter;
        let (disk, pending) = match pending.begin() {
            Begun::Wait(disk, pending) => (disk, pending),
            Begun::Answer(answer) => {
                let finished = command.answer(&answer, 0);
                return self.complete(ring, &finished, name, Vec::new());
            }
        };
        let patience = pending.unit().patience();
        let tag = self.tasks.insert(Task {
            ring,
            name,
            memory,
            fate: Fate::Live,
            waiters: Vec::new(),
            command,
            again: None,
            trial: Trial::None,
            limited: false,
            changes: false,
            marking: Marking::None,
            pending,
            data_in: 0,
            since,
            begun: None,
            patience,
        });
        let (op, data) = (Op::Barrier, None);
        self.io.submit(&disk, Request { tag, op, data });
    }
}

/// Whether this CDB may come to a [`Step::Preempt`](scsi::Step::Preempt).
pub(super) fn may_preempt(cdb: &[u8; 32]) -> bool {
    let action = u16::from(cdb[1] & 0x1f);
    match cdb[0] {
        opcode::PERSISTENT_RESERVE_OUT => action == service_action::PREEMPT_AND_ABORT,
        opcode::FORMAT_UNIT | opcode::SANITIZE => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_preempt_and_abort_and_what_erases_may_wait_for_others() {
        let may = |code, byte_1| {
            let mut cdb = [0; 32];
            (cdb[0], cdb[1]) = (code, byte_1);
            may_preempt(&cdb)
        };
        assert!(may(0x5f, 0x05));
        // What is reserved beside the service action does not matter.
        assert!(may(0x5f, 0xe5));
        assert!(may(0x04, 0x10) && may(0x48, 0x81));
        assert!(!may(0x5f, 0x04) && !may(0x5e, 0x05) && !may(0x00, 0x00));
    }
}
