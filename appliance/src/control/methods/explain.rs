//! The method that says what a LUN waits for.

use serde::Deserialize;

use super::look::holder;
use super::{Method, params, value};
use crate::control::ask::{Known, ask};
use crate::control::desk::Desk;
use crate::control::edit::unknown;
use crate::control::protocol::{Explanation, Failure, TaskSnapshot, TenantState};

/// Milliseconds from which a command under way is slow.
const SLOW_MS: u64 = 1000;

pub(super) const EXPLAIN: Method = Method {
    name: "explain",
    params: &[("lun", "text", "name of the LUN")],
    result: "`Explanation`",
    about: "Says why a LUN is slow or stuck: what waits on what, for how long.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Explain {
            lun: String,
        }
        let Explain { lun } = params(given)?;
        value(explain(desk, lun)?)
    },
};

fn explain(desk: &Desk, lun: String) -> Result<Explanation, Failure> {
    let luns = desk.roster().luns();
    let Some(unit) = luns.get(&lun) else {
        for error in desk.appliance().problems() {
            if error.lun == lun {
                return Ok(Explanation {
                    findings: vec![format!("it is not served: {}", error.problem)],
                    tasks: Vec::new(),
                    lun,
                });
            }
        }
        return Err(unknown("LUN", &lun, luns.keys().map(|name| &**name)));
    };
    let known = ask(desk.roster(), Some(&lun), None);
    let mut findings = Vec::new();
    if desk.roster().silent().contains(&lun) {
        findings.push(
            "its disk does not answer, not even to be asked for its size: look at what is below it"
                .to_owned(),
        );
    }
    let seers: Vec<_> = known
        .iter()
        .filter(|known| known.hba.units.values().any(|seen| seen.name() == lun))
        .collect();
    if seers.is_empty() {
        findings.push("no tenant sees it: lun move LUN TENANT shows it to one".into());
    }
    for known in &seers {
        findings.extend(of_seer(known, &lun));
    }
    if let Some(holder) = holder(unit, &known) {
        findings.push(format!(
            "it is reserved by {holder}: others may meet RESERVATION CONFLICT"
        ));
    }
    let tasks: Vec<(String, TaskSnapshot)> = seers
        .iter()
        .flat_map(|known| {
            let tasks = known.said.tasks.iter();
            tasks.map(|task| (known.hba.name.clone(), task.clone()))
        })
        .collect();
    let slow = tasks.iter().filter(|(_, task)| task.age_ms >= SLOW_MS);
    let oldest = tasks.iter().map(|(_, task)| task.age_ms).max();
    match (slow.count(), oldest) {
        (0, _) => {}
        (slow, oldest) => {
            let seconds = oldest.unwrap_or(0) / 1000;
            let patience = unit.patience().as_secs();
            findings.push(format!(
                "commands under way for more than a second: {slow}, the oldest for {seconds} s; \
                 they are given up after {patience} s"
            ));
        }
    }
    if findings.is_empty() {
        findings.push("nothing keeps it: no command has waited for longer than a second".into());
    }
    Ok(Explanation {
        lun,
        findings,
        tasks,
    })
}

/// What there is to say about one HBA that sees it.
fn of_seer(known: &Known, lun: &str) -> Vec<String> {
    let name = &known.hba.name;
    let mut findings = Vec::new();
    match known.state {
        TenantState::Attached if known.said.rings == 0 => {
            findings.push(format!(
                "tenant {name} has started no ring: its driver is not up"
            ));
        }
        TenantState::Attached => {}
        TenantState::Absent => findings.push(format!(
            "tenant {name} is not there: its function is not plugged, or its socket not served"
        )),
        TenantState::Ending => findings.push(format!(
            "tenant {name} was let go, but a disk does not finish what was begun for it"
        )),
        TenantState::Silent => findings.push(format!(
            "the worker of tenant {name} does not answer within a second: it hangs or is overloaded"
        )),
    }
    if known.hba.drained {
        findings.push(format!(
            "tenant {name} is drained, so its new commands wait in its rings; end that with: \
             resume {name}"
        ));
    }
    if known.said.in_flight >= known.said.most_in_flight && known.said.in_flight > 0 {
        findings.push(format!(
            "tenant {name} has {} commands under way, as many as there may be; more wait in its \
             rings",
            known.said.in_flight
        ));
    }
    let units = || known.said.units.iter().filter(|unit| unit.lun == lun);
    let limited: usize = units().map(|unit| unit.limited).sum();
    if limited > 0 {
        findings.push(format!(
            "a limit keeps {limited} commands of tenant {name} from its disk: that of the LUN, of \
             the tenant or of its group; look with: show {lun}, show {name}"
        ));
    }
    for pause in units().filter_map(|unit| unit.pause.as_ref()) {
        findings.push(format!(
            "it pauses since {} s, because its disk is full, gone or fails: {} commands of tenant \
             {name} wait until it is mended",
            pause.for_ms / 1000,
            pause.held
        ));
    }
    findings
}
