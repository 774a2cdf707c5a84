//! What the workers of one HBA say to each other.
//!
//! Only the first is known outside: it has what stands in front of the HBA, the control queue and
//! the event queue, and the roster knows its inbox. The others do for it what concerns their rings.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use spec::mailbox::Reply;

use crate::front::Request;
use crate::inbox::{EndTasks, Receipt};
use crate::scsi::{Address, Bond, LogicalUnit};
use crate::task::Fate;
use crate::task_management::Scope;

/// Something that a worker of an HBA is told by another of it.
#[derive(Debug)]
pub(crate) enum Fellow {
    /// A request of who is in front of the HBA; the first worker wants a reply.
    Asked(Request),
    /// The reply.
    Replied(Reply),
    /// A worker has ended.
    Ended,
    /// Tasks of this initiator are to end.
    End(EndOwn),
    /// Tasks are to end because another initiator wants it.
    EndForAnother(EndTasks, Arc<Told>),
    /// Whether there is such a task.
    Query(Query),
    /// Other units are to be seen.
    Change(Change),
}

/// The tasks that end because the initiator, or a command of it, wants it.
#[derive(Debug)]
pub(crate) struct EndOwn {
    /// Which.
    pub scope: Scope,
    /// What becomes of them.
    pub fate: Fate,
    /// Where a task management function wants it: what is more to be known of them.
    pub function: Option<ForFunction>,
    /// To be dropped when the last of them has ended, and for a function is back in its ring.
    pub receipt: Receipt,
}

/// What a task management function wants to know of tasks that it ends.
#[derive(Debug, Clone)]
pub(crate) struct ForFunction {
    /// Whether it ends those of every initiator.
    pub of_all: bool,
    /// On whose disks nothing may be left when it is answered.
    pub units: Units,
}

/// Whether there is a task of this scope.
#[derive(Debug)]
pub(crate) struct Query {
    /// The scope.
    pub scope: Scope,
    /// Set if there is.
    pub found: Arc<AtomicBool>,
    /// To be dropped when it is known.
    pub receipt: Receipt,
}

/// Other units, which the first worker shows when all others do: whoever is told that they are
/// others finds them so on every ring.
#[derive(Debug)]
pub(crate) struct Change {
    /// Those that are seen no more, which go first; the receipt is for the tasks of each.
    pub gone: Vec<(Address, Receipt)>,
    /// Those that are seen from now on.
    pub come: Vec<(Address, Bond)>,
    /// To be dropped when they are shown as it is said here.
    pub shown: Receipt,
}

/// Units that workers find, each for itself, and one of them wants to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Units(Arc<Mutex<Vec<Arc<LogicalUnit>>>>);

impl Units {
    /// Adds some.
    pub fn add(&self, units: Vec<Arc<LogicalUnit>>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(units);
    }

    /// All that were added.
    pub fn take(&self) -> Vec<Arc<LogicalUnit>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where an initiator was told already that another has ended commands of it: once, whichever
/// workers had some.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<BTreeSet<Address>>);

impl Told {
    /// Whether it is to be told now.
    pub fn is_first(&self, address: Address) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(address)
    }
}

impl Query {
    /// Gives the answer of one worker.
    pub fn answer(self, found: bool) {
        let Self {
            found: known,
            receipt,
            ..
        } = self;
        known.fetch_or(found, Ordering::AcqRel);
        drop(receipt);
    }
}
