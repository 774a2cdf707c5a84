//! A disk without blocks, on which a command waits for something else.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::io::{Inbox, Place};
use super::ranges::{Hold, Mode};
use super::{Cache, Disk, DiskError, Geometry, Op, OpenFile};

/// What waits: [`Op::Barrier`] on it is done when its [`Closed`] is gone.
#[derive(Debug)]
pub struct Gate {
    file: Arc<OpenFile>,
}

/// Keeps a gate closed as long as it lives.
#[derive(Debug)]
#[must_use = "dropping it opens the gate"]
pub struct Closed {
    _hold: Hold,
}

impl Gate {
    /// A gate that is closed.
    ///
    /// # Errors
    /// What open(2) and eventfd(2) report.
    pub fn closed() -> io::Result<(Arc<Self>, Closed)> {
        let file = File::open("/dev/null")?;
        let file = Arc::new(OpenFile::new(file, Cache::WriteBack));
        // Granted at once, as nobody else knows the gate: nothing ever comes to the inbox.
        let inbox = Arc::new(Inbox::new()?);
        let nobody = Place {
            operation: 0,
            serial: 0,
        };
        let all = (0, u64::MAX);
        let (hold, _) = file
            .ranges()
            .lock(all, (Mode::Exclusive, None), &inbox, nobody);
        Ok((Arc::new(Self { file }), Closed { _hold: hold }))
    }
}

impl Disk for Gate {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 1,
            physical_block_size: 512,
            read_only: true,
        }
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        match op {
            Op::Barrier => Ok(&self.file),
            _ => Err(DiskError::Unsupported),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::disk::{Event, Io, Reply, Request};

    fn wait_at(gate: &Arc<Gate>, io: &mut Io) {
        let disk: Arc<dyn Disk> = Arc::<Gate>::clone(gate);
        let (op, data) = (Op::Barrier, None);
        io.submit(&disk, Request { tag: 7, op, data });
    }

    fn events(io: &mut Io, timeout: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        io.wait(Some(timeout), &mut events).unwrap();
        events
    }

    #[test]
    fn who_waits_at_a_gate_waits_until_it_is_opened() {
        let (gate, closed) = Gate::closed().unwrap();
        let mut io = Io::new().unwrap();
        wait_at(&gate, &mut io);
        assert_eq!(events(&mut io, Duration::from_millis(20)), []);
        std::thread::spawn(move || drop(closed));
        let done = Event::Done {
            tag: 7,
            result: Ok(Reply::Done),
        };
        assert_eq!(events(&mut io, Duration::from_secs(10)), [done]);
    }

    #[test]
    fn who_waits_at_a_gate_can_be_called_away() {
        let (gate, _closed) = Gate::closed().unwrap();
        let mut io = Io::new().unwrap();
        wait_at(&gate, &mut io);
        io.cancel(7);
        let cancelled = Event::Done {
            tag: 7,
            result: Err(DiskError::Cancelled),
        };
        assert_eq!(events(&mut io, Duration::from_secs(10)), [cancelled]);
    }
}
