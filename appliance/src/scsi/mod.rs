//! A SCSI target: logical units, commands, sense; nothing about virtio or disks' insides.
//!
//! [`Target::start`] turns a CDB into a [`Step`]: an answer, or an operation on a disk whose
//! outcome [`Pending::finish`] turns into one.

mod command;
mod fault;
mod identity;
mod inquiry;
mod mode;
mod report;
mod target;
mod unit;

use std::sync::Arc;

use spec::scsi::status;

pub use fault::Attention;
use fault::{During, Ending, Fault};
pub use identity::BadName;
pub use target::{BadLun, Place, Target};
pub use unit::LogicalUnit;

use crate::disk::{Disk, DiskError, Op, Reply};

/// Lengths in bytes of the tenant's buffers that came with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// From the tenant to us.
    pub data_out: usize,
    /// From us to the tenant.
    pub data_in: usize,
}

impl Buffers {
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
    /// Carry `op` out on `disk`, with data-in as its buffer for a read and data-out for a write,
    /// then call [`Pending::finish`].
    Disk {
        /// The disk.
        disk: Arc<dyn Disk>,
        /// The operation; the buffer is at least as long.
        op: Op,
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
    fn good(data: Vec<u8>, buffers: Buffers) -> Self {
        Self {
            status: status::GOOD,
            sense: Vec::new(),
            residual: buffers.residual(data.len()),
            data,
        }
    }

    fn failed(fault: Fault, buffers: Buffers) -> Self {
        let (status, sense) = match fault.ending() {
            Ending::Check(sense) => (status::CHECK_CONDITION, sense.fixed()),
            Ending::Status(status) => (status, Vec::new()),
        };
        Self {
            status,
            sense,
            data: Vec::new(),
            residual: buffers.residual(0),
        }
    }
}

/// A command whose disk operation is under way.
#[derive(Debug)]
#[must_use = "a command must be answered"]
pub struct Pending {
    during: During,
    lba: u64,
    moved: usize,
    buffers: Buffers,
}

impl Pending {
    /// The answer, now that the operation ended with `result`.
    pub fn finish(self, result: Result<Reply, DiskError>) -> Answer {
        match result {
            Ok(_) => Answer {
                status: status::GOOD,
                sense: Vec::new(),
                data: Vec::new(),
                residual: self.buffers.residual(self.moved),
            },
            Err(error) => Answer::failed(
                Fault::Disk {
                    error,
                    during: self.during,
                    lba: self.lba,
                },
                self.buffers,
            ),
        }
    }
}

#[cfg(test)]
mod tests;
