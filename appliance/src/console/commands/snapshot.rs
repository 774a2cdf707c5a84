//! The commands about snapshots.

use serde_json::json;

use super::arguments::{exactly, no_more, split_keys};
use super::{Command, Names};
use crate::console::session::{Session, Trouble};
use crate::console::{help, show};

pub(super) const SNAPSHOT: Command = Command {
    words: &["lun", "snapshot"],
    usage: "LUN [list | create [NAME] | rollback NAME | remove NAME]",
    about: "snapshots of a LUN on a file: list, take, go back to, remove",
    more: "They are taken at one moment, while the LUN is used, by reference: that needs XFS or \
           btrfs under its file. `rollback` puts the LUN back as it was, and what it holds now is \
           lost unless there is a snapshot of that, too. Unmount it in the tenant before.",
    names: Names::Lun,
    keys: &["list", "create", "rollback", "remove"],
    run: snapshot,
};

pub(super) const CLONE: Command = Command {
    words: &["lun", "clone"],
    usage: "LUN NEW path=FILE [from=SNAPSHOT] [to=TENANT [at=LUN]]",
    about: "a new LUN that begins with what another holds",
    more: "FILE is made, and shares blocks with the other LUN's file until they are written: it \
           has to be in the same filesystem, XFS or btrfs. With `from` it begins with what was in \
           that snapshot. Without `to` nobody sees it yet.",
    names: Names::Lun,
    keys: &["path=", "from=", "to=", "at="],
    run: clone,
};

fn snapshot(session: &mut Session, given: &[String]) -> Result<(), Trouble> {
    let words: Vec<_> = given.iter().map(String::as_str).collect();
    let of = |lun: &str, name: &str| json!({ "name": lun, "snapshot": name });
    match words[..] {
        [lun] | [lun, "list"] => {
            session.show("lun.snapshots", &json!({ "name": lun }), show::snapshots)
        }
        [lun, "create"] => session.show("lun.snapshot", &json!({ "name": lun }), show::taken),
        [lun, "create", name] => session.show("lun.snapshot", &of(lun, name), show::taken),
        [lun, "rollback", name] => session.show("lun.rollback", &of(lun, name), show::rolled_back),
        [lun, "remove", name] => {
            session.show("lun.snapshot.remove", &of(lun, name), show::snapshots)
        }
        _ => Err(help::usage("lun snapshot")),
    }
}

fn clone(session: &mut Session, given: &[String]) -> Result<(), Trouble> {
    let (plain, mut keys) = split_keys(given)?;
    let [name, new] = exactly("lun clone", &plain)?;
    let mut params = json!({ "name": name, "new": new });
    for (from, to) in [
        ("path", "path"),
        ("from", "snapshot"),
        ("to", "hba"),
        ("at", "at"),
    ] {
        if let Some(value) = keys.remove(from) {
            params[to] = value;
        }
    }
    no_more("lun clone", &keys)?;
    if params["path"].is_null() {
        return Err(help::usage("lun clone"));
    }
    session.show("lun.clone", &params, show::applied)
}
