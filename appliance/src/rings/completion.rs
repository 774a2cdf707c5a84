//! How requests go back, and how their driver hears of it.

use std::time::Instant;

use super::{Rings, Shim};
use crate::front::Called;
use crate::in_flight::{self, End, InFlight, Open, Waiters};
use crate::ring::{Ring, Violation};
use crate::task::{Name, Used};

impl Rings {
    /// Completes a request: its chain goes back, on a ring that is not tracked when all that were
    /// fetched before it have gone back. The driver sees it by [`Self::call`] at the latest, or at
    /// once where somebody waits for it. Returns who waited for what has gone back now.
    pub fn complete(
        &mut self,
        index: u16,
        chain: Used,
        name: Option<Name>,
        waiters: Waiters,
        shim: &Shim,
    ) -> Waiters {
        let Used { head, written } = chain;
        let slot = self.slots.get_mut(usize::from(index));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return waiters;
        };
        if waiters.is_empty()
            && let InFlight::Ordered(open) = &mut slot.in_flight
            && let Some(ring) = &mut slot.ring
            && in_flight::end_oldest(open, head)
        {
            // The common end: nothing is kept of it.
            let is_next_over = open.front().is_some_and(Open::has_ended);
            if let Some(logging) = &self.log {
                slot.buffers.mark(head, &logging.log);
            }
            if let Err(violation) = ring.put(head, written) {
                self.retire(index, violation, shim);
            }
            self.completed.insert(index);
            return if is_next_over {
                self.give_back(index, shim)
            } else {
                waiters
            };
        }
        let end = End {
            written,
            name,
            waiters,
        };
        match &mut slot.in_flight {
            InFlight::Tracked(journal) if journal.is_open(head) => {
                self.put_tracked(index, head, written, shim);
                if !end.waiters.is_empty() {
                    self.publish(index, shim);
                }
                end.waiters
            }
            InFlight::Tracked(_) => end.waiters,
            InFlight::Ordered(open) => match in_flight::end(open, head, end) {
                Ok(()) => self.give_back(index, shim),
                Err(unknown) => unknown.waiters,
            },
        }
    }

    /// The commands that have ended but wait for others to go back, and who waits for each.
    pub fn held(&mut self) -> impl Iterator<Item = (Name, &mut Waiters)> {
        let slots = self.slots.iter_mut().flatten();
        slots
            .flat_map(|slot| slot.in_flight.held())
            .filter_map(|end| Some((end.name?, &mut end.waiters)))
    }

    /// Who waits for the last command of each ring that has ended, is held back and is `wanted`: the
    /// others of that ring go back before it.
    pub fn last_held(
        &mut self,
        wanted: impl Fn(Name) -> bool,
    ) -> impl Iterator<Item = &mut Waiters> {
        self.slots.iter_mut().flatten().filter_map(move |slot| {
            let ends = slot.in_flight.held();
            let last = ends.filter(|end| end.name.is_some_and(&wanted)).last();
            last.map(|end| &mut end.waiters)
        })
    }

    /// Puts the chain at `head` of a tracked ring, which is in flight, into the used ring.
    fn put_tracked(&mut self, index: u16, head: u16, written: u32, shim: &Shim) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        let Some(slot) = slot else { return };
        let InFlight::Tracked(journal) = &mut slot.in_flight else {
            return;
        };
        let Some(ring) = &mut slot.ring else {
            // As in `give_back`.
            return journal.forget(head);
        };
        if let Some(logging) = &self.log {
            slot.buffers.mark(head, &logging.log);
        }
        match ring.put(head, written) {
            Ok(()) => {
                slot.batch.push(head);
                self.completed.insert(index);
            }
            Err(violation) => {
                journal.forget(head);
                self.retire(index, violation, shim);
            }
        }
    }

    /// Gives back what is completed of an ordered ring, up to the first request that is not;
    /// returns who waited for that.
    fn give_back(&mut self, index: u16, shim: &Shim) -> Waiters {
        let mut released = Waiters::new();
        let slot = self.slots.get_mut(usize::from(index));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return released;
        };
        let InFlight::Ordered(open) = &mut slot.in_flight else {
            return released;
        };
        let mut result = Ok(());
        while let Some((head, mut end)) = in_flight::next_to_give_back(open) {
            released.append(&mut end.waiters);
            // Without memory, or in memory that the ring is not in, nobody can be told; but the
            // ring must be able to stop.
            if let Some(ring) = &mut slot.ring {
                result = result.and(ring.put(head, end.written));
            }
            if let Some(logging) = &self.log {
                slot.buffers.mark(head, &logging.log);
            }
            self.completed.insert(index);
        }
        if let Err(violation) = result {
            self.retire(index, violation, shim);
        }
        if !released.is_empty() {
            self.publish(index, shim);
        }
        released
    }

    /// Shows the driver of a ring what was put into its used ring since the last time, and takes
    /// the marks of that off.
    pub(super) fn publish(&mut self, index: u16, shim: &Shim) {
        let slot = self.slots.get_mut(usize::from(index));
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return;
        };
        let (Some(ring), Some(memory)) = (&mut slot.ring, &self.memory) else {
            return;
        };
        let published = match &mut slot.in_flight {
            InFlight::Ordered(_) => ring.publish(memory),
            InFlight::Tracked(journal) => {
                journal.before_used(&slot.batch);
                let published = ring.publish(memory);
                match published {
                    Ok(()) => journal.after_used(&slot.batch, ring.used_index()),
                    Err(_) => slot.batch.iter().for_each(|head| journal.forget(*head)),
                }
                slot.batch.clear();
                published
            }
        };
        if let Some(logging) = &self.log {
            slot.mark_used(index, logging);
        }
        if let Err(violation) = published {
            self.retire(index, violation, shim);
        }
    }

    /// Retires a ring: reported once, fetching ends, what is in flight goes on.
    pub fn retire(&mut self, index: u16, violation: Violation, shim: &Shim) {
        if let Some(slot) = self.slot_mut(index)
            && slot.running
        {
            slot.running = false;
            self.tally.retired += 1;
            shim.retired(index, violation);
        }
        // Also of a ring that was stopped before: nothing more is fetched from it.
        if let Some(journal) = self
            .slot_mut(index)
            .and_then(|slot| slot.in_flight.journal())
        {
            journal.give_up_again();
        }
    }

    /// Retires a ring because of the request at `head`, which was fetched and cannot be completed.
    /// Returns who waited for what has gone back now.
    pub fn reject(&mut self, index: u16, head: u16, violation: Violation, shim: &Shim) -> Waiters {
        if let Some(slot) = self.slot_mut(index) {
            slot.in_flight.forget(head);
        }
        self.retire(index, violation, shim);
        self.give_back(index, shim)
    }

    /// Shows the driver of a ring what was completed of it, before the others that were fetched with
    /// it are looked at: it goes on with these meanwhile. It is called if it waits for one of them
    /// and `call` says so.
    pub fn show(&mut self, index: u16, call: bool, shim: &Shim) {
        if !self.completed.has(index) {
            return;
        }
        self.publish(index, shim);
        // Without an event index each question is another call.
        if call && self.coalesce.delay.is_zero() {
            let ring = self.slot(index).and_then(|slot| slot.ring.as_ref());
            if ring.is_some_and(Ring::has_event_index) {
                self.ask(index, shim);
            }
        }
    }

    /// Shows the tenant what was completed, and calls it for every ring where it wants that, but
    /// for calls that are held back longer. The control ring comes last: an answer there may say
    /// that others are back.
    pub fn call(&mut self, now: Instant, shim: &Shim) {
        let mut completed = std::mem::take(&mut self.completed);
        completed.add(std::mem::take(&mut self.owed));
        while let Some(index) = completed.pop_last() {
            self.publish(index, shim);
            if !self.holds_back(index, now) {
                self.ask(index, shim);
            }
        }
    }

    /// As [`Self::call`], and holds no call back.
    pub fn call_for_all(&mut self, shim: &Shim) {
        let mut completed = std::mem::take(&mut self.completed);
        completed.add(std::mem::take(&mut self.owed));
        while let Some(index) = completed.pop_last() {
            self.publish(index, shim);
            self.ask(index, shim);
        }
    }

    /// Asks the driver of a ring whether it wants to be called, and does that.
    fn ask(&mut self, index: u16, shim: &Shim) {
        let slot = self.slots.get_mut(usize::from(index));
        if let Some(slot) = slot.and_then(Option::as_mut) {
            slot.owed = None;
            if let (Some(ring), Some(memory)) = (&mut slot.ring, &self.memory)
                && ring.wants_call(memory) == Ok(true)
            {
                match shim.call(index) {
                    Called::Trapped => self.tally.trapped += 1,
                    Called::Seen => self.tally.seen += 1,
                    Called::Signalled => self.tally.signalled += 1,
                }
            }
        }
    }
}
