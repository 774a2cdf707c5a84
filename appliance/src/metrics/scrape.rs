//! The figures of one moment, as they were asked for.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use crate::config::LunConfig;
use crate::control::protocol::{Disk, TenantState};
use crate::control::{Desk, Known, ask, disks};
use crate::statistics::{HbaSnapshot, Totals};

/// What is known of the appliance at one moment.
#[derive(Debug)]
pub(super) struct Scrape {
    /// Name of the appliance.
    pub name: String,
    /// How long it has been there.
    pub uptime: Duration,
    /// Whether what is in force is what is in the file.
    pub saved: bool,
    /// For how long a change has been under way.
    pub changing: Option<Duration>,
    pub hbas: Vec<Hba>,
    pub luns: Vec<Lun>,
}

/// What is known of an HBA.
#[derive(Debug)]
pub(super) struct Hba {
    pub name: String,
    pub state: TenantState,
    /// How often its worker did not answer.
    pub unanswered: u64,
    pub drained: bool,
    /// What its worker said just now; nothing without one.
    pub said: HbaSnapshot,
    pub totals: Totals,
}

/// What is known of a LUN.
#[derive(Debug)]
pub(super) struct Lun {
    pub name: String,
    pub served: bool,
    /// Whether its disk answers.
    pub answers: bool,
    /// `None` if that is not known.
    pub disk: Option<Disk>,
}

/// How often the worker of each HBA did not answer.
pub(super) type Unanswered = HashMap<Uuid, u64>;

impl Scrape {
    /// Asks all workers and disks; within about two seconds, whoever hangs.
    pub fn take(desk: &Desk, unanswered: &mut Unanswered) -> Self {
        let config = desk.appliance().configuration();
        let known = ask(desk.roster(), None, None);
        unanswered.retain(|uuid, _| known.iter().any(|known| known.hba.uuid == *uuid));
        let hbas = known.into_iter().map(|known| hba(desk, known, unanswered));
        let hbas = hbas.collect();
        let (served, silent) = (desk.roster().luns(), desk.roster().silent());
        let mut disks = disks(desk)
            .inspect_err(|failure| tracing::warn!("metrics without disks: {failure}"))
            .unwrap_or_default();
        let lun = |lun: &LunConfig| Lun {
            name: lun.name.clone(),
            served: served.contains_key(&lun.name),
            answers: !silent.contains(&lun.name),
            disk: disks
                .iter()
                .position(|disk| disk.lun == lun.name)
                .map(|place| disks.swap_remove(place)),
        };
        let (_, saved) = desk.book.read();
        Self {
            luns: config.luns.iter().map(lun).collect(),
            name: config.name,
            uptime: desk.uptime(),
            saved,
            changing: desk.changing(),
            hbas,
        }
    }
}

fn hba(desk: &Desk, known: Known, unanswered: &mut Unanswered) -> Hba {
    let Known {
        hba,
        state,
        mut said,
    } = known;
    if state == TenantState::Attached {
        for worker in &mut said.workers {
            let totals = std::mem::take(&mut worker.totals);
            desk.roster().keep(hba.uuid, worker.place, totals);
        }
    }
    let missed = unanswered.entry(hba.uuid).or_default();
    *missed += u64::from(state == TenantState::Silent);
    Hba {
        state,
        unanswered: *missed,
        drained: hba.drained,
        said,
        // Never those of the answer: one that is older than what is known would make them less.
        totals: desk.roster().totals(hba.uuid),
        name: hba.name,
    }
}
