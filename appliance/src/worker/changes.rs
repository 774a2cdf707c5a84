//! What the appliance changes about an HBA that is at work.

use std::sync::Arc;

use spec::virtio_scsi::EVENT_QUEUE;

use super::{Ended, Worker};
use crate::inbox::{Message, UnitChange};
use crate::scsi::{self, Address, Attention, LogicalUnit};
use crate::task::Fate;
use crate::task_management::{Owed, Scope};

impl Worker {
    /// Takes what is in the inbox and acts on it: at most one batch, the rest in the next turn of
    /// the loop, so that neighbours who send without end do not keep our tenant waiting.
    pub(super) fn serve_inbox(&mut self) {
        for _ in 0..super::BATCH {
            let Some(message) = self.line.inbox.next() else {
                return;
            };
            match message {
                Message::Units(change) => self.change_units(change),
                Message::Changed(unit, attention) => self.tell_changed(&unit, attention),
                Message::End(end) => self.end_for_another(end),
                Message::Ended(number) => {
                    if let Some(owed) = self.functions.is_back(number) {
                        self.pay(owed);
                    }
                }
                Message::Poll(poll) => self.polling.set(poll),
                Message::Limit(limited) => self.limits.set(&limited, self.now),
                Message::Coalesce(coalesce) => self.rings.set_coalesce(coalesce),
                Message::Leave => self.end = Some(Ended::Removed),
                Message::Drain(drained) => self.drain(drained),
                Message::Ask(question) => self.answer(&question),
            }
        }
        self.line.inbox.ring();
    }

    /// The unit at an address.
    pub(super) fn unit(&self, address: Address) -> Option<Arc<LogicalUnit>> {
        let mut units = self.host.units();
        let found = units.find(|(at, _)| *at == address);
        found.map(|(_, unit)| Arc::clone(unit))
    }

    /// Shows other units from now on. Commands to those that are gone end at once; the driver
    /// hears of it when they are back, so that it need not wait for any.
    fn change_units(&mut self, change: UnitChange) {
        let UnitChange { gone, come } = change;
        for address in gone {
            tracing::info!(hba = self.shim.hba(), at = %address, "a LUN is gone");
            let number = self.functions.number();
            let scope = Scope::Units(scsi::Scope::Unit(address));
            let count =
                self.end_tasks(scope, Fate::Gone, number) + self.wait_for_held(scope, number);
            if let Some(unit) = self.unit(address) {
                self.marks.forget(&unit, &*self.shim);
            }
            self.host.remove(address);
            // Each on its own, so that what is told of one address is in order, and waits for no
            // command to another.
            let owed = Owed::Events {
                gone: address,
                come: false,
            };
            if let Some(owed) = self.functions.wait(number, count, owed) {
                self.pay(owed);
            }
        }
        let luns = self.line.roster.luns();
        self.statistics.forget(|lun| luns.contains_key(lun));
        for (address, unit) in come {
            tracing::info!(hba = self.shim.hba(), at = %address, lun = unit.name(), "a LUN has come");
            self.marks.look_at(&unit, &*self.shim);
            self.statistics.begin(address, unit.name());
            if let Err(error) = self.host.add(address, unit) {
                // The roster made a host of the same units.
                tracing::error!(hba = self.shim.hba(), "{error}");
                continue;
            }
            // What is held may be in its way.
            self.pauses.changed = true;
            if !self.functions.announce_later(address) {
                self.announce_come(address);
            }
        }
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
