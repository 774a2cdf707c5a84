//! An HBA in the configuration: who it is, and which LUNs it sees where.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use spec::device::MAX_RINGS;
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;
use toml::Spanned;
use uuid::Uuid;

use super::limit::{RawLimit, check_limit, check_weight};
use super::{GroupConfig, Located, at, check_name};
use crate::limit::Limit;
use crate::scsi::{Access, Address};

/// Microseconds for which a worker may be told to poll: a second.
const MAX_POLL: u64 = 1_000_000;

/// Microseconds for which a call may be held back: a second.
const MAX_COALESCE: u64 = 1_000_000;
/// Requests for which one call may be held back.
const MAX_COALESCED: u32 = 1024;

/// One HBA of a tenant: one I_T nexus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaConfig {
    /// Its name, for people.
    pub name: String,
    /// What its vhost-pci function calls itself.
    pub uuid: Uuid,
    /// Where the tenant sees a LUN, and the name of the LUN.
    pub luns: BTreeMap<Address, String>,
    /// How good a way it is to LUNs that are shared.
    pub access: Access,
    /// The number of its target port group, from 1 on, if it is not to be any that is free.
    pub port: Option<u8>,
    /// How long its workers look for requests after work.
    pub poll: Poll,
    /// How many workers it has, and where.
    pub workers: Workers,
    /// What it may do.
    pub limit: Limit,
    /// The name of the group whose limit it shares.
    pub limit_group: Option<String>,
    /// What it weighs against others with which it shares a limit, at least 1.
    pub weight: u32,
    /// How long its workers may hold calls back.
    pub coalesce: Coalesce,
}

/// How long the call for requests that are back may be held back while others are in flight, so that
/// the tenant has fewer interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coalesce {
    /// So long after the first of them is back; not at all if that is zero.
    pub delay: Duration,
    /// Not for more requests than these.
    pub requests: u32,
}

impl Default for Coalesce {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            requests: 32,
        }
    }
}

impl std::fmt::Display for Coalesce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { delay, requests } = self;
        let micros = delay.as_micros();
        write!(f, "coalesce_us {micros}, coalesce_requests {requests}")
    }
}

/// The workers of an HBA: its threads, over which its request queues are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// How many there are, at least 1 and at most [`Workers::MAX`].
    pub count: usize,
    /// The CPU of each, by which they stay; none where they may be anywhere.
    pub pin: Vec<usize>,
}

impl Workers {
    /// Most workers of an HBA. Each has a thread, an io_uring and a pool of buffers of its own.
    pub const MAX: usize = 16;
}

// Each has a request queue, if there are as many as there can be.
const _: () = assert!(Workers::MAX <= MAX_RINGS - FIRST_REQUEST_QUEUE as usize);

impl Default for Workers {
    /// One, anywhere.
    fn default() -> Self {
        Self {
            count: 1,
            pin: Vec::new(),
        }
    }
}

/// How long a worker that has nothing to do looks for requests before it sleeps. It needs a
/// processor for that, and the tenant's kicks and its own waking up are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// So long after work; not at all if that is zero.
    For(Duration),
    /// For as long as a tenant has its rings there: a processor of its own.
    Always,
}

impl Poll {
    /// Microseconds without another word: longer than it takes to wake a driver and be woken by it,
    /// so that one that answers at once is never slept for.
    pub const USUAL: u64 = 64;
}

