//! The event queue: what happened to logical units, told without being asked (virtio 1.3 §5.6.6.3).

use std::collections::VecDeque;

use spec::virtio_scsi::{Event, event, feature};

use crate::ring::Chain;
use crate::scsi::{Address, Attention};
use crate::task::Used;

/// Events that wait for the driver of one HBA to give buffers, and those that it missed.
#[derive(Debug, Default)]
pub(crate) struct Events {
    waiting: VecDeque<Event>,
    /// Something could not be told; the driver has to look for itself.
    missed: bool,
}

impl Events {
    /// Most events that wait; Linux gives 8 buffers at a time.
    const LIMIT: usize = 64;

    /// A logical unit has come.
    pub fn come(&mut self, address: Address, features: u64) {
        self.post(event::TRANSPORT_RESET, address, event::RESCAN, features);
    }

    /// A logical unit has gone.
    pub fn gone(&mut self, address: Address, features: u64) {
        self.post(event::TRANSPORT_RESET, address, event::REMOVED, features);
    }

    /// A parameter of a logical unit is another, of which `attention` tells as well.
    pub fn changed(&mut self, address: Address, attention: Attention, features: u64) {
        let code = attention.code();
        let reason = u32::from(code.asc) | u32::from(code.ascq) << 8;
        self.post(event::PARAM_CHANGE, address, reason, features);
    }

    fn post(&mut self, kind: u32, address: Address, reason: u32, features: u64) {
        if features == 0 {
            // No driver is there that could be asked what it wants to hear. Should it come back
            // without a reset, it will not know.
            self.missed = true;
            return;
        }
        if features & needed_for(kind) == 0 {
            return;
        }
        let event = Event {
            event: kind,
            lun: field(address),
            reason,
        };
        if kind == event::PARAM_CHANGE && self.waiting.contains(&event) {
            return;
        }
        if self.waiting.len() < Self::LIMIT {
            self.waiting.push_back(event);
        } else {
            self.missed = true;
        }
    }

    /// Something may have happened that nobody here knows of.
    pub fn miss(&mut self) {
        self.missed = true;
    }

    /// The driver is gone, and what it negotiated with it. Should it come back without a reset, it
    /// has missed what was not told.
    pub fn lose_driver(&mut self) {
        self.missed |= !self.waiting.is_empty();
        self.waiting.clear();
    }

    /// Forgets everything: a driver that starts afresh looks for itself.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many buffers are needed to tell everything to a driver with these features.
    pub fn due(&self, features: u64) -> usize {
        if features & (feature::HOTPLUG | feature::CHANGE) == 0 {
            return 0;
        }
        self.waiting.len().max(usize::from(self.missed))
    }

    /// Puts the next event into a buffer of the driver. One that is too short for an event gets
    /// "no event", as far as it goes.
    pub fn report(&mut self, buffer: &Chain) -> Used {
        let nothing = Event {
            event: event::NO_EVENT,
            lun: [0; 8],
            reason: 0,
        };
        let event = if buffer.writable.len() < Event::LEN {
            nothing
        } else {
            let mut next = self.waiting.pop_front().unwrap_or(nothing);
            if std::mem::take(&mut self.missed) {
                next.event |= event::MISSED;
            }
            next
        };
        let written = buffer.writable.write_at(0, &event.to_bytes());
        Used {
            head: buffer.head,
            written: u32::try_from(written).unwrap_or(u32::MAX),
        }
    }
}

/// The feature without which the driver must not be told.
fn needed_for(kind: u32) -> u64 {
    if kind == event::TRANSPORT_RESET {
        feature::HOTPLUG
    } else {
        feature::CHANGE
    }
}

