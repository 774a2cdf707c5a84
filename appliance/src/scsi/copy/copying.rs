//! A copy under way, from one bounded part to the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::limits::MAX_PART;
use super::problem::{Cause, Problem};
use super::records::{State, Ticket};
use super::relay::{Relay, Way};
use super::seat::Seat;
use super::token::{Named, Token, Tokens};
use crate::disk::{Disk, DiskError, Op, Reply, Source};
use crate::memory::Segments;
use crate::scsi::fault::{During, Fault, SenseFormat, Work};
use crate::scsi::host::Scope;
use crate::scsi::{Answer, LogicalUnit, Room};

/// What a disk has to do next.
type Next = (Arc<dyn Disk>, Op);

/// A copy under way. Before each part it looks whether the HBA may still read and write what it
/// reads and writes, so that whoever fences it off waits for one part at most.
#[derive(Debug)]
pub struct Copying {
    kind: Kind,
    parts: VecDeque<Part>,
    /// What comes after the parts, if it is not the end.
    then: Option<Fault>,
    relay: Relay,
    /// Bytes that the operation under way copies.
    now: u64,
    /// Bytes that were copied.
    done: u64,
    /// Segments that were.
    segments: u16,
    /// Why no more parts are copied.
    fault: Option<Fault>,
    ticket: Option<Ticket>,
    /// Bytes of the parameter list.
    moved: usize,
}

/// The command that it comes from.
#[derive(Debug)]
pub enum Kind {
    Extended,
    Populate {
        token: Arc<Token>,
        seat: Seat,
        tokens: Arc<Tokens>,
        /// Blocks that it stands for.
        blocks: u64,
        /// The disk was asked to watch them.
        asked: bool,
    },
    Write {
        token: Named,
        tokens: Arc<Tokens>,
        /// The token is of no use any more afterwards.
        delete: bool,
        /// Blocks that were to be written, and bytes of each.
        wanted: u64,
        block_size: u64,
    },
}

/// Consecutive bytes to copy.
#[derive(Debug)]
pub struct Part {
    /// Where they come from, and the first of them; zeros if that is nowhere.
    source: Option<(Seat, u64)>,
    destination: Seat,
    offset: u64,
    len: u64,
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

