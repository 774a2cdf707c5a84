//! The one target of a nexus: which logical unit a command is for, and unit attentions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use spec::scsi::sense;

use super::command::{Cdb, Command};
use super::fault::{Attention, Fault, Sense};
use super::unit::Outcome;
use super::{Answer, Buffers, LogicalUnit, Pending, Step, inquiry};
use crate::disk::Op;

/// What a `lun` field addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A logical unit of this target that exists.
    Unit(u16),
    /// The REPORT LUNS well-known logical unit.
    ReportLuns,
    /// The target exists, but not this logical unit (for task management: INCORRECT_LUN).
    NoUnit,
    /// There is no such target.
    NoTarget,
}

/// The one SCSI target of a nexus (HBA); several workers share it.
#[derive(Debug)]
pub struct Target {
    units: BTreeMap<u16, Slot>,
}

#[derive(Debug)]
struct Slot {
    unit: Arc<LogicalUnit>,
    /// Unit attentions that this nexus was not told of, a bit for each of [`Attention::ALL`].
    attentions: AtomicU8,
}

/// A LUN that cannot be addressed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("LUN {0} is beyond 16383, the last that flat addressing reaches")]
pub struct BadLun(pub u16);

/// The REPORT LUNS well-known logical unit (SAM-5 §4.7.5.1: extended addressing, well-known).
const REPORT_LUNS_UNIT: [u8; 2] = [0xc1, 0x01];

impl Target {
    /// The last LUN that there can be.
    pub const MAX_LUN: u16 = 0x3fff;

    /// A target with these logical units; each starts with a power-on unit attention.
    ///
    /// # Errors
    /// [`BadLun`].
    pub fn new(units: impl IntoIterator<Item = (u16, Arc<LogicalUnit>)>) -> Result<Self, BadLun> {
        let mut slots = BTreeMap::new();
        for (lun, unit) in units {
            if lun > Self::MAX_LUN {
                return Err(BadLun(lun));
            }
            let slot = Slot {
                unit,
                attentions: AtomicU8::new(0),
            };
            slot.establish(Attention::PowerOn);
            slots.insert(lun, slot);
        }
        Ok(Self { units: slots })
    }

    /// What the field addresses.
    pub fn place(&self, lun: [u8; 8]) -> Place {
        // virtio 1.3 §5.6.6.1: 1, target, single-level LUN, zeros; or the well-known unit.
        let [kind, target, high, low, rest @ ..] = lun;
        let well_known = [REPORT_LUNS_UNIT[0], REPORT_LUNS_UNIT[1], 0, 0];
        if [kind, target, high, low] == well_known && rest == [0; 4] {
            return Place::ReportLuns;
        }
        if kind != 1 || target != 0 {
            return Place::NoTarget;
        }
        if rest != [0; 4] {
            return Place::NoUnit;
        }
        if [high, low] == REPORT_LUNS_UNIT {
            return Place::ReportLuns;
        }
        // SAM-5 §4.7.7: peripheral device addressing of bus 0, or flat space addressing.
        let number = match high >> 6 {
            0 if high == 0 => u16::from(low),
            1 => u16::from_be_bytes([high & 0x3f, low]),
            _ => return Place::NoUnit,
        };
        if self.units.contains_key(&number) {
            Place::Unit(number)
        } else {
            Place::NoUnit
        }
    }

    /// Establishes a unit attention on `lun`, or on all of them for `None`.
    pub fn establish(&self, lun: Option<u16>, attention: Attention) {
        for (number, slot) in &self.units {
            if lun.is_none_or(|lun| lun == *number) {
                slot.establish(attention);
            }
        }
    }

    /// Decides on a command. `lun` is virtio's field, `cdb` the CDB padded with zeros.
    pub fn start(&self, lun: [u8; 8], cdb: &Cdb, buffers: Buffers) -> Step {
        let slot = match self.place(lun) {
            Place::NoTarget => return Step::NoTarget,
            Place::ReportLuns => return answer(self.well_known(cdb), buffers),
            Place::NoUnit => return answer(self.missing(lun, cdb), buffers),
            Place::Unit(number) => self.units.get(&number),
        };
        let Some(slot) = slot else {
            return answer(self.missing(lun, cdb), buffers);
        };
        let command = Command::parse(cdb);
        // SAM-5 §5.14: a pending unit attention comes before anything else, except for these.
        let passes = matches!(
            command,
            Ok(Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. })
        );
        if !passes && let Some(attention) = slot.take_attention() {
            return answer(Err(Fault::Attention(attention)), buffers);
        }
        let outcome = command.and_then(|command| match command {
            Command::ReportLuns { select, allocation } => {
                self.report_luns(select, allocation).map(Decision::Data)
            }
            Command::RequestSense {
                descriptor,
                allocation,
            } => {
                let pending = slot.take_attention();
                let code = pending.map_or(sense::NO_SENSE, Attention::code);
                Ok(Decision::Data(sense_data(
                    Sense::new(code),
                    descriptor,
                    allocation,
                )))
            }
            command => slot.unit.execute(command).map(|outcome| match outcome {
                Outcome::Data(data) => Decision::Data(data),
                Outcome::Disk {
                    op,
                    during,
                    lba,
                    len,
                } => Decision::Disk {
                    op,
                    pending: Pending {
                        during,
                        lba,
                        moved: len,
                        buffers,
                    },
                },
            }),
        });
        match outcome {
            Ok(Decision::Disk { op, pending }) => {
                let room = match op {
                    Op::Read { .. } => buffers.data_in,
                    Op::Write { .. } => buffers.data_out,
                    _ => 0,
                };
                if room < pending.moved {
                    return Step::Overrun;
                }
                Step::Disk {
                    disk: Arc::clone(slot.unit.disk()),
                    op,
                    pending,
                }
            }
            Ok(Decision::Data(data)) => answer(Ok(data), buffers),
            Err(fault) => answer(Err(fault), buffers),
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
    Disk { op: Op, pending: Pending },
}

impl Slot {
    fn establish(&self, attention: Attention) {
        self.attentions.fetch_or(bit(attention), Ordering::AcqRel);
    }

    /// The most important unit attention, which is reported with that.
    fn take_attention(&self) -> Option<Attention> {
        Attention::ALL.into_iter().find(|&attention| {
            // A plain load first: this is on the path of every command.
            self.attentions.load(Ordering::Acquire) & bit(attention) != 0
                && self.attentions.fetch_and(!bit(attention), Ordering::AcqRel) & bit(attention)
                    != 0
        })
    }
}

const fn bit(attention: Attention) -> u8 {
    match attention {
        Attention::PowerOn => 1,
        Attention::LogicalUnitReset => 2,
        Attention::NexusLoss => 4,
    }
}

fn truncated(mut data: Vec<u8>, allocation: usize) -> Vec<u8> {
    data.truncate(allocation);
    data
}

fn sense_data(sense: Sense, descriptor: bool, allocation: usize) -> Vec<u8> {
    let data = if descriptor {
        sense.descriptor()
    } else {
        sense.fixed()
    };
    truncated(data, allocation)
}

fn answer(result: Result<Vec<u8>, Fault>, buffers: Buffers) -> Step {
    match result {
        Ok(data) if data.len() > buffers.data_in => Step::Overrun,
        Ok(data) => Step::Answer(Answer::good(data, buffers)),
        Err(fault) => Step::Answer(Answer::failed(fault, buffers)),
    }
}
