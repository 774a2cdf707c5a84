//! How a worker reaches the tenant: the call and error eventfds of each ring.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use spec::device::MAX_RINGS;
use vmm_sys_util::eventfd::EventFd;

use super::signal::Signal;

/// The eventfds of one HBA. The thread of the socket exchanges them, the worker signals them.
#[derive(Debug)]
pub(crate) struct Calls(Vec<Slot>);

/// Each is in cache lines of its own (processors fetch them in pairs): rings are of several
/// workers.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot(Mutex<Eventfds>);

#[derive(Debug, Default)]
struct Eventfds {
    call: Option<Signal>,
    /// A call came since the frontend connected. It may have gone to an eventfd that the frontend
    /// did not look at any more: QEMU starts its rings with one that it then exchanges.
    called: bool,
    error: Option<EventFd>,
}

impl Calls {
    /// Nobody can be called yet.
    pub fn new() -> Self {
        Self((0..MAX_RINGS).map(|_| Slot::default()).collect())
    }

    /// Interrupts the tenant for `ring`, as soon as it has said how.
    pub fn call(&self, ring: u16) {
        if let Some(mut eventfds) = self.eventfds(ring) {
            eventfds.called = true;
            if let Some(call) = &mut eventfds.call {
                signal(call);
            }
        }
    }

    /// Tells the frontend that `ring` is of no more use.
    pub fn report(&self, ring: u16) {
        if let Some(eventfds) = self.eventfds(ring)
            && let Some(error) = &eventfds.error
        {
            // It happens once for a ring, so nothing is kept for it.
            match Signal::new(error) {
                Ok(mut error) => signal(&mut error),
                Err(error) => tracing::warn!(ring, "a frontend is not told of its end: {error}"),
            }
        }
    }

    /// Calls for `ring` go there from now on, and one at once if there were any before.
    ///
    /// # Errors
    /// What the kernel reports; calls go where they went before then.
    pub fn set_call(&self, ring: u16, call: Option<EventFd>) -> io::Result<()> {
        let mut call = call.as_ref().map(Signal::new).transpose()?;
        if let Some(mut eventfds) = self.eventfds(ring) {
            if let Some(call) = call.as_mut().filter(|_| eventfds.called) {
                signal(call);
            }
            eventfds.call = call;
        }
        Ok(())
    }

    /// Errors of `ring` are reported there from now on.
    pub fn set_error(&self, ring: u16, error: Option<EventFd>) {
        if let Some(mut eventfds) = self.eventfds(ring) {
            eventfds.error = error;
        }
    }

    /// Lets every eventfd go.
    pub fn clear(&self) {
        for eventfds in &self.0 {
            *lock(eventfds) = Eventfds::default();
        }
    }

    fn eventfds(&self, ring: u16) -> Option<MutexGuard<'_, Eventfds>> {
        self.0.get(usize::from(ring)).map(lock)
    }
}

fn lock(slot: &Slot) -> MutexGuard<'_, Eventfds> {
    slot.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signals an eventfd.
fn signal(eventfd: &mut Signal) {
    if let Err(error) = eventfd.signal() {
        tracing::warn!("an eventfd of a frontend cannot be signalled: {error}");
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn eventfd() -> (EventFd, EventFd) {
        let ours = EventFd::new(EFD_NONBLOCK).unwrap();
        (ours.try_clone().unwrap(), ours)
    }

    #[test]
    fn a_call_before_the_eventfd_is_exchanged_is_repeated_after_it() {
        let calls = Calls::new();
        let (first, ours) = eventfd();
        calls.set_call(3, Some(ours)).unwrap();
        assert!(first.read().is_err(), "nobody called");
        calls.call(3);
        calls.set_call(3, None).unwrap();
        calls.call(3);
        assert_eq!(first.read().unwrap(), 1);
        let (second, ours) = eventfd();
        calls.set_call(3, Some(ours)).unwrap();
        assert_eq!(second.read().unwrap(), 1);
        calls.call(3);
        assert_eq!(second.read().unwrap(), 1);
        calls.clear();
        let (third, ours) = eventfd();
        calls.set_call(3, Some(ours)).unwrap();
        assert!(third.read().is_err(), "that was another frontend");
    }

    #[test]
    fn errors_and_calls_go_to_their_own_eventfds_and_rings_that_do_not_exist_nowhere() {
        let calls = Calls::new();
        let (theirs, ours) = eventfd();
        calls.set_error(0, Some(ours));
        calls.call(0);
        assert!(theirs.read().is_err());
        calls.report(0);
        assert_eq!(theirs.read().unwrap(), 1);
        calls.call(u16::MAX);
        calls.report(u16::MAX);
        calls.set_call(u16::MAX, None).unwrap();
        calls.clear();
        calls.report(0);
        assert!(theirs.read().is_err());
    }
}
