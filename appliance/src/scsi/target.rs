//! One SCSI target of an HBA: which logical unit a command is for, and what comes before it.

use std::sync::{Arc, Mutex, PoisonError};

use spec::scsi::{opcode, sense};
use spec::virtio_scsi::task_attribute;

use super::attention::Attention;
use super::command::{Cdb, Command};
use super::copy::{self, Peers, Seat};
use super::fault::{During, Fault, Sense, SenseFormat, Work};
use super::host::{Address, REPORT_LUNS_UNIT};
use super::nexus::Nexus;
use super::numbered::Numbered;
use super::opcode::Supports;
use super::pending::{Counted, Own, Then, relies_on_cache};
use super::port::Port;
use super::statistics::Deed;
use super::transfer::Transfer;
use super::unit::Outcome;
use super::{Answer, Buffers, LogicalUnit, Pending, Room, Step, inquiry, protection};
use crate::disk::{Op, Reply};

/// Held by who tells a unit attention, which is seldom.
static TELLING: Mutex<()> = Mutex::new(());

/// One target, as one HBA sees it.
#[derive(Debug, Default)]
pub struct Target {
    units: Numbered<u16, Slot>,
}

/// A logical unit with this HBA's nexus.
#[derive(Debug)]
struct Slot {
    own: Arc<Own>,
    nexus: Arc<Nexus>,
    bond: Bond,
}

/// That an HBA sees a unit, all its workers together: the nexus is lost when the last of them sees
/// the unit no more.
#[derive(Debug, Clone)]
pub struct Bond(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    unit: Arc<LogicalUnit>,
    nexus: Arc<Nexus>,
}

impl Bond {
    /// A new nexus, which starts with a power-on unit attention.
    pub fn new(unit: Arc<LogicalUnit>, port: Port) -> Self {
        let nexus = unit.join(port);
        Self(Arc::new(Bound { unit, nexus }))
    }

    /// The unit.
    pub fn unit(&self) -> &Arc<LogicalUnit> {
        &self.0.unit
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.unit.lose(&self.nexus);
    }
}

impl Target {
    /// Shows one more logical unit.
    pub fn add(&mut self, lun: u16, bond: Bond) {
        let (unit, nexus) = (Arc::clone(&bond.0.unit), Arc::clone(&bond.0.nexus));
        let own = Arc::new(Own {
            tally: unit.new_tally(),
            at_once: unit.disk().answers_at_once(),
            unit,
        });
        self.units.insert(lun, Slot { own, nexus, bond });
    }

    /// The same, for another worker of the HBA.
    pub fn share(&self) -> Self {
        let mut shared = Self::default();
        for (lun, slot) in self.units.iter() {
            shared.add(lun, slot.bond.clone());
        }
        shared
    }

    /// Shows a logical unit no more; whether it was there.
    pub fn remove(&mut self, lun: u16) -> bool {
        self.units.remove(lun).is_some()
    }

    /// Whether it has no logical units.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether it has this one.
    #[inline]
    pub fn has(&self, lun: u16) -> bool {
        self.units.get(lun).is_some()
    }

    /// Its logical units with their LUNs.
    pub fn units(&self) -> impl Iterator<Item = (u16, &Arc<LogicalUnit>)> {
        self.units.iter().map(|(lun, slot)| (lun, &slot.own.unit))
    }

    /// Its logical units, each with this HBA's nexus; `number` is the target's.
    pub fn seats(&self, number: u8) -> impl Iterator<Item = Seat> {
        self.units.iter().map(move |(lun, slot)| {
            slot.seat(Address {
                target: number,
                lun,
            })
        })
    }

    /// Establishes a unit attention for this HBA on the units that `which` takes in.
    pub fn establish(&self, which: impl Fn(u16) -> bool, attention: Attention) {
        for (lun, slot) in self.units.iter() {
            if which(lun) {
                slot.nexus.establish(attention);
            }
        }
    }

    /// Does what a reset of the units that `which` takes in means, of which `attention` tells.
    pub fn reset(&self, which: impl Fn(u16) -> bool, attention: Attention) {
        for (_, slot) in self.units.iter().filter(|(lun, _)| which(*lun)) {
            match attention {
                Attention::PowerOn => slot.own.unit.power_on(&slot.nexus),
                Attention::LogicalUnitReset => slot.own.unit.reset(),
                Attention::NexusLoss => {
                    slot.own.unit.lose(&slot.nexus);
                    slot.nexus.establish(attention);
                }
                other => slot.nexus.establish(other),
            }
        }
    }

