//! What changes about shims, from one look to the next.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Status;
use super::find::{Found, Shim, find};

/// Looks into `folder` every `interval` and writes what changed to `to`, one line each, until
/// nobody reads it any more; first what there is.
///
/// # Errors
/// What reading the folder or writing reports.
pub fn watch(folder: &Path, interval: Duration, json: bool, to: &mut impl Write) -> io::Result<()> {
    let mut before: Vec<Found> = Vec::new();
    loop {
        let now = find(folder)?;
        for (path, name, what) in changes(&before, &now) {
            let line = if json {
                // A path need not be UTF-8, as JSON is.
                let line = serde_json::json!({
                    "at": seconds(), "path": path.to_string_lossy(), "name": name, "what": what,
                });
                line.to_string()
            } else {
                format!("{} {name}: {what}", clock(seconds()))
            };
            writeln!(to, "{line}")?;
        }
        to.flush()?;
        before = now;
        std::thread::sleep(interval);
    }
}

/// What is different in `after`: the socket, the HBA and what.
fn changes(before: &[Found], after: &[Found]) -> Vec<(PathBuf, String, String)> {
    let mut all = Vec::new();
    let mut tell = |found: &Found, what: Vec<String>| {
        for what in what {
            // A shim's words may have come from a tenant, or it is none.
            let clean = |text: String| text.chars().filter(|c| !c.is_control()).collect();
            all.push((found.path.clone(), clean(found.name()), clean(what)));
        }
    };
    let at = |all: &[Found], path: &Path| all.iter().position(|found| found.path == path);
    for old in before {
        if at(after, &old.path).is_none() {
            tell(old, vec!["ended".into()]);
        }
    }
    for new in after {
        let old = at(before, &new.path).map(|place| &before[place].shim);
        let what = match (old, &new.shim) {
            (Some(old), shim) if old == shim => continue,
            (Some(Shim::Running(old)), Shim::Running(now)) => between(old, now),
            (_, Shim::Running(now)) => {
                let mut what = vec![format!("runs, pid {}", now.pid)];
                what.extend(between(&Status::default(), now).into_iter().skip(1));
                what
            }
            (_, Shim::Gone) => vec!["gone: it was killed, and left its socket behind".into()],
            (_, Shim::Silent(why)) => vec![format!("silent: {why}")],
            (_, Shim::Denied) => vec!["denied: only its user and root may ask it".into()],
        };
        tell(new, what);
    }
    all
}

/// What changed about a shim that runs; counters and times always do. Another process comes first.
fn between(old: &Status, new: &Status) -> Vec<String> {
    let mut what = Vec::new();
    if old.pid != new.pid {
        what.push(format!("another supervisor goes on, pid {}", new.pid));
    }
    let mut either = |differs: bool, is: bool, yes: String, no: &str| {
        if differs {
            what.push(if is { yes } else { no.to_owned() });
        }
    };
    let (was, is) = (&old.tenant, &new.tenant);
    let told = "tenant connected".to_owned();
    either(
        was.connected != is.connected,
        is.connected,
        told,
        "tenant gone",
    );
    let features = is.features.unwrap_or_default();
    either(
        was.features != is.features,
        is.features.is_some(),
        format!("driver started, features {features:#x}"),
        "driver stopped",
    );
    either(
        (was.regions, was.memory) != (is.regions, is.memory),
        is.regions > 0,
        format!("memory: {} MiB in {} regions", is.memory >> 20, is.regions),
        "memory gone",
    );
    let rings: Vec<_> = is.rings.iter().map(ToString::to_string).collect();
    either(
        was.rings != is.rings,
        !is.rings.is_empty(),
        format!("rings that run: {}", rings.join(", ")),
        "no ring runs",
    );
    let (was, is) = (&old.storage, &new.storage);
    let port = is.port.clone().unwrap_or_default();
    either(
        was.port != is.port,
        is.port.is_some(),
        format!("plugged into port {port}"),
        "unplugged",
    );
    let told = "storage QEMU connected".to_owned();
    either(
        was.connected != is.connected,
        is.connected,
        told,
        "storage QEMU gone",
    );
    let told = "appliance attached".to_owned();
    either(
        was.appliance != is.appliance,
        is.appliance,
        told,
        "appliance detached",
    );
    either(!old.stopping && new.stopping, true, "stopping".into(), "");
    // The same words at another time are another error.
    let happened = |status: &Status| {
        let error = status.error.as_ref()?;
        Some((
            error.text.clone(),
            status.uptime_s.saturating_sub(error.ago_s),
        ))
    };
    if let Some((text, at)) = happened(new)
        && happened(old).is_none_or(|(was, before)| was != text || at > before + 1)
    {
        what.push(format!("error: {text}"));
    }
    what
}

