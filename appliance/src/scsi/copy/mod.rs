//! Third-party copy: units copy among themselves, and no data goes through the initiator.
//!
//! The copy manager is in every unit. It copies between units that the HBA sees, and lets it do
//! no more than READ and WRITE would. [`start`] turns a command into a [`Copying`], which one
//! disk after the other carries out.
//!
//! Whatever IMMED says, a command ends when the copy does (as SYNCHRONIZE CACHE does): who asks for
//! its status finds it over. ABORT TASK and a reset of any of its units end it, too.

mod copying;
mod limits;
mod list;
mod part;
mod problem;
mod records;
mod relay;
mod report;
mod request;
mod seat;
mod token;
mod token_list;
mod vital;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use copying::Copying;
use copying::Kind;
pub use problem::{Problem, Segment};
pub use records::Records;
pub use relay::Relays;
pub use request::{Format, Request, What};
pub use seat::Seat;
pub use token::Tokens;
pub use vital::content as vital;

use self::limits::{MAX_COPY, MAX_ROD};
use self::list::{Amount, Cscd, List};
use self::part::Part;
use self::problem::Cause;
use self::records::{Origin, Ticket};
use self::token::{Named, Token};
use self::token_list::Range;
use self::vital::THIS_UNIT;
use super::fault::Fault;
use super::inquiry::VENDOR;
use super::numbered::Numbered;
use super::target::Target;
use super::unit::Outcome;
use super::{Buffers, LogicalUnit};

/// What the HBA sees.
#[derive(Debug, Clone, Copy)]
pub struct Peers<'a> {
    pub targets: &'a Numbered<u8, Target>,
    pub tokens: &'a Arc<Tokens>,
    pub relays: &'a Arc<Relays>,
}

impl Peers<'_> {
    fn seats(&self) -> impl Iterator<Item = Seat> {
        let targets = self.targets.iter();
        targets.flat_map(|(number, target)| target.seats(number))
    }

    /// The seat at a unit, if the HBA sees it.
    fn seat(&self, unit: &Arc<LogicalUnit>) -> Option<Seat> {
        self.seats().find(|seat| Arc::ptr_eq(&seat.unit, unit))
    }
}

/// Decides on a third-party copy command that was sent to `own`.
pub fn start(
    request: Request,
    peers: Peers<'_>,
    own: &Seat,
    buffers: Buffers<'_>,
) -> Result<Outcome, Fault> {
    match request {
        Request::Extended { len: 0, .. }
        | Request::Populate { len: 0, .. }
        | Request::Write { len: 0, .. } => Ok(Outcome::Done { moved: 0 }),
        Request::Extended { format, len } => match read(buffers, len, list::most(format))? {
            Some(bytes) => extended(format, &bytes, peers, own),
            None => Ok(Outcome::Overrun),
        },
        Request::Populate { list, len } => match read(buffers, len, token_list::MOST)? {
            Some(bytes) => populate(list, &bytes, peers, own),
            None => Ok(Outcome::Overrun),
        },
        Request::Write { list, len } => match read(buffers, len, token_list::MOST)? {
            Some(bytes) => write(list, &bytes, peers, own),
            None => Ok(Outcome::Overrun),
        },
        Request::Abort { list } => {
            if !own.nexus.copies().abort(list) {
                return Err(Fault::InvalidField { byte: 2, bit: 7 });
            }
            Ok(Outcome::Done { moved: 0 })
        }
        Request::Receive {
            what,
            list,
            allocation,
        } => {
            let block_size = own.unit.disk().geometry().block_size;
            let mut data = report::data(what, list, &own.nexus.copies(), block_size)?;
            data.truncate(allocation);
            Ok(Outcome::Data(data))
        }
    }
}

