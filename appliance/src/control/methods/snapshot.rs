//! Methods that take, list, roll back to, clone and remove snapshots.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::config::applied;
use super::look::Named;
use super::{Method, params, value};
use crate::control::book::Book;
use crate::control::change::in_time;
use crate::control::edit::{Edit, unknown};
use crate::control::protocol::{Failure, Snapshot, code};
use crate::control::utc::utc;
use crate::disk::SnapshotError;
use crate::scsi::LogicalUnit;

/// How long a folder may take to be listed.
const PATIENCE: Duration = Duration::from_secs(1);

const LUN: (&str, &str, &str) = ("name", "text", "of the LUN");

pub(super) const CREATE: Method = Method {
    name: "lun.snapshot",
    params: &[
        LUN,
        (
            "snapshot?",
            "text",
            "what the snapshot is to be called; otherwise the time, as 20261127-224512",
        ),
    ],
    result: "`Snapshot`",
    about: "Takes a snapshot of a LUN on a file on XFS or btrfs: every write that was acknowledged \
            is in it, and each that is under way as a whole or not at all. Writes to this LUN wait \
            meanwhile, 10 s at most for those that were begun; reads, and other LUNs, do not. It \
            is a file in the folder beside the LUN's, which is named as that with `.snapshots` \
            behind, and shares its blocks with it.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Create {
            name: String,
            snapshot: Option<String>,
        }
        let Create { name, snapshot } = params(given)?;
        let snapshot = snapshot.unwrap_or_else(|| name_of(SystemTime::now()));
        let book = Arc::clone(&desk.book);
        let taken = desk.changes.run(move || {
            let unit = unit(&book, &name)?;
            unit.take_snapshot(&snapshot)
                .map_err(|error| failed(&name, &error))?;
            tracing::info!(lun = name, snapshot, "a snapshot is taken");
            let all = list(&unit)?;
            let found = all.into_iter().find(|there| there.name == snapshot);
            found.ok_or_else(|| {
                Failure::new(
                    code::SYSTEM,
                    format!("the snapshot {snapshot:?} of LUN {name:?} is gone again"),
                )
            })
        })?;
        value(taken)
    },
};

pub(super) const LIST: Method = Method {
    name: "lun.snapshots",
    params: &[LUN],
    result: "list of `Snapshot`, the oldest first",
    about: "Lists the snapshots of a LUN.",
    run: |desk, given| {
        let Named { name } = params(given)?;
        let unit = unit(&desk.book, &name)?;
        // One that does not answer keeps one thread, not one for each who asks.
        let looks = desk.looks().begin(&format!("{name}.snapshots"));
        let looks = looks.ok_or_else(|| {
            let message =
                format!("somebody else lists the snapshots of LUN {name:?}; try it again");
            Failure::new(code::BUSY, message)
        })?;
        let listed = in_time(PATIENCE, move || {
            let _looks = looks;
            list(&unit)
        })?;
        value(listed.unwrap_or_else(|| {
            Err(Failure::new(
                code::TIMEOUT,
                format!("the folder of the snapshots of LUN {name:?} does not answer"),
            ))
        })?)
    },
};

pub(super) const ROLLBACK: Method = Method {
    name: "lun.rollback",
    params: &[LUN, ("snapshot", "text", "the name of the snapshot")],
    result: "object with `name` and `snapshot`",
    about: "Puts what a LUN held when a snapshot was taken in place of what it holds now, which is \
            lost. Commands to it wait meanwhile, and go on afterwards, so that tenants should have \
            unmounted it; everyone who sees it is told (MEDIUM MAY HAVE CHANGED). It does not \
            become smaller: what it has grown since is zeros. If the appliance ends in the middle, \
            the next one to open the disk finishes it. Snapshots stay, later ones too.",
    run: |desk, given| {
        let Of { name, snapshot } = params(given)?;
        let book = Arc::clone(&desk.book);
        let done = desk.changes.run(move || {
            let unit = unit(&book, &name)?;
            let attentions = unit
                .roll_back(&snapshot)
                .map_err(|error| failed(&name, &error))?;
            for attention in attentions {
                book.appliance().roster().changed(&unit, attention);
            }
            tracing::info!(lun = name, snapshot, "it is rolled back");
            Ok(serde_json::json!({ "name": name, "snapshot": snapshot }))
        })?;
        value(done)
    },
};

pub(super) const REMOVE: Method = Method {
    name: "lun.snapshot.remove",
    params: &[LUN, ("snapshot", "text", "the name of the snapshot")],
    result: "list of `Snapshot`: those that are left",
    about: "Removes a snapshot of a LUN; the LUN and its other snapshots stay as they are.",
    run: |desk, given| {
        let Of { name, snapshot } = params(given)?;
        let book = Arc::clone(&desk.book);
        let left = desk.changes.run(move || {
            let unit = unit(&book, &name)?;
            unit.remove_snapshot(&snapshot)
                .map_err(|error| failed(&name, &error))?;
            tracing::info!(lun = name, snapshot, "a snapshot is removed");
            list(&unit)
        })?;
        value(left)
    },
};

