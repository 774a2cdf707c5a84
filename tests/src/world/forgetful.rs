//! What a disk has on stable storage, and a crash that forgets the rest of it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use appliance::disk::{Deed, Witness};

use super::initiator::BLOCK;

/// What a crash takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The memory of the storage VM: what was written directly and over something that was on
    /// stable storage is kept.
    StorageVm,
    /// That of the host and of its drives: only what was synced is kept.
    Host,
}

/// What was promised of an image, as its disk's witness hears it.
#[derive(Debug)]
pub struct Forgetful {
    image: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The image as it is on stable storage.
    stable: Vec<u8>,
    /// Blocks that were written and not synced: when, and what, the oldest first. A sync that was
    /// begun before the last of these is about one before it.
    unsynced: HashMap<u64, Vec<(u64, [u8; BLOCK])>>,
    /// Blocks that have a place on stable storage.
    placed: HashSet<u64>,
    /// Counts writes.
    now: u64,
    /// When syncs that are under way began. Each thread names its own.
    syncs: HashMap<(ThreadId, usize), u64>,
    /// Syncs count for nothing, as on a drive that lies.
    lies: bool,
}

impl Forgetful {
    /// Of an image that is as it is for good, and sparse.
    pub(super) fn new(image: File) -> io::Result<Arc<Self>> {
        let len = usize::try_from(image.metadata()?.len()).map_err(io::Error::other)?;
        let mut stable = vec![0; len];
        image.read_exact_at(&mut stable, 0)?;
        let state = Mutex::new(State {
            stable,
            unsynced: HashMap::new(),
            placed: HashSet::new(),
            now: 0,
            syncs: HashMap::new(),
            lies: false,
        });
        Ok(Arc::new(Self { image, state }))
    }

    /// Who hears what is done to the image.
    pub(super) fn witness(self: &Arc<Self>) -> Witness {
        let this = Arc::clone(self);
        Witness::new(move |deed| this.hear(deed))
    }

    /// From now on syncs are believed to have been done, and are not.
    pub fn lie(&self) {
        self.state().lies = true;
    }

    /// Puts the image into a state that it may have after a crash: of each block that was not on
    /// stable storage `keeps` says whether it was lucky. `direct` if the disk is.
    ///
    /// # Panics
    /// If the image cannot be read or written.
    pub fn crash(&self, crash: Crash, direct: bool, mut keeps: impl FnMut() -> bool) {
        let mut state = self.state();
        state.syncs.clear();
        let unsynced: Vec<_> = std::mem::take(&mut state.unsynced).into_keys().collect();
        for block in unsynced {
            let is_safe = crash == Crash::StorageVm && direct && state.placed.contains(&block);
            if is_safe || keeps() {
                self.settle(&mut state, block);
            } else {
                let (at, range) = place(block);
                let old = state.bytes(range);
                self.image.write_all_at(old, at).expect("the image");
            }
        }
    }

    fn hear(&self, deed: Deed) {
        let mut state = self.state();
        let state = &mut *state;
        match deed {
            Deed::Written { offset, len } => self.written(state, offset, len),
            Deed::WrittenThrough { offset, len } if state.lies => {
                self.written(state, offset, len);
            }
            Deed::WrittenThrough { offset, len } => {
                for block in blocks(offset, len) {
                    state.unsynced.remove(&block);
                    self.settle(state, block);
                }
            }
            Deed::SyncBegun(name) => {
                let name = (thread::current().id(), name);
                state.syncs.insert(name, state.now);
            }
            Deed::Synced(name) => {
                let name = (thread::current().id(), name);
                let begun = state.syncs.remove(&name).expect("a sync that was begun");
                if !state.lies {
                    state.sync(begun);
                }
            }
        }
    }

    fn written(&self, state: &mut State, offset: u64, len: u64) {
        state.now += 1;
        for block in blocks(offset, len) {
            let mut bytes = [0; BLOCK];
            let (at, _) = place(block);
            self.image.read_exact_at(&mut bytes, at).expect("the image");
            let written = state.unsynced.entry(block).or_default();
            if state.syncs.is_empty() {
                // The next sync is about the last.
                written.clear();
            }
            written.push((state.now, bytes));
        }
    }

