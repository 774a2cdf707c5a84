//! Methods that look: at the appliance, its HBAs, LUNs and disks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{Method, params, value};
use crate::config::{Config, LunConfig, Source};
use crate::control::ask::{Known, ask};
use crate::control::desk::Desk;
use crate::control::diff::source;
use crate::control::edit::unknown;
use crate::control::protocol::{
    self, CountersSnapshot, Disk, Failure, Hello, Lun, Status, Tenant, TenantState, code,
};
use crate::disk::{Cache, Usage};
use crate::memory::window::Class;
use crate::roster::Luns;
use crate::scsi::LogicalUnit;

/// How long the disks may take to say how full they are, all together.
const DISKS_PATIENCE: Duration = Duration::from_secs(1);
/// How many disks are asked at a time.
const MAX_ASKERS: usize = 16;

pub(super) const HELLO: Method = Method {
    name: "hello",
    params: &[],
    result: "`Hello`",
    about: "Says who answers, in which version of this protocol. The first thing to ask.",
    run: |desk, given| {
        params::<Nothing>(given)?;
        let methods = super::METHODS.iter().map(|method| method.name.to_owned());
        value(Hello {
            protocol: protocol::VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            name: desk.appliance().name(),
            methods: methods.collect(),
        })
    },
};

pub(super) const STATUS: Method = Method {
    name: "status",
    params: &[ONE_HBA],
    result: "`Status`",
    about: "Says how the appliance is, and what is not as it should be.",
    run: |desk, given| {
        let One { name } = params(given)?;
        let mut status = status(desk);
        one(&mut status.tenants, "tenant", name, |hba| &hba.name)?;
        value(status)
    },
};

pub(super) const HBAS: Method = Method {
    name: "hbas",
    params: &[ONE_HBA],
    result: "list of `Tenant`",
    about: "Lists the HBAs of tenants, with their LUNs and what was counted about each.",
    run: |desk, given| {
        let One { name } = params(given)?;
        let mut hbas = tenants(ask(desk.roster(), None, None));
        one(&mut hbas, "tenant", name, |hba| &hba.name)?;
        value(hbas)
    },
};

pub(super) const LUNS: Method = Method {
    name: "luns",
    params: &[("name?", "text", "of the only LUN to list")],
    result: "list of `Lun`",
    about: "Lists the LUNs: where their blocks are, who sees them, how they are.",
    run: |desk, given| {
        let One { name } = params(given)?;
        let mut luns = luns(desk);
        one(&mut luns, "LUN", name, |lun| &lun.name)?;
        value(luns)
    },
};

pub(super) const DISKS: Method = Method {
    name: "disks",
    params: &[],
    result: "list of `Disk`",
    about: "Lists the disks under the LUNs, and how full they are. One that does not answer is \
            said to do so.",
    run: |desk, given| {
        params::<Nothing>(given)?;
        value(disks(desk)?)
    },
};

pub(super) const SHOW: Method = Method {
    name: "show",
    params: &[(
        "name",
        "text",
        "of an HBA or a LUN; one of each may have it",
    )],
    result: "object with `tenant` (`Tenant`) and `lun` (`Lun`), each where there is such",
    about: "Shows what has a name.",
    run: |desk, given| {
        let Named { name } = params(given)?;
        let tenants = tenants(ask(desk.roster(), None, None));
        let luns = luns(desk);
        let tenant = tenants.iter().find(|tenant| tenant.name == name);
        let lun = luns.iter().find(|lun| lun.name == name);
        if tenant.is_none() && lun.is_none() {
            let known = tenants.iter().map(|tenant| &*tenant.name);
            let known = known.chain(luns.iter().map(|lun| &*lun.name));
            return Err(unknown("tenant or LUN", &name, known));
        }
        let mut shown = BTreeMap::new();
        if let Some(tenant) = tenant {
            shown.insert("tenant", value(tenant)?);
        }
        if let Some(lun) = lun {
            shown.insert("lun", value(lun)?);
        }
        value(shown)
    },
};

/// No parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    pub(super) name: String,
}

/// At most one thing, if its name is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    name: Option<String>,
}

const ONE_HBA: (&str, &str, &str) = ("name?", "text", "of the only HBA to list");

/// Leaves of these only the one with a name, if one is given.
///
/// # Errors
/// [`Failure`] if there is none of that name.
fn one<T>(
    all: &mut Vec<T>,
    kind: &str,
    name: Option<String>,
    name_of: impl Fn(&T) -> &str,
) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    if all.iter().all(|thing| name_of(thing) != name) {
        return Err(unknown(kind, &name, all.iter().map(name_of)));
    }
    all.retain(|thing| name_of(thing) == name);
    Ok(())
}