    /// Forgets a unit attention of this HBA on all units.
    fn forget(&self, attention: Attention) {
        for (_, slot) in self.units.iter() {
            slot.nexus.forget(attention);
        }
    }

    /// The most important unit attention of this HBA on a unit, which is reported with that.
    fn take_attention(&self, slot: &Slot) -> Option<Attention> {
        if !slot.nexus.has_attention() {
            return None;
        }
        // One after the other, or two workers would tell what is about several units twice.
        let _telling = TELLING.lock().unwrap_or_else(PoisonError::into_inner);
        let attention = slot.nexus.take_attention()?;
        if attention == Attention::ReportedLunsChanged {
            // SPC-4, extended INQUIRY data: LUICLR.
            self.forget(attention);
        }
        Some(attention)
    }

    /// Decides on a command to the REPORT LUNS well-known logical unit.
    pub fn start_well_known(&self, cdb: &Cdb, buffers: Buffers<'_>) -> Step {
        answer(self.well_known(cdb, buffers.data_in), buffers.room())
    }

    /// Decides on a command to a logical unit that does not exist; `lun` is virtio's field.
    pub fn start_missing(&self, lun: [u8; 8], cdb: &Cdb, buffers: Buffers<'_>) -> Step {
        answer(self.missing(lun, cdb, buffers.data_in), buffers.room())
    }

    /// The answer to a command that must not be carried out twice, and may have been once.
    pub fn not_again(&self, lun: u16, cdb: &Cdb, buffers: Buffers<'_>) -> Option<Answer> {
        let unit = &self.units.get(lun)?.own.unit;
        let command = parse_plain(cdb, unit.supports()).ok()?;
        (!command.may_be_repeated())
            .then(|| Answer::failed(Fault::Interrupted, unit.sense_format(), buffers.room()))
    }

    /// Whether a command is in conflict with a reservation.
    pub fn is_reserved_against(&self, lun: u16, cdb: &Cdb) -> bool {
        let Some(slot) = self.units.get(lun) else {
            return false;
        };
        let command = parse_plain(cdb, slot.own.unit.supports());
        command.is_ok_and(|command| slot.own.unit.is_reserved_against(&slot.nexus, &command))
    }

    /// The transfer that a command with this task attribute to a logical unit is, and the unit, if
    /// its disk may do it at once and nothing is in its way.
    #[inline]
    pub(super) fn transfer(
        &self,
        at: Address,
        attribute: u8,
        cdb: &Cdb,
        room: Room,
    ) -> Option<(&Own, Transfer)> {
        let slot = self.units.get(at.lun).filter(|slot| slot.own.at_once)?;
        Some((&*slot.own, slot.transfer(attribute, cdb, room)?))
    }

    /// Whether the disk of a logical unit may do something at once.
    pub fn is_quick(&self) -> bool {
        self.units.iter().any(|(_, slot)| slot.own.at_once)
    }

    /// Decides on a command with this task attribute to a logical unit.
    pub fn start(
        &self,
        at: Address,
        attribute: u8,
        cdb: &Cdb,
        buffers: Buffers<'_>,
        peers: Peers<'_>,
    ) -> Step {
        let room = buffers.room();
        if let Some(slot) = self.units.get(at.lun)
            && let Some(transfer) = slot.transfer(attribute, cdb, room)
        {
            return slot.begin(&transfer, room);
        }
        self.start_other(at, attribute, cdb, buffers, peers)
    }

    /// As [`Self::start`], whatever the command is.
    pub(super) fn start_other(
        &self,
        at: Address,
        attribute: u8,
        cdb: &Cdb,
        buffers: Buffers<'_>,
        peers: Peers<'_>,
    ) -> Step {
        let room = buffers.room();
        let Some(slot) = self.units.get(at.lun) else {
            return answer(Err(Fault::NoUnit), room);
        };
        match self.decide((slot, at), attribute, cdb, buffers, peers) {
            Ok(Decision::Data(data)) => answer(Ok(data), room),
            Ok(Decision::Unit(outcome)) => slot.step(outcome, room),
            Err(fault) => {
                let format = slot.own.unit.sense_format();
                Step::Answer(Answer::failed(fault, format, room))
            }
        }
    }

