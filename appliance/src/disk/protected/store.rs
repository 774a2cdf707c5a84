//! Blocks with their tags on a medium, in an order that a crash anywhere leaves whole.

mod blank;

pub use blank::Room;

use super::layout::{GROUP, Layout, PAGE};
use super::slots::Slots;
use super::tag::{Protection, Tag};
use crate::disk::DiskError;

/// What the blocks are on.
pub trait Medium {
    /// Fills `to` from byte `at` on.
    ///
    /// # Errors
    /// [`DiskError`].
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), DiskError>;
    /// Writes all of `from` at byte `at`.
    ///
    /// # Errors
    /// [`DiskError`].
    fn write(&self, at: u64, from: &[u8]) -> Result<(), DiskError>;
    /// Gives bytes back, which read as zeros then; whether that is possible.
    ///
    /// # Errors
    /// [`DiskError`].
    fn give_back(&self, at: u64, len: u64) -> Result<bool, DiskError>;
    /// Waits until all that was written is on stable storage.
    ///
    /// # Errors
    /// [`DiskError`].
    fn sync(&self) -> Result<(), DiskError>;
}

/// Blocks with their tags. Whoever calls keeps others away from the groups of the blocks: all of
/// them for a write, those that write for a read.
#[derive(Debug)]
pub struct Store<M> {
    medium: M,
    layout: Layout,
    protection: Protection,
}

/// Consecutive blocks of one group.
#[derive(Debug, Clone, Copy)]
struct Part {
    group: u64,
    lba: u64,
    blocks: usize,
    /// Blocks before it, of all that are meant.
    before: usize,
}

impl Part {
    /// Where its first block is in its group.
    fn index(self) -> usize {
        small(self.lba % GROUP)
    }

    /// Its bytes among those of all that are meant.
    fn bytes(self, block_size: usize) -> std::ops::Range<usize> {
        self.before * block_size..(self.before + self.blocks) * block_size
    }
}

/// A number of blocks of a group.
fn small(blocks: u64) -> usize {
    usize::try_from(blocks).unwrap_or(usize::MAX)
}

/// Bytes that the pages of so many blocks take, wherever they begin.
pub const fn pages_for(blocks: usize) -> usize {
    (blocks / small_group() + 2) * PAGE
}

const fn small_group() -> usize {
    PAGE / super::layout::ENTRY
}

impl<M: Medium> Store<M> {
    pub const fn new(medium: M, layout: Layout, protection: Protection) -> Self {
        Self {
            medium,
            layout,
            protection,
        }
    }

    fn block_size(&self) -> usize {
        small(self.layout.block_size.into())
    }

    /// The blocks from `lba` on, group by group.
    fn parts(lba: u64, blocks: usize) -> impl Iterator<Item = Part> {
        let end = lba + blocks as u64;
        let mut at = lba;
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let group = at / GROUP;
            let next = end.min((group + 1) * GROUP);
            let part = Part {
                group,
                lba: at,
                blocks: small(next - at),
                before: small(at - lba),
            };
            at = next;
            Some(part)
        })
    }

    /// Reads as many whole blocks as `data` has room for, from `lba` on; `pages` has room for
    /// [`pages_for`] them. Returns their tags, unchecked.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn read(&self, lba: u64, data: &mut [u8], pages: &mut [u8]) -> Result<Vec<Tag>, DiskError> {
        let block_size = self.block_size();
        let mut tags = Vec::with_capacity(data.len() / block_size);
        let page = &mut pages[..PAGE];
        for part in Self::parts(lba, data.len() / block_size) {
            self.medium.read(self.layout.page_at(part.group), page)?;
            let bytes = &mut data[part.bytes(block_size)];
            self.medium.read(self.layout.block_at(part.lba), bytes)?;
            tags.extend(
                (part.index()..)
                    .zip(bytes.chunks_exact(block_size))
                    .map(|(index, block)| Slots::read(page, index).of(block, self.protection)),
            );
        }
        Ok(tags)
    }

    /// Writes whole blocks from `lba` on with a tag for each, and puts them on stable storage.
    /// `pages` has room for [`pages_for`] them, `block` for one block.
    ///
    /// # Errors
    /// [`DiskError`]; each block has its old data or its new then, and what fits it.
    pub fn write(
        &self,
        lba: u64,
        data: &[u8],
        tags: &[Tag],
        pages: &mut [u8],
        block: &mut [u8],
    ) -> Result<(), DiskError> {
        let block_size = self.block_size();
        let parts = || Self::parts(lba, tags.len()).zip(0..);
        // Both tags, where what is there is known again afterwards whatever happens.
        for (part, number) in parts() {
            let page = &mut pages[number * PAGE..][..PAGE];
            self.medium.read(self.layout.page_at(part.group), page)?;
            for (at, tag) in (0..).zip(&tags[part.before..part.before + part.blocks]) {
                let index = part.index() + at;
                let lba = part.lba + at as u64;
                let old = self.replaced(Slots::read(page, index), lba, block)?;
                Slots { new: *tag, old }.write(page, index);
            }
        }
        self.write_pages(parts(), pages)?;
        self.medium.sync()?;
        for (part, _) in parts() {
            let bytes = &data[part.bytes(block_size)];
            self.medium.write(self.layout.block_at(part.lba), bytes)?;
        }
        self.medium.sync()?;
        // The old data is gone for good, and must not pass if it comes back. Should this be lost,
        // both tags are there, and the data is known by them; but not by one that checks nothing.
        for (part, number) in parts() {
            let page = &mut pages[number * PAGE..][..PAGE];
            for (at, tag) in (0..).zip(&tags[part.before..part.before + part.blocks]) {
                let slots = Slots {
                    new: *tag,
                    old: *tag,
                };
                slots.write(page, part.index() + at);
            }
        }
        self.write_pages(parts(), pages)?;
        let is_unchecked = |tag: &Tag| tag.is_unchecked(self.protection);
        if tags.iter().any(is_unchecked) {
            self.medium.sync()?;
        }
        Ok(())
    }

    /// The tag of the data that a block has; `block` has room for it.
    fn present(&self, there: Slots, lba: u64, block: &mut [u8]) -> Result<Tag, DiskError> {
        if !there.are_two() {
            return Ok(there.new);
        }
        // A write was cut short: which of the two is there?
        self.medium.read(self.layout.block_at(lba), block)?;
        Ok(there.of(block, self.protection))
    }

    /// The same, of a block that is going to be another.
    fn replaced(&self, there: Slots, lba: u64, block: &mut [u8]) -> Result<Tag, DiskError> {
        match self.present(there, lba, block) {
            // What cannot be read is lost, whichever it was.
            Err(DiskError::Io(_)) => Ok(there.new),
            other => other,
        }
    }

    fn write_pages(
        &self,
        parts: impl Iterator<Item = (Part, usize)>,
        pages: &[u8],
    ) -> Result<(), DiskError> {
        for (part, number) in parts {
            let page = &pages[number * PAGE..][..PAGE];
            self.medium.write(self.layout.page_at(part.group), page)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
