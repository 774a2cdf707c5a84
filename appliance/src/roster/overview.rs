//! What is in service, as those see it who look from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::Roster;
use crate::config::{Limit, Poll};
use crate::inbox::{Message, Outbox};
use crate::scsi::{Access, Address, LogicalUnit};

/// One HBA that may attach, or has.
#[derive(Debug, Clone)]
pub(crate) struct HbaOverview {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// How good a way it is to what is shared.
    pub access: Access,
    /// How long its workers look for requests after work.
    pub poll: Poll,
    /// What it may do.
    pub limit: Limit,
    /// The group whose limit it shares, and that limit.
    pub group: Option<(String, Limit)>,
    /// What it weighs against others with which it shares a limit.
    pub weight: u32,
    /// What it sees.
    pub units: BTreeMap<Address, Arc<LogicalUnit>>,
    /// Whether it takes no new commands.
    pub drained: bool,
    /// Its first worker, if it is attached.
    pub worker: Option<Outbox>,
}

impl Roster {
    /// Every HBA, by name.
    pub fn overview(&self) -> Vec<HbaOverview> {
        let service = self.service();
        let hbas = service.hbas.iter();
        let hbas = hbas.map(|(uuid, hba)| HbaOverview {
            uuid: *uuid,
            name: hba.view.name.clone(),
            access: hba.view.access,
            poll: hba.view.poll,
            limit: hba.meter.limit(),
            group: hba.view.group.as_ref().and_then(|name| {
                let meter = service.groups.get(name)?;
                Some((name.clone(), meter.limit()))
            }),
            weight: hba.view.weight,
            units: hba.view.units.clone(),
            drained: hba.drained,
            worker: hba.workers.iter().rfind(|w| w.is_heard()).cloned(),
        });
        let mut hbas: Vec<_> = hbas.collect();
        hbas.sort_by(|one, other| one.name.cmp(&other.name));
        hbas
    }

    /// Has an HBA take no new commands, or take them again; whether there is such an HBA.
    pub fn set_drained(&self, name: &str, drained: bool) -> bool {
        let mut service = self.service();
        let mut hbas = service.hbas.values_mut();
        let Some(hba) = hbas.find(|hba| hba.view.name == name) else {
            return false;
        };
        hba.drained = drained;
        for worker in &hba.workers {
            worker.send(Message::Drain(drained));
        }
        true
    }

    /// Remembers whether the disk of a LUN does not answer.
    pub fn set_silent(&self, lun: &str, silent: bool) {
        let mut service = self.service();
        if silent {
            service.silent.insert(lun.to_owned());
        } else {
            service.silent.remove(lun);
        }
    }

    /// Names of the LUNs whose disks do not answer.
    pub fn silent(&self) -> BTreeSet<String> {
        self.service().silent.clone()
    }
}
