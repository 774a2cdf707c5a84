//! The tags of one block on the medium: the newest, with those of what it replaces.
//!
//! A block and its tags are written one after the other, and a crash may come in between. So both
//! tags are there while a block is written, each on stable storage before the data may be: of the
//! old and the new data either is found with its own. Afterwards both places hold the new one, so
//! that data which a disk has lost or brought back does not pass for good.

use super::layout::ENTRY;
use super::tag::{Protection, Tag, guard};

/// The tags of a block.
///
/// On the medium every bit is inverted: zeros, as a new file has, are tags that check nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Of what was written last.
    pub new: Tag,
    /// Of what was there before, while it may still be; otherwise the same.
    pub old: Tag,
}

impl Slots {
    /// Those in the page of a group, of the block at `index` in it.
    pub fn read(page: &[u8], index: usize) -> Self {
        let tag = |at: usize| {
            let mut bytes = [0; Tag::LEN];
            bytes.copy_from_slice(&page[at..at + Tag::LEN]);
            Tag::from_bytes(bytes.map(|byte| !byte))
        };
        let at = index * ENTRY;
        Self {
            new: tag(at),
            old: tag(at + Tag::LEN),
        }
    }

    /// Puts them into the page of a group.
    pub fn write(self, page: &mut [u8], index: usize) {
        let at = index * ENTRY;
        let bytes = [self.new.to_bytes(), self.old.to_bytes()].concat();
        for (to, from) in page[at..at + ENTRY].iter_mut().zip(bytes) {
            *to = !from;
        }
    }

    /// Whether a write may have been cut short.
    pub fn are_two(self) -> bool {
        self.new != self.old
    }

    /// The tag of the data that is there; if it is neither's, the new one.
    pub fn of(self, data: &[u8], protection: Protection) -> Tag {
        if !self.are_two() {
            return self.new;
        }
        let guard = guard(data);
        let by_guard = |tag: &Tag| tag.guard == guard;
        // One that checks nothing fits whatever is there: the other is asked first.
        let fits_all = |tag: &Tag| tag.is_unchecked(protection);
        let both = [self.new, self.old];
        let found = both.iter().find(|tag| by_guard(tag));
        let found = found.or_else(|| both.iter().find(|tag| fits_all(tag)));
        *found.unwrap_or(&self.new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [u8; 512] = [1; 512];
    const NEW: [u8; 512] = [2; 512];

    fn tag(data: &[u8]) -> Tag {
        Tag::of(data, 7, Protection::Type1)
    }

    #[test]
    fn zeros_on_the_medium_check_nothing() {
        let slots = Slots::read(&[0; 4096], 255);
        assert_eq!(slots.new, Tag::UNCHECKED);
        assert_eq!(slots.old, Tag::UNCHECKED);
    }

    #[test]
    fn each_block_has_sixteen_bytes_of_its_own() {
        let mut page = [0; 4096];
        let slots = Slots {
            new: Tag::from_bytes([1, 2, 3, 4, 5, 6, 7, 8]),
            old: Tag::from_bytes([9, 10, 11, 12, 13, 14, 15, 16]),
        };
        slots.write(&mut page, 3);
        assert_eq!(Slots::read(&page, 3), slots);
        assert_eq!(page[48..52], [0xfe, 0xfd, 0xfc, 0xfb]);
        assert!(page[..48].iter().chain(&page[64..]).all(|&byte| byte == 0));
    }

    #[test]
    fn old_and_new_data_are_each_found_with_their_own_tag() {
        let slots = Slots {
            new: tag(&NEW),
            old: tag(&OLD),
        };
        assert_eq!(slots.of(&NEW, Protection::Type1), tag(&NEW));
        assert_eq!(slots.of(&OLD, Protection::Type1), tag(&OLD));
        assert_eq!(slots.of(&[3; 512], Protection::Type1), tag(&NEW));
    }

    #[test]
    fn a_tag_that_checks_nothing_is_taken_where_the_other_does_not_fit() {
        for (new, old) in [(Tag::UNCHECKED, tag(&OLD)), (tag(&OLD), Tag::UNCHECKED)] {
            let slots = Slots { new, old };
            assert_eq!(slots.of(&OLD, Protection::Type1), tag(&OLD));
            assert_eq!(slots.of(&[0; 512], Protection::Type1), Tag::UNCHECKED);
        }
    }

    #[test]
    fn old_data_is_not_taken_for_new_once_both_tags_are_the_new_one() {
        let slots = Slots {
            new: tag(&NEW),
            old: tag(&NEW),
        };
        assert_eq!(slots.of(&OLD, Protection::Type1), tag(&NEW));
    }
}
