//! How the files of a loop share its bounce pool.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::piece::Memory;
use super::plan::Wanted;
use super::pool::{Pool, Run};
use crate::disk::OpenFile;
use crate::disk::table::Table;

/// The part of what is left of the pool, after a piece of memory was taken from it, that the file
/// which took it may hold: as much as is left, so at most half of the pool for one file, a quarter
/// for the next, and so on. Files that hang never take all of it from one that does not.
const SHARE_OF_REST: usize = 1;

/// The bounce pool with its users, and those of their operations that wait for memory.
///
/// The operations of a file are served in the order of coming; files take turns.
#[derive(Debug)]
pub struct Shares {
    pool: Pool,
    shares: Table<Share>,
    /// The share of each file, by its address, which stays its own while there is a user.
    of_file: HashMap<usize, usize>,
    /// Shares with waiting operations; who is first has the next turn.
    turns: VecDeque<usize>,
}

/// What a file has of the pool.
#[derive(Debug)]
struct Share {
    file: usize,
    /// Operations that may take memory.
    users: usize,
    /// Granules that its operations hold.
    held: usize,
    /// Operations that wait for memory.
    waiting: VecDeque<usize>,
}

impl Shares {
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            shares: Table::new(),
            of_file: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn pool_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// The share of a file, for one operation, until [`Self::leave`].
    pub fn enter(&mut self, file: &Arc<OpenFile>) -> usize {
        let address = Arc::as_ptr(file) as usize;
        let shares = &mut self.shares;
        let index = *self.of_file.entry(address).or_insert_with(|| {
            shares.insert(Share {
                file: address,
                users: 0,
                held: 0,
                waiting: VecDeque::new(),
            })
        });
        if let Some(share) = self.shares.get_mut(index) {
            share.users += 1;
        }
        index
    }

    /// Ends what [`Self::enter`] began; the operation holds nothing any more, and does not wait.
    pub fn leave(&mut self, index: usize) {
        let Some(share) = self.shares.get_mut(index) else {
            return;
        };
        share.users -= 1;
        if share.users == 0 {
            debug_assert!(share.held == 0 && share.waiting.is_empty());
            let file = share.file;
            self.of_file.remove(&file);
            self.shares.remove(index);
        }
    }

    /// Takes memory for `len` bytes of a piece.
    pub fn memory(&mut self, index: usize, wanted: Wanted, len: usize) -> Option<Memory> {
        match wanted {
            Wanted::Pool => self.take(index, len).map(Memory::Pool),
            Wanted::Whole => self.take_whole(index, len).map(Memory::Pool),
            Wanted::Pair => self
                .take_pair(index, len)
                .map(|(first, second)| Memory::Pair(first, second)),
            Wanted::Tenant | Wanted::None => None,
        }
    }

    /// Takes room for `len` bytes, or for fewer (whole granules) where there is less.
    fn take(&mut self, index: usize, len: usize) -> Option<Run> {
        let room = self.room(index, 1);
        let run = self.pool.take(len.min(room * Pool::GRANULE))?;
        self.hold(index, &run);
        Some(run)
    }

    /// Takes room for `len` bytes in one piece.
    fn take_whole(&mut self, index: usize, len: usize) -> Option<Run> {
        let needed = len.div_ceil(Pool::GRANULE);
        if self.room(index, needed) < needed {
            return None;
        }
        let run = self.pool.take(len)?;
        if run.len() < len {
            self.pool.give_back(run);
            return None;
        }
        self.hold(index, &run);
        Some(run)
    }

    /// Takes room for `len` bytes, or for fewer (whole granules), twice.
    fn take_pair(&mut self, index: usize, len: usize) -> Option<(Run, Run)> {
        let each = self.room(index, 2) / 2;
        let first = self.pool.take(len.min(each * Pool::GRANULE))?;
        let Some(second) = self.pool.take(first.len()) else {
            self.pool.give_back(first);
            return None;
        };
        self.hold(index, &first);
        self.hold(index, &second);
        Some((first, second))
    }

    pub fn give_back(&mut self, index: usize, run: Run) {
        if let Some(share) = self.shares.get_mut(index) {
            share.held -= run.granules();
        }
        self.pool.give_back(run);
    }

    /// Granules that the file may take now; `least`, if they are there, for one that has none.
    fn room(&self, index: usize, least: usize) -> usize {
        let held = self.shares.get(index).map_or(0, |share| share.held);
        let free = self.pool.free();
        // The most `n` for which `held + n <= SHARE_OF_REST * (free - n)`.
        let room = (SHARE_OF_REST * free).saturating_sub(held) / (1 + SHARE_OF_REST);
        if held == 0 {
            room.max(least.min(free))
        } else {
            room
        }
    }

    fn hold(&mut self, index: usize, run: &Run) {
        if let Some(share) = self.shares.get_mut(index) {
            share.held += run.granules();
        }
    }

