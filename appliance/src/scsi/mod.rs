//! A SCSI target: logical units, commands, sense; nothing about virtio or disks' insides.
//!
//! [`Host::start`] turns a CDB into a [`Step`]: an answer, or an operation on a disk whose
//! outcome [`Pending::finish`] turns into one.

mod access;
mod attention;
mod capacity;
mod checksum;
mod clock;
mod command;
mod conflict;
mod copy;
mod defects;
pub(crate) mod describe;
mod diagnostic;
mod echo;
mod erase;
mod fault;
mod fields;
mod host;
mod identity;
mod information;
mod inquiry;
mod lba_status;
mod limits;
mod log;
mod medium;
mod mode;
mod nexus;
mod numbered;
mod opcode;
mod pending;
mod persistent;
mod port;
mod protection;
mod report;
mod reservation;
mod state_file;
mod statistics;
mod table;
mod target;
#[cfg(test)]
pub(crate) mod testing;
mod threshold;
mod transfer;
mod unit;
mod unmap;
mod upkeep;
mod vital;

use std::sync::Arc;
use std::time::Duration;

use spec::scsi::status;

pub use access::{Access, Path};
pub use attention::Attention;
use fault::{Ending, Fault, SenseFormat};
pub use host::{Address, BadLun, Host, Place, Scope};
pub use identity::BadName;
pub use pending::{Begun, Pending};
pub use persistent::Registrant;
pub use port::{Initiator, Port};
pub use protection::Tags;
pub use state_file::StateError;
pub(crate) use target::Bond;
pub use unit::{Holder, LogicalUnit};

use crate::disk::{Disk, Op};
use crate::memory::Segments;

/// The tenant's buffers that came with a command.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    /// From the tenant to us. The tenant may change it at any time: what is read once is used.
    pub data_out: &'a Segments,
    /// Bytes from us to the tenant.
    pub data_in: usize,
    /// Protection information that came with it.
    pub tags: Tags,
}

impl Buffers<'_> {
    /// How long they are.
    fn room(self) -> Room {
        Room {
            data_out: self.data_out.len(),
            data_in: self.data_in,
        }
    }
}

/// Lengths in bytes of the tenant's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    data_out: usize,
    data_in: usize,
}

impl Room {
    /// What is left of both when `moved` bytes were moved (virtio 1.3 §5.6.6.1: residual).
    fn residual(self, moved: usize) -> u32 {
        let total = self.data_out.saturating_add(self.data_in);
        u32::try_from(total.saturating_sub(moved)).unwrap_or(u32::MAX)
    }
}

/// What to do with a command.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub enum Step {
    /// It is over.
    Answer(Answer),
    /// Carry `op` out on `disk`, with [`Pending::buffer`] if there is one, otherwise data-in as its
    /// buffer for a read and data-out for anything else, then call [`Pending::finish`], or [`Pending::expired`] if it takes too long.
    Disk {
        /// The disk, if it is not that of the unit of `pending`.
        disk: Option<Arc<dyn Disk>>,
        /// The operation; the buffer is at least as long.
        op: Op,
        /// Turns the outcome into an answer.
        pending: Pending,
        /// How long it may take.
        patience: Duration,
    },
    /// PREEMPT AND ABORT, FORMAT UNIT and SANITIZE: end every command of these initiators at the
    /// unit of `pending`, then [begin](Pending::begin) what is to happen, and go on as for
    /// [`Self::Disk`]. No new command of theirs gets by.
    Preempt {
        /// Whose commands they are; everybody's without.
        preempted: Option<Vec<Registrant>>,
        /// Turns the outcome into an answer.
        pending: Pending,
    },
    /// There is no such target (virtio: BAD_TARGET).
    NoTarget,
    /// The buffers are smaller than what the command moves (virtio: OVERRUN).
    Overrun,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SAM status.
    pub status: u8,
    /// Sense data; empty unless the status is CHECK CONDITION.
    pub sense: Vec<u8>,
    /// Bytes to put into data-in, which has room for them; empty for a READ, whose data the disk
    /// has put there.
    pub data: Vec<u8>,
    /// Bytes of the buffers that were not moved (virtio: residual).
    pub residual: u32,
}

impl Answer {
    /// GOOD, with this data.
    fn good(data: Vec<u8>, room: Room) -> Self {
        Self {
            residual: room.residual(data.len()),
            data,
            ..Self::done(0, room)
        }
    }

    /// GOOD, without data of ours; this many bytes of the buffers were moved.
    fn done(moved: usize, room: Room) -> Self {
        Self {
            status: status::GOOD,
            sense: Vec::new(),
            data: Vec::new(),
            residual: room.residual(moved),
        }
    }

    /// BUSY: nothing has happened, and the initiator may try again.
    pub fn busy(buffers: Buffers<'_>) -> Self {
        Self {
            status: status::BUSY,
            ..Self::done(0, buffers.room())
        }
    }

    fn failed(fault: Fault, format: SenseFormat, room: Room) -> Self {
        let (status, sense) = match fault.ending() {
            Ending::Check(sense) => (status::CHECK_CONDITION, sense.bytes(format)),
            Ending::Status(status) => (status, Vec::new()),
        };
        Self {
            status,
            sense,
            ..Self::done(0, room)
        }
    }
}

#[cfg(test)]
mod tests;
