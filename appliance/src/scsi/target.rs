//! One SCSI target of an HBA: which logical unit a command is for, and what comes before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use spec::scsi::sense;

use super::attention::Attention;
use super::command::{Cdb, Command};
use super::fault::{Fault, Sense, SenseFormat};
use super::host::REPORT_LUNS_UNIT;
use super::nexus::Nexus;
use super::unit::Outcome;
use super::{Answer, Buffers, LogicalUnit, Pending, Room, Step, inquiry};
use crate::disk::Op;

/// One target, as one HBA sees it.
#[derive(Debug, Default)]
pub struct Target {
    units: BTreeMap<u16, Slot>,
}

#[derive(Debug)]
struct Slot {
    unit: Arc<LogicalUnit>,
    nexus: Arc<Nexus>,
}

impl Target {
    /// Shows one more logical unit, which starts with a power-on unit attention.
    pub fn add(&mut self, lun: u16, unit: Arc<LogicalUnit>) {
        let nexus = unit.join();
        nexus.establish(Attention::PowerOn);
        self.units.insert(lun, Slot { unit, nexus });
    }

    /// Shows a logical unit no more.
    pub fn remove(&mut self, lun: u16) {
        self.units.remove(&lun);
    }

    /// Whether it has no logical units.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether it has this one.
    pub fn has(&self, lun: u16) -> bool {
        self.units.contains_key(&lun)
    }

    /// Its logical units with their LUNs.
    pub fn units(&self) -> impl Iterator<Item = (u16, &Arc<LogicalUnit>)> {
        self.units.iter().map(|(&lun, slot)| (lun, &slot.unit))
    }

    /// Establishes a unit attention for this HBA on the units that `which` takes in.
    pub fn establish(&self, which: impl Fn(u16) -> bool, attention: Attention) {
        for (&lun, slot) in &self.units {
            if which(lun) {
                slot.nexus.establish(attention);
            }
        }
    }

    /// Decides on a command to the REPORT LUNS well-known logical unit.
    pub fn start_well_known(&self, cdb: &Cdb, buffers: Buffers<'_>) -> Step {
        answer(self.well_known(cdb), buffers.room())
    }

    /// Decides on a command to a logical unit that does not exist; `lun` is virtio's field.
    pub fn start_missing(&self, lun: [u8; 8], cdb: &Cdb, buffers: Buffers<'_>) -> Step {
        answer(self.missing(lun, cdb), buffers.room())
    }