fn tenants(known: Vec<Known>) -> Vec<Tenant> {
    known.into_iter().map(Tenant::from).collect()
}

fn status(desk: &Desk) -> Status {
    let tenants = tenants(ask(desk.roster(), None, None));
    let (_, saved) = desk.book.read();
    let config = desk.appliance().configuration();
    let served = desk.roster().luns();
    let silent = desk.roster().silent();
    let mut problems = Vec::new();
    for error in desk.appliance().problems() {
        // One that was taken out, or opened since, is none any more.
        let is_wanted = config.luns.iter().any(|lun| lun.name == error.lun);
        if is_wanted && !served.contains_key(&error.lun) {
            problems.push(format!("{error}; then apply the configuration again"));
        }
    }
    for lun in silent.iter().filter(|lun| served.contains_key(*lun)) {
        problems.push(format!(
            "LUN {lun}: its disk does not answer; look with: explain {lun}"
        ));
    }
    for tenant in &tenants {
        let name = &tenant.name;
        match tenant.state {
            TenantState::Silent => problems.push(format!(
                "tenant {name}: its worker does not answer; the log says on what it works"
            )),
            TenantState::Ending => problems.push(format!(
                "tenant {name}: a disk does not finish what was begun; it cannot attach before"
            )),
            TenantState::Absent | TenantState::Attached => {}
        }
        if tenant.memory == Some(Class::Uncached.to_string()) {
            let meaning = Class::Uncached.meaning();
            problems.push(format!("tenant {name}: its memory is mapped {meaning}"));
        }
        if tenant.drained {
            problems.push(format!(
                "tenant {name}: drained; end that with: resume {name}"
            ));
        }
        for unit in &tenant.units {
            if let Some(pause) = &unit.pause {
                let (lun, held) = (&unit.lun, pause.held);
                problems.push(format!(
                    "LUN {lun}: pauses, {held} commands of {name} wait; look with: explain {lun}"
                ));
            }
        }
    }
    Status {
        name: config.name,
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: desk.uptime().as_secs(),
        config: desk.book.file().map(|file| file.display().to_string()),
        saved,
        changing: desk.changing().map(|time| time.as_secs()),
        problems,
        luns: served.len(),
        tenants,
    }
}

/// What is wrong with a LUN, or "ok".
fn state(lun: &LunConfig, served: &Luns, silent: &BTreeSet<String>) -> &'static str {
    if !served.contains_key(&lun.name) {
        "not served"
    } else if silent.contains(&lun.name) {
        "disk does not answer"
    } else {
        "ok"
    }
}

fn luns(desk: &Desk) -> Vec<Lun> {
    let known = ask(desk.roster(), None, None);
    let Config { luns, .. } = desk.appliance().configuration();
    let (served, silent) = (desk.roster().luns(), desk.roster().silent());
    luns.iter()
        .map(|lun| {
            let unit = served.get(&lun.name);
            lun_of(lun, unit, &known, state(lun, &served, &silent))
        })
        .collect()
}

fn lun_of(lun: &LunConfig, unit: Option<&Arc<LogicalUnit>>, known: &[Known], state: &str) -> Lun {
    let geometry = unit.map(|unit| unit.disk().geometry());
    let mut counters = CountersSnapshot::default();
    let (mut in_flight, mut pauses) = (0, false);
    let mut seen_by = Vec::new();
    for known in known {
        let shown = known.hba.units.iter();
        let shown = shown.filter(|(_, unit)| unit.name() == lun.name);
        seen_by.extend(shown.map(|(at, _)| (known.hba.name.clone(), at.to_string())));
        for unit in known.said.units.iter().filter(|unit| unit.lun == lun.name) {
            counters.add(&unit.counters);
            in_flight += unit.in_flight;
            pauses |= unit.pause.is_some();
        }
    }
    Lun {
        name: lun.name.clone(),
        source: source(lun),
        bytes: geometry.map_or(0, |disk| disk.blocks * u64::from(disk.block_size)),
        block_size: lun.block_size,
        cache: cache_name(lun.cache).into(),
        way: way(lun).into(),
        read_only: lun.read_only,
        shared: lun.shared,
        limit: unit.and_then(|unit| protocol::Limit::of(unit.meter().limit())),
        state: if pauses && state == "ok" {
            "pauses"
        } else {
            state
        }
        .into(),
        seen_by,
        reserved_by: unit.and_then(|unit| holder(unit, known)),
        in_flight,
        counters,
        copied: unit.and_then(|unit| {
            let copied = unit.disk().copied()?;
            Some(protocol::Copied {
                reflink: copied.reflink,
                filesystem: copied.filesystem,
                pool: copied.pool,
            })
        }),
    }
}

