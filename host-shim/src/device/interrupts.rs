//! The MSI vectors of the function: eventfds that QEMU gave us.

use std::os::fd::AsFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use spec::device::kick_vector;

use super::descriptor;
use crate::kept::{Kept, KeptFd};

/// The eventfd of each vector, and the kicks that wait for one.
#[derive(Debug)]
pub(super) struct Interrupts {
    vectors: Vec<Option<KeptFd>>,
    /// Rings kicked while no vector could carry it, one bit each.
    latched: u128,
}

/// What [`Interrupts`] are to go on from; eventfds by their names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InterruptsRecord {
    vectors: Vec<Option<u64>>,
    latched: u128,
}

/// A range of vectors that the function does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoSuchVector;

impl Interrupts {
    /// `count` vectors, none of them enabled.
    pub(super) fn new(count: usize) -> Self {
        Self {
            vectors: std::iter::repeat_with(|| None).take(count).collect(),
            latched: 0,
        }
    }

    /// What a next supervisor is to go on from.
    pub(super) fn record(&self) -> InterruptsRecord {
        let name = |vector: &Option<KeptFd>| vector.as_ref().map(KeptFd::name);
        InterruptsRecord {
            vectors: self.vectors.iter().map(name).collect(),
            latched: self.latched,
        }
    }

    /// Goes on from `record`.
    pub(super) fn restore(&mut self, record: InterruptsRecord, kept: &Kept) {
        for (vector, name) in self.vectors.iter_mut().zip(record.vectors) {
            *vector = name.and_then(|name| kept.get(name));
        }
        self.latched = record.latched;
    }

    /// Vectors that the function offers.
    pub(super) fn offered(&self) -> usize {
        self.vectors.len()
    }

    /// Vectors that are enabled: those up to the first that is not.
    pub(super) fn enabled(&self) -> usize {
        self.vectors.iter().take_while(|v| v.is_some()).count()
    }

    /// The vectors from `start` get these eventfds (none of them: `fds` is empty and `count`
    /// vectors lose theirs).
    pub(super) fn assign(
        &mut self,
        start: usize,
        count: usize,
        fds: Vec<KeptFd>,
    ) -> Result<(), NoSuchVector> {
        let end = start.checked_add(count).ok_or(NoSuchVector)?;
        let slots = self.vectors.get_mut(start..end).ok_or(NoSuchVector)?;
        if fds.is_empty() {
            slots.fill_with(|| None);
            return Ok(());
        }
        if fds.len() != count
            || fds
                .iter()
                .any(|fd| descriptor::make_nonblocking(fd.as_fd()).is_err())
        {
            return Err(NoSuchVector);
        }
        for (slot, fd) in slots.iter_mut().zip(fds) {
            *slot = Some(fd);
        }
        self.fire_latched();
        Ok(())
    }

    /// No vector is enabled any more.
    pub(super) fn release_all(&mut self) {
        self.vectors.fill_with(|| None);
    }

    /// Fires the mailbox's vector.
    pub(super) fn fire_mailbox(&mut self) {
        self.fire(0);
    }

    /// Fires the vector of `ring`, at once or when it is enabled.
    pub(super) fn kick(&mut self, ring: u16) {
        let vector = kick_vector(usize::from(ring), self.enabled());
        if !self.fire(vector) {
            self.latched |= 1u128.checked_shl(u32::from(ring)).unwrap_or(0);
        }
    }

    fn fire_latched(&mut self) {
        let latched = std::mem::take(&mut self.latched);
        for ring in (0..128).filter(|ring| latched & (1 << ring) != 0) {
            self.kick(ring);
        }
    }