/// Virtio's `lun` field in the form that REPORT LUNS gives the LUN: Linux looks the unit up by
/// the field as a number.
fn field(address: Address) -> [u8; 8] {
    let mut field = address.field();
    if address.lun < 256 {
        field[2] = 0;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Segments;
    use crate::memory::testing::shared_memory;

    const ALL: u64 = feature::HOTPLUG | feature::CHANGE;
    const UNIT: Address = Address { target: 2, lun: 3 };

    /// What `events` puts into a buffer of `len` bytes.
    fn report(events: &mut Events, len: usize) -> Vec<u8> {
        let memory = shared_memory(4096);
        memory.slice(0, 64).unwrap().copy_from(&[0xeeu8; 64]);
        let mut writable = Segments::new(memory.clone());
        if len > 0 {
            writable.push(0, len).unwrap();
        }
        let chain = Chain {
            head: 5,
            readable: Segments::new(memory.clone()),
            writable,
        };
        let finished = events.report(&chain);
        assert_eq!(finished.head, 5);
        let written = usize::try_from(finished.written).unwrap();
        let mut bytes = vec![0; written + 1];
        memory.slice(0, written + 1).unwrap().copy_to(&mut bytes);
        assert_eq!(bytes.pop(), Some(0xee), "more was written than is said");
        bytes
    }

    #[test]
    fn units_that_come_and_go_and_change_are_told_in_that_order() {
        let mut events = Events::default();
        let far = Address {
            target: 255,
            lun: 16383,
        };
        events.gone(UNIT, ALL);
        events.come(far, ALL);
        events.changed(UNIT, Attention::CapacityChanged, ALL);
        assert_eq!(events.due(ALL), 3);
        assert_eq!(
            report(&mut events, 16),
            [1, 0, 0, 0, 1, 2, 0, 3, 0, 0, 0, 0, 2, 0, 0, 0]
        );
        assert_eq!(
            report(&mut events, 20),
            [1, 0, 0, 0, 1, 255, 0x7f, 0xff, 0, 0, 0, 0, 1, 0, 0, 0]
        );
        assert_eq!(
            report(&mut events, 16),
            [3, 0, 0, 0, 1, 2, 0, 3, 0, 0, 0, 0, 0x2a, 9, 0, 0]
        );
        assert_eq!(events.due(ALL), 0);
    }

    #[test]
    fn a_driver_is_told_only_what_it_negotiated() {
        let mut events = Events::default();
        events.come(UNIT, feature::CHANGE);
        events.changed(UNIT, Attention::CapacityChanged, feature::HOTPLUG);
        assert_eq!(events.due(ALL), 0);
        events.miss();
        assert_eq!(events.due(spec::ring::EVENT_IDX), 0);
        assert_eq!(events.due(feature::CHANGE), 1);
    }

    #[test]
    fn events_beyond_the_limit_are_missed_and_the_next_one_says_so() {
        let mut events = Events::default();
        for lun in 0..66 {
            events.come(Address { target: 0, lun }, ALL);
        }
        assert_eq!(events.due(ALL), 64);
        assert_eq!(report(&mut events, 16)[..4], [1, 0, 0, 0x80]);
        assert_eq!(report(&mut events, 16)[..4], [1, 0, 0, 0]);
        assert_eq!(events.due(ALL), 62);
    }

    #[test]
    fn what_happens_while_no_driver_is_there_is_missed_unless_it_resets() {
        let mut events = Events::default();
        events.gone(UNIT, 0);
        assert_eq!(events.due(ALL), 1);
        assert_eq!(report(&mut events, 16)[..4], [0, 0, 0, 0x80]);
        events.gone(UNIT, 0);
        events.clear();
        assert_eq!(events.due(ALL), 0);
    }

    #[test]
    fn a_driver_that_comes_back_is_told_no_kind_that_it_did_not_negotiate_this_time() {
        let mut events = Events::default();
        events.come(UNIT, ALL);
        events.lose_driver();
        assert_eq!(events.due(feature::CHANGE), 1);
        assert_eq!(report(&mut events, 16)[..4], [0, 0, 0, 0x80]);
        assert_eq!(events.due(ALL), 0);
    }

    #[test]
    fn the_same_change_is_told_once() {
        let mut events = Events::default();
        events.changed(UNIT, Attention::CapacityChanged, ALL);
        events.changed(UNIT, Attention::CapacityChanged, ALL);
        assert_eq!(events.due(ALL), 1);
    }

    #[test]
    fn a_short_buffer_gets_no_event_and_the_event_waits_for_the_next() {
        let mut events = Events::default();
        events.come(UNIT, ALL);
        assert_eq!(report(&mut events, 15), [0; 15]);
        assert_eq!(report(&mut events, 0), [0_u8; 0]);
        assert_eq!(report(&mut events, 16)[..4], [1, 0, 0, 0]);
    }
}
