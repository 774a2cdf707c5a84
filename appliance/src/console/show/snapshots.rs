//! Snapshots of LUNs.

use serde_json::Value;

use crate::console::style::Style;
use crate::console::table::Table;
use crate::console::units::bytes;
use crate::control::protocol::Snapshot;

pub(in crate::console) fn snapshots(snapshots: &Vec<Snapshot>, style: Style) -> String {
    if snapshots.is_empty() {
        return "no snapshots\n".into();
    }
    let mut table = Table::new(&["SNAPSHOT", "TAKEN (UTC)", ">SIZE", ">OCCUPIES"]);
    for snapshot in snapshots {
        table.row([
            snapshot.name.clone(),
            taken_at(snapshot),
            bytes(snapshot.bytes),
            bytes(snapshot.used),
        ]);
    }
    table.render(style)
}

/// Without the letters of RFC 3339.
fn taken_at(snapshot: &Snapshot) -> String {
    snapshot
        .created
        .replace('T', " ")
        .trim_end_matches('Z')
        .to_owned()
}

pub(in crate::console) fn taken(snapshot: &Snapshot, _: Style) -> String {
    let Snapshot { lun, name, .. } = snapshot;
    format!("{name} is taken; lun snapshot {lun} rollback {name} goes back to it\n")
}

pub(in crate::console) fn rolled_back(result: &Value, _: Style) -> String {
    let text = |key: &str| result[key].as_str().unwrap_or("?").to_owned();
    let (lun, name) = (text("name"), text("snapshot"));
    format!("{lun} is as it was at {name}; who sees it is told\n")
}
