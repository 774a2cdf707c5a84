//! Who is in service: the logical units, the HBAs that see them, the workers of these.

mod ledger;
mod limits;
mod overview;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use self::ledger::Ledger;
pub(crate) use self::limits::SharedLimits;
pub(crate) use self::overview::HbaOverview;
use crate::attachment::AttachError;
use crate::config::{Coalesce, Limit, Poll, Workers};
use crate::inbox::{Come, Inbox, Message, Outbox, UnitChange};
use crate::limit::Meter;
use crate::scsi::{Access, Address, Attention, Host, Initiator, LogicalUnit, Path, Port};

/// What is in service, for everyone who needs to know. Nothing is done here that may take long.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<Service>);

#[derive(Debug, Default)]
struct Service {
    luns: Luns,
    hbas: HashMap<Uuid, Hba>,
    /// The limits that HBAs share, by name.
    groups: HashMap<String, Arc<Meter>>,
    /// Names of the LUNs whose disks do not answer.
    silent: BTreeSet<String>,
    ledger: Ledger,
}

/// The logical units by their names.
pub(crate) type Luns = HashMap<String, Arc<LogicalUnit>>;
/// The HBAs by their UUIDs.
pub(crate) type Views = HashMap<Uuid, View>;

/// What one HBA is to see.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Name of the HBA.
    pub name: String,
    /// What targets know it as.
    pub initiator: Initiator,
    /// How good a way it is to what is shared.
    pub access: Access,
    /// Its logical units.
    pub units: BTreeMap<Address, Arc<LogicalUnit>>,
    /// How long its workers look for requests after work.
    pub poll: Poll,
    /// What it may do.
    pub limit: Limit,
    /// The name of the group whose limit it shares.
    pub group: Option<String>,
    /// What it weighs against others with which it shares a limit.
    pub weight: u32,
    /// How long its workers may hold calls back.
    pub coalesce: Coalesce,
    /// How many workers it has when it is attached next, and where.
    pub workers: Workers,
}

/// What an HBA that is attached begins with.
#[derive(Debug)]
pub(crate) struct Enlisted {
    /// Its name.
    pub name: String,
    /// What it sees.
    pub host: Host,
    /// By which its first worker hears of changes from now on.
    pub inbox: Inbox,
    /// Which workers it is to have.
    pub workers: Workers,
}

#[derive(Debug)]
struct Hba {
    view: View,
    /// Its limit, which its workers share.
    meter: Arc<Meter>,
    /// The first workers of those that serve it: at most one, but for a moment.
    workers: Vec<Outbox>,
    /// Whether its workers are to take no new commands.
    drained: bool,
}

/// What a new configuration changed, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// LUNs that were opened.
    pub luns_added: Vec<String>,
    /// LUNs that are closed, once the last command on each is over.
    pub luns_removed: Vec<String>,
    /// LUNs that were not served before, and are not now, as their disks cannot be opened.
    pub luns_missing: Vec<String>,
    /// HBAs that may attach from now on.
    pub hbas_added: Vec<String>,
    /// HBAs that are let go.
    pub hbas_removed: Vec<String>,
    /// HBAs that see other LUNs.
    pub hbas_changed: Vec<String>,
    /// HBAs that are better or worse ways to LUNs that are shared.
    pub access_changed: Vec<String>,
    /// What has another limit or weight, each with its kind.
    pub limits_changed: Vec<String>,
    /// Where metrics are served, in words, if another place is configured.
    pub metrics: Option<String>,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("LUNs added", &self.luns_added),
            ("LUNs removed", &self.luns_removed),
            ("LUNs still not served", &self.luns_missing),
            ("HBAs added", &self.hbas_added),
            ("HBAs removed", &self.hbas_removed),
            ("HBAs that see other LUNs", &self.hbas_changed),
            ("HBAs with other access", &self.access_changed),
            ("other limits", &self.limits_changed),
        ];
        let mut parts: Vec<_> = parts
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what}: {}", names.join(", ")))
            .collect();
        let metrics = self.metrics.as_ref();
        parts.extend(metrics.map(|place| format!("metrics are served {place}")));
        if parts.is_empty() {
            f.write_str("nothing is different")
        } else {
            f.write_str(&parts.join("; "))
        }
    }
}

impl Roster {
    /// Has an HBA be served, as it is to be.
    ///
    /// # Errors
    /// [`AttachError`] if there is no such HBA.
    pub fn enlist(&self, hba: Uuid) -> Result<Enlisted, AttachError> {
        let mut service = self.service();
        let Service { hbas, groups, .. } = &mut *service;
        let known = hbas.get_mut(&hba).ok_or(AttachError::UnknownHba(hba))?;
        let limited = known.limited(groups);
        let Hba {
            view,
            workers,
            drained,
            ..
        } = known;
        let inbox = Inbox::new().map_err(|error| AttachError::Io {
            what: "making an eventfd",
            error,
        })?;
        let units = view.units.iter();
        let units = units.map(|(&address, unit)| (address, Arc::clone(unit)));
        let host = Host::new(view.initiator, units).map_err(AttachError::Target)?;
        workers.retain(Outbox::is_heard);
        let worker = inbox.outbox();
        worker.send(Message::Poll(view.poll));
        worker.send(Message::Limit(limited));
        worker.send(Message::Coalesce(view.coalesce));
        if *drained {
            worker.send(Message::Drain(true));
        }
        workers.push(worker);
        Ok(Enlisted {
            name: view.name.clone(),
            host,
            inbox,
            workers: view.workers.clone(),
        })
    }

    /// The numbers of the HBAs.
    pub fn numbers(&self) -> HashMap<Uuid, u8> {
        let service = self.service();
        let hbas = service.hbas.iter();
        hbas.map(|(uuid, hba)| (*uuid, hba.view.initiator.number))
            .collect()
    }

