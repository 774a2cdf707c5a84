//! A logical unit: a disk with an identity, the same for all who see it.

mod growth;
mod holder;
mod persistent;
mod ports;
mod snapshots;
mod upkeep;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use spec::scsi::sense;

pub use self::holder::Holder;
use super::access::Groups;
use super::attention::Attention;
use super::clock::Clock;
use super::command::Command;
use super::copy::Copying;
use super::erase::{Ended, Erasing, Errand, Ticket};
use super::fault::{Ending, Fault, Sense, SenseFormat, Work};
use super::identity::{BadName, Identity};
use super::information::Information;
use super::mode::{self, Modes, Selection, Settings};
use super::nexus::Nexus;
use super::opcode::Supports;
use super::pending::Then;
use super::persistent::{Persistent, Registrant};
use super::port::Port;
use super::reservation::Reservation;
use super::state_file::StateError;
use super::statistics::{Statistics, Tally};
use super::threshold::{Threshold, Watch};
use super::{Buffers, inquiry, medium, protection, report, vital};
use crate::disk::{Disk, Gate, Op, ProtectedDisk, Protection, Usage};
use crate::limit::Meter;

/// How long a command may take, unless it is said otherwise: less than the 30 s after which
/// initiators lose patience.
const PATIENCE: Duration = Duration::from_secs(25);

/// A disk with an identity, which several targets may show under a LUN each.
#[derive(Debug)]
pub struct LogicalUnit {
    identity: Identity,
    disk: Arc<dyn Disk>,
    patience: Duration,
    pauses: bool,
    /// Its limit, if it has one: that of all who see it.
    meter: Arc<Meter>,
    /// What its disk's abilities make of it; these never change, and neither do block sizes.
    supports: Supports,
    modes: Modes,
    /// Whether there is a threshold on what is under the disk.
    thresholds: bool,
    watch: Mutex<Watch>,
    /// How full what is under the disk was when it was looked at last: a disk that hangs must not
    /// hold up who asks.
    usage: Mutex<Option<Usage>>,
    /// The disk could not be looked at the last time.
    blind: AtomicBool,
    /// Acknowledged writes are lost, and its tenants have not been told.
    lost: AtomicBool,
    /// The operator knows of what an earlier boot lost.
    forgiven: AtomicBool,
    /// START STOP UNIT has stopped it.
    stopped: AtomicBool,
    erasing: Erasing,
    statistics: Statistics,
    clock: Clock,
    information: Information,
    reservation: Reservation,
    // Where more than one of these is locked, it is in this order.
    persistent: Persistent,
    groups: Mutex<Groups>,
    nexuses: Mutex<Vec<Weak<Nexus>>>,
}

/// What a command comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// GOOD, with this data, which is at most as long as the command allows.
    Data(Vec<u8>),
    /// GOOD, when this many bytes of the buffers were moved.
    Done { moved: usize },
    /// What the disk does, and what comes of it.
    Disk { op: Op, work: Work, then: Then },
    /// What several disks do, one after the other.
    Copy(Box<Copying>),
    /// What is done once the commands of everyone have ended.
    Erase { ticket: Ticket, moved: usize },
    /// What is done in the background for the command, at whose end the gate is opened.
    Wait {
        gate: Arc<Gate>,
        ended: Ended,
        errand: Errand,
        moved: usize,
    },
    /// GOOD, when this many bytes of the buffers were moved, as soon as the commands of these have
    /// ended.
    Preempted {
        who: Vec<Registrant>,
        /// Which fence it is.
        fence: u64,
        moved: usize,
    },
    /// The buffers are smaller than what the command moves.
    Overrun,
}

