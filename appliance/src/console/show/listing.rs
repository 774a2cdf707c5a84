//! Tables of tenants, LUNs and disks.

use std::fmt::Write;

use super::{kind, number, state};
use crate::console::style::{Kind, Style};
use crate::console::table::{Table, wrap};
use crate::console::units::{bytes, count, seconds};
use crate::control::protocol::{CountersSnapshot, Disk, Lun, Status, Tenant, TenantState};

pub(in crate::console) fn status(status: &Status, style: Style) -> String {
    let attached = |tenant: &&Tenant| tenant.state == TenantState::Attached;
    let attached = status.tenants.iter().filter(attached).count();
    let mut text = format!(
        "{}, appliance {}, up {}\n{}, {attached} attached; {}\n",
        style.paint(Kind::Heading, &status.name),
        status.version,
        seconds(status.uptime_s),
        number(status.tenants.len(), "tenant"),
        number(status.luns, "LUN"),
    );
    let saved = match (&status.config, status.saved) {
        (Some(file), true) => format!("configuration {file}"),
        (Some(file), false) => style.paint(
            Kind::Warning,
            &format!("configuration is not what is in {file}: config save keeps it"),
        ),
        (None, _) => "configuration from the command line".into(),
    };
    text += &saved;
    text.push('\n');
    if let Some(since) = status.changing {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "a change is under way since {}", seconds(since));
    }
    if !status.tenants.is_empty() {
        text.push('\n');
        text += &tenants(&status.tenants, style);
    }
    text.push('\n');
    if status.problems.is_empty() {
        text += &style.paint(Kind::Good, "no problems");
        text.push('\n');
    }
    for problem in &status.problems {
        text += &style.paint(Kind::Bad, wrap(&format!("! {problem}"), 2).trim_end());
        text.push('\n');
    }
    text
}

/// What was counted about all of an HBA's LUNs.
fn sum(tenant: &Tenant) -> CountersSnapshot {
    let mut sum = CountersSnapshot::default();
    for unit in &tenant.units {
        sum.add(&unit.counters);
    }
    sum
}

pub(in crate::console) fn tenants(tenants: &Vec<Tenant>, style: Style) -> String {
    let mut table = Table::new(&[
        "TENANT",
        "STATE",
        ">LUNS",
        ">IN FLIGHT",
        ">COMMANDS",
        ">READ",
        ">WRITTEN",
        ">ERRORS",
    ]);
    for tenant in tenants {
        let counters = sum(tenant);
        let errors = counters.errors();
        let (name, kind) = state(tenant.state);
        let (name, kind) = if tenant.drained {
            ("drained", Some(Kind::Warning))
        } else {
            (name, kind)
        };
        table.styled([
            (tenant.name.clone(), None),
            (name.into(), kind),
            (tenant.luns.len().to_string(), None),
            (tenant.in_flight.to_string(), None),
            (count(counters.commands), None),
            (bytes(counters.bytes_read), None),
            (bytes(counters.bytes_written), None),
            (count(errors), (errors > 0).then_some(Kind::Warning)),
        ]);
    }
    table.render(style)
}

pub(in crate::console) fn luns(luns: &Vec<Lun>, style: Style) -> String {
    let mut table = Table::new(&["LUN", ">SIZE", "STATE", "SEEN BY", "SOURCE", "KIND"]);
    for lun in luns {
        let seen = lun.seen_by.iter();
        let seen: Vec<_> = seen.map(|(hba, at)| format!("{hba} {at}")).collect();
        let mut traits = Vec::new();
        if lun.read_only {
            traits.push("ro");
        }
        if lun.shared {
            traits.push("shared");
        }
        if lun.cache == "write-back" {
            traits.push("cached");
        }
        let seen = if seen.is_empty() {
            "nobody".to_owned()
        } else {
            seen.join(", ")
        };
        table.styled([
            (lun.name.clone(), None),
            (bytes(lun.bytes), None),
            (lun.state.clone(), kind(&lun.state)),
            (seen, None),
            (lun.source.clone(), None),
            (traits.join(","), None),
        ]);
    }
    table.render(style)
}

pub(in crate::console) fn disks(disks: &Vec<Disk>, style: Style) -> String {
    let known = |size: Option<u64>| size.map_or_else(|| "?".into(), bytes);
    let mut table = Table::new(&["LUN", ">SIZE", ">USED", ">LEFT", "THIN", "STATE", "DISK"]);
    for disk in disks {
        table.styled([
            (disk.lun.clone(), None),
            (bytes(disk.bytes), None),
            (known(disk.used), None),
            (known(disk.available), None),
            (if disk.thin { "yes" } else { "no" }.into(), None),
            (disk.state.clone(), kind(&disk.state)),
            (disk.source.clone(), None),
        ]);
    }
    table.render(style)
}
