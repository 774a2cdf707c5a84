//! LUNs that a tenant sees from now on: nothing that others began on one may land any more.
//!
//! The old tenant's commands are over when its worker has heard of the change, and a write that
//! was cancelled is back at once. But the kernel may still be at it, and would change blocks that
//! the new tenant has read. So the old tenant loses sight of the LUN first, its disk does
//! [`Op::Barrier`], then the new one sees it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::ask::ask;
use super::protocol::TenantState;
use crate::appliance::{Appliance, ApplyError};
use crate::config::{Config, HbaConfig};
use crate::disk::{Disk, DiskError, Event, Io, Op, Request};
use crate::roster::{Applied, Luns, Roster};
use crate::scsi::{Address, LogicalUnit};

/// How long what was begun on LUNs may take to end before others see them.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of the bounce pool of a loop that moves no data.
const POOL: usize = 1 << 20;

/// Why a configuration is not put into force.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It is refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A LUN is still being changed; who saw it sees it again.
    #[error("{0}, so it was put back where it was; look with: explain {lun}", lun = .0.lun)]
    PutBack(Unsettled),
    /// A LUN that nobody lost sight of is still being changed.
    #[error("{0}; nothing was changed. Look with: explain {lun}", lun = .0.lun)]
    Unsettled(Unsettled),
    /// Those who saw LUNs do not see them again.
    #[error(
        "{problem}; and {} could not be put back where they were, so nobody sees them now: apply \
         the configuration again ({error})",
        luns.join(", ")
    )]
    Lost {
        /// Why they did not get further.
        problem: Box<HandoverError>,
        /// Names of the LUNs.
        luns: Vec<String>,
        /// Why they did not get back.
        error: Box<ApplyError>,
    },
}

/// A LUN on which something is still under way, or may be.
#[derive(Debug, thiserror::Error)]
#[error("LUN {lun:?}: {work}")]
pub struct Unsettled {
    /// Its name.
    pub lun: String,
    /// What is.
    pub work: Work,
}