    fn decide(
        &self,
        (slot, at): (&Slot, Address),
        attribute: u8,
        cdb: &Cdb,
        buffers: Buffers<'_>,
        peers: Peers<'_>,
    ) -> Result<Decision, Fault> {
        // There is never an ACA condition, since NACA is refused (NORMACA 0). Of the other
        // attributes SIMPLE is all that is claimed, and what the others are taken as.
        if attribute > task_attribute::HEAD_OF_QUEUE {
            return Err(Fault::InvalidAttribute);
        }
        let supports = slot.own.unit.supports();
        let (mut tagged, plain);
        let (cdb, buffers) = if supports.protection {
            tagged = buffers;
            (tagged.tags.field, plain) = protection::take_field(cdb);
            (&plain, tagged)
        } else {
            (cdb, buffers)
        };
        let command = Command::parse_for(cdb, supports);
        // SAM-5, status precedence: RESERVATION CONFLICT comes before unit attentions.
        if let Ok(command) = &command
            && slot.own.unit.is_reserved_against(&slot.nexus, command)
        {
            return Err(Fault::Reserved);
        }
        // SAM-5 §5.14: a pending unit attention comes before anything else, except for these.
        let passes = matches!(
            cdb[0],
            opcode::INQUIRY | opcode::REPORT_LUNS | opcode::REQUEST_SENSE
        );
        if !passes && let Some(attention) = self.take_attention(slot) {
            return Err(Fault::Attention(attention));
        }
        let command = command?;
        slot.nexus.access().check(&command)?;
        match command {
            Command::ReportLuns { select, allocation } => self
                .report_luns(select, allocation, buffers.data_in)
                .map(Decision::Data),
            Command::RequestSense {
                descriptor,
                allocation,
            } => {
                let nothing = sense_data(Sense::new(sense::NO_SENSE), descriptor, allocation);
                if nothing.len() > buffers.data_in {
                    // Before a unit attention is taken that nobody would hear of.
                    return Ok(Decision::Unit(Outcome::Overrun));
                }
                let sense = match self.take_attention(slot) {
                    Some(attention) => Sense::new(attention.code()),
                    // SBC-4: these conditions can be polled for.
                    None => slot.own.unit.condition(),
                };
                Ok(Decision::Data(sense_data(sense, descriptor, allocation)))
            }
            Command::Copy(request) => {
                copy::start(request, peers, &slot.seat(at), buffers).map(Decision::Unit)
            }
            command => slot
                .own
                .unit
                .execute(&slot.nexus, command, buffers)
                .map(Decision::Unit),
        }
    }

