//! Every metric that there is: its name, its labels, and where its figures come from.
//!
//! Labels have the names of HBAs and LUNs of the configuration, numbers of rings, and words from
//! fixed lists, so that a tenant cannot make more of them.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::format::{Family, Writer};
use super::scrape::{Hba, Lun, Scrape};
use crate::control::protocol::TenantState;
use crate::statistics::CountersSnapshot;

/// What all names begin with.
pub(super) const PREFIX: &str = "vhost_pci";

/// The states of a tenant, as labels.
const STATES: [(&str, TenantState); 4] = [
    ("absent", TenantState::Absent),
    ("attached", TenantState::Attached),
    ("ending", TenantState::Ending),
    ("silent", TenantState::Silent),
];

/// The task management functions by their codes (virtio 1.3 §5.6.6.2).
const FUNCTIONS: [&str; 9] = [
    "abort_task",
    "abort_task_set",
    "clear_aca",
    "clear_task_set",
    "i_t_nexus_reset",
    "logical_unit_reset",
    "query_task",
    "query_task_set",
    "other",
];

/// The sense keys (SPC-4, sense key descriptions).
const SENSE_KEYS: [&str; 16] = [
    "no_sense",
    "recovered_error",
    "not_ready",
    "medium_error",
    "hardware_error",
    "illegal_request",
    "unit_attention",
    "data_protect",
    "blank_check",
    "vendor_specific",
    "copy_aborted",
    "aborted_command",
    "reserved",
    "volume_overflow",
    "miscompare",
    "completed",
];

type OneLabel<'a> = [(&'static str, &'a str); 1];
type TwoLabels<'a> = [(&'static str, &'a str); 2];
type ThreeLabels<'a> = [(&'static str, &'a str); 3];

const fn family(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        unit: None,
        help,
    }
}

const fn bytes(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        unit: Some(&Unit::Bytes),
        help,
    }
}

const fn seconds(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        unit: Some(&Unit::Seconds),
        help,
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut writer = Writer(encoder);
        self.appliance(&mut writer)?;
        self.workers(&mut writer)?;
        self.queues(&mut writer)?;
        self.commands(&mut writer)?;
        self.times(&mut writer)?;
        self.luns(&mut writer)
    }
}

impl Scrape {
    fn appliance(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let about = [
            ("name", &*self.name),
            ("version", env!("CARGO_PKG_VERSION")),
        ];
        to.gauges(
            family("build_info", "Name and version of the appliance, always 1."),
            [(about, 1)],
        )?;
        let none: [(&str, &str); 0] = [];
        to.gauges(
            seconds("uptime", "Time since the appliance was started."),
            [(none, self.uptime.as_secs())],
        )?;
        to.gauges(
            family(
                "config_saved",
                "Whether the configuration in force is the one in its file.",
            ),
            [(none, self.saved.into())],
        )?;
        to.gauges(
            seconds(
                "config_changing",
                "How long a change of the configuration has been under way, 0 if none is.",
            ),
            [(none, self.changing.map_or(0, |time| time.as_secs()))],
        )
    }

    fn workers(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        to.gauges(
            family(
                "tenant_state",
                "1 for the state that the tenant's HBA is in.",
            ),
            self.hbas.iter().flat_map(|hba| {
                STATES.map(|(name, state)| {
                    let labels = [("tenant", &*hba.name), ("state", name)];
                    (labels, u64::from(hba.state == state))
                })
            }),
        )?;
        to.counters(
            family(
                "worker_unanswered",
                "How often a worker was asked for its figures and did not answer within a second.",
            ),
            self.of_hbas(|hba| hba.unanswered),
        )?;
        to.counters(
            family("attachments", "How often an HBA was taken into service."),
            self.of_hbas(|hba| hba.totals.attachments),
        )?;
        to.gauges(
            family(
                "drained",
                "Whether an HBA is drained: takes no new commands.",
            ),
            self.of_hbas(|hba| hba.drained.into()),
        )?;
        to.gauges(
            family("rings", "Rings that the tenant's driver has started."),
            self.of_hbas(|hba| hba.said.rings as u64),
        )?;
        to.gauges(
            family("in_flight", "Commands of an HBA that are under way."),
            self.of_hbas(|hba| hba.said.in_flight as u64),
        )?;
        to.gauges(
            family(
                "in_flight_limit",
                "How many commands of an HBA may be under way.",
            ),
            self.of_hbas(|hba| hba.said.most_in_flight as u64),
        )?;
        to.counters(
            family("worker_turns", "Turns of a worker's loop."),
            self.of_hbas(|hba| hba.totals.turns),
        )?;
        to.counters(
            family(
                "polls",
                "Turns in which a worker looked at its request rings without having been kicked.",
            ),
            self.of_hbas(|hba| hba.totals.polls),
        )?;
        to.counters(
            family("kicks", "Kicks of a tenant that woke its worker."),
            self.of_hbas(|hba| hba.totals.kicks),
        )?;
        to.counters(
            family(
                "calls",
                "Interrupts for a tenant: by a doorbell that trapped, by one that the shim saw \
                 without a trap, or by an eventfd.",
            ),
            self.hbas.iter().flat_map(|hba| {
                let totals = &hba.totals;
                [
                    ("trapped", totals.calls_trapped),
                    ("avoided", totals.calls_seen),
                    ("eventfd", totals.calls_signalled),
                ]
                .map(|(way, count)| ([("tenant", &*hba.name), ("doorbell", way)], count))
            }),
        )?;
        to.counters(
            family("resets", "Resets of an HBA by the tenant's driver."),
            self.of_hbas(|hba| hba.totals.resets),
        )?;
        to.counters(
            family("disconnects", "How often a tenant went away from its HBA."),
            self.of_hbas(|hba| hba.totals.disconnects),
        )
    }

