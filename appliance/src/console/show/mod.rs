//! Results as an operator reads them.

mod changes;
mod listing;
mod one;
mod records;
mod snapshots;

pub(super) use self::changes::{applied, checked, diff, drained, hba_added, resized, saved};
pub(super) use self::listing::{disks, luns, status, tenants};
pub(super) use self::one::{explanation, one};
pub(super) use self::records::{level, log, trace, trace_lines};
pub(super) use self::snapshots::{rolled_back, snapshots, taken};
use super::style::Kind;
use crate::control::protocol::TenantState;

/// What a state is called, and what it is.
fn state(state: TenantState) -> (&'static str, Option<Kind>) {
    match state {
        TenantState::Absent => ("absent", Some(Kind::Faint)),
        TenantState::Attached => ("attached", Some(Kind::Good)),
        TenantState::Ending => ("ending", Some(Kind::Bad)),
        TenantState::Silent => ("silent", Some(Kind::Bad)),
    }
}

/// What the state of a LUN or disk is.
fn kind(state: &str) -> Option<Kind> {
    Some(if state == "ok" { Kind::Good } else { Kind::Bad })
}

/// "1 LUN", "2 LUNs".
fn number(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}
