//! What became of the copies of an I_T_L nexus, for whoever asks later.

use std::sync::Arc;

use super::limits::MAX_OPERATIONS;
use super::problem::Problem;
use super::request::Format;
use super::token::Token;
use crate::scsi::nexus::Nexus;

/// The copies of one nexus that are under way, and the last ones that are over.
#[derive(Debug, Default)]
pub struct Records {
    list: Vec<Record>,
    /// Of the next one.
    serial: u64,
}

/// What is known of a copy.
#[derive(Debug, Clone)]
pub struct Record {
    pub id: u32,
    pub origin: Origin,
    pub state: State,
    /// Bytes that were copied (for EXTENDED COPY), or blocks.
    pub count: u64,
    /// Segments that are done.
    pub segments: u16,
    /// Status and sense of the command.
    pub status: u8,
    pub sense: Vec<u8>,
    /// What POPULATE TOKEN made.
    pub token: Option<Arc<Token>>,
    /// COPY OPERATION ABORT was asked for.
    aborted: bool,
    serial: u64,
}

/// The command that a copy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Extended(Format),
    Populate,
    Write,
}

/// How far a copy is: COPY OPERATION STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Completed = 0x01,
    Failed = 0x02,
    /// Not as many blocks were copied as were asked for.
    Partial = 0x03,
    InForeground = 0x11,
    /// Ended by task management, a reset, or COPY OPERATION ABORT.
    Terminated = 0x60,
}

impl Records {
    /// Takes up a copy, which is told apart by its list identifier.
    ///
    /// # Errors
    /// [`Problem::InProgress`], or [`Problem::NoResources`] if too many are under way.
    fn begin(&mut self, id: u32, origin: Origin) -> Result<u64, Problem> {
        let is_under_way = |record: &Record| record.state == State::InForeground;
        if let Some(at) = self.list.iter().position(|record| record.id == id) {
            if is_under_way(&self.list[at]) {
                return Err(Problem::InProgress);
            }
            self.list.remove(at);
        }
        if self.list.len() >= usize::from(MAX_OPERATIONS) {
            let oldest = self.list.iter().position(|record| !is_under_way(record));
            self.list.remove(oldest.ok_or(Problem::NoResources)?);
        }
        self.serial += 1;
        self.list.push(Record {
            id,
            origin,
            state: State::InForeground,
            count: 0,
            segments: 0,
            status: 0,
            sense: Vec::new(),
            token: None,
            aborted: false,
            serial: self.serial,
        });
        Ok(self.serial)
    }

    /// The copy with this list identifier.
    pub fn of(&self, id: u32) -> Option<&Record> {
        self.list.iter().find(|record| record.id == id)
    }

    /// Asks for the end of a copy; whether there is one.
    pub fn abort(&mut self, id: u32) -> bool {
        let found = self.list.iter_mut().find(|record| record.id == id);
        found.is_some_and(|record| {
            record.aborted = true;
            true
        })
    }

    /// Forgets what is over.
    pub fn forget(&mut self) {
        self.list
            .retain(|record| record.state == State::InForeground);
    }
}

/// A copy that is under way, by its record. Dropped before its end, it has been terminated.
#[derive(Debug)]
pub struct Ticket {
    nexus: Arc<Nexus>,
    serial: u64,
}

impl Ticket {
    /// As for the records of the nexus.
    ///
    /// # Errors
    /// [`Problem::InProgress`], [`Problem::NoResources`].
    pub fn begin(nexus: &Arc<Nexus>, id: u32, origin: Origin) -> Result<Self, Problem> {
        let serial = nexus.copies().begin(id, origin)?;
        Ok(Self {
            nexus: Arc::clone(nexus),
            serial,
        })
    }

    /// Whether COPY OPERATION ABORT was asked for.
    pub fn is_aborted(&self) -> bool {
        let records = self.nexus.copies();
        let mut list = records.list.iter();
        list.any(|record| record.serial == self.serial && record.aborted)
    }

    /// Changes the record.
    pub fn note(&self, change: impl FnOnce(&mut Record)) {
        let mut records = self.nexus.copies();
        let mut list = records.list.iter_mut();
        if let Some(record) = list.find(|record| record.serial == self.serial) {
            change(record);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.note(|record| {
            if record.state == State::InForeground {
                record.state = State::Terminated;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::testing::PORT;

    fn nexus() -> Arc<Nexus> {
        Arc::new(Nexus::new(PORT))
    }

    const EXTENDED: Origin = Origin::Extended(Format::Lid1);

    #[test]
    fn a_list_identifier_is_free_again_when_its_copy_is_over() {
        let nexus = nexus();
        let first = Ticket::begin(&nexus, 7, EXTENDED).unwrap();
        let second = Ticket::begin(&nexus, 7, Origin::Write).unwrap_err();
        assert_eq!(second, Problem::InProgress);
        first.note(|record| record.state = State::Completed);
        drop(first);
        assert_eq!(nexus.copies().of(7).unwrap().state, State::Completed);
        let _second = Ticket::begin(&nexus, 7, Origin::Write).unwrap();
        let origin = nexus.copies().of(7).unwrap().origin;
        assert_eq!(origin, Origin::Write);
    }

    #[test]
    fn a_copy_that_is_dropped_was_terminated() {
        let nexus = nexus();
        drop(Ticket::begin(&nexus, 1, EXTENDED).unwrap());
        assert_eq!(nexus.copies().of(1).unwrap().state, State::Terminated);
    }

    #[test]
    fn the_oldest_that_is_over_makes_room_and_none_that_is_under_way() {
        let nexus = nexus();
        let mut tickets: Vec<_> = (0..64)
            .map(|id| Ticket::begin(&nexus, id, EXTENDED).unwrap())
            .collect();
        let none = Ticket::begin(&nexus, 64, EXTENDED).unwrap_err();
        assert_eq!(none, Problem::NoResources);
        drop(tickets.remove(3));
        let _one_more = Ticket::begin(&nexus, 64, EXTENDED).unwrap();
        assert!(nexus.copies().of(3).is_none() && nexus.copies().of(0).is_some());
    }

    #[test]
    fn an_abort_is_for_a_copy_that_there_is() {
        let nexus = nexus();
        let ticket = Ticket::begin(&nexus, 5, EXTENDED).unwrap();
        assert!(!nexus.copies().abort(6) && !ticket.is_aborted());
        assert!(nexus.copies().abort(5) && ticket.is_aborted());
    }
}