impl Default for Poll {
    fn default() -> Self {
        Self::For(Duration::from_micros(Self::USUAL))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHba {
    pub(super) name: Spanned<String>,
    pub(super) uuid: Spanned<String>,
    luns: BTreeMap<Spanned<String>, Spanned<String>>,
    poll: Option<Spanned<toml::Value>>,
    coalesce_us: Option<Spanned<i64>>,
    coalesce_requests: Option<Spanned<i64>>,
    workers: Option<Spanned<u64>>,
    pin: Option<Spanned<Vec<u64>>>,
    #[serde(default)]
    access: Access,
    pub(super) port: Option<Spanned<u64>>,
    limit: Option<Spanned<RawLimit>>,
    limit_group: Option<Spanned<String>>,
    weight: Option<Spanned<u64>>,
}

/// Where a LUN is seen: "LUN" of target 0, or "TARGET:LUN".
fn address(key: &str) -> Option<Address> {
    let (target, lun) = key.split_once(':').unwrap_or(("0", key));
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let address = Address {
        target: u8::try_from(number(target)?).ok()?,
        lun: number(lun)?,
    };
    (address.lun <= Address::MAX_LUN).then_some(address)
}

/// Microseconds, or "always".
fn check_poll(poll: &Spanned<toml::Value>, hba: &str) -> Result<Poll, Located> {
    let value = poll.get_ref();
    if value.as_str() == Some("always") {
        return Ok(Poll::Always);
    }
    let micros = value
        .as_integer()
        .and_then(|micros| u64::try_from(micros).ok());
    match micros.filter(|micros| *micros <= MAX_POLL) {
        Some(micros) => Ok(Poll::For(Duration::from_micros(micros))),
        None => {
            let message = format!(
                "poll {value} of HBA {hba:?} must be microseconds, from 0 to {MAX_POLL}, or \
                 \"always\""
            );
            Err(at(poll, message))
        }
    }
}

/// How calls are held back.
fn check_coalesce(
    micros: Option<&Spanned<i64>>,
    requests: Option<&Spanned<i64>>,
    hba: &str,
) -> Result<Coalesce, Located> {
    let mut coalesce = Coalesce::default();
    if let Some(spanned) = micros {
        let micros = u64::try_from(*spanned.get_ref()).ok();
        let micros = micros.filter(|micros| *micros <= MAX_COALESCE);
        coalesce.delay = micros.map(Duration::from_micros).ok_or_else(|| {
            let message = format!(
                "coalesce_us {} of HBA {hba:?} must be microseconds, from 0 to {MAX_COALESCE}",
                spanned.get_ref()
            );
            at(spanned, message)
        })?;
    }
    if let Some(spanned) = requests {
        let requests = u32::try_from(*spanned.get_ref()).ok();
        let requests = requests.filter(|requests| (1..=MAX_COALESCED).contains(requests));
        coalesce.requests = requests.ok_or_else(|| {
            let message = format!(
                "coalesce_requests {} of HBA {hba:?} must be from 1 to {MAX_COALESCED}",
                spanned.get_ref()
            );
            at(spanned, message)
        })?;
    }
    Ok(coalesce)
}

/// How many workers, and a CPU for each or none.
fn check_workers(
    count: Option<&Spanned<u64>>,
    pin: Option<&Spanned<Vec<u64>>>,
    hba: &str,
) -> Result<Workers, Located> {
    let mut workers = Workers::default();
    if let Some(given) = count {
        let count = usize::try_from(*given.get_ref()).ok();
        let count = count.filter(|count| (1..=Workers::MAX).contains(count));
        workers.count = count.ok_or_else(|| {
            let (given_count, max) = (given.get_ref(), Workers::MAX);
            let message = format!(
                "workers {given_count} of HBA {hba:?} must be from 1 to {max}, and no more than its \
                 driver has request queues"
            );
            at(given, message)
        })?;
    }
    if let Some(given) = pin {
        let cpus = given.get_ref();
        if cpus.len() != workers.count {
            let message = format!(
                "pin of HBA {hba:?} names {} CPUs, but it has {} workers; give one CPU for each",
                cpus.len(),
                workers.count
            );
            return Err(at(given, message));
        }
        let cpus = cpus.iter().map(|cpu| usize::try_from(*cpu));
        workers.pin = cpus.map(|cpu| cpu.unwrap_or(usize::MAX)).collect();
    }
    Ok(workers)
}

pub(super) fn check_hba(
    raw: RawHba,
    shared: &HashMap<String, bool>,
    seen_by: &mut HashMap<String, String>,
    groups: &[GroupConfig],
) -> Result<HbaConfig, Located> {
    check_name("HBA", &raw.name)?;
    let name = raw.name.into_inner();
    let uuid = Uuid::parse_str(raw.uuid.get_ref())
        .ok()
        .filter(|uuid| !uuid.is_nil());
    let uuid = uuid.ok_or_else(|| {
        let message = format!(
            "uuid {:?} of HBA {name:?} is not a UUID other than zero; make one with: uuidgen",
            raw.uuid.get_ref()
        );
        at(&raw.uuid, message)
    })?;
    let mut luns = BTreeMap::new();
    let mut mine = HashSet::new();
    for (number, lun) in raw.luns {
        let address = address(number.get_ref()).ok_or_else(|| {
            let message = format!(
                "{:?} is not a LUN of HBA {name:?}; use \"LUN\", a number from 0 to {max}, for one \
                 of target 0, or \"TARGET:LUN\" with a target from 0 to 255",
                number.get_ref(),
                max = Address::MAX_LUN
            );
            at(&number, message)
        })?;
        let Some(is_shared) = shared.get(lun.get_ref()) else {
            let message = format!(
                "HBA {name:?} names the LUN {:?}, which does not exist; add a [[lun]] of that name",
                lun.get_ref()
            );
            return Err(at(&lun, message));
        };
        let other = seen_by.insert(lun.get_ref().clone(), name.clone());
        if let Some(other) = other.filter(|other| !is_shared && *other != name) {
            let message = format!(
                "LUN {:?} is seen by the HBAs {other:?} and {name:?}; remove it from one, or set \
                 shared = true if their filesystem is made for that",
                lun.get_ref()
            );
            return Err(at(&lun, message));
        }
        if !mine.insert(lun.get_ref().clone()) {
            let message = format!("HBA {name:?} has the LUN {:?} twice", lun.get_ref());
            return Err(at(&lun, message));
        }
        if luns.insert(address, lun.into_inner()).is_some() {
            let Address { target, lun } = address;
            let message = format!("HBA {name:?} has two LUNs {lun} of target {target}");
            return Err(at(&number, message));
        }
    }
    let port = match raw.port {
        None => None,
        Some(port) => match u8::try_from(*port.get_ref()) {
            Ok(number) if number > 0 => Some(number),
            _ => {
                let number = port.get_ref();
                let message = format!("port {number} of HBA {name:?} must be from 1 to 255");
                return Err(at(&port, message));
            }
        },
    };
    if let Some(group) = &raw.limit_group
        && groups.iter().all(|known| known.name != *group.get_ref())
    {
        let message = format!(
            "HBA {name:?} is in the limit group {:?}, which does not exist; add a [[limit_group]] \
             of that name",
            group.get_ref()
        );
        return Err(at(group, message));
    }
    let limit = check_limit(raw.limit, &format!("HBA {name:?}"))?;
    let weight = check_weight(raw.weight, &name)?;
    let poll = raw.poll.as_ref().map(|poll| check_poll(poll, &name));
    let (micros, requests) = (raw.coalesce_us.as_ref(), raw.coalesce_requests.as_ref());
    let coalesce = check_coalesce(micros, requests, &name)?;
    let workers = check_workers(raw.workers.as_ref(), raw.pin.as_ref(), &name)?;
    Ok(HbaConfig {
        coalesce,
        workers,
        poll: poll.transpose()?.unwrap_or_default(),
        name,
        uuid,
        luns,
        access: raw.access,
        port,
        limit,
        limit_group: raw.limit_group.map(Spanned::into_inner),
        weight,
    })
}
