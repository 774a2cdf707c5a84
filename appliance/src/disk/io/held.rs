//! The files that a loop's operations are on, each held once for all of them.
//!
//! What counts who has a file is in one cache line, which all loops would write to with each
//! operation. So the first operation of a loop on a file takes it, the last one lets go of it, and in
//! between the loop counts for itself. A file that no operation is on is held by no loop.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::files::Handle;
use crate::disk::OpenFile;

/// A file, held for an operation of the loop.
#[derive(Debug, Clone)]
pub struct Held(Rc<Hold>);

#[derive(Debug, Default)]
struct Hold {
    /// There as long as an operation holds it.
    file: Option<Arc<OpenFile>>,
    /// How the ring knows it, once that was asked for. It stays so: a slot is emptied only when
    /// nobody holds its file, or nothing is submitted any more.
    handle: Cell<Option<Handle>>,
}

impl Held {
    /// How the ring knows the file: what was asked for before, or what `ask` says.
    #[inline]
    pub fn handle(&self, ask: impl FnOnce(&OpenFile) -> Handle) -> Handle {
        self.0.handle.get().unwrap_or_else(|| {
            let handle = ask(self);
            self.0.handle.set(Some(handle));
            handle
        })
    }

    /// Whether nothing else of the loop holds the file.
    #[inline]
    pub fn is_last(&self) -> bool {
        // This one, and that of the table.
        Rc::strong_count(&self.0) <= 2
    }

    #[cfg(test)]
    pub fn new(file: Arc<OpenFile>) -> Self {
        Self(Rc::new(Hold {
            file: Some(file),
            ..Hold::default()
        }))
    }
}

impl Deref for Held {
    type Target = Arc<OpenFile>;

    #[inline]
    fn deref(&self) -> &Arc<OpenFile> {
        let file = self.0.file.as_ref();
        file.expect("it is there until the last operation lets go of it")
    }
}

/// The files that operations of a loop are on.
#[derive(Debug, Default)]
pub struct Holds {
    held: Vec<Held>,
    /// Holds of no file, to be used again.
    spare: Vec<Held>,
}

impl Holds {
    /// Holds a file for one operation. When that is gone it is time for [`Self::let_go`], if it
    /// [was the last](Held::is_last).
    pub fn hold(&mut self, file: &Arc<OpenFile>) -> Held {
        if let Some(held) = self.held.iter().find(|held| Arc::ptr_eq(held, file)) {
            return held.clone();
        }
        let mut held = self.spare.pop().unwrap_or_else(|| Held(Rc::default()));
        // Nobody else has one that is spare.
        if let Some(hold) = Rc::get_mut(&mut held.0) {
            hold.file = Some(Arc::clone(file));
        }
        self.held.push(held.clone());
        held
    }

    /// Lets go of the files that no operation is on any more.
    pub fn let_go(&mut self) {
        for at in (0..self.held.len()).rev() {
            if Rc::strong_count(&self.held[at].0) > 1 {
                continue;
            }
            let mut last = self.held.swap_remove(at);
            if let Some(hold) = Rc::get_mut(&mut last.0) {
                *hold = Hold::default();
                self.spare.push(last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::disk::Cache;

    fn null() -> Arc<OpenFile> {
        let null = File::open("/dev/null").unwrap();
        Arc::new(OpenFile::new(null, Cache::Direct))
    }

    #[test]
    fn a_file_is_held_once_for_all_operations_and_not_longer() {
        let (first, second) = (null(), null());
        let mut holds = Holds::default();
        for _ in 0..3 {
            let one = holds.hold(&first);
            let (two, other) = (holds.hold(&first), holds.hold(&second));
            assert!(Arc::ptr_eq(&two, &first) && Arc::ptr_eq(&other, &second));
            assert!(!one.is_last() && other.is_last());
            drop(one);
            holds.let_go();
            assert!(two.is_last());
            assert_eq!(Arc::strong_count(&first), 2);
            drop(two);
            holds.let_go();
            assert_eq!(Arc::strong_count(&first), 1);
            assert_eq!(Arc::strong_count(&second), 2);
            drop(other);
            holds.let_go();
            assert_eq!(Arc::strong_count(&second), 1);
        }
        assert_eq!((holds.held.len(), holds.spare.len()), (0, 2));
    }

    #[test]
    fn how_the_ring_knows_a_file_is_asked_for_once_as_long_as_it_is_held() {
        let (first, second) = (null(), null());
        let mut holds = Holds::default();
        let one = holds.hold(&first);
        assert_eq!(one.handle(|_| Handle::Slot(3)), Handle::Slot(3));
        let two = holds.hold(&first);
        assert_eq!(two.handle(|_| unreachable!()), Handle::Slot(3));
        drop((one, two));
        holds.let_go();
        let other = holds.hold(&second);
        assert_eq!(other.handle(|_| Handle::Slot(4)), Handle::Slot(4));
    }
}
