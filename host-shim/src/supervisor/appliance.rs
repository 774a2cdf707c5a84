//! The storage VM's side of the supervisor: what the appliance does, and what it is told.

use std::io;
use std::time::Instant;

use super::{About, Supervisor};
use crate::device::{DeviceEvent, Refusal};
use crate::session::{Action, Answer, Event, Step};

impl Supervisor {
    /// Takes in all that the storage VM did; whether it did anything.
    pub(super) fn device_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.device.take_event() {
            // A doorbell is no more than a call, and every ring is called after a handover.
            self.changed |= !matches!(event, DeviceEvent::Doorbell { .. });
            self.device_event(now, event);
            any = true;
        }
        any
    }

    fn device_event(&mut self, now: Instant, event: DeviceEvent) {
        match event {
            DeviceEvent::Reset => tracing::debug!(hba = %self.name, "function reset"),
            DeviceEvent::VectorsChanged(vectors) => {
                tracing::debug!(hba = %self.name, vectors, "MSI");
            }
            DeviceEvent::BackendUp { version } => {
                let line = format!("appliance of version {version} attached");
                self.note(About::StorageVm, &line);
                self.attach_by = None;
                self.counters.attachments += 1;
                let tracks = version.has_inflight();
                self.session.handle(now, Event::Attached { tracks });
            }
            DeviceEvent::BackendDown => {
                self.note(About::StorageVm, "appliance detached");
                if self.connection.is_some() {
                    self.attach_by = Some(now + self.attach_timeout);
                }
                self.session.handle(now, Event::Detached);
            }
            DeviceEvent::Refused(refusal) => self.complain(&refusal.to_string()),
            DeviceEvent::Reply { sequence } => match self.device.reply(sequence) {
                Ok(reply) => self.session.handle(now, Event::Replied(reply)),
                Err(error) => {
                    self.complain(&format!("reply {sequence} of the appliance: {error}"));
                    self.session.handle(now, Event::BadReply);
                }
            },
            DeviceEvent::RingError { ring, reason } => {
                self.complain(&format!(
                    "vring {ring} broke the rules (reason {reason}, see spec/vhost-pci.md) and is \
                     retired until the tenant resets its HBA; the tenant's driver is at fault"
                ));
                self.ring_events(ring).signal_error();
            }
            DeviceEvent::Doorbell { ring } => self.doorbell(now, ring),
        }
    }

    /// Does all that the session asks for; whether it asked for anything.
    pub(super) fn act_all(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(action) = self.session.next_action() {
            self.changed = true;
            self.act(now, action);
            any = true;
        }
        any
    }

    fn act(&mut self, now: Instant, action: Action) {
        match action {
            Action::Answer(id, answer) => {
                let value = match answer {
                    Ok(Answer::Done) => Some(0),
                    Ok(Answer::Base(base)) => Some(base.into()),
                    Err(refused) => {
                        self.complain(&refused.to_string());
                        None
                    }
                };
                if self.relay.answer(id, value, None).is_err() {
                    self.relay_failed(now, "it does not take answers");
                }
            }
            Action::Post(step) => self.post(now, step),
            Action::Kick(ring) => self.device.kick(ring),
            Action::Interrupt(ring) => self.ring_events(ring).interrupt(),
            Action::ForgetKick(ring) => self.set_kick(ring, None),
            Action::TurnAway(refusal) => {
                self.complain(&refusal.to_string());
                self.device.refuse(refusal);
            }
            Action::RingRefused(ring, errno) => {
                let error = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(0));
                self.complain(&format!(
                    "the appliance refuses to run vring {ring}: {error}; see its log"
                ));
                self.ring_events(ring).signal_error();
            }
            Action::ForgiveRings => self.device.clear_ring_errors(),
        }
    }

    fn post(&mut self, now: Instant, step: Step) {
        let request = match step {
            Step::Request(request) => request,
            Step::Memory(entries) => match self.device.publish_memory(&entries) {
                Ok(generation) => spec::mailbox::Request::SetMemory { generation },
                Err(error) => {
                    self.complain(&format!("memory table: {error}"));
                    self.device.refuse(Refusal::RequestFailed);
                    return;
                }
            },
        };
        match self.device.post(request) {
            Ok(sequence) => {
                self.counters.requests += 1;
                tracing::debug!(hba = %self.name, sequence, ?request, "posted");
            }
            // The event that says why the appliance is gone comes next.
            Err(error) => {
                tracing::debug!(hba = %self.name, ?request, %error, "not posted");
                self.session.handle(now, Event::Detached);
            }
        }
    }

    /// The appliance rang: interrupt the tenant, and perhaps poll for a while instead of being rung.
    fn doorbell(&mut self, now: Instant, ring: u16) {
        self.counters.trapped_doorbells += 1;
        let mut counted = false;
        self.device.collect_calls(|called| {
            counted |= called == ring;
            self.counters.calls += 1;
            if let Some(events) = self.rings.get_mut(usize::from(called)) {
                events.interrupt();
            }
        });
        if !counted {
            self.counters.calls += 1;
            self.ring_events(ring).interrupt();
        }
        if self.vigil.rung(now) {
            self.device.disarm();
        }
    }

    /// While awake: looks at the call counters, and goes to sleep when none moved for long.
    pub(super) fn collect_calls(&mut self, now: Instant) {
        if !self.vigil.is_kept() {
            return;
        }
        if self.interrupt_called() {
            self.vigil.seen(now);
        } else if self.vigil.is_over(now) {
            // A call that came before the flag was seen is collected here; later ones ring.
            if self.device.arm() {
                self.device.disarm();
                self.interrupt_called();
                self.vigil.seen(now);
            } else {
                self.vigil.end();
            }
        }
    }

    fn interrupt_called(&mut self) -> bool {
        let mut any = false;
        self.device.collect_calls(|ring| {
            any = true;
            self.counters.calls += 1;
            if let Some(events) = self.rings.get_mut(usize::from(ring)) {
                events.interrupt();
            }
        });
        any
    }

    /// Says so if a function that has work has had no appliance for too long.
    pub(super) fn expect_appliance(&mut self, now: Instant) {
        if self.attach_by.is_some_and(|by| now >= by) {
            self.attach_by = None;
            self.complain(&format!(
                "no appliance attached within {} s; is it running in the storage VM, and does its \
                 configuration have an [[hba]] with this UUID?",
                self.attach_timeout.as_secs()
            ));
        }
    }
}
