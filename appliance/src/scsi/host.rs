//! What one HBA sees: targets, and for each of them the logical units behind it.

use std::sync::Arc;
use std::time::Duration;

use spec::virtio_scsi::RequestHeader;
use uuid::Uuid;

use super::attention::Attention;
use super::command::Cdb;
use super::copy::{Peers, Relays, Tokens};
use super::numbered::Numbered;
use super::pending::Own;
use super::persistent::Registrant;
use super::port::{Initiator, Port};
use super::target::{Bond, Target};
use super::transfer::Transfer;
use super::{Answer, Buffers, LogicalUnit, Room, Step};

/// Where a logical unit is for one HBA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The target.
    pub target: u8,
    /// The logical unit of the target, at most [`Address::MAX_LUN`].
    pub lun: u16,
}

/// What a `lun` field addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A logical unit that exists.
    Unit(Address),
    /// The REPORT LUNS well-known logical unit of this target.
    ReportLuns(u8),
    /// The target exists, but not this logical unit (for task management: INCORRECT_LUN).
    NoUnit(u8),
    /// There is no such target.
    NoTarget,
}

/// Which logical units something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// This one.
    Unit(Address),
    /// Those of this target.
    Target(u8),
    /// All.
    Host,
}

/// What one HBA sees.
#[derive(Debug)]
pub struct Host {
    initiator: Initiator,
    targets: Numbered<u8, Target>,
    /// A disk may do something at once.
    quick: bool,
    tokens: Arc<Tokens>,
    relays: Arc<Relays>,
}

/// A transfer that the disk of its unit may do at once.
#[derive(Debug)]
pub struct Ready<'a> {
    address: Address,
    own: &'a Own,
    transfer: Transfer,
}

impl Ready<'_> {
    /// Where its unit is.
    #[inline]
    pub fn place(&self) -> Place {
        Place::Unit(self.address)
    }

    /// Its unit.
    #[inline]
    pub fn unit(&self) -> &Arc<LogicalUnit> {
        &self.own.unit
    }

    /// What is to be done.
    #[inline]
    pub fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    /// Counts it, as it was done.
    #[inline]
    pub fn count(&self) {
        let Self { own, transfer, .. } = self;
        own.tally
            .count(transfer.deed(), transfer.blocks(), Duration::ZERO);
    }
}

/// A LUN that cannot be addressed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("LUN {0} is beyond 16383, the last that flat addressing reaches")]
pub struct BadLun(pub u16);

/// The REPORT LUNS well-known logical unit (SAM-5 §4.7.5.1: extended addressing, well-known).
pub(super) const REPORT_LUNS_UNIT: [u8; 2] = [0xc1, 0x01];

impl Address {
    /// The last LUN that there can be.
    pub const MAX_LUN: u16 = 0x3fff;

    /// Virtio's `lun` field for it (virtio 1.3 §5.6.6.1), in SAM's flat form.
    pub fn field(self) -> [u8; 8] {
        let [high, low] = self.lun.to_be_bytes();
        [1, self.target, 0x40 | high, low, 0, 0, 0, 0]
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.target, self.lun)
    }
}

impl Scope {
    /// Whether it takes in the unit at `address`.
    pub fn has(self, address: Address) -> bool {
        match self {
            Self::Unit(unit) => unit == address,
            Self::Target(target) => target == address.target,
            Self::Host => true,
        }
    }
}

impl Host {
    /// What the HBA `initiator` sees: these logical units; each starts with a power-on unit
    /// attention.
    ///
    /// # Errors
    /// [`BadLun`].
    pub fn new(
        initiator: Initiator,
        units: impl IntoIterator<Item = (Address, Arc<LogicalUnit>)>,
    ) -> Result<Self, BadLun> {
        let mut host = Self {
            initiator,
            targets: Numbered::default(),
            quick: false,
            tokens: Arc::default(),
            relays: Arc::default(),
        };
        for (address, unit) in units {
            let bond = host.bond(address, unit)?;
            host.insert(address, bond);
        }
        Ok(host)
    }

    /// The UUID of the HBA.
    pub fn hba(&self) -> Uuid {
        self.initiator.uuid
    }

    /// The same, for another worker of the HBA: one initiator, of which each of them tells what
    /// none has told.
    #[must_use]
    pub fn share(&self) -> Self {
        let mut targets = Numbered::default();
        for (number, target) in self.targets.iter() {
            targets.insert(number, target.share());
        }
        Self {
            initiator: self.initiator,
            targets,
            quick: self.quick,
            tokens: Arc::clone(&self.tokens),
            relays: Arc::clone(&self.relays),
        }
    }

