//! Blocks that go from disk to disk by way of our memory, where one of the disks has protection
//! information: it is checked when they are read, and made anew when they are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::limits::{MAX_RELAY, MAX_RELAYS};
use crate::memory::{Mapping, Segments, own};
use crate::scsi::fault::Fault;

/// How many buffers the copies of an HBA have.
#[derive(Debug, Default)]
pub struct Relays(AtomicUsize);

/// One of them; there is room for another when this is dropped.
#[derive(Debug)]
struct Place(Arc<Relays>);

impl Relays {
    /// A place for one more; `None` if there are [`MAX_RELAYS`].
    fn take(self: &Arc<Self>) -> Option<Place> {
        let more = |taken| (taken < MAX_RELAYS).then_some(taken + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where they are.
#[derive(Debug, Default)]
pub struct Relay {
    /// Of all relays of the HBA.
    relays: Arc<Relays>,
    /// Made when it is needed.
    memory: Option<(Arc<Mapping>, Place)>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// None are on their way.
    #[default]
    Idle,
    /// So many bytes are read.
    Read(usize),
    /// So many bytes are written.
    Write(usize),
}

/// What comes next for so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Read(usize),
    Write(usize),
}

impl Relay {
    /// One of an HBA that has these.
    pub fn of(relays: &Arc<Relays>) -> Self {
        Self {
            relays: Arc::clone(relays),
            ..Self::default()
        }
    }

    /// What comes next, of so many bytes that are left, now that what came before has ended well.
    ///
    /// # Errors
    /// [`Fault::Busy`] where there is no memory, or the HBA has as much of it as it may.
    pub fn next(&mut self, left: u64) -> Result<Way, Fault> {
        if let Stage::Read(len) = self.stage {
            self.stage = Stage::Write(len);
            return Ok(Way::Write(len));
        }
        if self.memory.is_none() {
            let place = self.relays.take().ok_or(Fault::Busy)?;
            let memory = own(MAX_RELAY).map_err(|_| Fault::Busy)?;
            self.memory = Some((memory, place));
        }
        let len = usize::try_from(left).map_or(MAX_RELAY, |left| left.min(MAX_RELAY));
        self.stage = Stage::Read(len);
        Ok(Way::Read(len))
    }

    /// What comes next is none of its business.
    pub fn rest(&mut self) {
        self.stage = Stage::Idle;
    }

    /// Whether the disk that is under way is the one that is read.
    pub fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Read(_))
    }

    /// The buffer of what is under way, if it is on its way here.
    pub fn buffer(&self) -> Option<Segments> {
        let (Stage::Read(len) | Stage::Write(len)) = self.stage else {
            return None;
        };
        let (memory, _) = self.memory.as_ref()?;
        let mut buffer = Segments::new(Arc::clone(memory));
        buffer.push(0, len).ok()?;
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hba_has_so_many_buffers_and_no_more_and_one_that_ends_makes_room() {
        let relays = Arc::default();
        let begin = || {
            let mut relay = Relay::of(&relays);
            relay.next(4096).map(|_| relay)
        };
        let mut some: Vec<_> = (0..64).map(|_| begin().unwrap()).collect();
        for _ in 0..3 {
            assert_eq!(begin().unwrap_err(), Fault::Busy);
        }
        assert!(
            Relay::default().next(4096).is_ok(),
            "another HBA has its own"
        );
        // Those that have one go on.
        assert_eq!(some[0].next(4096), Ok(Way::Write(4096)));
        some.pop();
        let last = begin().unwrap();
        assert_eq!(begin().unwrap_err(), Fault::Busy);
        drop((some, last));
        assert_eq!(relays.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_was_read_is_written_before_more_is_read() {
        let mut relay = Relay::default();
        assert!(relay.buffer().is_none());
        assert_eq!(relay.next(300 << 10), Ok(Way::Read(256 << 10)));
        assert!(relay.is_reading());
        relay.buffer().unwrap().write_at(0, &[7; 256 << 10]);
        assert_eq!(relay.next(300 << 10), Ok(Way::Write(256 << 10)));
        assert!(!relay.is_reading());
        let mut bytes = vec![0; 256 << 10];
        relay.buffer().unwrap().read_at(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 7));
        assert_eq!(relay.next(44 << 10), Ok(Way::Read(44 << 10)));
        assert_eq!(relay.buffer().unwrap().len(), 44 << 10);
        relay.rest();
        assert!(relay.buffer().is_none());
    }
}
