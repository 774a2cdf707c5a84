//! A chunk as it is carried out on the blocks and tags of a store.

use super::chunk::{Chunk, Deed, Found, Scratch, Tags};
use super::layout::PAGE;
use super::store::{Medium, Room, Store};
use super::tag::{Checks, Protection, Tag};
use crate::disk::DiskError;

/// The blocks of a chunk.
struct Blocks<'a, M> {
    store: &'a Store<M>,
    protection: Protection,
    lba: u64,
    block_size: usize,
}

impl Chunk {
    /// Does it.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn carry_out<M: Medium>(
        self,
        store: &Store<M>,
        protection: Protection,
        scratch: &mut Scratch,
    ) -> Result<Found, DiskError> {
        let block_size = scratch.block.bytes().len();
        let blocks = Blocks {
            store,
            protection,
            lba: self.lba,
            block_size,
        };
        let checks = self.checks;
        match self.deed {
            Deed::Erase { gives_back } => {
                let mut room = room(scratch);
                store.erase(self.lba, self.blocks, gives_back, &mut room)?;
                return Ok(Found::default());
            }
            Deed::Mend => {
                store.mend(self.lba, &mut room(scratch))?;
                return Ok(Found::default());
            }
            _ => {}
        }
        let (data, back) = (scratch.data.bytes(), scratch.back.bytes());
        let len = self
            .blocks
            .checked_mul(block_size)
            .filter(|len| *len <= data.len())
            .ok_or(DiskError::OutOfRange)?;
        let (data, back) = (&mut data[..len], &mut back[..len]);
        let (pages, one) = (scratch.pages.bytes(), scratch.block.bytes());
        match self.deed {
            Deed::Read => {
                let tags = blocks.read(data, pages, checks)?;
                return Ok(Found {
                    tags: tags.into_iter().flat_map(Tag::to_bytes).collect(),
                    data: data.to_vec(),
                });
            }
            Deed::Check => {
                blocks.read(data, pages, checks)?;
            }
            Deed::Write {
                data: bytes,
                tags,
                verify,
            } => {
                data.copy_from_slice(&bytes);
                let tags = blocks.tags_of(data, &tags, checks)?;
                store.write(self.lba, data, &tags, pages, one)?;
                if verify {
                    // By what the tags say, if they say it; and in any case by the data.
                    store.read(self.lba, back, pages)?;
                    miscompare(back, data)?;
                }
            }
            Deed::Same { block, tag } => {
                repeat(&block, data);
                let tags = blocks.tags_of(data, &blocks.repeated(tag, self.blocks), checks)?;
                store.write(self.lba, data, &tags, pages, one)?;
            }
            Deed::Compare {
                data: bytes,
                tags,
                compares,
            } => {
                back.copy_from_slice(&bytes);
                blocks.compare((back, tags), data, pages, (checks, compares))?;
            }
            Deed::CompareSame {
                block,
                tag,
                compares,
            } => {
                repeat(&block, back);
                let tags = blocks.repeated(tag, self.blocks);
                blocks.compare((back, tags), data, pages, (checks, compares))?;
            }
            Deed::CompareAndWrite {
                compare,
                write,
                tags,
            } => {
                // What is compared with has to be what was written there, whatever may be written.
                blocks.read(back, pages, Checks::ALL)?;
                miscompare(back, &compare)?;
                data.copy_from_slice(&write);
                let tags = blocks.tags_of(data, &tags, checks)?;
                store.write(self.lba, data, &tags, pages, one)?;
            }
            Deed::Or { data: bytes, tags } => {
                back.copy_from_slice(&bytes);
                blocks.tags_of(back, &tags, checks)?;
                blocks.read(data, pages, checks)?;
                for (to, from) in data.iter_mut().zip(back) {
                    *to |= *from;
                }
                let tags = blocks.tags_of(data, &Tags::Made, checks)?;
                store.write(self.lba, data, &tags, pages, one)?;
            }
            Deed::Erase { .. } | Deed::Mend => {}
        }
        Ok(Found::default())
    }
}

