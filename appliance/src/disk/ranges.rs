//! Locks on byte ranges of a disk, for the operations that change blocks.
//!
//! All loops that use a disk share its locks. Reads take none, but while the disk is to be quiet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::io::{Inbox, Message, Place};
use super::table::Table;
use super::watch::{Watch, Watcher};

/// Whom a lock keeps away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only those that want the range for themselves.
    Shared,
    /// Everybody else.
    Exclusive,
}

/// The locks of one disk.
///
/// Who has to wait is served in the order of coming, but only behind those with which it
/// conflicts: an exclusive lock is not starved by shared ones that come later, and nobody waits
/// for a range that is not its own.
#[derive(Debug)]
pub struct Ranges {
    state: Mutex<State>,
    /// How many want reads to take locks, too.
    quiet: AtomicUsize,
    /// How many wanted that so far.
    quiets: AtomicU64,
}

/// Which disk it is: a device's number, or a filesystem's with that of a file in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Device(u64),
    File { filesystem: u64, inode: u64 },
}

/// The locks of every disk that is open, or that something is still under way on.
static OF_ALL: Mutex<Vec<(Subject, Weak<Ranges>)>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct State {
    entries: Table<Entry>,
    /// The entries that are held exclusively. Mostly none, and then a shared lock looks no further.
    exclusive: Vec<usize>,
    /// The entries that are not granted, first come, first served.
    waiting: VecDeque<usize>,
    /// Who wants to hear of changes. Mostly nobody.
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Entry {
    start: u64,
    end: u64,
    mode: Mode,
    /// Start and end of what whoever has it may change.
    changed: Option<(u64, u64)>,
    /// Whom to tell when it is granted; `None` once it is.
    waiter: Option<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    inbox: Arc<Inbox>,
    place: Place,
}

/// A lock, or a place in the queue for one; given up by dropping it.
#[derive(Debug)]
#[must_use = "dropping it gives the range up"]
pub struct Hold {
    ranges: Arc<Ranges>,
    index: usize,
}

/// Has reads take locks as long as it lives.
#[derive(Debug)]
#[must_use = "dropping it lets reads go on without locks"]
pub struct Quiet(Arc<Ranges>);

/// Tells whether a disk had to be quiet since this was made, for who reads it without locks and has
/// to know that all of it was of one moment.
#[derive(Debug, Clone)]
pub struct Calm {
    ranges: Arc<Ranges>,
    quiets: u64,
}

impl Calm {
    /// Whether it had to.
    pub fn is_over(&self) -> bool {
        self.ranges.quiets.load(Ordering::SeqCst) != self.quiets
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.quiet.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ranges {
    /// Nothing is locked yet.
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                entries: Table::new(),
                exclusive: Vec::new(),
                waiting: VecDeque::new(),
                watchers: Vec::new(),
            }),
            quiet: AtomicUsize::new(0),
            quiets: AtomicU64::new(0),
        }
    }

    /// From now on reads take locks, too, until this is dropped; those under way have none.
    pub fn quiet(self: &Arc<Self>) -> Quiet {
        // In this order: whoever finds the second, finds the first.
        self.quiet.fetch_add(1, Ordering::SeqCst);
        self.quiets.fetch_add(1, Ordering::SeqCst);
        Quiet(Arc::clone(self))
    }

    /// Who hears whether it has to be quiet from now on; `None` if it has to be already.
    pub fn calm(self: &Arc<Self>) -> Option<Calm> {
        let calm = Calm {
            ranges: Arc::clone(self),
            quiets: self.quiets.load(Ordering::SeqCst),
        };
        (!self.is_quiet()).then_some(calm)
    }

    /// Whether reads take locks.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst) > 0
    }

    /// The locks of this disk, the same however often it is open: a shared disk may be opened
    /// again while something that was left when it was closed may still change it.
    pub fn of(subject: Subject) -> Arc<Self> {
        let mut all = OF_ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, ranges)| ranges.strong_count() > 0);
        let known = all.iter().find(|(other, _)| *other == subject);
        if let Some(ranges) = known.and_then(|(_, ranges)| ranges.upgrade()) {
            return ranges;
        }
        let ranges = Arc::new(Self::new());
        all.push((subject, Arc::downgrade(&ranges)));
        ranges
    }

    /// Has a watch hear of everything that is granted from now on and may change its ranges.
    pub fn watch(&self, watch: &Watch) {
        let mut state = self.state();
        // Those that are gone go with the next change; a disk that nobody changes has none.
        if state.watchers.len() == state.watchers.capacity() {
            state.watchers.retain(Watcher::is_there);
        }
        state.watchers.push(watch.watcher());
    }

    /// Locks `len` bytes from `start`, to change them or some of them (first byte, length) or none;
    /// returns whether they are granted now. If not, [`Message::Granted`] for `place` comes to `inbox` when they are.
    pub fn lock(
        self: &Arc<Self>,
        (start, len): (u64, u64),
        (mode, changed): (Mode, Option<(u64, u64)>),
        inbox: &Arc<Inbox>,
        place: Place,
    ) -> (Hold, bool) {
        let mut state = self.state();
        let mut entry = Entry {
            start,
            end: start.saturating_add(len),
            mode,
            changed: changed.map(|(start, len)| (start, start.saturating_add(len))),
            waiter: None,
        };
        let granted = state.is_free(&entry, state.waiting.len());
        if !granted {
            entry.waiter = Some(Waiter {
                inbox: Arc::clone(inbox),
                place,
            });
        } else if let Some((start, end)) = entry.changed {
            state.tell(start, end);
        }
        let index = state.entries.insert(entry);
        if !granted {
            state.waiting.push_back(index);
        } else if mode == Mode::Exclusive {
            state.exclusive.push(index);
        }
        let hold = Hold {
            ranges: Arc::clone(self),
            index,
        };
        (hold, granted)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, index: usize) {
        let mut granted = Vec::new();
        self.state().release(index, &mut granted);
        for waiter in granted {
            waiter.inbox.post(Message::Granted(waiter.place));
        }
    }
}

