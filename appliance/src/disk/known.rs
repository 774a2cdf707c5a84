//! Which loops know a file, to be told when it is gone.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::io::{Inbox, Message};

/// What a file is called, which no other ever is: neither a descriptor nor an address, which the
/// next file may have before everybody has heard that the last one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(NonZeroU64);

impl FileId {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        // So many files are never opened that they begin anew.
        let id = LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Self(NonZeroU64::new(id).unwrap_or(NonZeroU64::MAX))
    }
}

/// The loops that know a file; they are told when this is dropped.
#[derive(Debug)]
pub struct Known {
    id: FileId,
    /// Once for each loop, but for those that have ended.
    by: Mutex<Vec<Weak<Inbox>>>,
}

impl Known {
    pub fn new() -> Self {
        Self {
            id: FileId::next(),
            by: Mutex::default(),
        }
    }

    pub fn id(&self) -> FileId {
        self.id
    }

    /// The loop of this inbox knows it from now on.
    pub fn by(&self, inbox: &Arc<Inbox>) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        by.retain(|other| other.strong_count() > 0);
        if by.iter().all(|other| other.as_ptr() != Arc::as_ptr(inbox)) {
            by.push(Arc::downgrade(inbox));
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let by = self.by.get_mut().unwrap_or_else(PoisonError::into_inner);
        for inbox in by.drain(..).filter_map(|inbox| inbox.upgrade()) {
            inbox.post(Message::Gone(self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(inbox: &Inbox) -> Vec<FileId> {
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        let ids = messages.into_iter().map(|message| match message {
            Message::Gone(id) => id,
            other => panic!("{other:?}"),
        });
        ids.collect()
    }

    #[test]
    fn each_loop_is_told_once_when_the_file_is_gone() {
        let inboxes = [(); 2].map(|()| Arc::new(Inbox::new().unwrap()));
        let (known, other) = (Known::new(), Known::new());
        assert_ne!(known.id(), other.id());
        for inbox in inboxes.iter().chain(&inboxes) {
            known.by(inbox);
        }
        assert_eq!(told(&inboxes[0]), []);
        let id = known.id();
        drop(known);
        for inbox in &inboxes {
            assert_eq!(told(inbox), [id]);
        }
    }

    #[test]
    fn loops_that_have_ended_are_forgotten() {
        let known = Known::new();
        for _ in 0..10 {
            known.by(&Arc::new(Inbox::new().unwrap()));
        }
        assert_eq!(known.by.lock().unwrap().len(), 1);
    }
}
