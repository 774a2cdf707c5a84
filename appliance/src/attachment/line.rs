//! What joins a worker of an attached HBA to the others, and to the rest of the appliance.

use std::io;
use std::sync::Arc;

use crate::config::Workers;
use crate::inbox::Inbox;
use crate::roster::Roster;
use crate::spread::Spread;
use crate::worker::{Marks, Team};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Line {
    /// What it is told.
    pub inbox: Inbox,
    /// Whom it tells.
    pub roster: Arc<Roster>,
    /// Which units may have something to lose, for all workers of the HBA.
    pub marks: Marks,
    /// The workers of the HBA.
    pub team: Team,
    /// How many there are to be, and where.
    workers: Workers,
}

impl Line {
    /// That of an HBA's first worker, which is told what it is by `inbox`, in this boot of the
    /// storage VM. It is alone as yet; there are to be as many as `workers` says.
    pub fn new(inbox: Inbox, roster: Arc<Roster>, boot: [u8; 16], workers: Workers) -> Self {
        Self {
            roster,
            marks: Marks::new(boot),
            team: Team::alone(inbox.outbox(), workers.pin.first().copied()),
            workers,
            inbox,
        }
    }

    /// How many workers there are to be.
    pub(super) fn workers(&self) -> usize {
        self.workers.count
    }

    /// Makes those of the other workers; from now on each knows all.
    ///
    /// # Errors
    /// What eventfd(2) reports.
    pub(crate) fn split(&mut self, spread: Spread) -> io::Result<Vec<Self>> {
        let inboxes = (1..spread.workers()).map(|_| Inbox::new());
        let inboxes = inboxes.collect::<io::Result<Vec<_>>>()?;
        let first = self.inbox.outbox();
        let mut all = vec![first.clone()];
        all.extend(inboxes.iter().map(Inbox::outbox));
        let cpus = self.workers.pin.clone();
        let team = |place: usize| {
            let cpu = cpus.get(place).copied();
            Team::new(spread, (place, cpu), first.clone(), all.clone())
        };
        self.team = team(0);
        let others = (1..).zip(inboxes).map(|(place, inbox)| Self {
            inbox,
            roster: Arc::clone(&self.roster),
            marks: self.marks.clone(),
            team: team(place),
            workers: self.workers.clone(),
        });
        Ok(others.collect())
    }
}