    pub fn len(&self) -> u64 {
        self.len
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
    fn is_relayed(&self) -> bool {
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
    fn op(&self, len: u64) -> Next {
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
    fn relayed(&self, way: Way) -> Next {
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
    fn advance(&mut self, len: u64) {
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
    fn is_in(&self, scope: Scope) -> bool {
        let source = self.source.as_ref().map(|(source, _)| source.address);
        scope.has(self.destination.address) || source.is_some_and(|source| scope.has(source))
    }

    /// It failed.
    fn failed(&self, cause: Cause) -> Fault {
        let left = self.residual / self.destination.block_size();
        Fault::Copy(Problem::Segment {
            cause,
            segment: self.segment,
            residual: self.begun.then_some(left),
        })
    }

    /// What the disk that is written to has failed.
    fn work(&self) -> Work {
        let block_size = self.destination.unit.disk().geometry().block_size;
        Work {
            during: During::Write,
            lba: self.offset / u64::from(block_size),
            blocks: self.len / u64::from(block_size),
            block_size,
        }
    }
}

impl Copying {
    /// A copy of these parts, after which comes `then`, by a command with so long a list.
    pub fn new(
        kind: Kind,
        parts: VecDeque<Part>,
        then: Option<Fault>,
        ticket: Option<Ticket>,
        moved: usize,
    ) -> Self {
        Self {
            kind,
            parts,
            then,
            relay: Relay::default(),
            now: 0,
            done: 0,
            segments: 0,
            fault: None,
            ticket,
            moved,
        }
    }

    /// What a disk has to do first; `None` if it is over.
    pub fn begin(&mut self) -> Option<Next> {
        match self.next() {
            Ok(next) => next,
            Err(fault) => {
                self.fault = Some(fault);
                None
            }
        }
    }

    /// What a disk has to do next, now that it ended with `result`; `None` if it is over.
    pub fn go_on(&mut self, result: &Result<Reply, DiskError>) -> Option<Next> {
        if *result != Ok(Reply::Done) {
            return None;
        }
        self.account();
        self.begin()
    }

    /// Whether it works at a unit of `scope`, or will.
    pub fn works_at(&self, scope: Scope) -> bool {
        self.parts.iter().any(|part| part.is_in(scope))
    }

    /// The units that it writes to, or will.
    pub fn destinations(&self) -> impl Iterator<Item = &Arc<LogicalUnit>> {
        self.parts.iter().map(|part| &part.destination.unit)
    }

    fn next(&mut self) -> Result<Option<Next>, Fault> {
        if self.ticket.as_ref().is_some_and(Ticket::is_aborted) {
            return Err(Fault::Copy(Problem::Terminated));
        }
        match &mut self.kind {
            Kind::Populate {
                token, seat, asked, ..
            } => {
                if std::mem::replace(asked, true) {
                    return Ok(None);
                }
                seat.may_read()?;
                let op = Op::Watch(token.watch().clone());
                return Ok(Some((Arc::clone(seat.unit.disk()), op)));
            }
            Kind::Write {
                token: Named::Token(token),
                ..
            } => token.check().map_err(Fault::Copy)?,
            Kind::Write { .. } | Kind::Extended => {}
        }
        while self.parts.front().is_some_and(|part| part.len == 0) {
            self.parts.pop_front();
            self.segments += 1;
        }
        let Some(part) = self.parts.front() else {
            return self.then.take().map_or(Ok(None), Err);
        };
        let is_extended = matches!(self.kind, Kind::Extended);
        let source = part.source.as_ref();
        if source.is_some_and(|(source, _)| source.may_read().is_err()) {
            return Err(part.failed(Cause::Device));
        }
        if let Err(fault) = part.destination.may_write() {
            return Err(if is_extended {
                part.failed(Cause::Device)
            } else {
                fault
            });
        }
        if !part.is_relayed() {
            self.relay.rest();
            self.now = part.len.min(MAX_PART);
            return Ok(Some(part.op(self.now)));
        }
        let way = self.relay.next(part.len)?;
        if let Way::Write(len) = way {
            self.now = len as u64;
        }
        Ok(Some(part.relayed(way)))
    }

    /// The buffer of the operation under way, if it needs one.
    pub fn buffer(&self) -> Option<Segments> {
        self.relay.buffer()
    }

    /// Takes note of the end of the operation under way.
    fn account(&mut self) {
        let now = std::mem::take(&mut self.now);
        if now == 0 {
            return;
        }
        self.done += now;
        if let Some(part) = self.parts.front_mut() {
            part.advance(now);
            if part.len == 0 {
                self.parts.pop_front();
                self.segments += 1;
            }
        }
        if let Some(ticket) = &self.ticket {
            ticket.note(|record| (record.count, record.segments) = self.progress());
        }
    }

    /// TRANSFER COUNT and SEGMENTS PROCESSED.
    fn progress(&self) -> (u64, u16) {
        match &self.kind {
            Kind::Extended => (self.done, self.segments),
            Kind::Populate { .. } => (0, 0),
            Kind::Write { block_size, .. } => (self.done / block_size, 0),
        }
    }

    /// The answer, now that the last operation ended with `result`.
    pub fn answer(
        mut self,
        result: Result<Reply, DiskError>,
        room: Room,
        format: SenseFormat,
    ) -> Answer {
        let ended = self.end(result);
        let answer = match ended {
            Ok(()) => Answer::done(self.moved, room),
            Err(fault) => Answer::failed(fault, format, room),
        };
        let (count, segments) = self.progress();
        let state = match ended {
            Ok(()) => State::Completed,
            Err(Fault::Copy(Problem::Terminated))
            | Err(Fault::Disk {
                error: DiskError::Cancelled,
                ..
            }) => State::Terminated,
            Err(_) if matches!(self.kind, Kind::Extended) => State::Failed,
            Err(_) => State::Partial,
        };
        if let Some(ticket) = &self.ticket {
            ticket.note(|record| {
                (record.state, record.count, record.segments) = (state, count, segments);
                record.status = answer.status;
                record.sense.clone_from(&answer.sense);
                if let (
                    Ok(()),
                    Kind::Populate {
                        token, blocks: all, ..
                    },
                ) = (ended, &self.kind)
                {
                    record.count = *all;
                    record.token = Some(Arc::clone(token));
                }
            });
        }
        answer
    }

    fn end(&mut self, result: Result<Reply, DiskError>) -> Result<(), Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        match result {
            Ok(Reply::Done) => self.account(),
            Ok(_) => return Err(Fault::BadReply),
            Err(error) => return Err(self.disk_failed(error)),
        }
        if !self.parts.is_empty() || self.then.is_some() {
            // It was not gone on with.
            return Err(Fault::BadReply);
        }
        let now = Instant::now();
        match &self.kind {
            Kind::Extended => Ok(()),
            Kind::Populate { token, tokens, .. } => {
                token.check().map_err(Fault::Copy)?;
                token.touch(now);
                tokens.insert(token, now).map_err(Fault::Copy)
            }
            Kind::Write {
                token,
                tokens,
                delete,
                wanted,
                block_size,
            } => {
                if let Named::Token(token) = token {
                    // A change that came meanwhile may have been copied.
                    token.check().map_err(Fault::Copy)?;
                    token.touch(now);
                    if *delete {
                        tokens.remove(token);
                    }
                }
                match self.done / block_size {
                    blocks if blocks < *wanted => Err(Fault::Copy(Problem::Underrun { blocks })),
                    _ => Ok(()),
                }
            }
        }
    }

    fn disk_failed(&self, error: DiskError) -> Fault {
        let error = if self.relay.is_reading() {
            error.of_source()
        } else {
            error
        };
        let Some(part) = self.parts.front() else {
            let block_size = match &self.kind {
                Kind::Populate { seat, .. } => seat.unit.disk().geometry().block_size,
                _ => 1,
            };
            let work = Work {
                during: During::Read,
                lba: 0,
                blocks: 0,
                block_size,
            };
            return Fault::Disk { error, work };
        };
        let is_of_source = error == DiskError::SourceFailed;
        let is_status = matches!(error, DiskError::Busy | DiskError::Cancelled);
        if is_status || !is_of_source && !matches!(self.kind, Kind::Extended) {
            let work = part.work();
            return Fault::Disk { error, work };
        }
        part.failed(Cause::Device)
    }
}