/// A parameter list of at most so many bytes, read once; `None` if it is not there as a whole.
fn read(buffers: Buffers<'_>, len: usize, most: usize) -> Result<Option<Vec<u8>>, Fault> {
    if len > most {
        return Err(Fault::ParameterListLength);
    }
    if buffers.data_out.len() < len {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    buffers.data_out.read_at(0, &mut bytes);
    Ok(Some(bytes))
}

// --- EXTENDED COPY -------------------------------------------------------------------------------

fn extended(format: Format, bytes: &[u8], peers: Peers<'_>, own: &Seat) -> Result<Outcome, Fault> {
    let list = list::parse(format, bytes)?;
    let seats = list.cscds.iter().map(|cscd| seat_of(cscd, peers));
    let seats: Vec<_> = seats.collect();
    check_block_sizes(format, &list, &seats)?;
    let mut parts = VecDeque::new();
    let mut then = None;
    for (number, segment) in (0..).zip(&list.segments) {
        match part(segment, number, &seats, own) {
            Ok(part) => parts.push_back(part),
            Err(cause) => {
                then = Some(Fault::Copy(Problem::Segment {
                    cause,
                    segment: number,
                    residual: None,
                }));
                break;
            }
        }
    }
    if parts.iter().map(|part| part.len).sum::<u64>() > MAX_COPY {
        return Err(Fault::Copy(Problem::NoResources));
    }
    let ticket = list
        .id
        .map(|id| Ticket::begin(&own.nexus, id, Origin::Extended(format)));
    let ticket = ticket.transpose().map_err(Fault::Copy)?;
    let copying = Copying::new(
        peers.relays,
        Kind::Extended,
        parts,
        then,
        ticket,
        bytes.len(),
    );
    Ok(Outcome::Copy(Box::new(copying)))
}

/// The unit that a CSCD descriptor names.
fn seat_of(cscd: &Cscd, peers: Peers<'_>) -> Result<Seat, Cause> {
    if cscd.device_type != 0 {
        return Err(Cause::DeviceType);
    }
    let is_named = |unit: &LogicalUnit| match (cscd.code_set, cscd.kind) {
        // Binary; logical unit, NAA.
        (0x01, 0x03) => cscd.designator == unit.naa().to_be_bytes(),
        // ASCII; logical unit, T10 vendor ID based.
        (0x02, 0x01) => {
            let name = cscd.designator.strip_prefix(VENDOR.as_slice());
            name == Some(unit.name().as_bytes())
        }
        _ => false,
    };
    let found = peers.seats().find(|seat| is_named(&seat.unit));
    found.ok_or(Cause::Unreachable)
}

/// Checks that the units have the blocks that the initiator believes them to have: it counts in
/// them.
fn check_block_sizes(
    format: Format,
    list: &List,
    seats: &[Result<Seat, Cause>],
) -> Result<(), Fault> {
    for (index, (cscd, seat)) in list.cscds.iter().zip(seats).enumerate() {
        if let Ok(seat) = seat
            && u64::from(cscd.block_size) != seat.block_size()
        {
            let byte = list::header_len(format) + 32 * index + 29;
            let byte = u16::try_from(byte).unwrap_or(u16::MAX);
            return Err(Fault::InvalidParameter { byte, bit: 7 });
        }
    }
    Ok(())
}

/// What a segment copies.
fn part(
    segment: &list::Segment,
    number: u16,
    seats: &[Result<Seat, Cause>],
    own: &Seat,
) -> Result<Part, Cause> {
    let seat = |id: u16, byte| match seats.get(usize::from(id)) {
        _ if id == THIS_UNIT => Ok(own.clone()),
        Some(seat) => seat.clone(),
        None => Err(Cause::NoCscd(byte)),
    };
    let source = seat(segment.source, 4)?;
    let destination = seat(segment.destination, 6)?;
    let sizes = [source.block_size(), destination.block_size()];
    let len = match segment.amount {
        Amount::OfSource(blocks) => u64::from(blocks) * sizes[0],
        Amount::OfDestination(blocks) => u64::from(blocks) * sizes[1],
        Amount::Bytes(bytes) => bytes.into(),
    };
    if sizes.iter().any(|size| !len.is_multiple_of(*size)) {
        return Err(match segment.amount {
            Amount::Bytes(_) => Cause::Field(8),
            _ => Cause::Inexact,
        });
    }
    if len == 0 {
        return Ok(Part::new(None, (destination, 0), 0, number));
    }
    let from = source.bytes(segment.from, len / sizes[0]);
    let to = destination.bytes(segment.to, len / sizes[1]);
    let ((from, _), (to, _)) = (from.ok_or(Cause::Field(12))?, to.ok_or(Cause::Field(20))?);
    Ok(Part::new(
        Some((source, from)),
        (destination, to),
        len,
        number,
    ))
}

// --- Tokens --------------------------------------------------------------------------------------

fn populate(id: u32, bytes: &[u8], peers: Peers<'_>, own: &Seat) -> Result<Outcome, Fault> {
    own.may_read()?;
    let list = token_list::populate(bytes)?;
    let ranges = bytes_of(&list.ranges, own, 14)?;
    let (seat, tokens, now) = (own.clone(), Arc::clone(peers.tokens), Instant::now());
    tokens.check_room(now).map_err(Fault::Copy)?;
    let inactivity = Duration::from_secs(list.inactivity.into());
    let kind = Kind::Populate {
        token: Arc::new(Token::new(&own.unit, ranges, inactivity, now)),
        seat,
        tokens,
        blocks: list
            .ranges
            .iter()
            .map(|range| u64::from(range.blocks))
            .sum(),
        asked: false,
    };
    let ticket = Ticket::begin(&own.nexus, id, Origin::Populate).map_err(Fault::Copy)?;
    let copying = Copying::new(
        peers.relays,
        kind,
        VecDeque::new(),
        None,
        Some(ticket),
        bytes.len(),
    );
    Ok(Outcome::Copy(Box::new(copying)))
}

fn write(id: u32, bytes: &[u8], peers: Peers<'_>, own: &Seat) -> Result<Outcome, Fault> {
    own.may_write()?;
    let list = token_list::write(bytes)?;
    let ranges = bytes_of(&list.ranges, own, 534)?;
    let now = Instant::now();
    let token = peers.tokens.find(&list.token, now).map_err(Fault::Copy)?;
    let parts = match &token {
        Named::Zeros => ranges
            .iter()
            .map(|&(offset, len)| Part::new(None, (own.clone(), offset), len, 0))
            .collect(),
        Named::Token(token) => {
            let unit = token.unit().and_then(|unit| peers.seat(&unit));
            let source = unit.ok_or(Fault::Copy(Problem::TokenUnknown))?;
            check_apart(token, &source, &list.ranges, own)?;
            token.touch(now);
            parts_of(token, &source, list.offset, (&ranges, own))?
        }
    };
    let kind = Kind::Write {
        token,
        tokens: Arc::clone(peers.tokens),
        delete: list.delete,
        wanted: list
            .ranges
            .iter()
            .map(|range| u64::from(range.blocks))
            .sum(),
        block_size: own.block_size(),
    };
    let ticket = Ticket::begin(&own.nexus, id, Origin::Write).map_err(Fault::Copy)?;
    let copying = Copying::new(peers.relays, kind, parts, None, Some(ticket), bytes.len());
    Ok(Outcome::Copy(Box::new(copying)))
}

/// First byte and length of each range that is not empty. `at` is where the list says how long its
/// descriptors are.
fn bytes_of(ranges: &[Range], seat: &Seat, at: u16) -> Result<Vec<(u64, u64)>, Fault> {
    let mut bytes = Vec::new();
    for range in ranges.iter().filter(|range| range.blocks > 0) {
        let found = seat.bytes(range.lba, range.blocks.into());
        bytes.push(found.ok_or_else(|| Fault::OutOfRange {
            lba: range.lba.max(seat.unit.disk().geometry().blocks),
        })?);
    }
    if bytes.iter().map(|(_, len)| len).sum::<u64>() > MAX_ROD {
        return Err(Fault::InvalidParameter { byte: at, bit: 7 });
    }
    Ok(bytes)
}

/// Checks that nothing is written to what the token stands for: that would revoke it on the way.
fn check_apart(token: &Token, source: &Seat, ranges: &[Range], own: &Seat) -> Result<(), Fault> {
    if !Arc::ptr_eq(&source.unit, &own.unit) {
        return Ok(());
    }
    let is_apart = |range: &&Range| {
        let bytes = own.bytes(range.lba, range.blocks.into());
        bytes.is_none_or(|(offset, len)| !token.watch().overlaps(offset, len))
    };
    match ranges
        .iter()
        .find(|range| range.blocks > 0 && !is_apart(range))
    {
        Some(range) => Err(Fault::InvalidParameter {
            byte: range.at,
            bit: 7,
        }),
        None => Ok(()),
    }
}

/// What is copied of a token, from so many blocks of the destination on: as many whole blocks as it
/// stands for.
fn parts_of(
    token: &Token,
    source: &Seat,
    offset: u64,
    (ranges, own): (&[(u64, u64)], &Seat),
) -> Result<VecDeque<Part>, Fault> {
    let (block, of_source) = (own.block_size(), source.block_size());
    let all = token.watch().ranges().iter().map(|(_, len)| len).sum();
    let invalid = |byte| Fault::InvalidParameter { byte, bit: 7 };
    let skip = offset.checked_mul(block).filter(|skip| *skip < all);
    // OFFSET INTO ROD. Where that cuts a block of the source, the disk could not read it.
    let mut skip = skip.ok_or(invalid(8))?;
    if !skip.is_multiple_of(of_source) {
        return Err(invalid(8));
    }
    let mut left = (all - skip) / block * block;
    let mut sources = token.watch().ranges().iter().copied();
    let mut here = (0, 0);
    let mut parts = VecDeque::new();
    for &(mut to, len) in ranges {
        let mut len = len.min(left);
        left -= len;
        while len > 0 {
            while skip >= here.1 {
                skip -= here.1;
                here = sources.next().ok_or(Fault::BadReply)?;
            }
            let now = len.min(here.1 - skip);
            if !now.is_multiple_of(of_source) || !now.is_multiple_of(block) {
                return Err(invalid(534));
            }
            let from = (source.clone(), here.0 + skip);
            parts.push_back(Part::new(Some(from), (own.clone(), to), now, 0));
            to += now;
            skip += now;
            len -= now;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests;
