//! What the appliance changes about an HBA that is at work.

use std::sync::Arc;

use spec::virtio_scsi::EVENT_QUEUE;

use super::{Ended, Failure, Worker};
use crate::inbox::{Come, MAX_QUESTIONS, Message, Question, UnitChange};
use crate::scsi::{self, Address, Attention, LogicalUnit};
use crate::task::Fate;
use crate::task_management::{Owed, Scope};

impl Worker {
    /// Takes what is in the inbox and acts on it: at most one batch, the rest in the next turn of
    /// the loop, so that neighbours who send without end do not keep our tenant waiting.
    ///
    /// # Errors
    /// [`Failure`], as another worker of the HBA has ended, or what is in front does not answer.
    pub(super) fn serve_inbox(&mut self) -> Result<(), Failure> {
        for _ in 0..super::BATCH {
            let Some(message) = self.line.inbox.next() else {
                return Ok(());
            };
            match message {
                Message::Units(change) => self.change_units(change),
                Message::Changed(unit, attention) => self.tell_changed(&unit, attention),
                Message::End(end) => self.end_for_another(end, &Arc::default()),
                Message::Ended(number) => {
                    if let Some(owed) = self.functions.is_back(number) {
                        self.pay(owed);
                    }
                }
                Message::Poll(poll) => {
                    self.pass_on(|| Message::Poll(poll));
                    self.polling.set(poll);
                }
                Message::Limit(limited) => {
                    self.pass_on(|| Message::Limit(limited.clone()));
                    self.limits.set(&limited, self.now);
                }
                Message::Coalesce(coalesce) => {
                    self.pass_on(|| Message::Coalesce(coalesce));
                    self.rings.set_coalesce(coalesce);
                }
                Message::Leave => self.end = Some(Ended::Removed),
                Message::Drain(drained) => {
                    self.pass_on(|| Message::Drain(drained));
                    self.drain(drained);
                }
                // Who asks after a change wants to know what is so when it is carried out: nothing is
                // begun any more then on a unit that is gone.
                Message::Ask(question) if !self.changes.is_empty() => {
                    // As in the inbox: whoever asks more often is not answered.
                    if self.asked.len() < MAX_QUESTIONS {
                        self.asked.push(question);
                    }
                }
                Message::Ask(question) => self.answer_all(&question),
                Message::Fellow(fellow) => {
                    self.hear(fellow)?;
                    if self.end.is_some() {
                        // What the other has left behind is not to be taken for done.
                        return Ok(());
                    }
                }
            }
        }
        self.line.inbox.ring();
        Ok(())
    }

    /// The unit at an address.
    pub(super) fn unit(&self, address: Address) -> Option<Arc<LogicalUnit>> {
        let mut units = self.host.units();
        let found = units.find(|(at, _)| *at == address);
        found.map(|(_, unit)| Arc::clone(unit))
    }

    /// Shows other units, as soon as every other worker of the HBA does; one change after the
    /// other.
    fn change_units(&mut self, change: UnitChange) {
        let idle = self.changes.is_empty();
        let UnitChange { gone, come } = change;
        // Whoever comes finds that the others are gone.
        self.changes.push_back(UnitChange {
            gone,
            come: Vec::new(),
        });
        self.changes.push_back(UnitChange {
            gone: Vec::new(),
            come,
        });
        if idle {
            self.begin_change();
        }
    }

    /// Has every other worker show what is in the first change.
    fn begin_change(&mut self) {
        let Some(change) = self.changes.front_mut() else {
            for question in std::mem::take(&mut self.asked) {
                self.answer_all(&question);
            }
            return;
        };
        let others = self.line.team.count();
        for (address, number) in &mut change.gone {
            *number = self.functions.number();
            let owed = Owed::Events {
                gone: *address,
                come: false,
            };
            // Each on its own, so that what is told of one address is in order, and waits for no
            // command to another. It is this worker's turn last.
            let nothing = self.functions.wait(*number, others + 1, owed);
            debug_assert!(nothing.is_none(), "this worker has not had its turn");
        }
        for (address, come) in &mut change.come {
            if let Come::Unit(unit) = come {
                // Before anything is written to it.
                self.marks.look_at(unit, &*self.shim);
                match self.host.bond(*address, Arc::clone(unit)) {
                    Ok(bond) => *come = Come::Bond(bond),
                    // The roster made a host of the same units.
                    Err(error) => tracing::error!(hba = self.shim.hba(), "{error}"),
                }
            }
        }
        let number = self.functions.number();
        let change = std::mem::take(change);
        self.change_at_fellows(&change, number);
        let owed = Owed::Change(Box::new(change));
        if let Some(owed) = self.functions.wait(number, others, owed) {
            self.pay(owed);
        }
    }