/// What is still under way on a LUN.
#[derive(Debug, thiserror::Error)]
pub enum Work {
    /// Commands of a tenant.
    #[error(
        "commands of tenant {0:?} to it were not over after {seconds} s",
        seconds = PATIENCE.as_secs()
    )]
    Commands(String),
    /// Writes that were given up.
    #[error(
        "its disk was not done after {seconds} s with what had been begun on it",
        seconds = PATIENCE.as_secs()
    )]
    Writes,
    /// The disk does not say.
    #[error("its disk does not say what it is still at: {0}")]
    Disk(#[from] DiskError),
    /// The disk cannot be asked.
    #[error("its disk cannot be asked what it is still at: {0}")]
    Io(#[from] io::Error),
}

/// Puts a configuration into force, all of it or nothing. LUNs that tenants see only from then on
/// are taken first from those that are not to see them any more.
///
/// # Errors
/// [`HandoverError`]; but for [`HandoverError::Lost`], all is as before then.
pub(super) fn put(appliance: &Appliance, config: Config) -> Result<Applied, HandoverError> {
    let before = appliance.configuration();
    let moves = moves(&before, &config, &appliance.roster().luns());
    if moves.is_empty() {
        return Ok(appliance.apply(config)?);
    }
    appliance.check(&config)?;
    let between = between(&before, &config, &moves);
    let hides = moves.iter().any(|moved| !moved.from.is_empty());
    let taken = if hides {
        appliance.apply(between.clone())?
    } else {
        Applied::default()
    };
    let deadline = Instant::now() + PATIENCE;
    let settled = moves
        .iter()
        .try_for_each(|moved| moved.settle(appliance.roster(), &between, deadline));
    let done = match settled {
        Ok(()) => appliance.apply(config).map_err(HandoverError::from),
        Err(left) if hides => Err(HandoverError::PutBack(left)),
        Err(left) => Err(HandoverError::Unsettled(left)),
    };
    match done {
        Ok(shown) => Ok(together(taken, shown)),
        Err(problem) if !hides => Err(problem),
        Err(problem) => match appliance.apply(before) {
            Ok(_) => Err(problem),
            Err(error) => Err(HandoverError::Lost {
                problem: Box::new(problem),
                luns: moves.into_iter().map(|moved| moved.lun).collect(),
                error: Box::new(error),
            }),
        },
    }
}

/// A LUN that is served, and is to be seen where it was not.
struct Move {
    lun: String,
    unit: Arc<LogicalUnit>,
    /// Those that are not to see it any more where they did.
    from: Vec<Uuid>,
}

fn moves(before: &Config, after: &Config, served: &Luns) -> Vec<Move> {
    let moved = after.luns.iter().filter_map(|lun| {
        let unit = served.get(&lun.name)?;
        let (old, new) = (seats(before, &lun.name), seats(after, &lun.name));
        if new.iter().all(|seat| old.contains(seat)) {
            return None;
        }
        let from = old.into_iter().filter(|seat| !new.contains(seat));
        Some(Move {
            lun: lun.name.clone(),
            unit: Arc::clone(unit),
            from: from.map(|(hba, _)| hba).collect(),
        })
    });
    moved.collect()
}

/// Where a LUN is seen.
fn seats(config: &Config, lun: &str) -> Vec<(Uuid, Address)> {
    let seats = config.hbas.iter().flat_map(|hba| {
        let here = hba.luns.iter().filter(|(_, name)| *name == lun);
        here.map(|(&at, _)| (hba.uuid, at))
    });
    seats.collect()
}

/// As `before`, but LUNs that move are not seen any more where they go from; and what is new is
/// there, so that a disk that cannot be opened keeps everything as it is.
fn between(before: &Config, after: &Config, moves: &[Move]) -> Config {
    let mut config = before.clone();
    let new = after.luns.iter();
    let new = new.filter(|lun| before.luns.iter().all(|old| old.name != lun.name));
    config.luns.extend(new.cloned());
    for HbaConfig { uuid, luns, .. } in &mut config.hbas {
        let stays = after.hbas.iter().find(|hba| hba.uuid == *uuid);
        luns.retain(|at, lun| {
            moves.iter().all(|moved| moved.lun != *lun)
                || stays.is_some_and(|hba| hba.luns.get(at) == Some(lun))
        });
    }
    config
}

impl Move {
    /// Waits until nothing that was begun by those who do not see it any more can change it.
    fn settle(
        &self,
        roster: &Roster,
        between: &Config,
        deadline: Instant,
    ) -> Result<(), Unsettled> {
        let unsettled = |work| Unsettled {
            lun: self.lun.clone(),
            work,
        };
        let keep: Vec<_> = seats(between, &self.lun);
        while let Some(hba) = self.is_busy(roster, &keep) {
            if Instant::now() >= deadline {
                return Err(unsettled(Work::Commands(hba)));
            }
            std::thread::sleep(LOOK);
        }
        barrier(self.unit.disk(), deadline).map_err(unsettled)
    }

    /// An HBA with commands to it under way, if one has, or does not say; of those that do not
    /// keep it in sight. What is left of one that has gone is waited for at the disk.
    fn is_busy(&self, roster: &Roster, keep: &[(Uuid, Address)]) -> Option<String> {
        let known = ask(roster, Some(&self.lun), None).into_iter();
        let mut others = known.filter(|known| keep.iter().all(|(hba, _)| *hba != known.hba.uuid));
        let busy = others.find(|known| match known.state {
            TenantState::Absent | TenantState::Ending => false,
            TenantState::Attached => !known.said.tasks.is_empty(),
            // It may not have heard yet that it sees the LUN no more.
            TenantState::Silent => self.from.contains(&known.hba.uuid),
        });
        busy.map(|known| known.hba.name)
    }
}

/// Waits until nothing that was begun on a disk can change it any more.
fn barrier(disk: &Arc<dyn Disk>, deadline: Instant) -> Result<(), Work> {
    let mut io = Io::with_pool(POOL).map_err(io::Error::other)?;
    let (tag, op, data) = (0, Op::Barrier, None);
    io.submit(disk, Request { tag, op, data });
    let mut events = Vec::new();
    let left = deadline.saturating_duration_since(Instant::now());
    io.wait(Some(left), &mut events)?;
    match events.pop() {
        Some(Event::Done { result, .. }) => Ok(result.map(drop)?),
        _ => Err(Work::Writes),
    }
}

/// What two changes, one after the other, changed.
fn together(mut first: Applied, then: Applied) -> Applied {
    first.luns_added.extend(then.luns_added);
    first.hbas_changed.extend(then.hbas_changed);
    let mut limits = first.limits_changed;
    limits.extend(then.limits_changed);
    limits.sort();
    limits.dedup();
    let mut changed = first.hbas_changed;
    changed.retain(|name| !then.hbas_removed.contains(name));
    changed.sort();
    changed.dedup();
    Applied {
        luns_added: first.luns_added,
        hbas_changed: changed,
        luns_removed: then.luns_removed,
        luns_missing: then.luns_missing,
        hbas_added: then.hbas_added,
        hbas_removed: then.hbas_removed,
        access_changed: then.access_changed,
        limits_changed: limits,
        metrics: None,
    }
}