/// What erasing needs of the scratch memory.
fn room(scratch: &mut Scratch) -> Room<'_> {
    let zeros = scratch.data.bytes();
    zeros.fill(0);
    Room {
        page: &mut scratch.pages.bytes()[..PAGE],
        block: scratch.block.bytes(),
        zeros,
    }
}

/// Puts a block everywhere.
fn repeat(block: &[u8], to: &mut [u8]) {
    for to in to.chunks_exact_mut(block.len()) {
        to.copy_from_slice(block);
    }
}

/// The first byte in which the two differ.
fn miscompare(there: &[u8], wanted: &[u8]) -> Result<(), DiskError> {
    match there.iter().zip(wanted).position(|(a, b)| a != b) {
        Some(at) => Err(DiskError::Miscompare { at: at as u64 }),
        None => Ok(()),
    }
}

impl<M: Medium> Blocks<'_, M> {
    /// Reads what is on the medium, and checks it; the tags.
    fn read(&self, to: &mut [u8], pages: &mut [u8], checks: Checks) -> Result<Vec<Tag>, DiskError> {
        let tags = self.store.read(self.lba, to, pages)?;
        let is_checked = |tag: &Tag| !tag.is_unchecked(self.protection);
        self.check(to, &tags, checks, is_checked)?;
        Ok(tags)
    }

    /// The tags of data that is written, or compared; those that are given are checked.
    fn tags_of(&self, data: &[u8], tags: &Tags, checks: Checks) -> Result<Vec<Tag>, DiskError> {
        let blocks = data.chunks_exact(self.block_size);
        match tags {
            Tags::Made => Ok(blocks
                .zip(self.lba..)
                .map(|(block, lba)| Tag::of(block, lba, self.protection))
                .collect()),
            Tags::Unchecked => Ok(blocks.map(|_| Tag::UNCHECKED).collect()),
            Tags::Given(bytes) => {
                let tags = bytes.chunks_exact(Tag::LEN);
                let tags: Vec<_> = tags
                    .map(|tag| Tag::from_bytes(std::array::from_fn(|at| tag[at])))
                    .collect();
                // Whatever they say of themselves (NO_PI_CHK 0).
                self.check(data, &tags, checks, |_| true)?;
                Ok(tags)
            }
        }
    }

    /// The tags of so many blocks that are all the same, of which the first has this one.
    fn repeated(&self, tag: Tags, blocks: usize) -> Tags {
        let Tags::Given(first) = tag else { return tag };
        let first = Tag::from_bytes(std::array::from_fn(|at| {
            first.get(at).copied().unwrap_or(0)
        }));
        let tags = (0..blocks as u64).map(|number| first.following(number, self.protection));
        Tags::Given(tags.flat_map(Tag::to_bytes).collect())
    }

    fn check(
        &self,
        data: &[u8],
        tags: &[Tag],
        checks: Checks,
        is_checked: impl Fn(&Tag) -> bool,
    ) -> Result<(), DiskError> {
        let blocks = data.chunks_exact(self.block_size).zip(tags);
        for (number, (block, tag)) in blocks.enumerate() {
            if is_checked(tag) {
                tag.check(block, self.lba + number as u64, self.protection, checks)
                    .map_err(|bad| DiskError::Protection {
                        at: (number * self.block_size) as u64,
                        bad,
                    })?;
            }
        }
        Ok(())
    }

    /// Compares what is on the medium with what was sent (SBC-4, tables 126 to 128): with tags, these
    /// are checked and compared, and those on the medium are not checked.
    fn compare(
        &self,
        (sent, tags): (&[u8], Tags),
        there: &mut [u8],
        pages: &mut [u8],
        (checks, compares): (Checks, Checks),
    ) -> Result<(), DiskError> {
        if !matches!(tags, Tags::Given(_)) {
            self.read(there, pages, checks)?;
            return miscompare(there, sent);
        }
        let tags = self.tags_of(sent, &tags, checks)?;
        let found = self.read(there, pages, Checks::default())?;
        miscompare(there, sent)?;
        for (number, (found, sent)) in found.iter().zip(&tags).enumerate() {
            found
                .compare(*sent, self.protection, compares)
                .map_err(|bad| DiskError::TagMiscompare {
                    at: (number * self.block_size) as u64,
                    bad,
                })?;
        }
        Ok(())
    }
}
