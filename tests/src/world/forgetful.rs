//! What a disk has on stable storage, and a crash that forgets the rest of it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Blocks that were written and not synced, and when.
    unsynced: HashMap<u64, u64>,
    /// Blocks that have a place on stable storage.
    placed: HashSet<u64>,
    /// Counts writes.
    now: u64,
    /// When syncs that are under way began.
    syncs: HashMap<usize, u64>,
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
        match deed {
            Deed::Written { offset, len } => {
                state.now += 1;
                let now = state.now;
                let block = BLOCK as u64;
                for block in offset / block..(offset + len).div_ceil(block) {
                    state.unsynced.insert(block, now);
                }
            }
            Deed::SyncBegun(name) => {
                let now = state.now;
                state.syncs.insert(name, now);
            }
            Deed::Synced(name) => {
                let begun = state.syncs.remove(&name).expect("a sync that was begun");
                if state.lies {
                    return;
                }
                let synced: Vec<_> = state
                    .unsynced
                    .iter()
                    .filter(|(_, written)| **written <= begun)
                    .map(|(block, _)| *block)
                    .collect();
                for block in synced {
                    state.unsynced.remove(&block);
                    self.settle(&mut state, block);
                }
            }
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
    /// Bytes of the image on stable storage; zeros where it was made longer since.
    fn bytes(&mut self, range: std::ops::Range<usize>) -> &mut [u8] {
        if self.stable.len() < range.end {
            self.stable.resize(range.end, 0);
        }
        &mut self.stable[range]
    }
}

/// Where a block is in the image, and its bytes.
fn place(block: u64) -> (u64, std::ops::Range<usize>) {
    let at = block * BLOCK as u64;
    let start = usize::try_from(at).expect("a small image");
    (at, start..start + BLOCK)
}
