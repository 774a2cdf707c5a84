//! Everything about one tenant or one LUN.

use serde::{Deserialize, Serialize};

use super::{kind, state};
use crate::console::style::{Kind, Style};
use crate::console::table::{Table, wrap};
use crate::console::units::{bytes, count, micros};
use crate::control::protocol::{
    CountersSnapshot, Explanation, Limit, Lun, Tenant, UnitSnapshot, WorkerSnapshot, sense_key,
};

/// Result of `show`.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::console) struct One {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<Tenant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lun: Option<Lun>,
}

pub(in crate::console) fn one(one: &One, style: Style) -> String {
    let mut parts = Vec::new();
    parts.extend(one.tenant.as_ref().map(|shown| tenant(shown, style)));
    parts.extend(one.lun.as_ref().map(|shown| lun(shown, style)));
    parts.join("\n")
}

/// Lines of a name and a value.
fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let facts = facts.iter();
    facts
        .map(|(name, value)| wrap_fact(name, value, width))
        .collect()
}

fn wrap_fact(name: &str, value: &str, width: usize) -> String {
    // Wrapped as if the name were a word of that width.
    let space = "\u{a0}".repeat(width.saturating_sub(name.chars().count() + 1));
    wrap(
        &format!("{}{space} {value}", name.replace(' ', "\u{a0}")),
        width,
    )
    .replace('\u{a0}', " ")
}

fn tenant(tenant: &Tenant, style: Style) -> String {
    let (name, kind) = state(tenant.state);
    let state = kind.map_or_else(|| name.to_owned(), |kind| style.paint(kind, name));
    let drained = if tenant.drained {
        style.paint(Kind::Warning, ", drained")
    } else {
        String::new()
    };
    let polls = if tenant.polls { ", polls now" } else { "" };
    let mut text = style.paint(Kind::Heading, &format!("tenant {}", tenant.name));
    text.push('\n');
    let mut lines = vec![
        ("state", state + &drained),
        ("uuid", tenant.uuid.clone()),
        ("rings", tenant.rings.to_string()),
        (
            "in flight",
            format!("{} of {}", tenant.in_flight, tenant.most_in_flight),
        ),
        (
            "poll",
            format!("{} µs{polls}", tenant.poll).replace("always µs", "always"),
        ),
        ("access", tenant.access.clone()),
        ("to no LUN", format!("{} commands", count(tenant.elsewhere))),
    ];
    lines.extend(tenant.limit.as_ref().map(|own| ("limit", limit(own))));
    if let Some((group, shared)) = &tenant.group {
        let shared = shared.as_ref().map_or_else(|| "no limit".into(), limit);
        lines.push(("group", format!("{group}: {shared}")));
    }
    if tenant.weight > 1 {
        lines.push(("weight", tenant.weight.to_string()));
    }
    if let Some(memory) = &tenant.memory {
        lines.push(("memory", memory.clone()));
    }
    text += &facts(&lines);
    // Of one that has only one there is nothing more to say.
    if tenant.workers.len() > 1 {
        text.push('\n');
        text += &workers(&tenant.workers, style);
    }
    let mut table = Table::new(&[
        "AT", "LUN", ">IN FL", ">CMDS", ">READ", ">WRITTEN", ">P50", ">P99", ">MAX",
    ]);
    for (at, lun) in &tenant.luns {
        let unit = tenant.units.iter().find(|unit| unit.at == *at);
        // One of a tenant that did not answer has no figures, which is something else than zeros.
        let figure = |shown: fn(&UnitSnapshot) -> String| unit.map_or_else(|| "-".into(), shown);
        table.row([
            at.clone(),
            lun.clone(),
            figure(|unit| unit.in_flight.to_string()),
            figure(|unit| count(unit.counters.commands)),
            figure(|unit| bytes(unit.counters.bytes_read)),
            figure(|unit| bytes(unit.counters.bytes_written)),
            figure(|unit| micros(unit.counters.latency.percentile(50))),
            figure(|unit| micros(unit.counters.latency.percentile(99))),
            figure(|unit| micros(unit.counters.latency.max_us)),
        ]);
    }
    if !tenant.luns.is_empty() {
        text.push('\n');
        text += &table.render(style);
    }
    text
}

/// A limit in words.
fn limit(limit: &Limit) -> String {
    let iops = limit.iops.map(|iops| format!("{} operations", count(iops)));
    let rate = limit.bytes_per_second.map(bytes);
    let parts: Vec<_> = iops.into_iter().chain(rate).collect();
    let burst = limit.burst_ms;
    format!("{} a second, bursts of {burst} ms", parts.join(", "))
}