impl LogicalUnit {
    /// A logical unit whose serial number and identifiers come from `name` alone: they are the
    /// same for every appliance that shows it.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str, disk: Arc<dyn Disk>) -> Result<Self, BadName> {
        let supports = Supports {
            protection: disk.protected().is_some(),
            ..Supports::of(&disk.abilities(), &disk.geometry())
        };
        let usage = disk.usage();
        Ok(Self {
            identity: Identity::new(name)?,
            supports,
            thresholds: supports.thin && usage.is_some(),
            usage: Mutex::new(usage),
            disk,
            patience: PATIENCE,
            pauses: false,
            meter: Arc::default(),
            modes: Modes::new(Settings::default()),
            watch: Mutex::default(),
            blind: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            forgiven: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            erasing: Erasing::new(name),
            statistics: Statistics::default(),
            clock: Clock::default(),
            information: Information::default(),
            reservation: Reservation::default(),
            persistent: Persistent::default(),
            groups: Mutex::default(),
            nexuses: Mutex::default(),
        })
    }

    /// With another time for its commands.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// With commands that wait when its disk is full, gone or fails, until it is mended; otherwise
    /// they are told.
    #[must_use]
    pub fn with_pauses(mut self) -> Self {
        self.pauses = true;
        self
    }

    /// With a soft threshold, unless an initiator has saved another: initiators are told when
    /// `percent` of what its disk can occupy is used. A disk that is not thin, or does not tell
    /// how full it is, has none.
    #[must_use]
    pub fn with_threshold(mut self, percent: u8) -> Self {
        match self.disk.usage() {
            Some(usage) if self.thresholds => {
                let geometry = self.disk.geometry();
                let threshold = Threshold::at_percent(percent, usage, &geometry);
                self.modes.set_default_threshold(threshold);
            }
            _ => tracing::warn!(
                lun = self.name(),
                "its disk is not thin, or does not tell how full it is: there is no threshold"
            ),
        }
        self
    }

    /// With a file in which initiators may save mode parameters. One that is damaged is reported
    /// in the log, and left until something is saved over it.
    #[must_use]
    pub fn with_state(mut self, path: impl Into<PathBuf>) -> Self {
        if let Err(error) = self.modes.set_file(path.into(), self.identity.name()) {
            tracing::error!(lun = self.name(), "{error}");
        }
        // Where nothing is to be cached, an appliance before this one may have cached all the same.
        self.pay_flush();
        self
    }

    /// With a file in which persistent reservations outlive the appliance, where initiators ask
    /// for that; those that it has are in force.
    ///
    /// # Errors
    /// [`StateError`] for a file that is damaged: who was to be kept away is not known.
    pub fn with_reservations(mut self, path: impl Into<PathBuf>) -> Result<Self, StateError> {
        self.persistent
            .set_file(path.into(), self.identity.name())?;
        Ok(self)
    }

    /// Shared by several HBAs, some of which may be better ways to it than others.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.supports.ports = true;
        self
    }

    /// How long a command may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether commands wait when its disk is full, gone or fails.
    pub fn pauses(&self) -> bool {
        self.pauses
    }

    /// What it may do in a second.
    #[inline]
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Whether writes are done before they are on stable storage.
    pub(super) fn write_cache(&self) -> bool {
        self.modes.current().write_cache
    }

    /// How sense data is told, as an initiator has set it (D_SENSE).
    pub(super) fn sense_format(&self) -> SenseFormat {
        self.modes.current().descriptor_sense.into()
    }

    /// What it supports that others do not.
    pub(super) fn supports(&self) -> Supports {
        self.supports
    }

    /// What the protection information of its blocks means, if they have any.
    pub fn protection(&self) -> Option<Protection> {
        self.disk.protected().map(ProtectedDisk::protection)
    }

    /// Its name, which is also its serial number.
    pub fn name(&self) -> &str {
        self.identity.name()
    }

    /// Its NAA identifier.
    pub fn naa(&self) -> u64 {
        self.identity.naa()
    }

    /// Writes that were acknowledged are lost: it fails from now on. Whether it did not before.
    pub fn lose_writes(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }

    /// The operator knows of whatever an earlier boot lost of it.
    pub fn forgive(&self) {
        self.forgiven.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::forgive`] was called.
    pub fn is_forgiven(&self) -> bool {
        self.forgiven.load(Ordering::Relaxed)
    }

    /// The disk under it.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    // --- Who sees it ---------------------------------------------------------------------------

    /// One more initiator sees it; the first finds it as after power on.
    pub(super) fn join(&self, port: Port) -> Arc<Nexus> {
        let nexus = Arc::new(Nexus::new(port));
        // Held until everyone who changes these finds the new nexus.
        let (persistent, groups) = (self.persistent.state(), self.groups());
        nexus.set_standing(persistent.standing(port));
        nexus.set_access(groups.state(port));
        let mut nexuses = self.nexuses();
        nexuses.retain(|other| other.strong_count() > 0);
        if nexuses.is_empty() {
            self.restart();
        }
        nexuses.push(Arc::downgrade(&nexus));
        nexus
    }

    /// What one more thread counts in that carries commands to it out.
    pub(super) fn new_tally(&self) -> Arc<Tally> {
        let tally = Arc::default();
        self.statistics.join(&tally);
        tally
    }

    /// An initiator's nexus is lost: what it reserved is free.
    pub(super) fn lose(&self, nexus: &Nexus) {
        self.reservation.release(nexus);
    }

    /// An initiator was powered on. Nobody else's reservation ends by that, nor are parameters
    /// changed that others rely on; but its firmware may know no START STOP UNIT.
    pub(super) fn power_on(&self, nexus: &Nexus) {
        self.lose(nexus);
        self.stopped.store(false, Ordering::Relaxed);
        let is_alone = self
            .nexuses()
            .iter()
            .filter_map(Weak::upgrade)
            .all(|other| other.id() == nexus.id());
        if is_alone {
            self.modes.restore();
        }
        nexus.restart();
    }

    /// LOGICAL UNIT RESET: parameters are as they were saved, nobody has reserved it, it is
    /// started, and everyone is told (SAM-5, logical unit reset).
    pub(super) fn reset(&self) {
        self.restart();
        self.tell(Attention::LogicalUnitReset);
    }

    fn restart(&self) {
        self.modes.restore();
        self.stopped.store(false, Ordering::Relaxed);
        self.reservation.clear();
    }

    /// Establishes a unit attention for everyone who sees it.
    pub fn tell(&self, attention: Attention) {
        for nexus in self.nexuses().iter().filter_map(Weak::upgrade) {
            nexus.establish(attention);
        }
    }

    /// Establishes a unit attention for everyone but one.
    fn tell_others(&self, than: &Nexus, attention: Attention) {
        let nexuses = self.nexuses();
        for nexus in nexuses.iter().filter_map(Weak::upgrade) {
            if nexus.id() != than.id() {
                nexus.establish(attention);
            }
        }
    }

    fn nexuses(&self) -> MutexGuard<'_, Vec<Weak<Nexus>>> {
        self.nexuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the disk's size and at what is left under it. Establishes the unit attentions
    /// that come of it for everyone, and returns them.
    pub fn look(&self) -> Vec<Attention> {
        let mut attentions = Vec::new();
        match self.disk.refresh() {
            Ok(is_other) => {
                self.blind.store(false, Ordering::Relaxed);
                if is_other {
                    attentions.push(Attention::CapacityChanged);
                }
            }
            Err(error) => {
                if !self.blind.swap(true, Ordering::Relaxed) {
                    tracing::warn!(lun = self.name(), "its size cannot be looked at: {error}");
                }
            }
        }
        attentions.extend(self.pay_flush());
        if self.thresholds
            && let Some(usage) = self.disk.usage()
        {
            *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
            let threshold = self.modes.current().threshold;
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            if watch.reached(threshold, usage, &self.disk.geometry()) {
                attentions.push(Attention::SoftThreshold);
            }
        }
        for attention in &attentions {
            self.tell(*attention);
        }
        attentions
    }

    /// Flushes what was written before a reset ended caching: initiators are told that there is a
    /// cache until this is done, and of the change then.
    fn pay_flush(&self) -> Option<Attention> {
        let owed = self.modes.owed()?;
        if let Err(error) = self.disk.flush() {
            // Whoever writes from now on hears of it.
            tracing::error!(
                lun = self.name(),
                "what was written before caching ended cannot be flushed: {error}"
            );
        }
        let paid = self.modes.pay(owed);
        (paid && !self.write_cache()).then_some(Attention::ModeChanged)
    }

    // --- Commands ------------------------------------------------------------------------------

    /// Whether a command of `nexus` is in conflict with a reservation.
    pub(super) fn is_reserved_against(&self, nexus: &Nexus, command: &Command) -> bool {
        self.reservation.keeps_away(nexus, command) || nexus.standing().forbids(command)
    }

    /// Whether a READ, or a WRITE, of `nexus` may be carried out, as far as the states of both are
    /// concerned, and has no protection information.
    #[inline]
    pub(super) fn lets_by(&self, nexus: &Nexus, writes: bool) -> bool {
        let is_in_the_way = self.reservation.is_held()
            | self.lost.load(Ordering::Relaxed)
            | self.stopped.load(Ordering::Relaxed)
            | self.erasing.condition().is_some()
            | self.supports.protection
            | (writes && self.modes.current().write_protect);
        !is_in_the_way && nexus.is_open()
    }

    /// The fault with which commands end while the unit is stopped.
    pub(super) fn check_started(&self) -> Result<(), Fault> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Fault::Stopped);
        }
        Ok(())
    }

    /// What REQUEST SENSE tells of it, if there is nothing else to be told.
    pub(super) fn condition(&self) -> Sense {
        let fault = self.erasing().or(self.check_started().err());
        match fault.map(Fault::ending) {
            Some(Ending::Check(sense)) => sense,
            _ => Sense::new(sense::NO_SENSE),
        }
    }

    /// Decides on a command that the target has not answered by itself.
    pub(super) fn execute(
        &self,
        nexus: &Nexus,
        command: Command,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        self.check_whole(&command)?;
        self.check_not_erased(&command)?;
        let geometry = self.disk.geometry();
        let nothing = || Ok(Outcome::Data(Vec::new()));
        let data = |mut data: Vec<u8>, allocation: usize| {
            data.truncate(allocation);
            Ok(Outcome::Data(data))
        };
        match command {
            Command::TestUnitReady => self.check_started().and_then(|()| nothing()),
            Command::PreventAllowRemoval { .. } => nothing(),
            Command::Inquiry { page, allocation } => data(
                match page {
                    None => inquiry::standard(
                        inquiry::DISK,
                        self.supports.ports,
                        self.supports.protection,
                    ),
                    Some(page) => vital::page(
                        page,
                        &vital::Unit {
                            identity: &self.identity,
                            geometry,
                            abilities: self.disk.abilities(),
                            thresholds: self.thresholds,
                            sanitizes: self.supports.state,
                            protection: self.protection(),
                            port: nexus.port(),
                            shared: self.supports.ports.then(|| self.ports(nexus)),
                        },
                    )?,
                },
                allocation,
            ),
            Command::ModeSense(pages) => data(
                mode::sense(&pages, &geometry, &self.modes, self.thresholds)?,
                pages.allocation,
            ),
            Command::ModeSelect {
                long,
                page_format,
                save,
                len,
            } => {
                let selection = Selection {
                    long,
                    page_format,
                    save,
                };
                self.mode_select(nexus, selection, len, buffers)
            }
            Command::StartStop { start, flush } => {
                // Before the flush, so that nothing is written after it.
                self.stopped.store(!start, Ordering::Relaxed);
                if flush {
                    medium::flush(&geometry, 0)
                } else {
                    nothing()
                }
            }
            Command::Reserve => self.reserve(nexus).and_then(|()| nothing()),
            Command::Release => self.release(nexus).and_then(|()| nothing()),
            Command::ReserveIn { ask, allocation } => {
                data(self.persistent_data(nexus, ask)?, allocation)
            }
            Command::ReserveOut {
                action,
                scope_and_type,
                len,
            } => self.change_persistent(nexus, (action, scope_and_type), len, buffers),
            Command::ReportPortGroups {
                extended,
                allocation,
            } => data(self.groups().report(extended), allocation),
            Command::SetPortGroups { len } => self.set_port_groups(nexus, len, buffers),
            Command::ReportOpcodes { allocation, .. } => {
                let unit = report::Unit {
                    supports: self.supports(),
                    patience: self.patience,
                };
                data(report::opcodes(&command, unit)?, allocation)
            }
            Command::ReportTaskManagement {
                extended,
                allocation,
            } => data(report::task_management(extended, allocation)?, allocation),
            Command::Upkeep(command) => {
                let outcome = self.upkeep(nexus, command, buffers)?;
                self.with_tags(outcome, buffers)
            }
            Command::RequestSense { .. } | Command::ReportLuns { .. } | Command::Copy(_) => {
                debug_assert!(false, "the target answers {command:?}");
                Err(Fault::InvalidOpcode)
            }
            command => {
                self.check_medium(&command)?;
                let outcome = medium::start(self, command, buffers)?;
                self.with_tags(outcome, buffers)
            }
        }
    }

    /// What the disk does, with tags where its blocks have them.
    fn with_tags(&self, outcome: Outcome, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
        if self.supports.protection {
            protection::apply(outcome, buffers.tags)
        } else {
            Ok(outcome)
        }
    }

    /// Whether nothing was lost, or it does not matter for a command.
    #[inline]
    pub(super) fn check_whole(&self, command: &Command) -> Result<(), Fault> {
        if !self.lost.load(Ordering::Relaxed) || is_harmless(command) {
            return Ok(());
        }
        Err(Fault::UnitLost)
    }

    /// Whether the state of the unit lets a command at its blocks.
    #[inline]
    pub(super) fn check_medium(&self, command: &Command) -> Result<(), Fault> {
        let writes = command.changes_blocks();
        // A cache can be flushed, and a capacity told, at any time.
        let accesses = matches!(
            command,
            Command::Read(_)
                | Command::Verify { .. }
                | Command::Prefetch(_)
                | Command::LbaStatus { .. }
        );
        if accesses || writes {
            self.check_started()?;
        }
        if writes && self.modes.current().write_protect {
            return Err(Fault::SoftwareWriteProtected);
        }
        Ok(())
    }

    fn mode_select(
        &self,
        nexus: &Nexus,
        selection: Selection,
        len: usize,
        buffers: Buffers<'_>,
    ) -> Result<Outcome, Fault> {
        // Read once: the tenant may change it while we look.
        let mut list = vec![0; len.min(buffers.data_out.len())];
        if buffers.data_out.read_at(0, &mut list) < len {
            return Ok(Outcome::Overrun);
        }
        let geometry = self.disk.geometry();
        let (before, after) =
            mode::select(selection, &list, &geometry, &self.modes, self.thresholds)?;
        if before != after {
            self.tell_others(nexus, Attention::ModeChanged);
        }
        // What was written until now may be in a cache below that nobody will flush any more.
        let caches = before.write_cache || self.modes.owed().is_some();
        let settles = caches && !after.write_cache || !before.write_protect && after.write_protect;
        match medium::flush(&geometry, 0)? {
            Outcome::Disk { op, work, .. } if settles => Ok(Outcome::Disk {
                op,
                work,
                then: Then::Moved(len),
            }),
            _ => Ok(Outcome::Done { moved: len }),
        }
    }
}

/// Whether it does not matter to a command that something was lost.
fn is_harmless(command: &Command) -> bool {
    if let Command::Upkeep(upkeep) = command {
        return upkeep.is_harmless();
    }
    matches!(
        command,
        Command::TestUnitReady
            | Command::Inquiry { .. }
            | Command::ModeSense(_)
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportOpcodes { .. }
            | Command::ReportTaskManagement { .. }
            | Command::ReportPortGroups { .. }
            | Command::SetPortGroups { .. }
            | Command::Reserve
            | Command::ReserveIn { .. }
            | Command::ReserveOut { .. }
            | Command::Release
            | Command::PreventAllowRemoval { .. }
    )
}

#[cfg(test)]
mod tests;
