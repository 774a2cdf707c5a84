//! What the appliance changes about an HBA that is at work.

use std::sync::Arc;

use spec::virtio_scsi::EVENT_QUEUE;

use super::{Ended, Worker};
use crate::inbox::{Message, UnitChange};
use crate::scsi::{self, Address, Attention, LogicalUnit};
use crate::task::Fate;
use crate::task_management::{Owed, Scope};

impl Worker {
    /// Takes what is in the inbox and acts on it.
    pub(super) fn serve_inbox(&mut self) {
        while let Some(message) = self.line.inbox.next() {
            match message {
                Message::Units(change) => self.change_units(change),
                Message::Changed(unit, attention) => self.tell_changed(&unit, attention),
                Message::End(end) => self.end_for_another(end),
                Message::Ended(number) => {
                    if let Some(owed) = self.functions.is_back(number) {
                        self.pay(owed);
                    }
                }
                Message::Leave => self.end = Some(Ended::Removed),
            }
        }
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
        let number = self.functions.number();
        let mut count = 0;
        for &address in &gone {
            tracing::info!(hba = self.shim.hba(), at = %address, "a LUN is gone");
            count += self.end_tasks(Scope::Units(scsi::Scope::Unit(address)), Fate::Gone, number);
            self.host.remove(address);
        }
        let mut to_tell = Vec::new();
        for (address, unit) in come {
            tracing::info!(hba = self.shim.hba(), at = %address, lun = unit.name(), "a LUN has come");
            if let Err(error) = self.host.add(address, unit) {
                // The roster made a host of the same units.
                tracing::error!(hba = self.shim.hba(), "{error}");
                continue;
            }
            match self.functions.announcements(address) {
                Some(later) => later.push(address),
                None => to_tell.push(address),
            }
        }
        let owed = Owed::Events {
            gone,
            come: to_tell,
        };
        if let Some(owed) = self.functions.wait(number, count, owed) {
            self.pay(owed);
        }
    }

    /// Tells the driver that units are gone, and that others have come.
    pub(super) fn announce(&mut self, gone: &[Address], come: &[Address]) {
        for &address in gone {
            self.events.gone(address, self.features);
        }
        for &address in come {
            self.events.come(address, self.features);
        }
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
            self.rings.look_at(EVENT_QUEUE, &self.shim);
            return;
        }
        let mut buffers = std::mem::take(&mut self.chains);
        let limit = due.min(super::BATCH);
        let left = self
            .rings
            .fetch(EVENT_QUEUE, limit, &mut buffers, &self.shim);
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
