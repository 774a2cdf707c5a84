//! Consecutive bytes of a copy, and how they come from disk to disk.

use std::sync::Arc;

use super::problem::{Cause, Problem};
use super::relay::Way;
use super::seat::Seat;
use crate::disk::{Disk, Op, Source};
use crate::scsi::fault::{During, Fault, Work};
use crate::scsi::host::Scope;

/// What a disk has to do next.
pub type Next = (Arc<dyn Disk>, Op);

/// Consecutive bytes to copy.
#[derive(Debug)]
pub struct Part {
    /// Where they come from, and the first of them; zeros if that is nowhere.
    pub source: Option<(Seat, u64)>,
    pub destination: Seat,
    offset: u64,
    pub len: u64,
    /// The segment that it is.
    segment: u16,
    /// Bytes of it that are left, when counted from the first one that was not written.
    residual: u64,
    /// Something of it was written.
    begun: bool,
}

impl Part {
    pub fn new(
        source: Option<(Seat, u64)>,
        (destination, offset): (Seat, u64),
        len: u64,
        segment: u16,
    ) -> Self {
        Self {
            source,
            destination,
            offset,
            len,
            segment,
            residual: len,
            begun: false,
        }
    }

    /// Whether its end has to be copied first: it lies behind its source on the same disk, and
    /// overlaps.
    fn is_backwards(&self) -> bool {
        self.source.as_ref().is_some_and(|(source, from)| {
            let is_same = Arc::ptr_eq(source.unit.disk(), self.destination.unit.disk());
            is_same && *from < self.offset && self.offset - from < self.len
        })
    }

    /// Whether the disks cannot copy it among themselves: tags would be lost, or not be checked.
    pub fn is_relayed(&self) -> bool {
        let has_tags = |seat: &Seat| seat.unit.disk().protected().is_some();
        let source = self.source.as_ref();
        source.is_some_and(|(source, _)| has_tags(source) || has_tags(&self.destination))
    }

    /// How many bytes of it come before the next so many.
    fn skip(&self, len: u64) -> u64 {
        if self.is_backwards() {
            self.len - len
        } else {
            0
        }
    }

    /// The operation that copies so many bytes of it.
    pub fn op(&self, len: u64) -> Next {
        let disk = self.destination.unit.disk();
        let skip = self.skip(len);
        let op = match &self.source {
            Some((source, from)) => Op::Copy {
                source: Source(Arc::clone(source.unit.disk())),
                from: from + skip,
                offset: self.offset + skip,
                len,
                fua: true,
            },
            None => Op::Zero {
                offset: self.offset,
                len,
                unmap: false,
                fua: true,
            }
            .on(disk.as_ref()),
        };
        (Arc::clone(disk), op)
    }

    /// The operation that brings it a step further by way of our memory.
    pub fn relayed(&self, way: Way) -> Next {
        let (Way::Read(len) | Way::Write(len)) = way;
        let skip = self.skip(len as u64);
        let (disk, op) = match (way, &self.source) {
            (Way::Read(_), Some((source, from))) => {
                let offset = from + skip;
                (source.unit.disk(), Op::Read { offset, len })
            }
            _ => {
                let op = Op::Write {
                    offset: self.offset + skip,
                    len,
                    fua: true,
                    atomic: false,
                };
                (self.destination.unit.disk(), op)
            }
        };
        (Arc::clone(disk), op.on(disk.as_ref()))
    }

    /// Takes note that those are copied.
    pub fn advance(&mut self, len: u64) {
        self.begun = true;
        if !self.is_backwards() {
            self.offset += len;
            self.residual -= len;
            if let Some((_, from)) = &mut self.source {
                *from += len;
            }
        }
        self.len -= len;
    }

    /// Whether one of its units is in `scope`.
    pub fn is_in(&self, scope: Scope) -> bool {
        let source = self.source.as_ref().map(|(source, _)| source.address);
        scope.has(self.destination.address) || source.is_some_and(|source| scope.has(source))
    }

    /// It failed.
    pub fn failed(&self, cause: Cause) -> Fault {
        let left = self.residual / self.destination.block_size();
        Fault::Copy(Problem::Segment {
            cause,
            segment: self.segment,
            residual: self.begun.then_some(left),
        })
    }

    /// What the disk that is written to has failed.
    pub fn work(&self) -> Work {
        let block_size = self.destination.unit.disk().geometry().block_size;
        Work {
            during: During::Write,
            lba: self.offset / u64::from(block_size),
            blocks: self.len / u64::from(block_size),
            block_size,
        }
    }
}
