//! A disk that stands still for a moment.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::io::{Inbox, Message, Place};
use crate::disk::ranges::{Hold, Mode, Quiet, Ranges};

/// How often it is looked whether they are over: a part of what a command takes on a fast disk.
const LOOK: Duration = Duration::from_micros(200);

/// Whom a pause keeps waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Who changes blocks.
    Changes,
    /// Who reads them, too, as they are going to be others.
    Everyone,
}

/// As long as this lives, nothing changes the blocks of a disk; what comes waits.
#[derive(Debug)]
#[must_use = "dropping it ends the pause"]
pub struct Pause {
    // Before `quiet`: those that wait are told before others pass them.
    _hold: Hold,
    _quiet: Option<Quiet>,
}

impl Pause {
    /// Waits until all changes that came before are over, in whichever loop; those that were
    /// cancelled while the kernel was at them, too. `None` if that takes longer than `patience`.
    ///
    /// # Errors
    /// What eventfd(2) reports.
    pub fn begin(ranges: &Arc<Ranges>, kept: Kept, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        let inbox = Arc::new(Inbox::new()?);
        let me = Place {
            operation: 0,
            serial: 0,
        };
        let everyone = kept == Kept::Everyone;
        let quiet = everyone.then(|| ranges.quiet());
        let mode = (Mode::Exclusive, everyone.then_some((0, u64::MAX)));
        let (hold, mut granted) = ranges.lock((0, u64::MAX), mode, &inbox, me);
        let mut messages = Vec::new();
        while !granted {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
            inbox.take(&mut messages);
            granted = messages
                .iter()
                .any(|message| matches!(message, Message::Granted(_)));
        }
        Ok(Some(Self {
            _hold: hold,
            _quiet: quiet,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_waits_for_what_is_under_way_but_not_for_ever() {
        let ranges = Arc::new(Ranges::new());
        let inbox = Arc::new(Inbox::new().unwrap());
        let place = Place {
            operation: 1,
            serial: 1,
        };
        let (write, _) = ranges.lock((512, 512), (Mode::Shared, Some((512, 512))), &inbox, place);
        let short = Duration::from_millis(20);
        assert!(
            Pause::begin(&ranges, Kept::Changes, short)
                .unwrap()
                .is_none()
        );
        let ends = std::thread::spawn(move || {
            std::thread::sleep(short);
            drop(write);
        });
        let long = Duration::from_secs(20);
        let pause = Pause::begin(&ranges, Kept::Changes, long).unwrap().unwrap();
        ends.join().unwrap();
        let (_later, granted) =
            ranges.lock((0, 512), (Mode::Shared, Some((0, 512))), &inbox, place);
        assert!(!granted);
        drop(pause);
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert!(matches!(messages[..], [Message::Granted(there)] if there == place));
    }

    #[test]
    fn reads_wait_only_for_a_pause_that_is_for_everyone() {
        let ranges = Arc::new(Ranges::new());
        let second = Duration::from_secs(1);
        for (kept, waits) in [(Kept::Changes, false), (Kept::Everyone, true)] {
            let pause = Pause::begin(&ranges, kept, second).unwrap().unwrap();
            assert_eq!(ranges.is_quiet(), waits);
            drop(pause);
            assert!(!ranges.is_quiet());
        }
    }
}
