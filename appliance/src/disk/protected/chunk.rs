//! A part of an operation that is done at once, on a thread that may wait for the disk.

use std::io;

use super::store::{Medium, Store, pages_for};
use super::tag::{Checks, Protection, Tag};
use crate::disk::DiskError;
use crate::disk::io::Pool;
use crate::disk::ranges::Hold;

/// Most bytes of a chunk.
pub const MAX_CHUNK: usize = 1 << 20;

/// What to do with some blocks, with copies of what the tenant gave for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub lba: u64,
    pub blocks: usize,
    /// What is checked: of what is read from the medium, or of the tags that are given.
    pub checks: Checks,
    pub deed: Deed,
}

/// What is done with the blocks of a chunk. Tags that are given are the tenant's bytes; without
/// any they are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Data, and the bytes of the tags, are returned.
    Read,
    /// They are read for the sake of the checks.
    Check,
    Write {
        data: Vec<u8>,
        tags: Option<Vec<u8>>,
        /// They are read back and compared.
        verify: bool,
    },
    /// The same block everywhere. Its tag is that of the first block; the reference tags of the
    /// others follow from it where they have to do with the LBA.
    Same {
        block: Vec<u8>,
        tag: Option<[u8; Tag::LEN]>,
    },
    Compare(Vec<u8>),
    CompareSame(Vec<u8>),
    CompareAndWrite {
        compare: Vec<u8>,
        write: Vec<u8>,
    },
    Or(Vec<u8>),
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub data: Vec<u8>,
    /// The bytes of the tags.
    pub tags: Vec<u8>,
}

/// A chunk that is done.
#[derive(Debug)]
pub struct Worked {
    /// What the job had for itself.
    pub hold: Hold,
    /// Blocks of the chunk.
    pub blocks: usize,
    /// How it ended; positions in errors are bytes from the start of the chunk.
    pub result: Result<Found, DiskError>,
}

/// Memory that a file may be read into and written from, whatever it needs for that.
#[derive(Debug)]
pub struct Scratch {
    data: Aligned,
    back: Aligned,
    pages: Aligned,
    block: Aligned,
}

#[derive(Debug)]
struct Aligned {
    pool: Pool,
    run: super::Run,
}

impl Aligned {
    fn new(len: usize) -> io::Result<Self> {
        let mut pool = Pool::new(len)?;
        let run = pool.take(len).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { pool, run })
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.pool.bytes_mut(&self.run)
    }
}

impl Scratch {
    /// # Errors
    /// What mmap(2) reports.
    pub fn new(block_size: u32) -> io::Result<Self> {
        let block = usize::try_from(block_size).map_err(io::Error::other)?;
        Ok(Self {
            data: Aligned::new(MAX_CHUNK)?,
            back: Aligned::new(MAX_CHUNK)?,
            pages: Aligned::new(pages_for(MAX_CHUNK / block))?,
            block: Aligned::new(block)?,
        })
    }
}

/// The first byte in which the two differ.
fn miscompare(there: &[u8], wanted: &[u8]) -> Result<(), DiskError> {
    match there.iter().zip(wanted).position(|(a, b)| a != b) {
        Some(at) => Err(DiskError::Miscompare { at: at as u64 }),
        None => Ok(()),
    }
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
        let Scratch {
            data,
            back,
            pages,
            block: one,
        } = scratch;
        let (data, back, pages, one) = (data.bytes(), back.bytes(), pages.bytes(), one.bytes());
        let block_size = one.len();
        let Self {
            lba,
            blocks,
            checks,
            ref deed,
        } = self;
        let len = blocks
            .checked_mul(block_size)
            .filter(|len| *len <= data.len())
            .ok_or(DiskError::OutOfRange)?;
        let (data, back) = (&mut data[..len], &mut back[..len]);
        let blocks = |bytes: &[u8], tags: &[Tag], checks, is_on_medium| {
            let blocks = bytes.chunks_exact(block_size).zip(tags).zip(0_u64..);
            for ((block, tag), number) in blocks {
                if is_on_medium && tag.is_unchecked(protection) {
                    continue;
                }
                tag.check(block, lba + number, protection, checks)
                    .map_err(|bad| DiskError::Protection {
                        at: number * block_size as u64,
                        bad,
                    })?;
            }
            Ok::<_, DiskError>(())
        };
        let made = |bytes: &[u8]| -> Vec<Tag> {
            let blocks = bytes.chunks_exact(block_size).zip(lba..);
            blocks
                .map(|(block, lba)| Tag::of(block, lba, protection))
                .collect()
        };
        // What is on the medium, as it is checked.
        let read = |to: &mut [u8], pages: &mut [u8], checks| {
            let tags = store.read(lba, to, pages)?;
            blocks(to, &tags, checks, true)?;
            Ok::<_, DiskError>(tags)
        };
        match deed {
            Deed::Read => {
                let tags = read(data, pages, checks)?;
                return Ok(Found {
                    tags: tags.into_iter().flat_map(Tag::to_bytes).collect(),
                    data: data.to_vec(),
                });
            }
            Deed::Check => {
                read(data, pages, checks)?;
            }
            Deed::Write {
                data: bytes,
                tags,
                verify,
            } => {
                data.copy_from_slice(bytes);
                let tags = match tags {
                    Some(tags) => {
                        let tags: Vec<Tag> = tags
                            .chunks_exact(Tag::LEN)
                            .map(|tag| Tag::from_bytes(std::array::from_fn(|at| tag[at])))
                            .collect();
                        blocks(data, &tags, checks, false)?;
                        tags
                    }
                    None => made(data),
                };
                store.write(lba, data, &tags, pages, one)?;
                if *verify {
                    // By what the tags say, if they say it; and in any case by the data.
                    store.read(lba, back, pages)?;
                    miscompare(back, data)?;
                }
            }
            Deed::Same { block, tag } => {
                for to in data.chunks_exact_mut(block_size) {
                    to.copy_from_slice(block);
                }
                let tags = match tag.map(Tag::from_bytes) {
                    Some(first) => {
                        first
                            .check(block, lba, protection, checks)
                            .map_err(|bad| DiskError::Protection { at: 0, bad })?;
                        (0..(len / block_size) as u64)
                            .map(|number| first.following(number, protection))
                            .collect()
                    }
                    None => made(data),
                };
                store.write(lba, data, &tags, pages, one)?;
            }
            Deed::Compare(bytes) => {
                read(data, pages, checks)?;
                miscompare(data, bytes)?;
            }
            Deed::CompareSame(block) => {
                read(data, pages, checks)?;
                for (number, there) in (0_u64..).zip(data.chunks_exact(block_size)) {
                    miscompare(there, block).map_err(|error| match error {
                        DiskError::Miscompare { at } => DiskError::Miscompare {
                            at: number * block_size as u64 + at,
                        },
                        other => other,
                    })?;
                }
            }
            Deed::CompareAndWrite { compare, write } => {
                read(back, pages, checks)?;
                miscompare(back, compare)?;
                data.copy_from_slice(write);
                store.write(lba, data, &made(data), pages, one)?;
            }
            Deed::Or(bytes) => {
                read(data, pages, checks)?;
                for (to, from) in data.iter_mut().zip(bytes) {
                    *to |= from;
                }
                store.write(lba, data, &made(data), pages, one)?;
            }
        }
        Ok(Found::default())
    }
}