    /// The logical units.
    pub fn luns(&self) -> Luns {
        self.service().luns.clone()
    }

    /// How many logical units and HBAs there are.
    pub fn counts(&self) -> (usize, usize) {
        let service = self.service();
        (service.luns.len(), service.hbas.len())
    }

    /// The workers of those that see `unit`.
    fn seen_by(&self, unit: &Arc<LogicalUnit>) -> Vec<Outbox> {
        let service = self.service();
        let seers = service.hbas.values().filter(|hba| hba.view.shows(unit));
        seers.flat_map(|hba| hba.workers.clone()).collect()
    }

    /// The workers of the others that see `unit`, those too of which only what a disk does not
    /// finish is left.
    pub fn neighbours(&self, unit: &Arc<LogicalUnit>, me: &Outbox) -> Vec<Outbox> {
        let mut workers = self.seen_by(unit);
        workers.retain(|worker| worker.is_heard() && !worker.is_same(me));
        workers
    }

    /// Tells everyone who sees `unit` that a parameter of it is another.
    pub fn changed(&self, unit: &Arc<LogicalUnit>, attention: Attention) {
        for worker in self.seen_by(unit) {
            worker.send(Message::Changed(Arc::clone(unit), attention));
        }
    }

    /// Puts these in service in place of those that are, and tells the workers.
    pub fn replace(&self, luns: Luns, views: Views, limits: &SharedLimits) -> Applied {
        let mut service = self.service();
        // Before anybody sees them.
        for unit in luns.values() {
            unit.set_paths(&paths(unit, &views));
        }
        let mut applied = Applied {
            luns_added: missing(&luns, &service.luns),
            luns_removed: missing(&service.luns, &luns),
            limits_changed: service.set_limits(limits, &luns),
            ..Applied::default()
        };
        let mut old = std::mem::take(&mut service.hbas);
        for (uuid, view) in views {
            let (workers, drained, meter) = match old.remove(&uuid) {
                None => {
                    applied.hbas_added.push(view.name.clone());
                    let meter = Arc::<Meter>::default();
                    meter.set(view.limit, Instant::now());
                    (Vec::new(), false, meter)
                }
                Some(hba) => {
                    let change = || hba.view.change_to(&view);
                    if !change().is_empty() {
                        applied.hbas_changed.push(view.name.clone());
                        for worker in &hba.workers {
                            worker.send(Message::Units(change()));
                        }
                    }
                    if hba.view.poll != view.poll {
                        for worker in &hba.workers {
                            worker.send(Message::Poll(view.poll));
                        }
                    }
                    if hba.view.coalesce != view.coalesce {
                        for worker in &hba.workers {
                            worker.send(Message::Coalesce(view.coalesce));
                        }
                    }
                    if hba.view.access != view.access {
                        applied.access_changed.push(view.name.clone());
                    }
                    if hba.is_limited_otherwise(&view) {
                        hba.meter.set(view.limit, Instant::now());
                        applied.limits_changed.push(format!("tenant {}", view.name));
                    }
                    (hba.workers, hba.drained, hba.meter)
                }
            };
            let hba = Hba {
                view,
                meter,
                workers,
                drained,
            };
            // Its group may be another of the same name.
            for worker in &hba.workers {
                worker.send(Message::Limit(hba.limited(&service.groups)));
            }
            service.hbas.insert(uuid, hba);
        }
        for hba in old.into_values() {
            for worker in &hba.workers {
                worker.send(Message::Leave);
            }
            applied.hbas_removed.push(hba.view.name);
        }
        let Service { ledger, hbas, .. } = &mut *service;
        ledger.retain(|uuid, _| hbas.contains_key(uuid));
        let gone = std::mem::replace(&mut service.luns, luns);
        drop(service);
        // Closing a disk may take long.
        drop(gone);
        for names in [
            &mut applied.hbas_added,
            &mut applied.hbas_removed,
            &mut applied.hbas_changed,
            &mut applied.access_changed,
            &mut applied.limits_changed,
        ] {
            names.sort();
        }
        applied
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn shows(&self, unit: &Arc<LogicalUnit>) -> bool {
        self.units.values().any(|shown| Arc::ptr_eq(shown, unit))
    }

    fn change_to(&self, new: &Self) -> UnitChange {
        let differs = |there: Option<&Arc<LogicalUnit>>, unit: &Arc<LogicalUnit>| {
            there.is_none_or(|there| !Arc::ptr_eq(there, unit))
        };
        let gone = self.units.iter();
        let gone = gone.filter(|(address, unit)| differs(new.units.get(address), unit));
        let come = new.units.iter();
        let come = come.filter(|(address, unit)| differs(self.units.get(address), unit));
        UnitChange {
            gone: gone.map(|(&address, _)| (address, 0)).collect(),
            come: come
                .map(|(&address, unit)| (address, Come::Unit(Arc::clone(unit))))
                .collect(),
        }
    }
}

/// The ways to `unit`.
fn paths(unit: &Arc<LogicalUnit>, views: &Views) -> Vec<Path> {
    let mut paths = Vec::new();
    for view in views.values() {
        let shown = view
            .units
            .iter()
            .filter(|(_, shown)| Arc::ptr_eq(shown, unit));
        paths.extend(shown.map(|(address, _)| Path {
            port: Port {
                initiator: view.initiator,
                target: address.target,
            },
            access: view.access,
        }));
    }
    paths
}

/// The names that are in `these` but not in `those`, sorted.
fn missing(these: &Luns, those: &Luns) -> Vec<String> {
    let mut names: Vec<_> = these
        .keys()
        .filter(|name| !those.contains_key(*name))
        .cloned()
        .collect();
    names.sort();
    names
}
