//! What of one ring is in flight, and when it goes back.
//!
//! A tracked ring has its [`Journal`], and each request goes back as it ends. Elsewhere requests
//! end in any order but are given back in the order in which they were fetched: then the used
//! index alone says which requests a next appliance has to carry out, all from there on. Without
//! that order it would repeat some that the tenant has back already, and never see others.

use std::collections::VecDeque;

use crate::journal::Journal;
use crate::ring::Violation;
use crate::task::Name;

/// See the module's text.
pub(crate) enum InFlight {
    /// In the order of the avail ring.
    Ordered(VecDeque<Open>),
    Tracked(Journal),
}

/// A request of an ordered ring that was fetched and not given back.
pub(crate) struct Open {
    head: u16,
    /// How it ended, once it has.
    end: Option<End>,
}

impl Open {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }
}

/// How a request ended.
pub(crate) struct End {
    /// Bytes written to its buffers.
    pub written: u32,
    /// What task management knows it by; a control request has no name.
    pub name: Option<Name>,
    pub waiters: Waiters,
}

/// Numbers of the functions that wait for a request to go back.
pub(crate) type Waiters = Vec<u64>;

impl InFlight {
    /// How many requests are in flight.
    pub fn len(&self) -> usize {
        match self {
            Self::Ordered(open) => open.len(),
            Self::Tracked(journal) => journal.len(),
        }
    }

    /// Takes note of a request that was fetched.
    ///
    /// # Errors
    /// [`Violation::InFlight`] where that is known.
    pub fn fetched(&mut self, head: u16) -> Result<(), Violation> {
        match self {
            Self::Ordered(open) => open.push_back(Open { head, end: None }),
            Self::Tracked(journal) => journal.fetched(head)?,
        }
        Ok(())
    }

    /// Forgets a request that cannot be given back.
    pub fn forget(&mut self, head: u16) {
        match self {
            Self::Ordered(open) => {
                if let Some(at) = position(open, head) {
                    open.remove(at);
                }
            }
            Self::Tracked(journal) => journal.forget(head),
        }
    }

    /// The record, if there is one.
    pub fn journal(&mut self) -> Option<&mut Journal> {
        match self {
            Self::Ordered(_) => None,
            Self::Tracked(journal) => Some(journal),
        }
    }

    /// Those that have ended but wait for others to go back.
    pub fn held(&mut self) -> impl Iterator<Item = &mut End> {
        let open = match self {
            Self::Ordered(open) => open.iter_mut(),
            Self::Tracked(_) => Default::default(),
        };
        open.filter_map(|open| open.end.as_mut())
    }
}

/// The request at `head` that has not ended.
fn position(open: &VecDeque<Open>, head: u16) -> Option<usize> {
    open.iter()
        .position(|open| open.head == head && open.end.is_none())
}

/// Takes note that the request at `head` has ended; gives it back if it is unknown.
pub(crate) fn end(open: &mut VecDeque<Open>, head: u16, end: End) -> Result<(), End> {
    match position(open, head).and_then(|at| open.get_mut(at)) {
        Some(request) => {
            request.end = Some(end);
            Ok(())
        }
        None => Err(end),
    }
}

/// Forgets the request at `head`, if that is the oldest: it has ended, and is the next to go back.
#[inline]
pub(crate) fn end_oldest(open: &mut VecDeque<Open>, head: u16) -> bool {
    let is_oldest = open
        .front()
        .is_some_and(|oldest| oldest.head == head && oldest.end.is_none());
    if is_oldest {
        open.pop_front();
    }
    is_oldest
}

/// The next request to go back, if the oldest has ended.
pub(crate) fn next_to_give_back(open: &mut VecDeque<Open>) -> Option<(u16, End)> {
    let first = open.front_mut()?;
    let (head, end) = (first.head, first.end.take()?);
    open.pop_front();
    Some((head, end))
}
