//! How a worker reaches the tenant: the call and error eventfds of each ring.

use std::sync::{Mutex, MutexGuard, PoisonError};

use spec::device::MAX_RINGS;
use vmm_sys_util::eventfd::EventFd;

/// The eventfds of one HBA. The thread of the socket exchanges them, the worker writes to them.
#[derive(Debug)]
pub(crate) struct Calls(Vec<Mutex<Eventfds>>);

#[derive(Debug, Default)]
struct Eventfds {
    call: Option<EventFd>,
    /// A call came since the frontend connected. It may have gone to an eventfd that the frontend
    /// did not look at any more: QEMU starts its rings with one that it then exchanges.
    called: bool,
    error: Option<EventFd>,
}

impl Calls {
    /// Nobody can be called yet.
    pub fn new() -> Self {
        Self((0..MAX_RINGS).map(|_| Mutex::default()).collect())
    }

    /// Interrupts the tenant for `ring`, as soon as it has said how.
    pub fn call(&self, ring: u16) {
        if let Some(mut eventfds) = self.eventfds(ring) {
            eventfds.called = true;
            if let Some(call) = &eventfds.call {
                signal(call);
            }
        }
    }

    /// Tells the frontend that `ring` is of no more use.
    pub fn report(&self, ring: u16) {
        if let Some(error) = self
            .eventfds(ring)
            .as_ref()
            .and_then(|fds| fds.error.as_ref())
        {
            signal(error);
        }
    }

    /// Calls for `ring` go there from now on, and one at once if there were any before.
    pub fn set_call(&self, ring: u16, call: Option<EventFd>) {
        if let Some(mut eventfds) = self.eventfds(ring) {
            if let Some(call) = call.as_ref().filter(|_| eventfds.called) {
                signal(call);
            }
            eventfds.call = call;
        }
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

fn lock(eventfds: &Mutex<Eventfds>) -> MutexGuard<'_, Eventfds> {
    eventfds.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signals an eventfd, which was made not to block; one that is signalled to the brim need not be.
///
/// A frontend shares the file description: one that makes its eventfd blocking again, and fills it,
/// stops its own HBA's thread here for as long as it likes. Those that share a LUN with it wait for
/// that thread where a task management function or PREEMPT AND ABORT concerns its commands, and the
/// program's end waits for it until the frontend's eventfd is read or the program is killed.
fn signal(eventfd: &EventFd) {
    if let Err(error) = eventfd.write(1) {
        tracing::trace!("an eventfd of a frontend: {error}");
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
        calls.set_call(3, Some(ours));
        assert!(first.read().is_err(), "nobody called");
        calls.call(3);
        calls.set_call(3, None);
        calls.call(3);
        assert_eq!(first.read().unwrap(), 1);
        let (second, ours) = eventfd();
        calls.set_call(3, Some(ours));
        assert_eq!(second.read().unwrap(), 1);
        calls.call(3);
        assert_eq!(second.read().unwrap(), 1);
        calls.clear();
        let (third, ours) = eventfd();
        calls.set_call(3, Some(ours));
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
        calls.set_call(u16::MAX, None);
        calls.clear();
        calls.report(0);
        assert!(theirs.read().is_err());
    }
}
