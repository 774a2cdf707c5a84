//! A part of an operation that is done at once, on a thread that may wait for the disk.

use std::io;

use super::store::pages_for;
use super::tag::Checks;
use crate::disk::DiskError;
use crate::disk::io::Pool;
use crate::disk::ranges::Hold;

/// Most bytes of a chunk that blocks are in memory for.
pub const MAX_CHUNK: usize = 1 << 20;
/// Most bytes that are erased at once.
pub const MAX_ERASE: u64 = 16 << 20;

/// What to do with some blocks, with copies of what the tenant gave for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub lba: u64,
    pub blocks: usize,
    /// What is checked: of what is read from the medium, and of the tags that are given.
    pub checks: Checks,
    pub deed: Deed,
}

/// Tags of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// They are made from data and LBA.
    Made,
    /// They check nothing.
    Unchecked,
    /// The tenant's bytes.
    Given(Vec<u8>),
}

/// What is done with the blocks of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Data, and the bytes of the tags, are returned.
    Read,
    /// They are read for the sake of the checks.
    Check,
    Write {
        data: Vec<u8>,
        tags: Tags,
        /// They are read back and compared.
        verify: bool,
    },
    /// The same block everywhere. A tag that is given is that of the first block; the reference tags
    /// of the others follow from it where they have to do with the LBA.
    Same { block: Vec<u8>, tag: Tags },
    /// Tags that are given are compared as far as `compares` says; then those on the medium are not
    /// checked.
    Compare {
        data: Vec<u8>,
        tags: Tags,
        compares: Checks,
    },
    /// With the same block everywhere, as for [`Deed::Same`].
    CompareSame {
        block: Vec<u8>,
        tag: Tags,
        compares: Checks,
    },
    /// The tags are those of what is written.
    CompareAndWrite {
        compare: Vec<u8>,
        write: Vec<u8>,
        tags: Tags,
    },
    /// Tags that are given are checked; new ones are made of what comes of it.
    Or { data: Vec<u8>, tags: Tags },
    /// They become as on a new disk, and are given back if that is asked for and possible.
    Erase { gives_back: bool },
    /// The one block is erased if it cannot be read.
    Mend,
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
    pub data: Aligned,
    pub back: Aligned,
    pub pages: Aligned,
    pub block: Aligned,
}

/// One piece of that.
#[derive(Debug)]
pub struct Aligned {
    pool: Pool,
    run: super::Run,
}

impl Aligned {
    fn new(len: usize) -> io::Result<Self> {
        let mut pool = Pool::new(len)?;
        let run = pool.take(len).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { pool, run })
    }

    pub fn bytes(&mut self) -> &mut [u8] {
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