/// Who keeps others away from a unit, and how.
pub(super) fn holder(unit: &LogicalUnit, known: &[Known]) -> Option<String> {
    let holder = unit.holder()?;
    let kind = holder.kind;
    Some(match holder.hba {
        None => kind.to_owned(),
        Some(uuid) => {
            let hba = known.iter().find(|known| known.hba.uuid == uuid);
            let name = hba.map_or_else(|| uuid.to_string(), |known| known.hba.name.clone());
            format!("{name} ({kind})")
        }
    })
}

/// Which way the data of a LUN goes, and why.
fn way(lun: &LunConfig) -> &'static str {
    if matches!(lun.source, Source::Null(_) | Source::Ram(_)) {
        return "no disk: its kind is for measuring";
    }
    if lun.protection.is_some() {
        return "through the appliance's memory, where its tags are checked";
    }
    match (lun.cache, lun.bounce) {
        (Cache::WriteBack, _) => "between page cache and tenant, as it is write-back",
        (Cache::Direct, true) => {
            "through the appliance's memory: no disk reaches a BAR, and no abort waits for a disk"
        }
        (Cache::Direct, false) => {
            "between disk and tenant, as bounce = false has it, but for what is in a BAR or not aligned"
        }
    }
}

fn cache_name(cache: Cache) -> &'static str {
    match cache {
        Cache::Direct => "direct",
        Cache::WriteBack => "write-back",
    }
}

/// The disks under the LUNs, as far as they answer within a second.
///
/// # Errors
/// [`Failure`] if a thread cannot be started.
pub(crate) fn disks(desk: &Desk) -> Result<Vec<Disk>, Failure> {
    let Config { luns, .. } = desk.appliance().configuration();
    let (served, silent) = (desk.roster().luns(), desk.roster().silent());
    let asked = luns.iter().filter_map(|lun| {
        let unit = served.get(&lun.name)?;
        (state(lun, &served, &silent) == "ok").then(|| Arc::clone(unit))
    });
    let usages = usages(desk, asked.collect())?;
    let disks = luns.iter().map(|lun| {
        let unit = served.get(&lun.name);
        let mut state = state(lun, &served, &silent);
        let usage = usages.get(&lun.name);
        if state == "ok" {
            state = match usage {
                Some(Asked::Answered(_)) => state,
                Some(Asked::Begun) => "disk does not answer",
                None => "not asked: other disks do not answer",
            };
        }
        let usage = match usage {
            Some(Asked::Answered(usage)) => *usage,
            Some(Asked::Begun) | None => None,
        };
        let geometry = unit.map(|unit| unit.disk().geometry());
        Disk {
            lun: lun.name.clone(),
            source: source(lun),
            bytes: geometry.map_or(0, |disk| disk.blocks * u64::from(disk.block_size)),
            physical_block_size: geometry.map_or(0, |disk| disk.physical_block_size),
            thin: unit.is_some_and(|unit| unit.disk().abilities().thin.is_some()),
            used: usage.map(|usage| usage.used),
            available: usage.map(|usage| usage.available),
            state: state.into(),
        }
    });
    Ok(disks.collect())
}

/// How far a disk has been asked how full it is.
enum Asked {
    Begun,
    Answered(Option<Usage>),
}

/// How full disks are, by the names of their LUNs, as far as they say so in time. Several are
/// asked at a time: one that hangs keeps none but one of those who ask.
fn usages(desk: &Desk, units: Vec<Arc<LogicalUnit>>) -> Result<HashMap<String, Asked>, Failure> {
    let deadline = Instant::now() + DISKS_PATIENCE;
    let askers = units.len().min(MAX_ASKERS);
    let queue = Arc::new(Mutex::new(units.into_iter()));
    let (to, said) = mpsc::channel();
    for _ in 0..askers {
        let (queue, to, looked_at) = (Arc::clone(&queue), to.clone(), desk.looks());
        let work = move || {
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            while Instant::now() < deadline
                && let Some(unit) = next()
            {
                let name = unit.name().to_owned();
                let begun = to.send((name.clone(), Asked::Begun));
                // Another who asks may wait for it still, and one is enough.
                let looks = looked_at.begin(&name);
                if begun.is_ok() && looks.is_some() {
                    let usage = unit.disk().usage();
                    let _ = to.send((name, Asked::Answered(usage)));
                }
                drop(looks);
            }
        };
        thread::Builder::new()
            .name("control-work".into())
            .spawn(work)
            .map_err(|error| {
                Failure::new(code::SYSTEM, format!("a thread cannot be started: {error}"))
            })?;
    }
    drop(to);
    let mut usages = HashMap::new();
    // Until all who ask have ended, or it is too late.
    while let Ok((name, asked)) =
        said.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        usages.insert(name, asked);
    }
    Ok(usages)
}
