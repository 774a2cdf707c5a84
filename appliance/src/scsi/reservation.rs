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
