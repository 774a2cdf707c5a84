//! RESERVE and RELEASE: one initiator may keep all others away (SPC-2, reservations).

use std::sync::atomic::{AtomicU64, Ordering};

use super::command::Command;
use super::nexus::Nexus;

/// Nobody, where the number of a nexus stands.
const NOBODY: u64 = 0;

/// Who has reserved a unit.
#[derive(Debug)]
pub struct Reservation {
    holder: AtomicU64,
}

impl Default for Reservation {
    fn default() -> Self {
        Self {
            holder: AtomicU64::new(NOBODY),
        }
    }
}

impl Reservation {
    /// Reserves it for `nexus`, which may have it already; whether it has it now.
    pub fn take(&self, nexus: &Nexus) -> bool {
        let before =
            self.holder
                .compare_exchange(NOBODY, nexus.id(), Ordering::AcqRel, Ordering::Acquire);
        before.is_ok() || before == Err(nexus.id())
    }

    /// Releases what `nexus` has reserved, if anything.
    pub fn release(&self, nexus: &Nexus) {
        let id = nexus.id();
        // Nothing to release if it is not the holder.
        let _ = self
            .holder
            .compare_exchange(id, NOBODY, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Releases it, whoever has reserved it.
    pub fn clear(&self) {
        self.holder.store(NOBODY, Ordering::Release);
    }

    /// The number of the nexus that has reserved it, if one has.
    pub fn holder(&self) -> Option<u64> {
        Some(self.holder.load(Ordering::Acquire)).filter(|holder| *holder != NOBODY)
    }

    /// Whether anybody has reserved it.
    pub fn is_held(&self) -> bool {
        self.holder.load(Ordering::Acquire) != NOBODY
    }

    /// Whether a command of `nexus` is in conflict with it. One load, on the path of every
    /// command.
    pub fn keeps_away(&self, nexus: &Nexus, command: &Command) -> bool {
        let holder = self.holder.load(Ordering::Relaxed);
        holder != NOBODY && holder != nexus.id() && !is_harmless(command)
    }
}

/// Whether others may do it to a reserved unit (SPC-2 and SBC-2, commands that are allowed in the
/// presence of reservations). RELEASE is no conflict, and releases nothing.
const fn is_harmless(command: &Command) -> bool {
    matches!(
        command,
        Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::RequestSense { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::StartStop { start: true, .. }
            | Command::Release
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scsi::testing::PORT;

    #[test]
    fn only_one_of_many_that_reserve_at_once_has_it() {
        for _ in 0..50 {
            let reservation = Arc::new(Reservation::default());
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let reservation = Arc::clone(&reservation);
                    std::thread::spawn(move || reservation.take(&Nexus::new(PORT)))
                })
                .collect();
            let won = threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .filter(|won| *won);
            assert_eq!(won.count(), 1);
        }
    }

    #[test]
    fn whoever_does_not_hold_it_releases_nothing() {
        let reservation = Reservation::default();
        let (holder, other) = (Nexus::new(PORT), Nexus::new(PORT));
        assert!(reservation.take(&holder) && reservation.take(&holder));
        reservation.release(&other);
        assert!(!reservation.take(&other));
        assert!(reservation.keeps_away(&other, &Command::TestUnitReady));
        assert!(!reservation.keeps_away(&holder, &Command::TestUnitReady));
        reservation.release(&holder);
        assert!(!reservation.keeps_away(&other, &Command::TestUnitReady));
        assert!(reservation.take(&other));
    }
}
