//! The method that shows the last commands to a LUN.

use serde::Deserialize;

use super::{Method, params, value};
use crate::control::ask::ask;
use crate::control::edit::unknown;
use crate::control::protocol::Traced;

pub(super) const TRACE: Method = Method {
    name: "trace",
    params: &[
        ("lun", "text", "name of the LUN"),
        ("most?", "number", "how many, the last ones: 20 otherwise"),
    ],
    result: "list of `Traced`, those that ended longest ago first",
    about: "Gives the last commands to a LUN, decoded, of which 128 are kept for each worker of an HBA.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Trace {
            lun: String,
            most: Option<usize>,
        }
        let Trace { lun, most } = params(given)?;
        let luns = desk.roster().luns();
        if !luns.contains_key(&lun) {
            return Err(unknown("LUN", &lun, luns.keys().map(|name| &**name)));
        }
        let mut all = Vec::new();
        for known in ask(desk.roster(), None, Some(&lun)) {
            let hba = known.hba.name;
            all.extend(known.said.trace.into_iter().map(|command| Traced {
                hba: hba.clone(),
                command,
            }));
        }
        all.sort_by_key(|traced| std::cmp::Reverse(traced.command.ago_us));
        let skip = all.len().saturating_sub(most.unwrap_or(20));
        value(&all[skip..])
    },
};
