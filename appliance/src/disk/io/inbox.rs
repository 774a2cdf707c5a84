//! What other threads tell a loop.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::offload::Landed;
use crate::disk::known::FileId;
use crate::disk::protected::{Seat, Worked};
use crate::disk::{Extent, sys};

/// The messages for one loop, with an eventfd by which they wake it.
#[derive(Debug)]
pub struct Inbox {
    /// `None` once nobody takes them any more.
    messages: Mutex<Option<Vec<Message>>>,
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
    /// The filesystem has copied what it was offered, or some of it.
    Landed(Place, Landed),
    /// A file that the loop's ring knows is closed but for that.
    Gone(FileId),
}

impl Inbox {
    /// # Errors
    /// What eventfd(2) reports.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            messages: Mutex::new(Some(Vec::new())),
            bell: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Becomes readable with each message.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub fn post(&self, message: Message) {
        let refused = match &mut *self.messages() {
            Some(messages) => {
                messages.push(message);
                None
            }
            None => Some(message),
        };
        if refused.is_some() {
            // Dropped without the lock: a seat in it goes to the next, who may be here.
            return;
        }
        // It fails only where the counter is at its end, and then it is readable anyway.
        let _ = self.bell.write(1);
    }

    /// Appends what has come to `to`.
    pub fn take(&self, to: &mut Vec<Message>) {
        // The bell first: what comes afterwards rings it again.
        sys::drain_eventfd(&self.bell);
        if let Some(messages) = &mut *self.messages() {
            to.append(messages);
        }
    }

    /// Drops what has come, and what still comes: nobody takes it any more.
    pub fn close(&self) {
        let left = self.messages().take();
        // Without the lock, as in `post`.
        drop(left);
    }

    fn messages(&self) -> MutexGuard<'_, Option<Vec<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