    fn queues(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let numbers: Vec<String> = (0..=u8::MAX).map(|number| number.to_string()).collect();
        to.counters(
            family(
                "queue_requests",
                "Requests fetched from a ring: 0 is the control queue, 1 the event queue.",
            ),
            self.hbas.iter().flat_map(|hba| {
                let rings = numbers.iter().zip(&hba.totals.requests);
                rings
                    .map(|(number, count)| ([("tenant", &*hba.name), ("queue", &**number)], *count))
            }),
        )?;
        to.counters(
            family(
                "rings_retired",
                "Rings that were retired because the tenant's driver broke the rules.",
            ),
            self.of_hbas(|hba| hba.totals.retired),
        )?;
        to.counters(
            family("task_management", "Task management functions of a tenant."),
            self.hbas.iter().flat_map(|hba| {
                let functions = FUNCTIONS.iter().zip(hba.totals.functions);
                functions.map(|(function, count)| {
                    ([("tenant", &*hba.name), ("function", *function)], count)
                })
            }),
        )?;
        to.counters(
            family(
                "commands_elsewhere",
                "Commands of a tenant to what is no LUN that it sees.",
            ),
            self.of_hbas(|hba| hba.totals.elsewhere),
        )
    }

    fn commands(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        to.counters(
            family("commands", "Commands of a tenant to a LUN that have ended."),
            self.of_units(|counted| counted.commands),
        )?;
        to.counters(
            family("reads", "Those that brought the tenant data."),
            self.of_units(|counted| counted.reads),
        )?;
        to.counters(
            family("writes", "Those that took data from the tenant."),
            self.of_units(|counted| counted.writes),
        )?;
        to.counters(
            bytes("read", "Bytes that the tenant got."),
            self.of_units(|counted| counted.bytes_read),
        )?;
        to.counters(
            bytes("written", "Bytes that the tenant gave."),
            self.of_units(|counted| counted.bytes_written),
        )?;
        to.counters(
            family(
                "check_conditions",
                "Commands that ended with CHECK CONDITION, by sense key.",
            ),
            self.units().flat_map(|(labels, counted)| {
                // Also those that have not been: of what begins with one, nothing has grown.
                (0..).zip(SENSE_KEYS).map(move |(key, name)| {
                    let count = counted.sense_keys.get(&key).copied().unwrap_or(0);
                    let [tenant, lun] = labels;
                    ([tenant, lun, ("sense_key", name)], count)
                })
            }),
        )?;
        to.counters(
            family(
                "commands_other_status",
                "Commands that ended with BUSY, RESERVATION CONFLICT, TASK ABORTED or the like.",
            ),
            self.of_units(|counted| counted.other_status),
        )?;
        to.counters(
            family(
                "commands_not_carried_out",
                "Commands that were ended by a reset, an abort or a transport failure.",
            ),
            self.of_units(|counted| counted.not_carried_out),
        )
    }

    fn times(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        to.histograms(
            seconds(
                "command_duration",
                "How long commands took, from being fetched to being given back.",
            ),
            self.units()
                .map(|(labels, counted)| (labels, &counted.latency)),
        )?;
        to.histograms(
            seconds(
                "command_queued",
                "How long they waited before their disk was given them.",
            ),
            self.units()
                .map(|(labels, counted)| (labels, &counted.queued)),
        )?;
        to.histograms(
            seconds("command_disk", "How long they took from then on."),
            self.units()
                .map(|(labels, counted)| (labels, &counted.worked_on)),
        )
    }