    /// Whether somebody will see it.
    fn fire(&mut self, vector: usize) -> bool {
        let Some(slot) = self.vectors.get_mut(vector) else {
            return false;
        };
        let Some(eventfd) = slot else {
            return false;
        };
        match rustix::io::write(&*eventfd, &1u64.to_ne_bytes()) {
            // The counter is full: it was fired before and nobody has looked yet.
            Ok(_) | Err(Errno::AGAIN) => true,
            Err(error) => {
                // Its peer can cause this at will; the change of vectors is told as an event.
                tracing::debug!(vector, %error, "MSI vector is not an eventfd; it is disabled");
                *slot = None;
                false
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// An eventfd: one descriptor to read it by, another to give away.
    pub(crate) fn eventfd() -> (File, OwnedFd) {
        let eventfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let ours = owned(eventfd.try_clone().unwrap());
        (ours.into(), owned(eventfd))
    }

    fn eventfds(count: usize) -> (Vec<File>, Vec<KeptFd>) {
        let pair = |_| {
            let (ours, theirs) = eventfd();
            (ours, theirs.into())
        };
        (0..count).map(pair).unzip()
    }

    #[expect(unsafe_code, reason = "EventFd converts through raw descriptors only")]
    fn owned(eventfd: EventFd) -> OwnedFd {
        // SAFETY: into_raw_fd gave up the only ownership of an open descriptor.
        unsafe { OwnedFd::from_raw_fd(eventfd.into_raw_fd()) }
    }

    fn read(eventfd: &mut File) -> u64 {
        let mut count = [0; 8];
        match eventfd.read_exact(&mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    fn fired(eventfds: &mut [File]) -> Vec<u64> {
        eventfds.iter_mut().map(read).collect()
    }

    // covers: VPCI-INT-1
    #[test]
    fn kicks_use_all_vectors_but_the_mailboxs() {
        let (mut seen, fds) = eventfds(4);
        let mut interrupts = Interrupts::new(4);
        interrupts.assign(0, 4, fds).unwrap();
        assert_eq!(interrupts.enabled(), 4);
        for ring in [0, 1, 2, 3] {
            interrupts.kick(ring);
        }
        assert_eq!(fired(&mut seen), [0, 2, 1, 1]);
        interrupts.fire_mailbox();
        assert_eq!(fired(&mut seen), [1, 0, 0, 0]);
    }

    // covers: VPCI-INT-2
    #[test]
    fn a_kick_before_msi_is_enabled_is_not_lost() {
        let mut interrupts = Interrupts::new(2);
        interrupts.kick(5);
        interrupts.kick(5);
        let (mut seen, fds) = eventfds(2);
        interrupts.assign(0, 2, fds).unwrap();
        assert_eq!(fired(&mut seen), [0, 1]);
        interrupts.release_all();
        interrupts.kick(0);
        let (mut seen, fds) = eventfds(1);
        interrupts.assign(0, 1, fds).unwrap();
        assert_eq!(fired(&mut seen), [1]);
    }

    #[test]
    fn vectors_that_do_not_exist_are_refused() {
        let mut interrupts = Interrupts::new(2);
        assert_eq!(interrupts.assign(1, 2, eventfds(2).1), Err(NoSuchVector));
        assert_eq!(
            interrupts.assign(usize::MAX, 2, eventfds(2).1),
            Err(NoSuchVector)
        );
        assert_eq!(interrupts.assign(0, 2, eventfds(1).1), Err(NoSuchVector));
        assert_eq!(interrupts.enabled(), 0);
    }

    // covers: VPCI-INT-3
    #[test]
    fn a_vector_can_be_taken_away_and_given_another_eventfd() {
        let (_, fds) = eventfds(2);
        let mut interrupts = Interrupts::new(2);
        interrupts.assign(0, 2, fds).unwrap();
        interrupts.assign(1, 1, Vec::new()).unwrap();
        assert_eq!(interrupts.enabled(), 1);
        let (mut seen, fds) = eventfds(1);
        interrupts.assign(1, 1, fds).unwrap();
        interrupts.kick(3);
        assert_eq!(fired(&mut seen), [1]);
    }

    #[test]
    fn a_full_or_blocking_eventfd_does_not_block_the_shim() {
        let full = EventFd::new(0).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let mut interrupts = Interrupts::new(1);
        interrupts.assign(0, 1, vec![owned(full).into()]).unwrap();
        interrupts.fire_mailbox();
        assert_eq!(interrupts.enabled(), 1);
    }

    #[test]
    fn a_descriptor_that_cannot_be_fired_is_let_go() {
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        let mut interrupts = Interrupts::new(1);
        interrupts.assign(0, 1, vec![null.into()]).unwrap();
        interrupts.fire_mailbox();
        assert_eq!(interrupts.enabled(), 0);
    }
}