    /// Shows one more logical unit, which starts with a power-on unit attention; the others of
    /// its target tell that it came.
    ///
    /// # Errors
    /// [`BadLun`].
    pub fn add(&mut self, address: Address, unit: Arc<LogicalUnit>) -> Result<(), BadLun> {
        let bond = self.bond(address, unit)?;
        self.show(address, bond);
        Ok(())
    }

    /// A nexus for a unit that is to be shown at `address`, by every worker of the HBA.
    ///
    /// # Errors
    /// [`BadLun`].
    pub(crate) fn bond(&self, address: Address, unit: Arc<LogicalUnit>) -> Result<Bond, BadLun> {
        if address.lun > Address::MAX_LUN {
            return Err(BadLun(address.lun));
        }
        let port = Port {
            initiator: self.initiator,
            target: address.target,
        };
        Ok(Bond::new(unit, port))
    }

    /// As [`Self::add`], where every other worker shows the unit already.
    pub(crate) fn show(&mut self, address: Address, bond: Bond) {
        self.insert(address, bond)
            .establish(|lun| lun != address.lun, Attention::ReportedLunsChanged);
    }

    /// Shows one more logical unit, of which nothing is told yet.
    pub(crate) fn insert(&mut self, address: Address, bond: Bond) -> &Target {
        self.quick |= bond.unit().disk().answers_at_once();
        let target = self.targets.or_default(address.target);
        target.add(address.lun, bond);
        target
    }

    /// Shows a logical unit no more, which the others of its target tell; a target without any is
    /// no target.
    pub fn remove(&mut self, address: Address) {
        if self.hide(address)
            && let Some(target) = self.targets.get(address.target)
        {
            target.establish(|_| true, Attention::ReportedLunsChanged);
        }
    }

    /// Shows a logical unit no more, of which nothing is told yet; whether it was there.
    pub(crate) fn hide(&mut self, address: Address) -> bool {
        let Some(target) = self.targets.get_mut(address.target) else {
            return false;
        };
        let was_there = target.remove(address.lun);
        if target.is_empty() {
            self.targets.remove(address.target);
        }
        self.quick = self.targets.iter().any(|(_, target)| target.is_quick());
        was_there
    }

    /// The logical units with their addresses.
    pub fn units(&self) -> impl Iterator<Item = (Address, &Arc<LogicalUnit>)> {
        self.targets.iter().flat_map(|(number, target)| {
            target.units().map(move |(lun, unit)| {
                let target = number;
                (Address { target, lun }, unit)
            })
        })
    }

    /// Where `unit` is to be seen; of some initiators, only where this HBA is one of them.
    pub fn addresses_of(
        &self,
        unit: &Arc<LogicalUnit>,
        whose: Option<&[Registrant]>,
    ) -> Vec<Address> {
        let is_one = |address: Address| {
            let port = Port {
                initiator: self.initiator,
                target: address.target,
            };
            whose.is_none_or(|whose| whose.iter().any(|who| who.is(port)))
        };
        let shown = self.units().filter(|(_, shown)| Arc::ptr_eq(shown, unit));
        shown
            .map(|(address, _)| address)
            .filter(|address| is_one(*address))
            .collect()
    }

    /// What the field addresses.
    #[inline]
    pub fn place(&self, lun: [u8; 8]) -> Place {
        match address(lun) {
            Some(at)
                if self
                    .targets
                    .get(at.target)
                    .is_some_and(|target| target.has(at.lun)) =>
            {
                Place::Unit(at)
            }
            _ => self.other_place(lun),
        }
    }

    /// As [`Self::place`], of what is no logical unit that exists.
    #[inline(never)]
    fn other_place(&self, lun: [u8; 8]) -> Place {
        let [kind, number, high, low, rest @ ..] = lun;
        let rest = u32::from_be_bytes(rest);
        if [kind, number] == REPORT_LUNS_UNIT && [high, low] == [0; 2] && rest == 0 {
            return Place::ReportLuns(0);
        }
        if self.targets.get(number).is_none() || kind != 1 {
            Place::NoTarget
        } else if [high, low] == REPORT_LUNS_UNIT && rest == 0 {
            Place::ReportLuns(number)
        } else {
            Place::NoUnit(number)
        }
    }

