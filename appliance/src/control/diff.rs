//! How two configurations differ, in words.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Config, HbaConfig, Limit, LunConfig};

/// What is different in `new`: each begins with "+", "-" or "~".
pub(super) fn diff(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    if old.name != new.name {
        changes.push(format!("~ name {:?} becomes {:?}", old.name, new.name));
    }
    if old.state != new.state {
        changes.push(format!("~ state {:?} becomes {:?}", old.state, new.state));
    }
    match (&old.metrics, &new.metrics) {
        (None, Some(listen)) => changes.push(format!("+ metrics: listen {listen}")),
        (Some(_), None) => changes.push("- metrics".into()),
        (Some(old), Some(new)) if old != new => changes.push(format!("~ metrics: listen {new}")),
        _ => {}
    }
    let by_name = |luns: &[LunConfig]| -> BTreeMap<String, LunConfig> {
        let luns = luns.iter();
        luns.map(|lun| (lun.name.clone(), lun.clone())).collect()
    };
    let (before, after) = (by_name(&old.luns), by_name(&new.luns));
    for name in names(before.keys(), after.keys()) {
        match (before.get(&name), after.get(&name)) {
            (None, Some(lun)) => changes.push(format!("+ LUN {name}: {}", source(lun))),
            (Some(lun), None) => changes.push(format!("- LUN {name}: {}", source(lun))),
            (Some(old), Some(new)) if old != new => {
                changes.push(format!("~ LUN {name}: {}", keys(old, new).join(", ")));
            }
            _ => {}
        }
    }
    changes.extend(groups(old, new));
    let by_uuid = |hbas: &[HbaConfig]| -> BTreeMap<_, HbaConfig> {
        hbas.iter().map(|hba| (hba.uuid, hba.clone())).collect()
    };
    let (before, after) = (by_uuid(&old.hbas), by_uuid(&new.hbas));
    for uuid in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        match (before.get(uuid), after.get(uuid)) {
            (None, Some(hba)) => {
                changes.push(format!("+ tenant {} ({uuid})", hba.name));
                changes.extend(views(&BTreeMap::new(), hba));
            }
            (Some(hba), None) => changes.push(format!("- tenant {} ({uuid})", hba.name)),
            (Some(old), Some(new)) => changes.extend(hba(old, new)),
            (None, None) => {}
        }
    }
    changes
}

fn names<'a>(
    before: impl Iterator<Item = &'a String>,
    after: impl Iterator<Item = &'a String>,
) -> BTreeSet<String> {
    before.chain(after).cloned().collect()
}

/// What is different about groups of HBAs that share a limit.
fn groups(old: &Config, new: &Config) -> Vec<String> {
    let limits = |config: &Config| -> BTreeMap<String, Limit> {
        let groups = config.groups.iter();
        groups
            .map(|group| (group.name.clone(), group.limit))
            .collect()
    };
    let (before, after) = (limits(old), limits(new));
    let names = names(before.keys(), after.keys()).into_iter();
    let changes = names.filter_map(|name| match (before.get(&name), after.get(&name)) {
        (None, Some(new)) => Some(format!("+ limit group {name}: {}", limit(new))),
        (Some(_), None) => Some(format!("- limit group {name}")),
        (Some(old), Some(new)) if old != new => {
            Some(format!("~ limit group {name}: {}", limit(new)))
        }
        _ => None,
    });
    changes.collect()
}

fn hba(old: &HbaConfig, new: &HbaConfig) -> Vec<String> {
    let name = &new.name;
    let mut changes = Vec::new();
    if old.name != new.name {
        changes.push(format!("~ tenant {} is named {name}", old.name));
    }
    if old.access != new.access {
        changes.push(format!("~ tenant {name}: access {:?}", new.access));
    }
    if old.poll != new.poll {
        changes.push(format!("~ tenant {name}: poll {:?}", new.poll));
    }
    if old.coalesce != new.coalesce {
        changes.push(format!("~ tenant {name}: {}", new.coalesce));
    }
    if old.workers != new.workers {
        let (count, pin) = (new.workers.count, &new.workers.pin);
        changes.push(format!("~ tenant {name}: workers {count}, pin {pin:?}"));
    }
    if old.port != new.port {
        changes.push(format!("~ tenant {name}: port {:?}", new.port));
    }
    if old.limit != new.limit {
        changes.push(format!("~ tenant {name}: limit {}", limit(&new.limit)));
    }
    if old.limit_group != new.limit_group {
        let group = new.limit_group.as_deref().unwrap_or("none");
        changes.push(format!("~ tenant {name}: limit_group {group}"));
    }
    if old.weight != new.weight {
        changes.push(format!("~ tenant {name}: weight {}", new.weight));
    }
    let before = old.luns.iter();
    let before: BTreeMap<_, _> = before.map(|(at, lun)| (at.to_string(), lun)).collect();
    changes.extend(views(&before, new));
    changes
}

