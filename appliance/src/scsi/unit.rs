//! A logical unit: a disk with an identity, the same for all who see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::attention::Attention;
use super::command::Command;
use super::fault::{Fault, Work};
use super::identity::{BadName, Identity};
use super::nexus::Nexus;
use super::opcode::Supports;
use super::pending::Then;
use super::{Buffers, inquiry, medium, mode, report};
use crate::disk::{Disk, Op};

/// How long a command may take, unless it is said otherwise: less than the 30 s after which
/// initiators lose patience.
const PATIENCE: Duration = Duration::from_secs(25);

/// A disk with an identity, which several targets may show under a LUN each.
#[derive(Debug)]
pub struct LogicalUnit {
    identity: Identity,
    disk: Arc<dyn Disk>,
    patience: Duration,
    /// WCE of the caching page: writes are done before they are on stable storage.
    write_cache: AtomicBool,
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
        Ok(Self {
            identity: Identity::new(name)?,
            disk,
            patience: PATIENCE,
            write_cache: AtomicBool::new(true),
            nexuses: Mutex::default(),
        })
    }

    /// With another time for its commands.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long a command may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether writes are done before they are on stable storage.
    pub(super) fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Acquire)
    }

    /// What it supports that others do not.
    pub(super) fn supports(&self) -> Supports {
        Supports::of(&self.disk.abilities(), &self.disk.geometry())
    }

    /// One more initiator sees it.
    pub(super) fn join(&self) -> Arc<Nexus> {
        let nexus = Arc::new(Nexus::new());
        let mut nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        nexuses.retain(|other| other.strong_count() > 0);
        nexuses.push(Arc::downgrade(&nexus));
        nexus
    }

    /// Establishes a unit attention for everyone who sees it.
    pub fn tell(&self, attention: Attention) {
        let nexuses = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        for nexus in nexuses.iter().filter_map(Weak::upgrade) {
            nexus.establish(attention);
        }
    }

    /// Its name, which is also its serial number.
    pub fn name(&self) -> &str {
        self.identity.name()
    }

    /// The disk under it.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Decides on a command that the target has not answered by itself.
    pub(super) fn execute(&self, command: Command, buffers: Buffers<'_>) -> Result<Outcome, Fault> {
        let geometry = self.disk.geometry();
        let nothing = || Ok(Outcome::Data(Vec::new()));
        let data = |mut data: Vec<u8>, allocation: usize| {
            data.truncate(allocation);
            Ok(Outcome::Data(data))
        };
        match command {
            Command::TestUnitReady | Command::PreventAllowRemoval => nothing(),
            Command::Inquiry { page, allocation } => data(
                match page {
                    None => inquiry::standard(inquiry::DISK),
                    Some(page) => inquiry::vital(page, &self.identity, &geometry)?,
                },
                allocation,
            ),
            Command::ModeSense(pages) => data(mode::sense(&pages, &geometry)?, pages.allocation),
            Command::StartStop { flush: true, .. } => medium::flush(&geometry, 0),
            Command::StartStop { flush: false, .. } => nothing(),
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
            Command::RequestSense { .. } | Command::ReportLuns { .. } => {
                debug_assert!(false, "the target answers {command:?}");
                Err(Fault::InvalidOpcode)
            }
            command => medium::start(self, command, buffers),
        }
    }
}
