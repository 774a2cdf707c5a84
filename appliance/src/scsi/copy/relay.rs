//! Blocks that go from disk to disk by way of our memory, where one of the disks has protection
//! information: it is checked when they are read, and made anew when they are written.

use std::sync::Arc;

use super::limits::MAX_RELAY;
use crate::memory::{Mapping, Segments, own};
use crate::scsi::fault::Fault;

/// Where they are.
#[derive(Debug, Default)]
pub struct Relay {
    /// Made when it is needed.
    memory: Option<Arc<Mapping>>,
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
    /// What comes next, of so many bytes that are left, now that what came before has ended well.
    ///
    /// # Errors
    /// [`Fault::Busy`] where there is no memory.
    pub fn next(&mut self, left: u64) -> Result<Way, Fault> {
        if let Stage::Read(len) = self.stage {
            self.stage = Stage::Write(len);
            return Ok(Way::Write(len));
        }
        if self.memory.is_none() {
            self.memory = Some(own(MAX_RELAY).map_err(|_| Fault::Busy)?);
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
        let mut buffer = Segments::new(Arc::clone(self.memory.as_ref()?));
        buffer.push(0, len).ok()?;
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