impl Hold {
    /// Keeps everybody away from the range from now on; those that share it already, stay.
    pub fn fence(&self) {
        let mut state = self.ranges.state();
        let Some(entry) = state.entries.get_mut(self.index) else {
            return;
        };
        if entry.mode == Mode::Shared {
            entry.mode = Mode::Exclusive;
            if entry.waiter.is_none() {
                state.exclusive.push(self.index);
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.ranges.release(self.index);
    }
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        let sharing = self.mode == Mode::Shared && other.mode == Mode::Shared;
        !sharing && self.start < other.end && other.start < self.end
    }
}

impl State {
    /// Whether a lock is in conflict neither with one that is held nor with one of the first
    /// `before` that wait.
    fn is_free(&self, wanted: &Entry, before: usize) -> bool {
        let conflict = |index: &usize| {
            self.entries
                .get(*index)
                .is_some_and(|entry| entry.conflicts(wanted))
        };
        if self.waiting.iter().take(before).any(conflict) {
            return false;
        }
        match wanted.mode {
            Mode::Shared => !self.exclusive.iter().any(conflict),
            Mode::Exclusive => !self
                .entries
                .iter()
                .any(|(_, entry)| entry.waiter.is_none() && entry.conflicts(wanted)),
        }
    }

    /// Removes a lock; those that wait and could only not have their range because of it, have it.
    fn release(&mut self, index: usize, granted: &mut Vec<Waiter>) {
        let Some(gone) = self.entries.remove(index) else {
            return;
        };
        if gone.waiter.is_some() {
            self.waiting.retain(|&waiting| waiting != index);
        } else if gone.mode == Mode::Exclusive {
            self.exclusive.retain(|&held| held != index);
        }
        let mut at = 0;
        while let Some(&next) = self.waiting.get(at) {
            let free = self
                .entries
                .get(next)
                .is_some_and(|entry| entry.conflicts(&gone) && self.is_free(entry, at));
            if !free {
                at += 1;
                continue;
            }
            self.waiting.remove(at);
            let mut changed = None;
            if let Some(entry) = self.entries.get_mut(next) {
                if entry.mode == Mode::Exclusive {
                    self.exclusive.push(next);
                }
                changed = entry.changed;
                granted.extend(entry.waiter.take());
            }
            if let Some((start, end)) = changed {
                self.tell(start, end);
            }
        }
    }

