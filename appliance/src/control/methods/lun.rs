//! Methods that add, remove, resize and move LUNs.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::applied;
use super::look::Named;
use super::{Method, params, value};
use crate::control::ask::ask;
use crate::control::book::Book;
use crate::control::edit::{Edit, unknown};
use crate::control::protocol::{Failure, TenantState, code};
use crate::roster::Applied;

/// How long the commands that a LUN's tenant has begun may take to end before it is moved.
const MOVE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(20);

pub(super) const ADD: Method = Method {
    name: "lun.add",
    params: &[
        ("name", "text", "of the LUN"),
        (
            "keys",
            "object",
            "the other keys of a `[[lun]]`: `path` or `serial`, and so on",
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
    about: "Opens a disk as a LUN and shows it to an HBA.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Add {
            name: String,
            keys: Map<String, Value>,
            hba: Option<String>,
            at: Option<String>,
        }
        let add: Add = params(given)?;
        let changed = desk.change(move |text| {
            let mut edit = Edit::new(text)?;
            edit.add_lun(&add.name, &add.keys)?;
            if let Some(hba) = &add.hba {
                edit.show_lun(&add.name, hba, add.at.as_deref())?;
            }
            Ok(edit.text())
        })?;
        value(applied(desk, &changed))
    },
};

pub(super) const REMOVE: Method = Method {
    name: "lun.remove",
    params: &[("name", "text", "of the LUN")],
    result: "`Applied`",
    about: "Takes a LUN from everyone who sees it, and closes its disk when the last command on it \
            is over. Its data stays.",
    run: |desk, given| {
        let Named { name } = params(given)?;
        let changed = desk.change(move |text| {
            let mut edit = Edit::new(text)?;
            edit.remove_lun(&name)?;
            Ok(edit.text())
        })?;
        value(applied(desk, &changed))
    },
};

pub(super) const RESIZE: Method = Method {
    name: "lun.resize",
    params: &[
        ("name", "text", "of the LUN"),
        (
            "bytes",
            "number",
            "its size from now on; it does not become smaller",
        ),
    ],
    result: "object with `bytes`, its size now",
    about: "Makes a LUN on a file larger, and tells everyone who sees it. One on a block device \
            grows with that, by itself, unless it has a `size`.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Resize {
            name: String,
            bytes: u64,
        }
        let Resize { name, bytes } = params(given)?;
        let book = Arc::clone(&desk.book);
        let bytes = desk.changes.run(move || resize(&book, &name, bytes))?;
        value(serde_json::json!({ "bytes": bytes }))
    },
};

pub(super) const MOVE: Method = Method {
    name: "lun.move",
    params: &[
        ("name", "text", "of the LUN"),
        ("hba", "text", "the HBA that is to see it"),
        (
            "at?",
            "text",
            "where: LUN or TARGET:LUN; the next otherwise",
        ),
    ],
    result: "`Applied`",
    about: "Takes a LUN from everyone who sees it and shows it to another HBA. Nobody sees it in \
            between, and all commands that were begun are over before it is seen again: if they \
            do not end, it is put back.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Move {
            name: String,
            hba: String,
            at: Option<String>,
        }
        let Move { name, hba, at } = params(given)?;
        let book = Arc::clone(&desk.book);
        let moved = desk
            .changes
            .run(move || move_lun(&book, &name, &hba, at.as_deref()))?;
        value(applied(desk, &moved))
    },
};

