//! Methods that add, remove, resize and move LUNs.

use std::io;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::applied;
use super::look::Named;
use super::{Method, params, value};
use crate::control::book::Book;
use crate::control::edit::{Edit, unknown};
use crate::control::protocol::{Failure, code};

pub(super) const ADD: Method = Method {
    name: "lun.add",
    params: &[
        ("name", "text", "of the LUN"),
        (
            "keys",
            "object",
            "the other keys of a `[[lun]]`: `path` or `serial`, `limit` as an object, and so on",
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
    result: "object with `bytes`, its size now, and `saved`, as in `Applied`",
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
        let (_, saved) = desk.book.read();
        value(serde_json::json!({ "bytes": bytes, "saved": saved }))
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
            between, and nothing that was begun can change it any more when it is seen again: if \
            that is not so within 10 s, it is put back.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Move {
            name: String,
            hba: String,
            at: Option<String>,
        }
        let Move { name, hba, at } = params(given)?;
        let luns = desk.appliance().configuration().luns;
        let names = || luns.iter().map(|lun| &*lun.name);
        if names().all(|known| known != name) {
            return Err(unknown("LUN", &name, names()));
        }
        let moved = desk.change(move |text| {
            let mut edit = Edit::new(text)?;
            edit.hide_lun(&name)?;
            edit.show_lun(&name, &hba, at.as_deref())?;
            Ok(edit.text())
        })?;
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
    // Where its size is written down, it is to be that after a restart, too.
    let config = book.appliance().configuration();
    let lun = config.luns.iter().find(|lun| lun.name == name);
    let is_written = lun.is_some_and(|lun| lun.size.is_some());
    let write = |text: &str| {
        let mut edit = Edit::new(text)?;
        edit.set_size(name, bytes)?;
        Ok::<_, Failure>(edit.text())
    };
    if is_written {
        write(&book.read().0)?;
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
    if is_written {
        book.change(write).map_err(|failure| {
            // All but what was to be changed beside it.
            let why = failure
                .message
                .replace("othing was changed", "o other change was made");
            Failure::new(
                failure.code,
                format!(
                    "LUN {name:?} has {bytes} bytes from now on, but the configuration does not \
                     say so: {why}"
                ),
            )
        })?;
    }
    let geometry = unit.disk().geometry();
    Ok(geometry.blocks.saturating_mul(block_size))
}
