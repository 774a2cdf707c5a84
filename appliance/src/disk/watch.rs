//! Blocks that somebody wants to stay as they are, and whether they did.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Blocks that are watched from an [`Op::Watch`](super::Op::Watch) on, until the last clone of this
/// is gone.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    /// First byte and length of each range.
    ranges: Box<[(u64, u64)]>,
    changed: AtomicBool,
}

/// What is left of a [`Watch`] at the disk, when nobody may be interested any more.
#[derive(Debug)]
pub(super) struct Watcher(Weak<Watched>);

impl Watch {
    /// A watch on these ranges, as (first byte, length).
    pub fn new(ranges: impl Into<Box<[(u64, u64)]>>) -> Self {
        Self(Arc::new(Watched {
            ranges: ranges.into(),
            changed: AtomicBool::new(false),
        }))
    }

    /// First byte and length of each range.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0.ranges
    }

    /// Whether something has begun to change one of the ranges since they are watched. What was
    /// read before the answer was no is as it was at the beginning.
    pub fn is_changed(&self) -> bool {
        self.0.changed.load(Ordering::Acquire)
    }

    /// Whether `len` bytes from `offset` have one of the ranges' bytes among them.
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.0.overlaps(offset, offset.saturating_add(len))
    }

    pub(super) fn watcher(&self) -> Watcher {
        Watcher(Arc::downgrade(&self.0))
    }
}

impl PartialEq for Watch {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Watch {}

impl Watched {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.ranges
            .iter()
            .any(|&(offset, len)| offset < end && start < offset.saturating_add(len))
    }
}

impl Watcher {
    /// Whether the watch is still there.
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Takes note that bytes from `start` to `end` may be changed from now on. Whether it still
    /// wants to hear of more.
    pub fn hear(&self, start: u64, end: u64) -> bool {
        let Some(watched) = self.0.upgrade() else {
            return false;
        };
        if watched.overlaps(start, end) {
            watched.changed.store(true, Ordering::Release);
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_heard_of_where_it_touches_a_range_and_only_there() {
        let watch = Watch::new([(512, 1024), (8192, 512)]);
        let watcher = watch.watcher();
        for (start, end) in [(0, 512), (1536, 8192), (8704, u64::MAX)] {
            assert!(watcher.hear(start, end));
            assert!(!watch.is_changed(), "{start} to {end}");
        }
        assert!(!watcher.hear(8703, 9000), "once is enough");
        assert!(watch.is_changed());
    }

    #[test]
    fn a_watch_that_is_gone_hears_nothing() {
        let watch = Watch::new([(0, 512)]);
        let watcher = watch.watcher();
        assert!(watcher.hear(512, 1024));
        drop(watch);
        assert!(!watcher.hear(512, 1024));
    }
}
