//! A set of rings of one HBA.

use spec::device::MAX_RINGS;

const _: () = assert!(MAX_RINGS == u128::BITS as usize);

/// A set of rings, which are given in ascending order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RingSet(u128);

impl RingSet {
    /// Adds a ring. One that no HBA has is none.
    #[inline]
    pub fn insert(&mut self, ring: u16) {
        self.0 |= 1_u128.checked_shl(ring.into()).unwrap_or(0);
    }

    /// Adds all of another set.
    #[inline]
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a ring is in.
    #[inline]
    pub fn has(self, ring: u16) -> bool {
        self.0 & 1_u128.checked_shl(ring.into()).unwrap_or(0) != 0
    }

    /// Takes a ring out, if it is in.
    #[inline]
    pub fn remove(&mut self, ring: u16) -> bool {
        if self.is_empty() {
            return false;
        }
        let bit = 1_u128.checked_shl(ring.into()).unwrap_or(0);
        let was_in = self.0 & bit != 0;
        self.0 &= !bit;
        was_in
    }

    /// Takes the last one out.
    #[inline]
    pub fn pop_last(&mut self) -> Option<u16> {
        let last = self.0.checked_ilog2()?;
        self.0 &= !(1 << last);
        u16::try_from(last).ok()
    }
}

impl Iterator for RingSet {
    type Item = u16;

    #[inline]
    fn next(&mut self) -> Option<u16> {
        if self.0 == 0 {
            return None;
        }
        let first = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        u16::try_from(first).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_come_in_order_and_once() {
        let mut set = RingSet::default();
        assert!(set.is_empty());
        for ring in [127, 2, 0, 2, 64] {
            set.insert(ring);
        }
        let mut more = RingSet::default();
        more.insert(3);
        set.add(more);
        assert_eq!(set.collect::<Vec<_>>(), [0, 2, 3, 64, 127]);
        assert_eq!(set.pop_last(), Some(127));
        assert!(set.has(2) && !set.has(5) && !set.has(128));
        assert!(set.remove(2) && !set.remove(2) && !set.remove(5));
        set.insert(2);
        assert_eq!(set.next(), Some(0));
        assert_eq!(set.pop_last(), Some(64));
        assert_eq!(
            [set.pop_last(), set.pop_last(), set.pop_last()],
            [Some(3), Some(2), None]
        );
    }

    #[test]
    fn a_ring_that_no_hba_has_is_none() {
        let mut set = RingSet::default();
        set.insert(128);
        set.insert(u16::MAX);
        assert!(!set.remove(128));
        assert!(set.is_empty());
        assert_eq!(set.next(), None);
    }
}