    fn luns(&self, to: &mut Writer<'_>) -> Result<(), Error> {
        let shown = || {
            let units = self.hbas.iter();
            units.flat_map(|hba| hba.said.units.iter().map(|unit| (&*hba.name, unit)))
        };
        to.gauges(
            family(
                "lun_in_flight",
                "Commands of a tenant to a LUN that are under way.",
            ),
            shown().map(|(tenant, unit)| (place(tenant, unit), unit.in_flight as u64)),
        )?;
        to.gauges(
            family(
                "lun_limited",
                "Commands of a tenant to a LUN that a limit keeps from its disk.",
            ),
            shown().map(|(tenant, unit)| (place(tenant, unit), unit.limited as u64)),
        )?;
        to.gauges(
            family(
                "lun_paused",
                "Whether a LUN pauses for a tenant, as its disk is full or fails.",
            ),
            shown().map(|(tenant, unit)| (place(tenant, unit), unit.pause.is_some().into())),
        )?;
        to.gauges(
            family(
                "lun_held",
                "Commands of a tenant that wait for the disk of a LUN that pauses.",
            ),
            shown().map(|(tenant, unit)| {
                let held = unit.pause.as_ref().map_or(0, |pause| pause.held as u64);
                (place(tenant, unit), held)
            }),
        )?;
        to.gauges(
            family(
                "lun_served",
                "Whether a LUN of the configuration is served.",
            ),
            self.of_luns(|lun| Some(lun.served.into())),
        )?;
        to.gauges(
            family("lun_disk_answers", "Whether the disk of a LUN answers."),
            self.of_luns(|lun| Some(lun.answers.into())),
        )?;
        to.gauges(
            bytes("lun_size", "Size of a LUN."),
            self.of_luns(|lun| Some(lun.disk.as_ref()?.bytes)),
        )?;
        to.gauges(
            bytes("disk_used", "What a LUN occupies of what is under it."),
            self.of_luns(|lun| lun.disk.as_ref()?.used),
        )?;
        to.gauges(
            bytes("disk_available", "What is left of what is under a LUN."),
            self.of_luns(|lun| lun.disk.as_ref()?.available),
        )
    }

    /// A figure of each HBA.
    fn of_hbas(&self, figure: impl Fn(&Hba) -> u64) -> impl Iterator<Item = (OneLabel<'_>, u64)> {
        let hbas = self.hbas.iter();
        hbas.map(move |hba| ([("tenant", &*hba.name)], figure(hba)))
    }

    /// What was counted of each HBA and LUN.
    fn units(&self) -> impl Iterator<Item = (TwoLabels<'_>, &CountersSnapshot)> {
        self.hbas.iter().flat_map(|hba| {
            let luns = hba.totals.luns.iter();
            luns.map(|(lun, counted)| ([("tenant", &*hba.name), ("lun", &**lun)], counted))
        })
    }

    /// A figure of what was counted of each HBA and LUN.
    fn of_units(
        &self,
        figure: impl Fn(&CountersSnapshot) -> u64,
    ) -> impl Iterator<Item = (TwoLabels<'_>, u64)> {
        self.units()
            .map(move |(labels, counted)| (labels, figure(counted)))
    }

    /// A figure of each LUN that has it.
    fn of_luns(
        &self,
        figure: impl Fn(&Lun) -> Option<u64>,
    ) -> impl Iterator<Item = (OneLabel<'_>, u64)> {
        let luns = self.luns.iter();
        luns.filter_map(move |lun| Some(([("lun", &*lun.name)], figure(lun)?)))
    }
}

/// Where a tenant sees a LUN.
fn place<'a>(tenant: &'a str, unit: &'a crate::statistics::UnitSnapshot) -> ThreeLabels<'a> {
    [("tenant", tenant), ("lun", &unit.lun), ("at", &unit.at)]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::statistics::{HbaSnapshot, Totals};

    #[test]
    fn a_name_ends_no_label() {
        let scrape = Scrape {
            name: "a".into(),
            uptime: Duration::from_secs(7),
            saved: true,
            changing: None,
            hbas: vec![Hba {
                name: "a\"} 1\\".into(),
                state: TenantState::Absent,
                unanswered: 3,
                drained: false,
                said: HbaSnapshot::default(),
                totals: Totals::default(),
            }],
            luns: Vec::new(),
        };
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(scrape));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = "\nvhost_pci_worker_unanswered_total{tenant=\"a\\\"} 1\\\\\"} 3\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("\nvhost_pci_uptime_seconds 7\n"), "{text}");
    }
}
