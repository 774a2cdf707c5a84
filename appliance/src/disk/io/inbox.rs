//! What other threads tell a loop.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::disk::protected::{Seat, Worked};
use crate::disk::{Extent, sys};

/// The messages for one loop, with an eventfd by which they wake it.
#[derive(Debug)]
pub struct Inbox {
    messages: Mutex<Vec<Message>>,
    bell: EventFd,
}

/// An operation of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its index in the loop's table, which another may have by the time of the message.
    pub operation: usize,
    /// Its number, which no other ever has.
    pub serial: u64,
}

#[derive(Debug)]
pub enum Message {
    /// The range that the operation waited for is its own now.
    Granted(Place),
    /// The answer to the operation's question.
    Extents(Place, io::Result<Vec<Extent>>),
    /// The operation may have a part of it done.
    Seat(Place, Seat),
    /// A part of the operation is done.
    Worked(Place, Worked),
}

impl Inbox {
    /// # Errors
    /// What eventfd(2) reports.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            messages: Mutex::new(Vec::new()),
            bell: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Becomes readable with each message.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub fn post(&self, message: Message) {
        self.messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message);
        // It fails only where the counter is at its end, and then it is readable anyway.
        let _ = self.bell.write(1);
    }

    /// Appends what has come to `to`.
    pub fn take(&self, to: &mut Vec<Message>) {
        // The bell first: what comes afterwards rings it again.
        sys::drain_eventfd(&self.bell);
        to.append(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