    /// Puts a block on stable storage as it is.
    fn settle(&self, state: &mut State, block: u64) {
        let (at, range) = place(block);
        let to = state.bytes(range);
        self.image.read_exact_at(to, at).expect("the image");
        state.placed.insert(block);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Puts on stable storage what was written until `begun`. What a later sync has put there
    /// before is listed no more, nor is what it has written over.
    fn sync(&mut self, begun: u64) {
        let mut unsynced = std::mem::take(&mut self.unsynced);
        unsynced.retain(|&block, written| {
            let until = written.partition_point(|(at, _)| *at <= begun);
            if let Some((_, bytes)) = written.drain(..until).next_back() {
                let (_, range) = place(block);
                self.bytes(range).copy_from_slice(&bytes);
                self.placed.insert(block);
            }
            !written.is_empty()
        });
        self.unsynced = unsynced;
    }

    /// Bytes of the image on stable storage; zeros where it was made longer since.
    fn bytes(&mut self, range: std::ops::Range<usize>) -> &mut [u8] {
        if self.stable.len() < range.end {
            self.stable.resize(range.end, 0);
        }
        &mut self.stable[range]
    }
}

/// The blocks in which these bytes are.
fn blocks(offset: u64, len: u64) -> std::ops::Range<u64> {
    let block = BLOCK as u64;
    offset / block..(offset + len).div_ceil(block)
}

/// Where a block is in the image, and its bytes.
fn place(block: u64) -> (u64, std::ops::Range<usize>) {
    let at = block * BLOCK as u64;
    let start = usize::try_from(at).expect("a small image");
    (at, start..start + BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: [u8; BLOCK] = [0; BLOCK];
    const FIRST: [u8; BLOCK] = [0x11; BLOCK];
    const SECOND: [u8; BLOCK] = [0x22; BLOCK];

    /// Of an image of zeros, with whoever writes to it.
    fn forgetful() -> (Arc<Forgetful>, File) {
        let image = tempfile::tempfile().unwrap();
        image.set_len(4 * BLOCK as u64).unwrap();
        let forgetful = Forgetful::new(image.try_clone().unwrap()).unwrap();
        (forgetful, image)
    }

    fn write(forgetful: &Forgetful, image: &File, bytes: &[u8; BLOCK]) {
        let (offset, len) = (BLOCK as u64, BLOCK as u64);
        image.write_all_at(bytes, offset).unwrap();
        forgetful.hear(Deed::Written { offset, len });
    }

    /// What is left by a crash that takes all that it may.
    fn after_crash(forgetful: &Forgetful, image: &File) -> [u8; BLOCK] {
        forgetful.crash(Crash::Host, false, || false);
        let mut bytes = [0xff; BLOCK];
        image.read_exact_at(&mut bytes, BLOCK as u64).unwrap();
        bytes
    }

    #[test]
    fn a_sync_is_about_what_was_written_before_it_began() {
        let (forgetful, image) = forgetful();
        write(&forgetful, &image, &FIRST);
        forgetful.hear(Deed::SyncBegun(0));
        write(&forgetful, &image, &SECOND);
        forgetful.hear(Deed::Synced(0));
        assert_eq!(after_crash(&forgetful, &image), FIRST);
    }

    #[test]
    fn what_is_written_while_the_first_sync_runs_is_not_synced() {
        let (forgetful, image) = forgetful();
        forgetful.hear(Deed::SyncBegun(0));
        write(&forgetful, &image, &FIRST);
        forgetful.hear(Deed::Synced(0));
        assert_eq!(after_crash(&forgetful, &image), BEFORE);
    }

    #[test]
    fn an_older_sync_that_ends_later_brings_nothing_older_back() {
        let (forgetful, image) = forgetful();
        write(&forgetful, &image, &FIRST);
        forgetful.hear(Deed::SyncBegun(0));
        write(&forgetful, &image, &SECOND);
        forgetful.hear(Deed::SyncBegun(1));
        forgetful.hear(Deed::Synced(1));
        forgetful.hear(Deed::Synced(0));
        assert_eq!(after_crash(&forgetful, &image), SECOND);
    }

    #[test]
    fn what_is_written_through_is_kept_and_nothing_else() {
        let (forgetful, image) = forgetful();
        write(&forgetful, &image, &FIRST);
        image.write_all_at(&SECOND, 0).unwrap();
        forgetful.hear(Deed::WrittenThrough {
            offset: 0,
            len: BLOCK as u64,
        });
        assert_eq!(after_crash(&forgetful, &image), BEFORE);
        let mut first = [0; BLOCK];
        image.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, SECOND);
    }

    #[test]
    fn what_is_written_through_a_lie_is_lost() {
        let (forgetful, image) = forgetful();
        forgetful.lie();
        image.write_all_at(&SECOND, BLOCK as u64).unwrap();
        forgetful.hear(Deed::WrittenThrough {
            offset: BLOCK as u64,
            len: BLOCK as u64,
        });
        assert_eq!(after_crash(&forgetful, &image), BEFORE);
    }

    #[test]
    fn syncs_of_two_threads_may_have_the_same_name() {
        let (forgetful, image) = forgetful();
        forgetful.hear(Deed::SyncBegun(0));
        write(&forgetful, &image, &FIRST);
        let other = Arc::clone(&forgetful);
        let both = move || {
            other.hear(Deed::SyncBegun(0));
            other.hear(Deed::Synced(0));
        };
        thread::spawn(both).join().unwrap();
        write(&forgetful, &image, &SECOND);
        forgetful.hear(Deed::Synced(0));
        assert_eq!(after_crash(&forgetful, &image), FIRST);
    }
}