    /// The transfer that a command is, with data buffers of these lengths, if its disk may do it at
    /// once and nothing is in its way; otherwise [`Self::start`] decides.
    #[inline]
    pub fn transfer(
        &self,
        header: &RequestHeader,
        (data_out, data_in): (usize, usize),
    ) -> Option<Ready<'_>> {
        if !self.quick {
            return None;
        }
        let address = address(header.lun)?;
        let room = Room { data_out, data_in };
        let target = self.targets.get(address.target)?;
        let (own, transfer) = target.transfer(address, header.task_attribute, &header.cdb, room)?;
        Some(Ready {
            address,
            own,
            transfer,
        })
    }

    /// Establishes a unit attention for this HBA on the units of `scope`.
    pub fn establish(&self, scope: Scope, attention: Attention) {
        for (number, target) in self.targets.iter() {
            target.establish(
                |lun| {
                    scope.has(Address {
                        target: number,
                        lun,
                    })
                },
                attention,
            );
        }
    }

    /// Does to the units of `scope` what a reset means for them, of which `attention` tells:
    ///
    /// * [`Attention::LogicalUnitReset`]: everyone who sees a unit is told; its saved mode
    ///   parameters are current, it is started, and nobody has reserved it.
    /// * [`Attention::NexusLoss`]: this HBA is told, and has reserved nothing.
    /// * [`Attention::PowerOn`]: as [`Self::power_on`].
    /// * Others only establish the unit attention for this HBA.
    ///
    /// Whoever calls ends the commands.
    pub fn reset(&self, scope: Scope, attention: Attention) {
        for (target, units) in self.targets.iter() {
            units.reset(|lun| scope.has(Address { target, lun }), attention);
        }
    }

    /// The HBA was reset, as at power on: this HBA is told nothing but that, has reserved
    /// nothing, and finds every unit started. Units that no other HBA sees have their saved mode
    /// parameters.
    pub fn power_on(&self) {
        self.tokens.clear();
        self.reset(Scope::Host, Attention::PowerOn);
    }

    /// The answer to a command that an appliance before this one may have carried out, if it must
    /// not be carried out twice; the arguments are those of [`Self::start`].
    pub fn not_again(&self, lun: [u8; 8], cdb: &Cdb, buffers: Buffers<'_>) -> Option<Answer> {
        let Place::Unit(Address { target, lun }) = self.place(lun) else {
            return None;
        };
        self.targets.get(target)?.not_again(lun, cdb, buffers)
    }

    /// Whether a command that was begun before is in conflict with a reservation now.
    pub fn is_reserved_against(&self, place: Place, cdb: &Cdb) -> bool {
        let Place::Unit(Address { target, lun }) = place else {
            return false;
        };
        let target = self.targets.get(target);
        target.is_some_and(|target| target.is_reserved_against(lun, cdb))
    }

    /// Decides on a command. `lun` and `attribute` are virtio's fields, `cdb` the CDB padded with
    /// zeros.
    pub fn start(&self, lun: [u8; 8], attribute: u8, cdb: &Cdb, buffers: Buffers<'_>) -> Step {
        self.start_at((lun, self.place(lun)), attribute, cdb, buffers)
    }

    /// As [`Self::start`] to a logical unit, without a look whether the command is a transfer.
    #[cfg(test)]
    pub fn start_without_transfer(
        &self,
        lun: [u8; 8],
        attribute: u8,
        cdb: &Cdb,
        buffers: Buffers<'_>,
    ) -> Step {
        let at = address(lun).expect("it is a unit's");
        let target = self.targets.get(at.target).expect("it is there");
        target.start_other(at, attribute, cdb, buffers, self.peers())
    }

    fn peers(&self) -> Peers<'_> {
        Peers {
            targets: &self.targets,
            tokens: &self.tokens,
            relays: &self.relays,
        }
    }

    /// As [`Self::start`], with [what `lun` addresses](Self::place).
    #[inline]
    pub fn start_at(
        &self,
        (lun, place): ([u8; 8], Place),
        attribute: u8,
        cdb: &Cdb,
        buffers: Buffers<'_>,
    ) -> Step {
        let target = match place {
            Place::Unit(Address { target, .. })
            | Place::ReportLuns(target)
            | Place::NoUnit(target) => self.targets.get(target),
            Place::NoTarget => None,
        };
        match (target, place) {
            (Some(target), Place::Unit(address)) => {
                target.start(address, attribute, cdb, buffers, self.peers())
            }
            (Some(target), Place::ReportLuns(_)) => target.start_well_known(cdb, buffers),
            (Some(target), _) => target.start_missing(lun, cdb, buffers),
            (None, _) => Step::NoTarget,
        }
    }
}

/// The address in a `lun` field of a form that has one.
#[inline]
fn address(lun: [u8; 8]) -> Option<Address> {
    // virtio 1.3 §5.6.6.1: 1, target, single-level LUN, zeros.
    let [1, target, high, low, 0, 0, 0, 0] = lun else {
        return None;
    };
    // SAM-5 §4.7.7: peripheral device addressing of bus 0, or flat space addressing.
    let lun = match high >> 6 {
        0 if high == 0 => u16::from(low),
        1 => u16::from_be_bytes([high & 0x3f, low]),
        _ => return None,
    };
    Some(Address { target, lun })
}

#[cfg(test)]
mod tests;