    /// Shows other units from now on. Commands to those that are gone end at once; the driver
    /// hears of it when they are back, so that it need not wait for any.
    pub(super) fn show_change(&mut self, change: UnitChange) {
        let UnitChange { gone, come } = change;
        for (address, number) in gone {
            tracing::info!(hba = self.shim.hba(), at = %address, "a LUN is gone");
            let scope = Scope::Units(scsi::Scope::Unit(address));
            let count =
                self.end_tasks(scope, Fate::Gone, number) + self.wait_for_held(scope, number);
            if let Some(unit) = self.unit(address) {
                self.marks.forget(&unit, &*self.shim);
            }
            self.host.remove(address);
            self.functions.wait_for_more(number, count);
            if let Some(owed) = self.functions.is_back(number) {
                self.pay(owed);
            }
        }
        self.forget_what_is_served_no_more();
        for (address, come) in come {
            let Come::Bond(bond) = come else { continue };
            let lun = bond.unit().name();
            tracing::info!(hba = self.shim.hba(), at = %address, lun, "a LUN has come");
            self.statistics.begin(address, lun);
            self.host.show(address, bond);
            // What is held may be in its way.
            self.pauses.changed = true;
            if !self.functions.announce_later(address) {
                self.announce_come(address);
            }
        }
        self.changes.pop_front();
        self.begin_change();
    }

    /// Has every worker of the HBA answer a question; if one owes too many answers, nobody is
    /// answered.
    fn answer_all(&self, question: &Question) {
        if self.ask_fellows(question) {
            self.answer(question);
        }
    }

    /// Counts LUNs no more that are not served.
    pub(super) fn forget_what_is_served_no_more(&mut self) {
        let luns = self.line.roster.luns();
        self.statistics.forget(|lun| luns.contains_key(lun));
    }

    /// Tells the driver that a unit is gone.
    pub(super) fn announce_gone(&mut self, address: Address) {
        self.events.gone(address, self.features);
        self.ready.insert(EVENT_QUEUE);
    }

    /// Tells the driver that a unit has come.
    pub(super) fn announce_come(&mut self, address: Address) {
        self.events.come(address, self.features);
        self.ready.insert(EVENT_QUEUE);
    }

    /// Tells the driver that a parameter of a unit is another.
    fn tell_changed(&mut self, unit: &Arc<LogicalUnit>, attention: Attention) {
        let shown = self.host.units();
        for (address, _) in shown.filter(|(_, shown)| Arc::ptr_eq(shown, unit)) {
            self.events.changed(address, attention, self.features);
        }
        self.ready.insert(EVENT_QUEUE);
    }

    /// Tells the driver what there is to tell, as far as it has given buffers for it.
    pub(super) fn serve_events(&mut self) {
        let due = self.events.due(self.features);
        if due == 0 {
            // Buffers stay in the ring until there is an event to report.
            self.rings.look_at(EVENT_QUEUE, &*self.shim);
            return;
        }
        let mut buffers = std::mem::take(&mut self.chains);
        let limit = due.min(super::BATCH);
        let left = self
            .rings
            .fetch(EVENT_QUEUE, limit, &mut buffers, &*self.shim);
        self.statistics.hba.fetched(EVENT_QUEUE, buffers.len());
        for buffer in buffers.drain(..) {
            let finished = self.events.report(&buffer);
            self.complete_control(EVENT_QUEUE, finished);
        }
        self.chains = buffers;
        if left == super::Left::More {
            self.ready.insert(EVENT_QUEUE);
        }
    }
}