    /// Tells those who watch that this range may be changed from now on.
    fn tell(&mut self, start: u64, end: u64) {
        self.watchers.retain(|watcher| watcher.hear(start, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Mode = Mode::Shared;
    const EXCLUSIVE: Mode = Mode::Exclusive;

    struct Bench {
        ranges: Arc<Ranges>,
        inbox: Arc<Inbox>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                ranges: Arc::new(Ranges::new()),
                inbox: Arc::new(Inbox::new().unwrap()),
            }
        }

        fn lock(&self, range: (u64, u64), mode: Mode, operation: usize) -> (Hold, bool) {
            let place = Place {
                operation,
                serial: 0,
            };
            self.ranges
                .lock(range, (mode, Some(range)), &self.inbox, place)
        }

        /// Who was granted a range since it was asked last.
        fn granted(&self) -> Vec<usize> {
            let mut messages = Vec::new();
            self.inbox.take(&mut messages);
            messages
                .into_iter()
                .map(|message| match message {
                    Message::Granted(place) => place.operation,
                    other => unreachable!("{other:?}"),
                })
                .collect()
        }
    }

    #[test]
    fn shared_locks_overlap_and_an_exclusive_one_waits_for_all_of_them() {
        let bench = Bench::new();
        let (first, granted) = bench.lock((0, 100), SHARED, 1);
        assert!(granted);
        let (second, granted) = bench.lock((50, 100), SHARED, 2);
        assert!(granted);
        let (third, granted) = bench.lock((99, 1), EXCLUSIVE, 3);
        assert!(!granted);
        drop(first);
        assert!(bench.granted().is_empty());
        drop(second);
        assert_eq!(bench.granted(), [3]);
        drop(third);
    }

    #[test]
    fn ranges_that_only_touch_do_not_conflict() {
        let bench = Bench::new();
        let (_first, _) = bench.lock((0, 100), EXCLUSIVE, 1);
        assert!(bench.lock((100, 100), EXCLUSIVE, 2).1);
        assert!(!bench.lock((99, 1), SHARED, 3).1);
    }

    #[test]
    fn a_shared_lock_does_not_overtake_an_exclusive_one_with_which_it_overlaps() {
        let bench = Bench::new();
        let (first, _) = bench.lock((0, 100), SHARED, 1);
        let (second, granted) = bench.lock((50, 100), EXCLUSIVE, 2);
        assert!(!granted);
        let (_third, granted) = bench.lock((120, 10), SHARED, 3);
        assert!(!granted, "behind the exclusive one");
        let (_fourth, granted) = bench.lock((200, 10), SHARED, 4);
        assert!(granted, "it does not overlap");
        drop(first);
        assert_eq!(bench.granted(), [2]);
        drop(second);
        assert_eq!(bench.granted(), [3]);
    }

    #[test]
    fn who_leaves_the_queue_lets_those_behind_it_go_on() {
        let bench = Bench::new();
        let (_first, _) = bench.lock((0, 100), SHARED, 1);
        let (second, _) = bench.lock((0, 100), EXCLUSIVE, 2);
        let (_third, granted) = bench.lock((0, 100), SHARED, 3);
        assert!(!granted);
        drop(second);
        assert_eq!(bench.granted(), [3]);
    }

    #[test]
    fn a_fence_keeps_newer_ones_away_but_not_those_that_are_there() {
        let bench = Bench::new();
        let (first, _) = bench.lock((0, 100), SHARED, 1);
        let (second, _) = bench.lock((0, 100), SHARED, 2);
        first.fence();
        first.fence();
        let (_third, granted) = bench.lock((0, 1), SHARED, 3);
        assert!(!granted);
        drop(second);
        assert!(bench.granted().is_empty());
        drop(first);
        assert_eq!(bench.granted(), [3]);
        assert!(bench.lock((50, 1), EXCLUSIVE, 4).1);
    }

    #[test]
    fn who_watches_hears_of_a_change_when_it_is_granted() {
        let bench = Bench::new();
        let (barrier, _) = bench.lock((0, u64::MAX), EXCLUSIVE, 1);
        let (waiting, granted) = bench.lock((512, 512), SHARED, 2);
        assert!(!granted);
        let watches = [(0, 512), (512, 1)].map(|range| Watch::new([range]));
        for watch in &watches {
            bench.ranges.watch(watch);
        }
        assert!(!watches[1].is_changed(), "it waits for the barrier");
        drop(barrier);
        assert!(watches[1].is_changed());
        drop(waiting);
        assert!(!watches[0].is_changed());
        let place = Place {
            operation: 3,
            serial: 0,
        };
        let only_looks = bench
            .ranges
            .lock((0, 512), (EXCLUSIVE, None), &bench.inbox, place);
        assert!(!watches[0].is_changed(), "a barrier changes nothing");
        drop(only_looks);
        let _ = bench.lock((511, 10), SHARED, 4);
        assert!(watches[0].is_changed());
    }

    #[test]
    fn watches_that_are_gone_are_forgotten_though_nothing_changes() {
        let bench = Bench::new();
        let stays = Watch::new([(0, 512)]);
        bench.ranges.watch(&stays);
        for _ in 0..1000 {
            bench.ranges.watch(&Watch::new([(0, 512)]));
        }
        assert!(bench.ranges.state().watchers.len() < 10);
        let _ = bench.lock((0, 1), SHARED, 1);
        assert!(stays.is_changed());
    }

    #[test]
    fn the_calm_of_a_disk_is_over_when_it_had_to_be_quiet_and_does_not_come_back() {
        let ranges = Arc::new(Ranges::new());
        let calm = ranges.calm().unwrap();
        assert!(!calm.is_over());
        let quiet = ranges.quiet();
        assert!(calm.is_over() && ranges.calm().is_none());
        drop(quiet);
        assert!(calm.is_over());
        assert!(!ranges.calm().unwrap().is_over());
    }

    #[test]
    fn nothing_is_left_when_all_are_gone() {
        let bench = Bench::new();
        let holds: Vec<_> = (0..20)
            .map(|at| bench.lock((at, 5), if at % 3 == 0 { EXCLUSIVE } else { SHARED }, 0))
            .collect();
        drop(holds);
        let state = bench.ranges.state();
        assert!(state.entries.is_empty() && state.waiting.is_empty() && state.exclusive.is_empty());
    }
}