pub(super) const CLONE: Method = Method {
    name: "lun.clone",
    params: &[
        LUN,
        ("new", "text", "name of the new LUN"),
        (
            "path",
            "text",
            "its file, which is made, in the same filesystem",
        ),
        (
            "snapshot?",
            "text",
            "what the snapshot is called that it is to begin with; otherwise what the LUN holds \
             now, as for `lun.snapshot`",
        ),
        (
            "hba?",
            "text",
            "the HBA that is to see it; nobody otherwise",
        ),
        (
            "at?",
            "text",
            "where: LUN or TARGET:LUN; the next otherwise",
        ),
    ],
    result: "`Applied`",
    about: "Adds a LUN that begins with what another holds, and shares blocks with that until \
            either writes them. It has the other keys of that one, but for `shared` and \
            `read_only`.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Clone {
            name: String,
            new: String,
            path: PathBuf,
            snapshot: Option<String>,
            hba: Option<String>,
            at: Option<String>,
        }
        let clone: Clone = params(given)?;
        if !clone.path.is_absolute() {
            let message = format!(
                "{} is no absolute path; write where the file is to be from / on",
                clone.path.display()
            );
            return Err(Failure::new(code::PARAMS, message));
        }
        let book = Arc::clone(&desk.book);
        let changed = desk.changes.run(move || {
            let unit = unit(&book, &clone.name)?;
            let edited = |text: &str| {
                let mut edit = Edit::new(text)?;
                edit.clone_lun(&clone.name, &clone.new, &clone.path)?;
                if let Some(hba) = &clone.hba {
                    edit.show_lun(&clone.new, hba, clone.at.as_deref())?;
                }
                Ok::<_, Failure>(edit.text())
            };
            // What cannot be put into force needs no file.
            book.check(&edited(&book.read().0)?)?;
            unit.clone_to(clone.snapshot.as_deref(), &clone.path)
                .map_err(|error| failed(&clone.name, &error))?;
            let changed = book.change(edited);
            if changed.is_err() {
                // Nobody has it: it was made a moment ago, and is no LUN.
                let _ = std::fs::remove_file(&clone.path);
            }
            changed
        })?;
        value(applied(desk, &changed))
    },
};

/// A snapshot of a LUN.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    name: String,
    snapshot: String,
}

fn unit(book: &Book, name: &str) -> Result<Arc<LogicalUnit>, Failure> {
    let luns = book.appliance().roster().luns();
    let unit = luns.get(name).map(Arc::clone);
    unit.ok_or_else(|| unknown("LUN", name, luns.keys().map(|name| &**name)))
}

fn list(unit: &LogicalUnit) -> Result<Vec<Snapshot>, Failure> {
    let all = unit.snapshots();
    let all = all.map_err(|error| failed(unit.name(), &error))?;
    let all = all.into_iter().map(|snapshot| Snapshot {
        lun: unit.name().to_owned(),
        name: snapshot.name,
        created: utc(snapshot.created),
        bytes: snapshot.bytes,
        used: snapshot.used,
    });
    Ok(all.collect())
}

fn failed(lun: &str, error: &SnapshotError) -> Failure {
    let code = match error {
        SnapshotError::Unknown { .. } => code::UNKNOWN,
        SnapshotError::Name(_) => code::PARAMS,
        SnapshotError::Locked => code::BUSY,
        SnapshotError::Busy { .. }
        | SnapshotError::BlockDevice
        | SnapshotError::NoFile
        | SnapshotError::CannotShare { .. }
        | SnapshotError::Elsewhere { .. }
        | SnapshotError::Exists(_)
        | SnapshotError::FileExists(_)
        | SnapshotError::Inside(_)
        | SnapshotError::Shared
        | SnapshotError::ReadOnly
        | SnapshotError::Erasing
        | SnapshotError::Moved(_)
        | SnapshotError::Needed(_) => code::REFUSED,
        SnapshotError::Flush(_)
        | SnapshotError::Io { .. }
        | SnapshotError::Undone(_)
        | SnapshotError::Stuck(_) => code::SYSTEM,
    };
    Failure::new(code, format!("LUN {lun:?}: {error}"))
}

/// What a snapshot is called that was taken then.
fn name_of(moment: SystemTime) -> String {
    let digits = utc(moment).replace(['-', ':', 'Z'], "");
    digits.replace('T', "-")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_snapshot_without_a_name_is_called_by_its_time() {
        let moment = UNIX_EPOCH + Duration::from_secs(1_795_819_512);
        assert_eq!(name_of(moment), "20261127-224512");
    }
}
