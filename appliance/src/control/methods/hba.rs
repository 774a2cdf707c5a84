//! Methods that add and remove HBAs.

use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::config::applied;
use super::look::Named;
use super::{Method, params, value};
use crate::control::edit::Edit;

pub(super) const ADD: Method = Method {
    name: "hba.add",
    params: &[
        ("name", "text", "of the HBA"),
        ("uuid?", "text", "its UUID; a new one is made otherwise"),
        (
            "keys?",
            "object",
            "other keys of an `[[hba]]`, such as `poll`",
        ),
    ],
    result: "`Applied`, with `uuid`",
    about: "Adds an HBA that sees no LUN yet. Its host-shim is given the UUID with --hba.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Add {
            name: String,
            uuid: Option<String>,
            #[serde(default)]
            keys: Map<String, Value>,
        }
        let Add { name, uuid, keys } = params(given)?;
        let uuid = uuid.unwrap_or_else(|| Uuid::new_v4().to_string());
        let given = uuid.clone();
        let changed = desk.change(move |text| {
            let mut edit = Edit::new(text)?;
            edit.add_hba(&name, &given, &keys)?;
            Ok(edit.text())
        })?;
        let mut result = value(applied(desk, &changed))?;
        if let Some(result) = result.as_object_mut() {
            result.insert("uuid".into(), uuid.into());
        }
        Ok(result)
    },
};

pub(super) const REMOVE: Method = Method {
    name: "hba.remove",
    params: &[("name", "text", "of the HBA")],
    result: "`Applied`",
    about: "Takes an HBA out: its tenant loses its adapter. Its LUNs stay, seen by nobody.",
    run: |desk, given| {
        let Named { name } = params(given)?;
        let changed = desk.change(move |text| {
            let mut edit = Edit::new(text)?;
            edit.remove_hba(&name)?;
            Ok(edit.text())
        })?;
        value(applied(desk, &changed))
    },
};
