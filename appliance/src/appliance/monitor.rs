//! A look at every logical unit once a second: what changed below it by itself.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::roster::Roster;
use crate::scsi::{Attention, LogicalUnit};

/// Time between two rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a look may take before the others are looked at without waiting for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The thread that looks; it ends some time after this is dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    stop: mpsc::Sender<Said>,
}

/// What the thread hears.
enum Said {
    Stop,
    /// A look at this unit is over, and this is what it showed.
    Looked {
        unit: Arc<LogicalUnit>,
        changes: Vec<Attention>,
    },
}

impl Monitor {
    /// Looks at every unit in `roster`, and tells those who see it what changed.
    ///
    /// # Errors
    /// What starting a thread reports.
    pub fn start(roster: &Arc<Roster>) -> io::Result<Self> {
        let (stop, said) = mpsc::channel();
        let rounds = Rounds {
            roster: Arc::downgrade(roster),
            reports: stop.clone(),
            said,
            looker: None,
            hung: HashMap::new(),
        };
        thread::Builder::new()
            .name("monitor".into())
            .spawn(move || rounds.run())?;
        Ok(Self { stop })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // A thread that has ended need not be told.
        let _ = self.stop.send(Said::Stop);
    }
}

/// A thread that looks at one unit after the other, and may hang with a disk.
struct Looker(mpsc::Sender<Weak<LogicalUnit>>);

impl Looker {
    fn start(reports: mpsc::Sender<Said>) -> io::Result<Self> {
        let (units, requests) = mpsc::channel::<Weak<LogicalUnit>>();
        thread::Builder::new().name("look".into()).spawn(move || {
            for unit in requests.iter().filter_map(|unit| unit.upgrade()) {
                let changes = unit.look();
                if reports.send(Said::Looked { unit, changes }).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self(units))
    }
}

/// The rounds of one monitor.
struct Rounds {
    roster: Weak<Roster>,
    reports: mpsc::Sender<Said>,
    said: mpsc::Receiver<Said>,
    looker: Option<Looker>,
    /// Units whose look takes too long, by their addresses; each has a looker of its own by now,
    /// which keeps the unit.
    hung: HashMap<usize, Instant>,
}

impl Rounds {
    fn run(mut self) {
        while self.round() && self.rest() {}
    }

    /// Looks at every unit once; whether to go on.
    fn round(&mut self) -> bool {
        let Some(roster) = self.roster.upgrade() else {
            return false;
        };
        let luns = roster.luns();
        drop(roster);
        let units: Vec<_> = luns.values().map(Arc::downgrade).collect();
        drop(luns);
        for unit in units {
            if !self.look_at(&unit) {
                return false;
            }
        }
        true
    }

    /// Has a unit looked at; whether to go on.
    fn look_at(&mut self, unit: &Weak<LogicalUnit>) -> bool {
        let name = unit.as_ptr().addr();
        if self.hung.contains_key(&name) {
            return true;
        }
        let looker = match self.looker.take() {
            Some(looker) => looker,
            None => match Looker::start(self.reports.clone()) {
                Ok(looker) => looker,
                Err(error) => {
                    tracing::error!("nobody can look at the disks: {error}");
                    return true;
                }
            },
        };
        if unit.strong_count() == 0 || looker.0.send(unit.clone()).is_err() {
            return true;
        }
        self.looker = Some(looker);
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.said.recv_timeout(left) {
                Ok(Said::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Ok(Said::Looked { unit, changes }) => {
                    let this = Arc::as_ptr(&unit).addr();
                    self.report(&unit, &changes);
                    if this == name {
                        return true;
                    }
                }
                // It was closed before the looker came to it.
                Err(mpsc::RecvTimeoutError::Timeout) if unit.strong_count() == 0 => return true,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Some(unit) = unit.upgrade() {
                        tracing::warn!(lun = unit.name(), "its disk does not answer");
                        self.note(&unit, true);
                    }
                    self.hung.insert(name, start);
                    self.looker = None;
                    return true;
                }
            }
        }
    }

    /// Has it known whether the disk of a unit does not answer.
    fn note(&self, unit: &LogicalUnit, silent: bool) {
        if let Some(roster) = self.roster.upgrade() {
            roster.set_silent(unit.name(), silent);
        }
    }

    /// Waits for the next round; whether to go on.
    fn rest(&mut self) -> bool {
        let start = Instant::now();
        loop {
            let left = PERIOD.saturating_sub(start.elapsed());
            match self.said.recv_timeout(left) {
                Ok(Said::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Ok(Said::Looked { unit, changes }) => self.report(&unit, &changes),
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn report(&mut self, unit: &Arc<LogicalUnit>, changes: &[Attention]) {
        if let Some(since) = self.hung.remove(&Arc::as_ptr(unit).addr()) {
            self.note(unit, false);
            let seconds = since.elapsed().as_secs();
            tracing::info!(
                lun = unit.name(),
                "its disk answers again, after {seconds} s"
            );
        }
        let Some(roster) = self.roster.upgrade() else {
            return;
        };
        for &change in changes {
            tracing::info!(lun = unit.name(), ?change, "changed");
            roster.changed(unit, change);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::disk::{Disk, DiskError, Geometry, Op, OpenFile};
    use crate::roster::{Luns, Views};

    /// A disk that can be looked at as soon as its lock can be had.
    #[derive(Debug, Default)]
    struct Looked {
        lock: Arc<Mutex<()>>,
        looks: Arc<AtomicUsize>,
    }

    impl Disk for Looked {
        fn geometry(&self) -> Geometry {
            Geometry {
                block_size: 512,
                blocks: 1,
                physical_block_size: 512,
                read_only: true,
            }
        }

        fn refresh(&self) -> io::Result<bool> {
            drop(self.lock.lock());
            self.looks.fetch_add(1, Ordering::SeqCst);
            Ok(false)
        }

        fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
            Err(DiskError::Gone)
        }
    }

    #[test]
    fn a_disk_that_hangs_keeps_nobody_from_looking_at_the_others() {
        let (hangs, works) = (Looked::default(), Looked::default());
        let lock = Arc::clone(&hangs.lock);
        let (hung, looks) = (Arc::clone(&hangs.looks), Arc::clone(&works.looks));
        let held = lock.lock().unwrap();
        let luns: Luns = [("hangs", hangs), ("works", works)]
            .into_iter()
            .map(|(name, disk)| {
                let unit = LogicalUnit::new(name, Arc::new(disk)).unwrap();
                (name.to_owned(), Arc::new(unit))
            })
            .collect();
        let roster = Arc::new(Roster::default());
        roster.replace(luns, Views::new(), &crate::roster::SharedLimits::default());
        let monitor = Monitor::start(&roster).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let wait_for = |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(Instant::now() < deadline);
                thread::sleep(Duration::from_millis(10));
            }
        };
        // Twice, so that once was surely after the other began to hang.
        wait_for(&|| looks.load(Ordering::SeqCst) >= 2);
        assert_eq!(hung.load(Ordering::SeqCst), 0);
        drop(held);
        wait_for(&|| hung.load(Ordering::SeqCst) >= 2);
        drop(monitor);
    }
}