    // --- Those that wait -------------------------------------------------------------------------

    /// Whether operations of this file wait.
    pub fn has_waiting(&self, index: usize) -> bool {
        self.shares
            .get(index)
            .is_some_and(|share| !share.waiting.is_empty())
    }

    /// Lets an operation wait: behind the others of its file, or before them.
    pub fn wait(&mut self, index: usize, operation: usize, first: bool) {
        let Some(share) = self.shares.get_mut(index) else {
            return;
        };
        if share.waiting.is_empty() {
            self.turns.push_back(index);
        }
        if first {
            share.waiting.push_front(operation);
        } else {
            share.waiting.push_back(operation);
        }
    }

    /// Lets an operation wait no longer.
    pub fn forget(&mut self, index: usize, operation: usize) {
        let Some(share) = self.shares.get_mut(index) else {
            return;
        };
        share.waiting.retain(|&waiting| waiting != operation);
        if share.waiting.is_empty() {
            self.turns.retain(|&turn| turn != index);
        }
    }

    /// Files with operations that wait.
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// The operation whose turn it is, which waits no longer.
    pub fn next_turn(&mut self) -> Option<usize> {
        let index = self.turns.pop_front()?;
        let share = self.shares.get_mut(index)?;
        let operation = share.waiting.pop_front();
        if !share.waiting.is_empty() {
            self.turns.push_back(index);
        }
        operation
    }

    /// Leaves the memory mapped for ever; for when the kernel may still write to it.
    pub fn leak(&mut self) {
        self.pool.leak();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::disk::Cache;

    const PAGE: usize = Pool::GRANULE;

    /// Shares of a pool of 16 pages, and those of so many files.
    fn shares(files: usize) -> (Shares, Vec<(Arc<OpenFile>, usize)>) {
        let mut shares = Shares::new(Pool::new(16 * PAGE).unwrap());
        let users = (0..files)
            .map(|_| {
                let null = File::open("/dev/null").unwrap();
                let file = Arc::new(OpenFile::new(null, Cache::Direct));
                let share = shares.enter(&file);
                (file, share)
            })
            .collect();
        (shares, users)
    }

    fn take_all(shares: &mut Shares, share: usize) -> Vec<Run> {
        std::iter::from_fn(|| shares.take(share, 3 * PAGE)).collect()
    }

    fn pages(runs: &[Run]) -> usize {
        runs.iter().map(Run::granules).sum()
    }

    #[test]
    fn a_file_takes_no_more_than_it_leaves_for_others() {
        let (mut shares, files) = shares(4);
        let runs: Vec<_> = files
            .iter()
            .map(|(_, share)| take_all(&mut shares, *share))
            .collect();
        let taken: Vec<_> = runs.iter().map(|runs| pages(runs)).collect();
        assert_eq!(taken, [8, 4, 2, 1]);
        for ((_, share), runs) in files.iter().zip(runs) {
            for run in runs {
                shares.give_back(*share, run);
            }
        }
        assert_eq!(shares.pool().free(), 16);
        for (_, share) in &files {
            shares.leave(*share);
        }
        assert!(shares.shares.is_empty() && shares.of_file.is_empty());
    }

    #[test]
    fn what_is_to_be_whole_is_given_whole_or_not_at_all() {
        let (mut shares, files) = shares(2);
        let (first, second) = (files[0].1, files[1].1);
        assert_eq!(shares.take_whole(first, 17 * PAGE), None);
        let all_but_one = shares.take_whole(first, 15 * PAGE).unwrap();
        assert_eq!(shares.take_whole(second, PAGE + 1), None);
        assert!(shares.take_pair(second, PAGE).is_none(), "two pages");
        let last = shares.take(second, 2 * PAGE).unwrap();
        assert_eq!(last.len(), PAGE);
        shares.give_back(first, all_but_one);
        shares.give_back(second, last);
        assert_eq!(shares.pool().free(), 16);
    }

    #[test]
    fn files_take_turns_and_each_serves_its_first_one_first() {
        let (mut shares, files) = shares(2);
        let (first, second) = (files[0].1, files[1].1);
        for operation in [10, 11, 12] {
            shares.wait(first, operation, false);
        }
        shares.wait(second, 20, false);
        shares.wait(first, 9, true);
        shares.forget(first, 11);
        let order: Vec<_> = std::iter::from_fn(|| shares.next_turn()).collect();
        assert_eq!(order, [9, 20, 10, 12]);
        assert!(!shares.has_waiting(first) && shares.turns() == 0);
    }

    #[test]
    fn one_file_has_one_share() {
        let (mut shares, files) = shares(1);
        let (file, share) = &files[0];
        assert_eq!(shares.enter(file), *share);
        shares.leave(*share);
        let run = shares.take(*share, PAGE).unwrap();
        shares.give_back(*share, run);
        shares.leave(*share);
    }
}