    /// A command to the REPORT LUNS well-known logical unit, with so much room for its data.
    fn well_known(&self, cdb: &Cdb, room: usize) -> Result<Vec<u8>, Fault> {
        let data = match Command::parse(cdb)? {
            Command::ReportLuns { select, allocation } => {
                self.report_luns(select, allocation, room)?
            }
            Command::Inquiry {
                page: None,
                allocation,
            } => truncated(
                inquiry::standard(inquiry::WELL_KNOWN, false, false),
                allocation,
            ),
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

    /// A command to a logical unit that does not exist (SPC-4 §6.6.1, SAM-5 §5.11), with so much
    /// room for its data.
    fn missing(&self, lun: [u8; 8], cdb: &Cdb, room: usize) -> Result<Vec<u8>, Fault> {
        let is_lun_0 = matches!(lun, [1, _, 0 | 0x40, 0, 0, 0, 0, 0]);
        let data = match Command::parse(cdb) {
            Ok(Command::Inquiry {
                page: None,
                allocation,
            }) => truncated(
                inquiry::standard(inquiry::NOTHING, false, false),
                allocation,
            ),
            Ok(Command::ReportLuns { select, allocation }) if is_lun_0 => {
                self.report_luns(select, allocation, room)?
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

    /// REPORT LUNS data (SPC-4 §6.33). Whoever reads a list of units, having room for it, knows of
    /// every change.
    fn report_luns(&self, select: u8, allocation: usize, room: usize) -> Result<Vec<u8>, Fault> {
        let (units, well_known) = match select {
            0x00 => (true, false),
            0x01 => (false, true),
            0x02 => (true, true),
            // SPC-5: administrative units alone, of which there are none; and those with all units
            // that are not subsidiary to them. 12h is about an administrative unit.
            0x10 => (false, false),
            0x11 => (true, false),
            _ => return Err(Fault::InvalidField { byte: 2, bit: 7 }),
        };
        let mut list = Vec::new();
        if well_known {
            list.extend(REPORT_LUNS_UNIT);
            list.extend([0; 6]);
        }
        if units {
            for (number, _) in self.units.iter() {
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
        let data = truncated(data, allocation);
        if units && data.len() <= room {
            self.forget(Attention::ReportedLunsChanged);
        }
        Ok(data)
    }
}

/// What a command comes to.
enum Decision {
    Data(Vec<u8>),
    Unit(Outcome),
}

impl Slot {
    fn seat(&self, address: Address) -> Seat {
        Seat {
            address,
            unit: Arc::clone(&self.own.unit),
            nexus: Arc::clone(&self.nexus),
        }
    }

    /// What the disk does for PREEMPT AND ABORT: it waits for what is under way.
    fn fencing(&self) -> Work {
        Work {
            during: During::Flush,
            lba: 0,
            blocks: 0,
            block_size: self.own.unit.disk().geometry().block_size,
        }
    }

    /// The transfer that a command is, if it is one with nothing in its way.
    #[inline]
    fn transfer(&self, attribute: u8, cdb: &Cdb, room: Room) -> Option<Transfer> {
        Transfer::of((&self.own.unit, &self.nexus), attribute, cdb, room)
    }

    /// The step that a transfer is.
    #[inline]
    fn begin(&self, transfer: &Transfer, room: Room) -> Step {
        let op = transfer.op();
        let then = Then::Moved(transfer.len());
        let counted = Counted {
            deed: transfer.deed(),
            blocks: transfer.blocks(),
        };
        Step::Disk {
            disk: None,
            pending: Pending {
                counted: Some(counted),
                ..self.pending(transfer.work(), then, relies_on_cache(&op), room)
            },
            op,
            patience: self.own.unit.patience(),
        }
    }

    /// The step that an outcome of the unit is.
    fn step(&self, outcome: Outcome, room: Room) -> Step {
        let Outcome::Disk { op, work, then } = outcome else {
            return self.other_step(outcome, room);
        };
        // Tags are beside the data, and were looked at.
        let (needs, fills) = op.plain().moves(work.block_size);
        if room.data_in < fills || needs.is_none_or(|len| room.data_out < len) {
            return Step::Overrun;
        }
        let counted = Deed::of(&op).map(|deed| Counted {
            deed,
            blocks: work.blocks,
        });
        Step::Disk {
            disk: None,
            pending: Pending {
                counted,
                ..self.pending(work, then, relies_on_cache(&op), room)
            },
            op,
            patience: self.own.unit.patience(),
        }
    }

    fn other_step(&self, outcome: Outcome, room: Room) -> Step {
        let unit = &self.own.unit;
        match outcome {
            Outcome::Data(data) => answer(Ok(data), room),
            Outcome::Done { moved } => Step::Answer(Answer::done(moved, room)),
            Outcome::Overrun => Step::Overrun,
            Outcome::Preempted { who, fence, moved } => Step::Preempt {
                preempted: Some(who),
                pending: Pending {
                    fence: Some(fence),
                    ..self.pending(self.fencing(), Then::Moved(moved), false, room)
                },
            },
            Outcome::Copy(mut copying) => {
                let Some((disk, op)) = copying.begin() else {
                    let format = unit.sense_format();
                    return Step::Answer(copying.answer(Ok(Reply::Done), room, format));
                };
                let pending = Pending {
                    copying: Some(copying),
                    ..self.pending(self.fencing(), Then::Moved(0), false, room)
                };
                Step::Disk {
                    disk: Some(disk),
                    op,
                    pending,
                    patience: unit.patience(),
                }
            }
            Outcome::Erase { ticket, moved } => Step::Preempt {
                preempted: None,
                pending: self.pending(self.fencing(), Then::Erase { ticket, moved }, false, room),
            },
            Outcome::Wait {
                gate,
                ended,
                errand,
                moved,
            } => {
                let then = Then::Ended {
                    ended,
                    errand: Some(errand),
                    moved,
                };
                Step::Disk {
                    disk: Some(gate),
                    op: Op::Barrier,
                    pending: self.pending(self.fencing(), then, false, room),
                    patience: unit.patience(),
                }
            }
            outcome @ Outcome::Disk { .. } => self.step(outcome, room),
        }
    }

    #[inline]
    fn pending(&self, work: Work, then: Then, caches: bool, room: Room) -> Pending {
        Pending {
            work,
            then,
            room,
            format: self.own.unit.sense_format(),
            own: Arc::clone(&self.own),
            caches,
            fence: None,
            copying: None,
            counted: None,
        }
    }
}

/// Parses a CDB by what its unit supports, its field for protection information left out.
fn parse_plain(cdb: &Cdb, supports: Supports) -> Result<Command, Fault> {
    if supports.protection {
        Command::parse_for(&protection::take_field(cdb).1, supports)
    } else {
        Command::parse_for(cdb, supports)
    }
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