fn resize(book: &Book, name: &str, bytes: u64) -> Result<u64, Failure> {
    let refused = |message: String| Failure::new(code::REFUSED, message);
    let roster = book.appliance().roster();
    let luns = roster.luns();
    let unit = luns
        .get(name)
        .ok_or_else(|| unknown("LUN", name, luns.keys().map(|name| &**name)))?;
    let geometry = unit.disk().geometry();
    let block_size = u64::from(geometry.block_size);
    let now = geometry.blocks.saturating_mul(block_size);
    if !bytes.is_multiple_of(block_size) {
        return Err(refused(format!(
            "LUN {name:?} cannot have {bytes} bytes: that is no multiple of its block_size, \
             {block_size}; nothing was changed"
        )));
    }
    if bytes < now {
        return Err(refused(format!(
            "LUN {name:?} has {now} bytes, and does not become smaller: what lies beyond would be \
             lost. Copy what is to be kept to a new LUN; nothing was changed"
        )));
    }
    let attentions = unit.grow(bytes).map_err(|error| {
        if error.kind() == io::ErrorKind::Unsupported {
            refused(format!(
                "the disk of LUN {name:?} is no file that may be made longer; make the disk itself \
                 longer, and that is seen within a second"
            ))
        } else {
            Failure::new(
                code::SYSTEM,
                format!("the disk of LUN {name:?} cannot be made longer: {error}"),
            )
        }
    })?;
    for attention in attentions {
        roster.changed(unit, attention);
    }
    // Where its size is written down, it is to be that after a restart, too.
    let config = book.appliance().configuration();
    let lun = config.luns.iter().find(|lun| lun.name == name);
    if lun.is_some_and(|lun| lun.size.is_some()) {
        book.change(|text| {
            let mut edit = Edit::new(text)?;
            edit.set_size(name, bytes)?;
            Ok::<_, Failure>(edit.text())
        })?;
    }
    let geometry = unit.disk().geometry();
    Ok(geometry.blocks.saturating_mul(block_size))
}

fn move_lun(book: &Book, name: &str, hba: &str, at: Option<&str>) -> Result<Applied, Failure> {
    // The whole of it is tried on the text first.
    let (before, _) = book.read();
    let mut whole = Edit::new(&before)?;
    let luns = book.appliance().roster().luns();
    if !luns.contains_key(name) {
        return Err(unknown("LUN", name, luns.keys().map(|name| &**name)));
    }
    drop(luns);
    let seen = whole.hide_lun(name)?;
    let hidden = whole.text();
    whole.show_lun(name, hba, at)?;
    if seen.is_empty() {
        return book.change(|_| Ok(whole.text()));
    }
    // Without a tenant between, a write that the old one began could come after the new one's.
    let taken = book.change(|_| Ok::<_, Failure>(hidden))?;
    let deadline = Instant::now() + MOVE_PATIENCE;
    let owners: Vec<_> = seen.into_iter().map(|(hba, _)| hba).collect();
    while let Some(hba) = is_busy(book, name, &owners) {
        if Instant::now() >= deadline {
            book.change(|_| Ok::<_, Failure>(before))?;
            let seconds = MOVE_PATIENCE.as_secs();
            return Err(Failure::new(
                code::REFUSED,
                format!(
                    "commands of tenant {hba:?} to LUN {name:?} were not over after {seconds} s, \
                     so it was put back where it was; look with: explain {name}"
                ),
            ));
        }
        std::thread::sleep(LOOK);
    }
    let shown = book.change(|_| Ok::<_, Failure>(whole.text()));
    let shown = match shown {
        Ok(shown) => shown,
        Err(failure) => {
            book.change(|_| Ok::<_, Failure>(before))?;
            return Err(failure);
        }
    };
    let mut changed = taken;
    changed.hbas_changed.extend(shown.hbas_changed);
    changed.hbas_changed.sort();
    changed.hbas_changed.dedup();
    Ok(changed)
}

/// The HBA of `owners` that has commands to a LUN under way, if one has, or does not say.
fn is_busy(book: &Book, lun: &str, owners: &[String]) -> Option<String> {
    let known = ask(book.appliance().roster(), Some(lun), None);
    let mut known = known
        .into_iter()
        .filter(|known| owners.contains(&known.hba.name));
    let busy = known.find(|known| match known.state {
        TenantState::Absent => false,
        TenantState::Attached => !known.said.tasks.is_empty(),
        TenantState::Silent | TenantState::Ending => true,
    });
    busy.map(|known| known.hba.name)
}
