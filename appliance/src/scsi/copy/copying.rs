//! A copy under way, from one bounded part to the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::limits::MAX_PART;
use super::part::{Next, Part};
use super::problem::{Cause, Problem};
use super::records::{State, Ticket};
use super::relay::{Relay, Relays, Way};
use super::seat::Seat;
use super::token::{Named, Token, Tokens};
use crate::disk::{DiskError, Op, Reply};
use crate::memory::Segments;
use crate::scsi::fault::{During, Fault, SenseFormat, Work};
use crate::scsi::host::Scope;
use crate::scsi::{Answer, LogicalUnit, Room};

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

impl Copying {
    /// A copy of these parts, after which comes `then`, by a command with so long a list; of an HBA
    /// with these relays.
    pub fn new(
        relays: &Arc<Relays>,
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
            relay: Relay::of(relays),
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

    /// Whether what a disk is to do next may still be done; if not, it ends with why.
    pub fn may_go_on(&mut self) -> bool {
        let may = self.check().and_then(|()| match self.parts.front() {
            Some(part) => self.check_part(part),
            None => Ok(()),
        });
        self.fault = may.err();
        self.fault.is_none()
    }

    /// Checks that nobody has ended it, nor what it copies.
    fn check(&self) -> Result<(), Fault> {
        if self.ticket.as_ref().is_some_and(Ticket::is_aborted) {
            return Err(Fault::Copy(Problem::Terminated));
        }
        match &self.kind {
            Kind::Write {
                token: Named::Token(token),
                ..
            } => token.check().map_err(Fault::Copy),
            Kind::Write { .. } | Kind::Extended | Kind::Populate { .. } => Ok(()),
        }
    }

    /// Checks that the HBA may read and write what a part does.
    fn check_part(&self, part: &Part) -> Result<(), Fault> {
        let source = part.source.as_ref();
        if source.is_some_and(|(source, _)| source.may_read().is_err()) {
            return Err(part.failed(Cause::Device));
        }
        part.destination.may_write().map_err(|fault| {
            if matches!(self.kind, Kind::Extended) {
                part.failed(Cause::Device)
            } else {
                fault
            }
        })
    }

    /// It is not gone on with; if it has copied something, it ends with [`Fault::Interrupted`].
    pub fn interrupt(&mut self) {
        if self.done > 0 {
            self.fault = Some(Fault::Interrupted);
        }
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
        self.check()?;
        if let Kind::Populate {
            token, seat, asked, ..
        } = &mut self.kind
        {
            if std::mem::replace(asked, true) {
                return Ok(None);
            }
            seat.may_read()?;
            let op = Op::Watch(token.watch().clone());
            return Ok(Some((Arc::clone(seat.unit.disk()), op)));
        }
        while self.parts.front().is_some_and(|part| part.len == 0) {
            self.parts.pop_front();
            self.segments += 1;
        }
        let Some(part) = self.parts.front() else {
            return self.then.take().map_or(Ok(None), Err);
        };
        self.check_part(part)?;
        if !part.is_relayed() {
            self.relay.rest();
            self.now = part.len.min(MAX_PART);
            return Ok(Some(part.op(self.now)));
        }
        let done = self.done;
        let way = self.relay.next(part.len);
        let way = way.map_err(|fault| unless_begun(done, fault))?;
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
            return unless_begun(self.done, Fault::Disk { error, work });
        }
        part.failed(Cause::Device)
    }
}

/// Why a copy ends of which so many bytes are done: BUSY has initiators send it once more as if
/// nothing had happened, which is wrong where it reads what it has written.
fn unless_begun(done: u64, fault: Fault) -> Fault {
    match fault {
        Fault::Busy
        | Fault::Disk {
            error: DiskError::Busy,
            ..
        } if done > 0 => Fault::Interrupted,
        fault => fault,
    }
}
