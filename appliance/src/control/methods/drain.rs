//! Methods that have an HBA take no new commands, and take them again.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::look::Named;
use super::{Method, params, value};
use crate::control::ask::ask;
use crate::control::desk::Desk;
use crate::control::edit::unknown;
use crate::control::protocol::{Drained, Failure, TenantState, code};

/// How long to wait for what is under way, unless it is said otherwise, and at most, in seconds.
const WAIT: (u64, u64) = (10, 60);
/// How often it is looked whether it is over.
const LOOK: Duration = Duration::from_millis(20);

pub(super) const DRAIN: Method = Method {
    name: "drain",
    params: &[
        ("name", "text", "of the HBA"),
        (
            "wait_s?",
            "number",
            "how long to wait for what is under way: 10 s otherwise, 60 s at most",
        ),
    ],
    result: "`Drained`",
    about: "Has an HBA take no new commands, which wait in the tenant's rings, and waits until \
            those that it took are over. Its tenant's patience is some tens of seconds. Resets and \
            aborts are heard; commands that came before one are answered BUSY then, so that none \
            is carried out after its end was confirmed.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Drain {
            name: String,
            wait_s: Option<u64>,
        }
        let Drain { name, wait_s } = params(given)?;
        let wait = Duration::from_secs(wait_s.unwrap_or(WAIT.0).min(WAIT.1));
        set(desk, &name, true)?;
        let deadline = Instant::now() + wait;
        loop {
            let (state, in_flight) = in_flight(desk, &name)?;
            let told = state != TenantState::Silent;
            if told && in_flight == 0 || Instant::now() >= deadline {
                if !told {
                    return Err(Failure::new(
                        code::TIMEOUT,
                        format!(
                            "the worker of tenant {name:?} does not answer; the log says on what \
                             it works"
                        ),
                    ));
                }
                return value(Drained {
                    hba: name,
                    drained: true,
                    in_flight,
                });
            }
            std::thread::sleep(LOOK);
        }
    },
};

pub(super) const RESUME: Method = Method {
    name: "resume",
    params: &[("name", "text", "of the HBA")],
    result: "`Drained`",
    about: "Has an HBA that was drained take commands again.",
    run: |desk, given| {
        let Named { name } = params(given)?;
        set(desk, &name, false)?;
        resumed(desk, name)
    },
};

fn resumed(desk: &Desk, name: String) -> Result<Value, Failure> {
    let (_, in_flight) = in_flight(desk, &name)?;
    value(Drained {
        hba: name,
        drained: false,
        in_flight,
    })
}

fn set(desk: &Desk, name: &str, drained: bool) -> Result<(), Failure> {
    if desk.roster().set_drained(name, drained) {
        return Ok(());
    }
    let hbas = desk.roster().overview();
    Err(unknown("tenant", name, hbas.iter().map(|hba| &*hba.name)))
}

fn in_flight(desk: &Desk, name: &str) -> Result<(TenantState, usize), Failure> {
    let known = ask(desk.roster(), None, None);
    let found = known.iter().find(|known| known.hba.name == name);
    match found {
        Some(known) => Ok((known.state, known.said.in_flight)),
        None => Err(unknown(
            "tenant",
            name,
            known.iter().map(|known| &*known.hba.name),
        )),
    }
}