    /// Decides on a command to a logical unit.
    pub fn start(&self, lun: u16, cdb: &Cdb, buffers: Buffers<'_>) -> Step {
        let room = buffers.room();
        let Some(slot) = self.units.get(&lun) else {
            return answer(Err(Fault::NoUnit), room);
        };
        let command = Command::parse_for(cdb, slot.unit.supports());
        // SAM-5 §5.14: a pending unit attention comes before anything else, except for these.
        let passes = matches!(
            command,
            Ok(Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. })
        );
        if !passes && let Some(attention) = slot.nexus.take_attention() {
            return answer(Err(Fault::Attention(attention)), room);
        }
        let outcome = command.and_then(|command| match command {
            Command::ReportLuns { select, allocation } => {
                self.report_luns(select, allocation).map(Decision::Data)
            }
            Command::RequestSense {
                descriptor,
                allocation,
            } => {
                let pending = slot.nexus.take_attention();
                let code = pending.map_or(sense::NO_SENSE, Attention::code);
                Ok(Decision::Data(sense_data(
                    Sense::new(code),
                    descriptor,
                    allocation,
                )))
            }
            command => slot
                .unit
                .execute(command, buffers)
                .map(|outcome| match outcome {
                    Outcome::Data(data) => Decision::Data(data),
                    Outcome::Done { moved } => Decision::Done { moved },
                    Outcome::Overrun => Decision::Overrun,
                    Outcome::Disk { op, work, then } => Decision::Disk {
                        op,
                        pending: Pending {
                            work,
                            then,
                            room,
                            format: SenseFormat::Fixed,
                        },
                    },
                }),
        });
        match outcome {
            Ok(Decision::Disk { op, pending }) => {
                let block = slot.unit.disk().geometry().block_size;
                let needs = op.data_out(block);
                if room.data_in < op.data_in() || needs.is_none_or(|len| room.data_out < len) {
                    return Step::Overrun;
                }
                Step::Disk {
                    disk: Arc::clone(slot.unit.disk()),
                    op,
                    pending,
                    patience: slot.unit.patience(),
                }
            }
            Ok(Decision::Data(data)) => answer(Ok(data), room),
            Ok(Decision::Done { moved }) => Step::Answer(Answer::done(moved, room)),
            Ok(Decision::Overrun) => Step::Overrun,
            Err(fault) => answer(Err(fault), room),
        }
    }

    /// A command to the REPORT LUNS well-known logical unit.
    fn well_known(&self, cdb: &Cdb) -> Result<Vec<u8>, Fault> {
        let data = match Command::parse(cdb)? {
            Command::ReportLuns { select, allocation } => self.report_luns(select, allocation)?,
            Command::Inquiry {
                page: None,
                allocation,
            } => truncated(inquiry::standard(inquiry::WELL_KNOWN), allocation),
            Command::Inquiry { page: Some(_), .. } => {
                return Err(Fault::InvalidField { byte: 1, bit: 0 });
            }
            Command::RequestSense {
                descriptor,
                allocation,
            } => sense_data(Sense::new(sense::NO_SENSE), descriptor, allocation),
            Command::TestUnitReady => Vec::new(),
            _ => return Err(Fault::InvalidOpcode),
        };
        Ok(data)
    }

    /// A command to a logical unit that does not exist (SPC-4 §6.6.1, SAM-5 §5.11).
    fn missing(&self, lun: [u8; 8], cdb: &Cdb) -> Result<Vec<u8>, Fault> {
        let is_lun_0 = matches!(lun, [1, 0, 0 | 0x40, 0, 0, 0, 0, 0]);
        let data = match Command::parse(cdb) {
            Ok(Command::Inquiry {
                page: None,
                allocation,
            }) => truncated(inquiry::standard(inquiry::NOTHING), allocation),
            Ok(Command::ReportLuns { select, allocation }) if is_lun_0 => {
                self.report_luns(select, allocation)?
            }
            Ok(Command::RequestSense {
                descriptor,
                allocation,
            }) => sense_data(
                Sense::new(sense::LOGICAL_UNIT_NOT_SUPPORTED),
                descriptor,
                allocation,
            ),
            _ => return Err(Fault::NoUnit),
        };
        Ok(data)
    }

    /// REPORT LUNS data (SPC-4 §6.33).
    fn report_luns(&self, select: u8, allocation: usize) -> Result<Vec<u8>, Fault> {
        let (units, well_known) = match select {
            0x00 => (true, false),
            0x01 => (false, true),
            0x02 => (true, true),
            _ => return Err(Fault::InvalidField { byte: 2, bit: 7 }),
        };
        let mut list = Vec::new();
        if well_known {
            list.extend(REPORT_LUNS_UNIT);
            list.extend([0; 6]);
        }
        if units {
            for &number in self.units.keys() {
                // Peripheral addressing as far as it goes: initiators take the field as a number.
                let method = if number < 256 { 0 } else { 0x4000 };
                list.extend((number | method).to_be_bytes());
                list.extend([0; 6]);
            }
        }
        let len = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let mut data = len.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(list);
        Ok(truncated(data, allocation))
    }
}

/// What a command comes to.
enum Decision {
    Data(Vec<u8>),
    Done { moved: usize },
    Disk { op: Op, pending: Pending },
    Overrun,
}

fn truncated(mut data: Vec<u8>, allocation: usize) -> Vec<u8> {
    data.truncate(allocation);
    data
}

fn sense_data(sense: Sense, descriptor: bool, allocation: usize) -> Vec<u8> {
    truncated(sense.bytes(descriptor.into()), allocation)
}

fn answer(result: Result<Vec<u8>, Fault>, room: Room) -> Step {
    match result {
        Ok(data) if data.len() > room.data_in => Step::Overrun,
        Ok(data) => Step::Answer(Answer::good(data, room)),
        Err(fault) => Step::Answer(Answer::failed(fault, SenseFormat::Fixed, room)),
    }
}
