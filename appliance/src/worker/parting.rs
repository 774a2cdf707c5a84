//! The end of a worker whose storage VM may be switched off next: nothing that was acknowledged is
//! left in its memory only.

use std::time::{Duration, Instant};

use super::{Failure, Worker};
use crate::disk::{Event, Op, Request};

/// How long disks may take for the last flush. What the storage VM's power button starts waits
/// longer (`image/power-off`).
const PATIENCE: Duration = Duration::from_secs(15);
/// What the tag of a last flush begins with; tasks have small numbers, and fences the bit above.
const PARTING: u64 = 1 << 62;

impl Worker {
    /// Flushes the write-back units that have something to lose, and takes their marks away: their
    /// tenants go on with them in the next boot. To be called when the worker has ended.
    ///
    /// What is still under way is not waited for: it is never acknowledged here.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn part(&mut self) -> Result<(), Failure> {
        let mut units: Vec<_> = self.marks.at_stake().into_iter().map(Some).collect();
        for (number, unit) in (0_u64..).zip(units.iter().flatten()) {
            let (tag, op, data) = (PARTING | number, Op::Flush, None);
            self.io.submit(unit.disk(), Request { tag, op, data });
        }
        let until = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        while units.iter().any(Option::is_some) {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            self.io.wait(Some(rest), &mut events)?;
            for event in events.drain(..) {
                let Event::Done { tag, result } = event else {
                    continue;
                };
                let number = usize::try_from(tag ^ PARTING).unwrap_or(usize::MAX);
                let Some(unit) = units.get_mut(number).and_then(Option::take) else {
                    continue;
                };
                match result {
                    Ok(_) => self.marks.clear(&unit, &*self.shim),
                    Err(error) => self.regret(unit.name(), &error.to_string()),
                }
            }
        }
        for unit in units.iter().flatten() {
            self.regret(unit.name(), "its disk does not answer");
        }
        Ok(())
    }

    fn regret(&self, lun: &str, why: &str) {
        tracing::error!(
            hba = self.shim.hba(),
            lun,
            "its last writes cannot be flushed: {why}. If the storage VM is restarted, this \
             write-back LUN fails until it is taken out of the configuration and added again"
        );
    }
}