fn workers(workers: &[WorkerSnapshot], style: Style) -> String {
    let mut table = Table::new(&[">WORKER", ">CPU", "RINGS", ">IN FL", "POLLS"]);
    for worker in workers {
        let rings = worker.rings.iter().map(u16::to_string);
        table.row([
            worker.place.to_string(),
            worker
                .cpu
                .map_or_else(|| "any".into(), |cpu| cpu.to_string()),
            rings.collect::<Vec<_>>().join(" "),
            worker.in_flight.to_string(),
            if worker.polls { "yes" } else { "no" }.into(),
        ]);
    }
    table.render(style)
}

fn lun(lun: &Lun, style: Style) -> String {
    let mut text = style.paint(Kind::Heading, &format!("LUN {}", lun.name));
    text.push('\n');
    let state = match kind(&lun.state) {
        Some(kind) => style.paint(kind, &lun.state),
        None => lun.state.clone(),
    };
    let seen = lun.seen_by.iter();
    let seen: Vec<_> = seen.map(|(hba, at)| format!("{hba} at {at}")).collect();
    let mut access = vec![lun.cache.clone()];
    if lun.read_only {
        access.push("read-only".into());
    }
    if lun.shared {
        access.push("shared".into());
    }
    let mut lines = vec![
        ("state", state),
        ("source", lun.source.clone()),
        (
            "size",
            format!(
                "{} ({} bytes, blocks of {})",
                bytes(lun.bytes),
                lun.bytes,
                lun.block_size
            ),
        ),
        ("access", access.join(", ")),
        ("data goes", lun.way.clone()),
        (
            "seen by",
            if seen.is_empty() {
                "nobody".into()
            } else {
                seen.join(", ")
            },
        ),
        (
            "reserved",
            lun.reserved_by
                .clone()
                .unwrap_or_else(|| "by nobody".into()),
        ),
        ("in flight", lun.in_flight.to_string()),
    ];
    lines.extend(lun.limit.as_ref().map(|own| ("limit", limit(own))));
    text += &facts(&lines);
    text += &counted(&lun.counters);
    if let Some(copied) = lun.copied.filter(|copied| copied.sum() > 0) {
        let ways = [
            (copied.reflink, "by reflink"),
            (copied.filesystem, "by the filesystem"),
            (copied.pool, "read and written"),
        ];
        let ways = ways.iter().filter(|(came, _)| *came > 0);
        let ways: Vec<_> = ways
            .map(|(came, way)| format!("{} {way}", bytes(*came)))
            .collect();
        text += &facts(&[("copied to", ways.join(", "))]);
    }
    text
}

fn counted(counters: &CountersSnapshot) -> String {
    let latency = &counters.latency;
    let mut lines = vec![
        (
            "commands",
            format!(
                "{}: {} reads of {}, {} writes of {}",
                counters.commands,
                counters.reads,
                bytes(counters.bytes_read),
                counters.writes,
                bytes(counters.bytes_written)
            ),
        ),
        (
            "latency",
            format!(
                "p50 {}, p99 {}, longest {}",
                micros(latency.percentile(50)),
                micros(latency.percentile(99)),
                micros(latency.max_us)
            ),
        ),
    ];
    let keys = counters.sense_keys.iter();
    let mut errors: Vec<_> = keys
        .map(|(key, count)| format!("{count} {}", sense_key(*key)))
        .collect();
    for (count, what) in [
        (counters.other_status, "with another status"),
        (
            counters.not_carried_out,
            "reset, aborted or not carried out",
        ),
    ] {
        if count > 0 {
            errors.push(format!("{count} {what}"));
        }
    }
    if !errors.is_empty() {
        lines.push(("not good", errors.join(", ")));
    }
    facts(&lines)
}

pub(in crate::console) fn explanation(explanation: &Explanation, style: Style) -> String {
    let mut text = style.paint(Kind::Heading, &format!("LUN {}", explanation.lun));
    text.push('\n');
    for finding in &explanation.findings {
        text += &wrap(&format!("* {finding}"), 2);
    }
    if explanation.tasks.is_empty() {
        return text;
    }
    text.push('\n');
    let mut table = Table::new(&["TENANT", "COMMAND UNDER WAY", ">AGE", "WAITS"]);
    for (hba, task) in &explanation.tasks {
        table.row([
            hba.clone(),
            task.command.clone(),
            micros(task.age_ms.saturating_mul(1000)),
            task.waits.clone(),
        ]);
    }
    text + &table.render(style)
}
