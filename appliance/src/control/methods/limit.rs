//! Methods that limit what LUNs, HBAs and groups of HBAs may do in a second.

use serde::Deserialize;
use serde_json::Value;

use super::config::applied;
use super::{Method, params, value};
use crate::control::desk::Desk;
use crate::control::edit::{Edit, Rates};
use crate::control::protocol::Failure;

const IOPS: (&str, &str, &str) = ("iops?", "number", "operations a second, 0 for no limit");
const BYTES: (&str, &str, &str) = (
    "bytes_per_second?",
    "number",
    "bytes a second, 0 for no limit",
);
const BURST: (&str, &str, &str) = (
    "burst?",
    "number",
    "milliseconds' worth of it that may be saved up, 0 for the default",
);

pub(super) const LUN: Method = Method {
    name: "lun.limit",
    params: &[("name", "text", "of the LUN"), IOPS, BYTES, BURST],
    result: "`Applied`",
    about: "Limits what all who see a LUN may do with it together. What is not given stays as it \
            is.",
    run: |desk, given| {
        let Given { name, rates } = Given::of(given)?;
        change(desk, move |edit| edit.limit_lun(&name, rates))
    },
};

pub(super) const HBA: Method = Method {
    name: "hba.limit",
    params: &[
        ("name", "text", "of the HBA"),
        IOPS,
        BYTES,
        BURST,
        (
            "group?",
            "text",
            "name of the group whose limit it shares; empty for none",
        ),
        (
            "weight?",
            "number",
            "what it weighs against others with which it shares a limit",
        ),
    ],
    result: "`Applied`",
    about: "Limits what an HBA may do, by itself and as one of a group. What is not given stays as \
            it is.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Limit {
            name: String,
            iops: Option<u64>,
            bytes_per_second: Option<u64>,
            burst: Option<u64>,
            group: Option<String>,
            weight: Option<u64>,
        }
        let limit: Limit = params(given)?;
        let rates = Rates {
            iops: limit.iops,
            bytes_per_second: limit.bytes_per_second,
            burst: limit.burst,
        };
        change(desk, move |edit| {
            edit.limit_hba(&limit.name, rates)?;
            edit.set_group(&limit.name, limit.group.as_deref(), limit.weight)
        })
    },
};

pub(super) const GROUP: Method = Method {
    name: "group.limit",
    params: &[("name", "text", "of the group"), IOPS, BYTES, BURST],
    result: "`Applied`",
    about: "Limits what the HBAs of a group may do together; they share it by their weights. One \
            that is not there is made, one without limits is taken out.",
    run: |desk, given| {
        let Given { name, rates } = Given::of(given)?;
        change(desk, move |edit| edit.limit_group(&name, rates))
    },
};

struct Given {
    name: String,
    rates: Rates,
}

impl Given {
    fn of(given: &Value) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Limit {
            name: String,
            iops: Option<u64>,
            bytes_per_second: Option<u64>,
            burst: Option<u64>,
        }
        let limit: Limit = params(given)?;
        Ok(Self {
            name: limit.name,
            rates: Rates {
                iops: limit.iops,
                bytes_per_second: limit.bytes_per_second,
                burst: limit.burst,
            },
        })
    }
}

fn change(
    desk: &Desk,
    what: impl FnOnce(&mut Edit) -> Result<(), Failure> + Send + 'static,
) -> Result<Value, Failure> {
    let changed = desk.change(move |text| {
        let mut edit = Edit::new(text)?;
        what(&mut edit)?;
        Ok(edit.text())
    })?;
    value(applied(desk, &changed))
}
