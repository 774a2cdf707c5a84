//! Shims as a table of 80 columns.

use std::fmt::Write;

use super::find::{Found, Shim};
use super::{Complaint, Status};

/// Columns of a line.
const WIDTH: usize = 80;
/// What the first line says, and how wide each column is; the last has the rest.
const HEADS: [(&str, usize); 8] = [
    ("HBA", 17),
    ("TENANT", 10),
    ("RINGS", 5),
    ("MEMORY", 11),
    ("STORAGE", 9),
    ("APPLIANCE", 9),
    ("TRAPPED", 7),
    ("UP", 4),
];

/// The table, with what went wrong below it.
#[must_use]
pub fn table(found: &[Found]) -> String {
    if found.is_empty() {
        return "no shim\n".into();
    }
    let mut text = row(&HEADS.map(|(head, _)| head.to_owned()));
    let mut notes = String::new();
    for found in found {
        let name = found.name();
        match &found.shim {
            Shim::Running(status) => {
                text += &row(&cells(status));
                note(&mut notes, &name, status.error.as_ref());
            }
            Shim::Gone => {
                text += &row(&state(&name, "gone"));
                let path = found.path.display();
                wrap(
                    &mut notes,
                    &format!("{name}: it was killed; its socket {path} was left behind"),
                );
            }
            Shim::Silent(why) => {
                text += &row(&state(&name, "silent"));
                wrap(&mut notes, &format!("{name}: {why}"));
            }
            Shim::Denied => {
                text += &row(&state(&name, "denied"));
                let mend = "only its user and root may ask it; use sudo";
                wrap(&mut notes, &format!("{name}: {mend}"));
            }
        }
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    text + &notes
}

fn state(name: &str, state: &str) -> [String; 8] {
    let mut cells: [String; 8] = std::array::from_fn(|_| "-".into());
    cells[0] = name.to_owned();
    cells[1] = state.to_owned();
    cells
}

fn cells(status: &Status) -> [String; 8] {
    let (tenant, storage) = (&status.tenant, &status.storage);
    let tenant_state = match (status.stopping, tenant.connected, tenant.features) {
        (true, ..) => "stopping",
        (_, false, _) => "none",
        (_, true, None) => "connected",
        (_, true, Some(_)) => "started",
    };
    let memory = match tenant.regions {
        0 => "-".into(),
        regions => format!("{} in {regions}", bytes(tenant.memory)),
    };
    let port = match (&storage.port, storage.connected) {
        (Some(port), _) => port.clone(),
        (None, true) => "connected".into(),
        (None, false) => "none".into(),
    };
    [
        status.name.clone(),
        tenant_state.into(),
        tenant.rings.len().to_string(),
        memory,
        port,
        if storage.appliance {
            "attached"
        } else {
            "none"
        }
        .into(),
        short(status.counters.trapped_doorbells),
        time(status.uptime_s),
    ]
}

fn row(cells: &[String; 8]) -> String {
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(HEADS) {
        // Writing to a String cannot fail.
        let _ = write!(line, "{:width$} ", cut(cell, width));
    }
    let mut line = line.trim_end().to_owned();
    line.push('\n');
    line
}

/// The text, or as much of it as fits.
fn cut(text: &str, width: usize) -> String {
    let printable = text.chars().map(|c| if c.is_control() { '?' } else { c });
    if text.chars().count() <= width {
        return printable.collect();
    }
    let mut cut: String = printable.take(width - 1).collect();
    cut.push('…');
    cut
}

fn note(notes: &mut String, name: &str, error: Option<&Complaint>) {
    if let Some(Complaint { text, ago_s }) = error {
        wrap(notes, &format!("{name}, {} ago: {text}", time(*ago_s)));
    }
}

/// Appends a paragraph, in lines of at most 80 columns where words let it.
fn wrap(notes: &mut String, text: &str) {
    let mut used = 0;
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !c.is_control()).collect();
        let len = word.chars().count();
        if used > 0 && used + 1 + len > WIDTH {
            notes.push_str("\n  ");
            used = 2;
        } else if used > 0 {
            notes.push(' ');
            used += 1;
        }
        notes.push_str(&word);
        used += len;
    }
    notes.push('\n');
}

/// A time, in the largest unit of which it has two, or one.
pub(super) fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A size.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{}K", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{}M", bytes >> 20),
        _ => format!("{}G", bytes >> 30),
    }
}

/// A count.
fn short(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..1_000_000_000 => format!("{}M", count / 1_000_000),
        _ => format!("{}G", count / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Counted, Storage, Tenant};

    fn found(name: &str, shim: Shim) -> Found {
        Found {
            path: format!("/run/vhost-pci/{name}.status").into(),
            shim,
        }
    }

    fn busy() -> Status {
        Status {
            name: "tenant1".into(),
            uptime_s: 7300,
            tenant: Tenant {
                connected: true,
                features: Some(1 << 32),
                regions: 2,
                memory: 4 << 30,
                rings: vec![0, 1, 2],
                waiting: 0,
            },
            storage: Storage {
                port: Some("rp0".into()),
                connected: true,
                appliance: true,
                vectors: 4,
            },
            counters: Counted {
                trapped_doorbells: 1234,
                ..Counted::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn a_shim_that_works_is_one_line() {
        let table = table(&[found("tenant1.vfio", Shim::Running(Box::new(busy())))]);
        assert_eq!(
            table,
            "\
HBA               TENANT     RINGS MEMORY      STORAGE   APPLIANCE TRAPPED UP
tenant1           started    3     4G in 2     rp0       attached  1234    2h
"
        );
    }

    #[test]
    fn what_went_wrong_stands_below_with_its_mend() {
        let status = Status {
            name: "t2".into(),
            error: Some(Complaint {
                text: "no appliance attached within 30 s; is it running in the storage VM, and \
                       does its configuration have an [[hba]] with this UUID?"
                    .into(),
                ago_s: 60,
            }),
            ..Status::default()
        };
        let table = table(&[
            found("t2.vfio", Shim::Running(Box::new(status))),
            found("t3.vfio", Shim::Gone),
            found("t4.vfio", Shim::Denied),
        ]);
        assert_eq!(
            table,
            "\
HBA               TENANT     RINGS MEMORY      STORAGE   APPLIANCE TRAPPED UP
t2                none       0     -           none      none      0       0s
t3.vfio           gone       -     -           -         -         -       -
t4.vfio           denied     -     -           -         -         -       -

t2, 60s ago: no appliance attached within 30 s; is it running in the storage VM,
  and does its configuration have an [[hba]] with this UUID?
t3.vfio: it was killed; its socket /run/vhost-pci/t3.vfio.status was left behind
t4.vfio: only its user and root may ask it; use sudo
"
        );
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_whatever_a_shim_says() {
        let mut status = busy();
        status.name = "x".repeat(300);
        status.storage.port = Some("a\u{1b}[31mport-with-a-long-name".into());
        status.counters.trapped_doorbells = u64::MAX;
        status.uptime_s = u64::MAX / 1_000_000_000_000;
        status.tenant.memory = 999 << 30;
        let table = table(&[found("t", Shim::Running(Box::new(status)))]);
        assert!(!table.contains('\u{1b}'));
        for line in table.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
}