/// Seconds since 1970.
fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The time of day, in UTC.
fn clock(seconds: u64) -> String {
    let of_day = seconds % 86400;
    let (hours, minutes) = (of_day / 3600, of_day / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}Z", of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Complaint;

    fn found(shim: Shim) -> Found {
        Found {
            path: "/run/t1.vfio.status".into(),
            shim,
        }
    }

    fn running(change: impl FnOnce(&mut Status)) -> Found {
        let mut status = Status {
            name: "t1".into(),
            pid: 7,
            ..Status::default()
        };
        change(&mut status);
        found(Shim::Running(Box::new(status)))
    }

    fn told(before: &[Found], after: &[Found]) -> Vec<String> {
        let told = changes(before, after).into_iter();
        told.map(|(_, name, what)| format!("{name}: {what}"))
            .collect()
    }

    #[test]
    fn a_tenant_that_comes_and_goes_is_told_step_by_step() {
        let idle = running(|_| {});
        let busy = running(|status| {
            status.tenant.connected = true;
            status.tenant.features = Some(0x1_0000_0000);
            (status.tenant.regions, status.tenant.memory) = (1, 4 << 20);
            status.tenant.rings = vec![0, 2];
            status.storage.port = Some("rp0".into());
            status.storage.connected = true;
            status.storage.appliance = true;
        });
        let came = [
            "t1: tenant connected",
            "t1: driver started, features 0x100000000",
            "t1: memory: 4 MiB in 1 regions",
            "t1: rings that run: 0, 2",
            "t1: plugged into port rp0",
            "t1: storage QEMU connected",
            "t1: appliance attached",
        ];
        assert_eq!(
            told(std::slice::from_ref(&idle), std::slice::from_ref(&busy)),
            came
        );
        let went = [
            "t1: tenant gone",
            "t1: driver stopped",
            "t1: memory gone",
            "t1: no ring runs",
            "t1: unplugged",
            "t1: storage QEMU gone",
            "t1: appliance detached",
        ];
        assert_eq!(told(&[busy], &[idle]), went);
    }

    #[test]
    fn counters_and_time_are_no_changes() {
        let later = running(|status| {
            status.counters.kicks = 9;
            status.uptime_s = 3;
        });
        assert!(told(&[running(|_| {})], &[later]).is_empty());
    }

    #[test]
    fn shims_come_are_killed_and_end() {
        let runs = running(|_| {});
        assert_eq!(told(&[], std::slice::from_ref(&runs)), ["t1: runs, pid 7"]);
        let gone = told(std::slice::from_ref(&runs), &[found(Shim::Gone)]);
        assert_eq!(
            gone,
            ["t1.vfio: gone: it was killed, and left its socket behind"]
        );
        assert_eq!(told(&[runs], &[]), ["t1: ended"]);
    }

    #[test]
    fn an_error_is_told_once_and_again_when_it_happens_again() {
        let at = |uptime_s, ago_s| {
            running(|status| {
                status.uptime_s = uptime_s;
                status.name = "t\u{1b}1".into();
                let text = "two\u{1b} backends".into();
                status.error = Some(Complaint { text, ago_s });
            })
        };
        let error = ["t1: error: two backends"];
        assert_eq!(told(&[running(|_| {})], &[at(10, 0)]), error);
        assert!(told(&[at(10, 0)], &[at(15, 5)]).is_empty());
        assert_eq!(told(&[at(15, 5)], &[at(16, 0)]), error);
    }

    #[test]
    fn another_supervisor_is_told() {
        let other = running(|status| status.pid = 8);
        let told = told(&[running(|_| {})], &[other]);
        assert_eq!(told, ["t1: another supervisor goes on, pid 8"]);
    }

    #[test]
    fn the_time_of_day_is_that_of_utc() {
        assert_eq!(clock(1_700_000_000), "22:13:20Z");
    }
}