/// What an HBA sees that it did not see, and the other way round.
fn views(before: &BTreeMap<String, &String>, new: &HbaConfig) -> Vec<String> {
    let name = &new.name;
    let after = new.luns.iter();
    let after: BTreeMap<_, _> = after.map(|(at, lun)| (at.to_string(), lun)).collect();
    let mut changes = Vec::new();
    for (at, lun) in before {
        if after.get(at) != Some(lun) {
            changes.push(format!("- tenant {name}: LUN {at} is no longer {lun}"));
        }
    }
    for (at, lun) in &after {
        if before.get(at) != Some(lun) {
            changes.push(format!("+ tenant {name}: LUN {at} is {lun}"));
        }
    }
    changes
}

/// Where the blocks of a LUN are, in the words of the configuration.
pub(super) fn source(lun: &LunConfig) -> String {
    use crate::config::Source;
    match &lun.source {
        Source::Serial(serial) => format!("serial {serial}"),
        Source::Path(path) => format!("path {}", path.display()),
        Source::Null(_) => "null".into(),
        Source::Ram(_) => "ram".into(),
    }
}

/// The keys in which two LUNs differ, with their new values.
fn keys(old: &LunConfig, new: &LunConfig) -> Vec<String> {
    let mut keys = Vec::new();
    let mut compare = |key: &str, differs: bool, value: String| {
        if differs {
            keys.push(format!("{key} {value}"));
        }
    };
    compare("source", old.source != new.source, source(new));
    let value = new.read_only.to_string();
    compare("read_only", old.read_only != new.read_only, value);
    compare("cache", old.cache != new.cache, format!("{:?}", new.cache));
    compare("bounce", old.bounce != new.bounce, new.bounce.to_string());
    compare("shared", old.shared != new.shared, new.shared.to_string());
    let value = new.block_size.to_string();
    compare("block_size", old.block_size != new.block_size, value);
    compare("size", old.size != new.size, given(new.size));
    let differs = old.provisioning != new.provisioning;
    compare("provisioning", differs, format!("{:?}", new.provisioning));
    let seconds = new.timeout.map(|timeout| timeout.as_secs());
    compare("timeout", old.timeout != new.timeout, given(seconds));
    let value = format!("{:?}", new.on_error);
    compare("on_error", old.on_error != new.on_error, value);
    let differs = old.threshold != new.threshold;
    compare("threshold", differs, given(new.threshold));
    compare("limit", old.limit != new.limit, limit(&new.limit));
    keys
}

/// A limit in the words of the configuration.
fn limit(limit: &Limit) -> String {
    let mut parts = Vec::new();
    if let Some(iops) = limit.iops {
        parts.push(format!("iops {iops}"));
    }
    if let Some(bytes) = limit.bytes_per_second {
        parts.push(format!("bytes_per_second {bytes}"));
    }
    if parts.is_empty() {
        return "none".into();
    }
    parts.push(format!("burst {}", limit.burst.as_millis()));
    parts.join(" ")
}

fn given<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "as by default".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("a.toml")).unwrap()
    }

    #[test]
    fn every_difference_is_named() {
        let one = parse(
            "name = \"a\"\n[[lun]]\nname = \"x\"\nkind = \"null\"\nsize = 512\n[[lun]]\nname = \
             \"y\"\npath = \"/y\"\n[[hba]]\nname = \"t\"\nuuid = \
             \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\nluns = { \"0\" = \"x\", \"1\" = \"y\" }\n",
        );
        let other = parse(
            "name = \"a\"\n[[lun]]\nname = \"y\"\npath = \"/y\"\ntimeout = 7\nlimit = { iops = 9 }\n[[lun]]\nname = \
             \"z\"\nserial = \"z\"\n[[hba]]\nname = \"t\"\nuuid = \
             \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\nluns = { \"1\" = \"z\", \"2\" = \"y\" }\n\
             [[hba]]\nname = \"u\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-222222222222\"\nluns = {}\n",
        );
        assert_eq!(
            diff(&one, &other),
            [
                "- LUN x: null",
                "~ LUN y: timeout 7, limit iops 9 burst 50",
                "+ LUN z: serial z",
                "- tenant t: LUN 0:0 is no longer x",
                "- tenant t: LUN 0:1 is no longer y",
                "+ tenant t: LUN 0:1 is z",
                "+ tenant t: LUN 0:2 is y",
                "+ tenant u (2f0c4fd2-4f6c-4b3c-9d3b-222222222222)",
            ]
        );
        assert!(diff(&one, &one).is_empty());
    }

    #[test]
    fn metrics_come_go_and_move() {
        let nowhere = parse("name = \"a\"\n");
        let at = |place: &str| parse(&format!("name = \"a\"\n[metrics]\nlisten = {place:?}\n"));
        let (here, there) = (at("127.0.0.1:9177"), at("/run/m.sock"));
        assert_eq!(diff(&nowhere, &here), ["+ metrics: listen 127.0.0.1:9177"]);
        assert_eq!(diff(&here, &there), ["~ metrics: listen /run/m.sock"]);
        assert_eq!(diff(&there, &nowhere), ["- metrics"]);
        assert!(diff(&there, &there).is_empty());
    }
}
