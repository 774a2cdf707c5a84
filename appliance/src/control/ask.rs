//! Workers that are asked what goes on, and what is known of one that does not answer.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use super::protocol::{Limit, Tenant, TenantState};
use crate::config::Poll;
use crate::inbox::Question;
use crate::roster::{HbaOverview, Roster};
use crate::scsi::Access;
use crate::statistics::{Gathering, HbaSnapshot};

/// How long all workers together have to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of an HBA.
#[derive(Debug)]
pub(crate) struct Known {
    pub hba: HbaOverview,
    pub state: TenantState,
    /// What its worker said.
    pub said: HbaSnapshot,
}

/// Asks the workers of all HBAs; `tasks` and `trace` as in [`Question`].
pub(crate) fn ask(roster: &Roster, tasks: Option<&str>, trace: Option<&str>) -> Vec<Known> {
    let deadline = Instant::now() + PATIENCE;
    let asked: Vec<_> = roster
        .overview()
        .into_iter()
        .map(|hba| {
            let (to, answer) = mpsc::sync_channel(1);
            if let Some(worker) = &hba.worker {
                worker.ask(Question {
                    tasks: tasks.map(str::to_owned),
                    trace: trace.map(str::to_owned),
                    to: Arc::new(Gathering::new(to)),
                });
            }
            (hba, answer)
        })
        .collect();
    asked
        .into_iter()
        .map(|(hba, answer)| {
            let left = deadline.saturating_duration_since(Instant::now());
            // One that ends meanwhile keeps the question, or drops it.
            let said = match answer.try_recv() {
                Ok(said) => Ok(said),
                Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => answer.recv_timeout(left),
            };
            let (state, said) = match (&hba.worker, said) {
                (_, Ok(said)) => (TenantState::Attached, said),
                (None, _) => (TenantState::Absent, HbaSnapshot::default()),
                (Some(worker), _) if worker.lingers() => {
                    (TenantState::Ending, HbaSnapshot::default())
                }
                (Some(worker), Err(_)) if !worker.is_heard() => {
                    (TenantState::Absent, HbaSnapshot::default())
                }
                (Some(_), Err(_)) => (TenantState::Silent, HbaSnapshot::default()),
            };
            Known { hba, state, said }
        })
        .collect()
}

impl From<Known> for Tenant {
    fn from(known: Known) -> Self {
        let Known { hba, state, said } = known;
        let luns = hba.units.iter();
        Self {
            uuid: hba.uuid.to_string(),
            state,
            access: access_name(hba.access).into(),
            poll: match hba.poll {
                Poll::Always => "always".into(),
                Poll::For(time) => time.as_micros().to_string(),
            },
            luns: luns
                .map(|(at, unit)| (at.to_string(), unit.name().to_owned()))
                .collect(),
            in_flight: said.in_flight,
            most_in_flight: said.most_in_flight,
            memory: said.window.map(|class| class.to_string()),
            rings: said.rings,
            polls: said.polls,
            drained: hba.drained,
            limit: Limit::of(hba.limit),
            group: hba.group.map(|(name, limit)| (name, Limit::of(limit))),
            weight: hba.weight,
            elsewhere: said.elsewhere,
            units: said.units,
            workers: said.workers,
            name: hba.name,
        }
    }
}

/// As the configuration calls it.
fn access_name(access: Access) -> &'static str {
    match access {
        Access::ActiveOptimized => "active-optimized",
        Access::ActiveNonOptimized => "active-non-optimized",
        Access::Standby => "standby",
        Access::Unavailable => "unavailable",
    }
}
