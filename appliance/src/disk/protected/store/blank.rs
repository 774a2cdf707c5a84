//! Blocks that become as a new disk has them: zeros, with tags that check nothing.

use super::{Medium, PAGE, Part, Slots, Store, Tag};
use crate::disk::DiskError;

/// The tags of such a block; on the medium they are zeros.
const BLANK: Slots = Slots {
    new: Tag::UNCHECKED,
    old: Tag::UNCHECKED,
};

/// Memory that a medium may be read into and written from.
#[derive(Debug)]
pub struct Room<'a> {
    /// For one page.
    pub page: &'a mut [u8],
    /// For one block.
    pub block: &'a mut [u8],
    /// Zeros, a block at least.
    pub zeros: &'a [u8],
}

impl<M: Medium> Store<M> {
    /// Makes blocks from `lba` on blank, and puts that on stable storage; gives them back if
    /// `gives_back` and that is possible.
    ///
    /// # Errors
    /// [`DiskError`]; each block has its old data or zeros then, and what fits it.
    pub fn erase(
        &self,
        lba: u64,
        blocks: usize,
        gives_back: bool,
        room: &mut Room<'_>,
    ) -> Result<(), DiskError> {
        let mut tagged = false;
        for part in Self::parts(lba, blocks) {
            tagged |= self.announce(part, room)?;
        }
        if tagged {
            self.medium.sync()?;
        }
        for part in Self::parts(lba, blocks) {
            let len = part.blocks as u64 * u64::from(self.layout.block_size);
            let at = self.layout.block_at(part.lba);
            self.zero((at, len), gives_back, room.zeros)?;
        }
        self.medium.sync()?;
        if !tagged {
            return Ok(());
        }
        // As when blocks are written: what is gone must not pass if it comes back.
        for part in Self::parts(lba, blocks) {
            self.forget(part, gives_back, room)?;
        }
        // By tags that check nothing nobody would know the zeros from zeros that were there before.
        self.medium.sync()
    }

    /// Makes a block blank if it cannot be read; its tags have to be readable, since those of others
    /// are beside them.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn mend(&self, lba: u64, room: &mut Room<'_>) -> Result<(), DiskError> {
        match self.medium.read(self.layout.block_at(lba), room.block) {
            Err(DiskError::Io(_)) => self.erase(lba, 1, false, room),
            other => other,
        }
    }

    /// Puts the tags of blank blocks beside those of the blocks that are there; whether that is
    /// anything new.
    fn announce(&self, part: Part, room: &mut Room<'_>) -> Result<bool, DiskError> {
        let page = &mut *room.page;
        self.medium.read(self.layout.page_at(part.group), page)?;
        let mut changes = false;
        for (lba, index) in (part.lba..).zip(part.index()..).take(part.blocks) {
            let there = Slots::read(page, index);
            if there == BLANK {
                continue;
            }
            let old = self.replaced(there, lba, room.block)?;
            let new = Tag::UNCHECKED;
            Slots { new, old }.write(page, index);
            changes = true;
        }
        if changes {
            self.medium.write(self.layout.page_at(part.group), page)?;
        }
        Ok(changes)
    }

    /// Leaves nothing but the tags of blank blocks.
    fn forget(&self, part: Part, gives_back: bool, room: &mut Room<'_>) -> Result<(), DiskError> {
        let (page, at) = (&mut *room.page, self.layout.page_at(part.group));
        self.medium.read(at, page)?;
        for index in (part.index()..).take(part.blocks) {
            BLANK.write(page, index);
        }
        let is_empty = page.iter().all(|&byte| byte == 0);
        if is_empty && gives_back && self.medium.give_back(at, PAGE as u64)? {
            return Ok(());
        }
        self.medium.write(at, page)
    }

    fn zero(
        &self,
        (mut at, mut len): (u64, u64),
        gives_back: bool,
        zeros: &[u8],
    ) -> Result<(), DiskError> {
        if gives_back && self.medium.give_back(at, len)? {
            return Ok(());
        }
        while len > 0 {
            let now = len.min(zeros.len() as u64);
            let piece = usize::try_from(now).map_err(|_| DiskError::OutOfRange)?;
            self.medium.write(at, &zeros[..piece])?;
            (at, len) = (at + now, len - now);
        }
        Ok(())
    }
}
