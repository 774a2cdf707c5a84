//! The commands that add what the configuration has a table for.

use serde_json::{Map, Value, json};

use super::arguments::{exactly, rates, split_keys};
use super::{Command, Names};
use crate::console::session::{Session, Trouble};
use crate::console::show;

/// Keys of a `[[lun]]`.
const LUN_KEYS: &[&str] = &[
    "to=",
    "at=",
    "path=",
    "serial=",
    "kind=",
    "size=",
    "read_only=",
    "cache=",
    "bounce=",
    "shared=",
    "block_size=",
    "provisioning=",
    "timeout=",
    "on_error=",
    "threshold=",
    "iops=",
    "bytes_per_second=",
    "burst=",
];

/// Keys of a tenant that is added.
const HBA_KEYS: &[&str] = &[
    "uuid=",
    "poll=",
    "coalesce_us=",
    "coalesce_requests=",
    "workers=",
    "access=",
    "port=",
    "iops=",
    "bw=",
    "burst=",
    "group=",
    "weight=",
];

pub(super) const LUN: Command = Command {
    words: &["lun", "add"],
    usage: "NAME path=FILE|serial=SERIAL [KEY=VALUE...] [to=TENANT [at=LUN]]",
    about: "open a disk as a LUN, and show it to a tenant",
    more: "Keys are those of a [[lun]] in the configuration: read_only=true, \
           cache=write-back, shared=true, size=10G and so on; iops=500, \
           bytes_per_second=10M and burst=100 are its limit, as of `lun limit`. Without `at` \
           it is the tenant's next LUN. Its driver is told, so that it appears by itself.",
    names: Names::Nothing,
    keys: LUN_KEYS,
    run: lun_add,
};

pub(super) const TENANT: Command = Command {
    words: &["tenant", "add"],
    usage: "NAME [uuid=UUID] [KEY=VALUE...]",
    about: "add an HBA that sees no LUN yet",
    more: "Its host-shim is started with --hba UUID; a new UUID is made unless one is given. \
           Keys are those of an [[hba]] in the configuration: poll=always, workers=2, \
           access=standby and so on; iops=500, bw=10M, burst=100, group=GROUP and weight=2 \
           are its limit, as of `tenant limit`. `lun add ... to=NAME` and `lun move LUN NAME` \
           give it LUNs.",
    names: Names::Nothing,
    keys: HBA_KEYS,
    run: tenant_add,
};

fn lun_add(session: &mut Session, given: &[String]) -> Result<(), Trouble> {
    let (plain, mut keys) = split_keys(given)?;
    let [name] = exactly("lun add", &plain)?;
    let mut params = json!({ "name": name });
    for (from, to) in [("to", "hba"), ("at", "at")] {
        if let Some(value) = keys.remove(from) {
            params[to] = value;
        }
    }
    with_limit("lun add", &mut keys)?;
    params["keys"] = keys.into();
    session.show("lun.add", &params, show::applied)
}

fn tenant_add(session: &mut Session, given: &[String]) -> Result<(), Trouble> {
    let (plain, mut keys) = split_keys(given)?;
    let [name] = exactly("tenant add", &plain)?;
    let mut params = json!({ "name": name });
    if let Some(uuid) = keys.remove("uuid") {
        params["uuid"] = uuid;
    }
    if let Some(group) = keys.remove("group") {
        keys.insert("limit_group".into(), group);
    }
    with_limit("tenant add", &mut keys)?;
    params["keys"] = keys.into();
    session.show("hba.add", &params, show::hba_added)
}

/// Makes what limits something that is to be added, among its `keys`, the table that the
/// configuration has for it.
fn with_limit(command: &str, keys: &mut Map<String, Value>) -> Result<(), Trouble> {
    let mut limit = rates(command, keys)?;
    limit.retain(|_, rate| *rate != 0);
    if !limit.is_empty() {
        keys.insert("limit".into(), limit.into());
    }
    Ok(())
}
