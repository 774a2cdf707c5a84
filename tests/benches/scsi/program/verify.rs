//! Verification: every sector that was written says where it belongs and when it was written.
//!
//! A queue has blocks of its own. It writes all of them, then reads and writes at random, then
//! reads all of them once more; a block that does not hold what was written last fails the run.

use super::error::{Error, Result};
use super::slots::{Operation, SECTOR};
use super::source::Random;

/// Bytes of a sector, as a length.
const SECTOR_LEN: usize = 512;
const _: () = assert!(SECTOR_LEN as u64 == SECTOR);

/// The blocks of one queue, and what each has to hold.
pub struct Blocks {
    /// The first block, counted in blocks from the start of the disk.
    first: u64,
    sectors_per_block: u64,
    /// The generation that was written last to each block.
    generations: Vec<u32>,
    /// Blocks that a request is under way for; two at once would have no order.
    busy: Vec<bool>,
    stage: Stage,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Writes all blocks; the next one.
    Fill(usize),
    /// Reads and writes at random.
    Mix,
    /// Reads all blocks; the next one.
    Sweep(usize),
}

impl Blocks {
    /// `count` blocks of `block_bytes` from block `first`.
    pub fn new(first: u64, count: usize, block_bytes: u32) -> Self {
        Self {
            first,
            sectors_per_block: u64::from(block_bytes) / SECTOR,
            generations: vec![0; count],
            busy: vec![false; count],
            stage: Stage::Fill(0),
            bytes: vec![0; block_bytes as usize],
        }
    }

    /// The next request, and its block; `stopping` ends the random part. `None` when there is
    /// nothing to do: at the end for good, or until a request under way is done.
    pub fn next(
        &mut self,
        random: &mut Random,
        write_percent: u8,
        stopping: bool,
    ) -> Option<(Operation, u64)> {
        if let Stage::Fill(next) = self.stage {
            if next < self.generations.len() {
                self.stage = Stage::Fill(next + 1);
                return Some((Operation::Write, self.claim(next)));
            }
            self.stage = Stage::Mix;
        }
        if let Stage::Mix = self.stage {
            if !stopping {
                let count = self.generations.len();
                let start = random.below(count as u64);
                let start = usize::try_from(start).unwrap_or_default();
                let free = (start..count)
                    .chain(0..start)
                    .find(|index| !self.busy[*index])?;
                let operation = random.operation(write_percent);
                return Some((operation, self.claim(free)));
            }
            self.stage = Stage::Sweep(0);
        }
        if let Stage::Sweep(next) = self.stage
            && next < self.generations.len()
            && !self.busy[next]
        {
            self.stage = Stage::Sweep(next + 1);
            return Some((Operation::Read, self.claim(next)));
        }
        None
    }

    fn claim(&mut self, index: usize) -> u64 {
        self.busy[index] = true;
        self.first + index as u64
    }

    /// What a write of `block` has to carry.
    pub fn write_data(&mut self, block: u64) -> &[u8] {
        let index = self.index(block);
        self.generations[index] += 1;
        let generation = self.generations[index];
        let first = block * self.sectors_per_block;
        for (sector, bytes) in (first..).zip(self.bytes.chunks_exact_mut(SECTOR_LEN)) {
            fill(bytes, sector, generation);
        }
        &self.bytes
    }

    /// Room for what a read brings, to be given to [`Self::done`].
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The request for `block` is done; what a read brought is in [`Self::room`].
    ///
    /// # Errors
    /// It is not what was written last.
    pub fn done(&mut self, operation: Operation, block: u64) -> Result<()> {
        let index = self.index(block);
        self.busy[index] = false;
        if operation == Operation::Write {
            return Ok(());
        }
        let generation = self.generations[index];
        let first = block * self.sectors_per_block;
        for (sector, bytes) in (first..).zip(self.bytes.chunks_exact(SECTOR_LEN)) {
            check(bytes, sector, generation)?;
        }
        Ok(())
    }

    fn index(&self, block: u64) -> usize {
        usize::try_from(block - self.first).expect("a block of this queue")
    }
}

/// Sector, generation and their mix, again and again: each 16 bytes say where they belong.
fn fill(bytes: &mut [u8], sector: u64, generation: u32) {
    for (place, word) in (0u32..).zip(bytes.chunks_exact_mut(16)) {
        word[..8].copy_from_slice(&sector.to_le_bytes());
        word[8..12].copy_from_slice(&generation.to_le_bytes());
        word[12..].copy_from_slice(&place.to_le_bytes());
    }
}

fn check(bytes: &[u8], sector: u64, generation: u32) -> Result<()> {
    for (place, word) in (0u32..).zip(bytes.chunks_exact(16)) {
        let number = |at: usize| u32::from_le_bytes(word[at..at + 4].try_into().expect("4 bytes"));
        let found_sector = u64::from_le_bytes(word[..8].try_into().expect("8 bytes"));
        let (found_generation, found_place) = (number(8), number(12));
        if (found_sector, found_generation, found_place) != (sector, generation, place) {
            return Err(Error::Corrupt {
                sector,
                expected: format!("sector {sector} of generation {generation}"),
                found: format!(
                    "at byte {}: sector {found_sector} of generation {found_generation}, piece \
                     {found_place}",
                    16 * place
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(blocks: &mut Blocks, block: u64) -> Vec<u8> {
        let bytes = blocks.write_data(block).to_vec();
        blocks.done(Operation::Write, block).unwrap();
        bytes
    }

    fn read(blocks: &mut Blocks, block: u64, bytes: &[u8]) -> Result<()> {
        blocks.room().copy_from_slice(bytes);
        blocks.done(Operation::Read, block)
    }

    #[test]
    fn what_was_written_last_is_accepted() {
        let mut blocks = Blocks::new(8, 4, 4096);
        written(&mut blocks, 9);
        let bytes = written(&mut blocks, 9);
        assert!(read(&mut blocks, 9, &bytes).is_ok());
    }

    #[test]
    fn an_older_generation_is_found() {
        let mut blocks = Blocks::new(8, 4, 4096);
        let old = written(&mut blocks, 9);
        written(&mut blocks, 9);
        let error = read(&mut blocks, 9, &old).unwrap_err().to_string();
        assert!(
            error.contains("sector 72 should hold sector 72 of generation 2"),
            "{error}"
        );
        assert!(error.contains("sector 72 of generation 1"), "{error}");
    }

    #[test]
    fn another_blocks_data_and_a_flipped_bit_are_found() {
        let mut blocks = Blocks::new(0, 4, 4096);
        let other = written(&mut blocks, 2);
        let mut bytes = written(&mut blocks, 1);
        assert!(read(&mut blocks, 1, &other).is_err());
        bytes[4095] ^= 1;
        assert!(read(&mut blocks, 1, &bytes).is_err());
    }

    #[test]
    fn a_torn_write_is_found() {
        let mut blocks = Blocks::new(0, 1, 4096);
        let old = written(&mut blocks, 0);
        let mut bytes = written(&mut blocks, 0);
        bytes[2048..].copy_from_slice(&old[2048..]);
        assert!(read(&mut blocks, 0, &bytes).is_err());
    }

    #[test]
    fn all_blocks_are_written_first_and_read_last() {
        let mut blocks = Blocks::new(0, 3, 512);
        let mut random = Random::new(1);
        for block in 0..3 {
            let next = blocks.next(&mut random, 50, true);
            assert_eq!(next, Some((Operation::Write, block)));
            written(&mut blocks, block);
        }
        for block in 0..3 {
            let next = blocks.next(&mut random, 50, true);
            assert_eq!(next, Some((Operation::Read, block)));
        }
        assert_eq!(blocks.next(&mut random, 50, true), None);
    }

    #[test]
    fn a_block_has_one_request_at_a_time() {
        let mut blocks = Blocks::new(0, 2, 512);
        let mut random = Random::new(1);
        for block in 0..2 {
            blocks.next(&mut random, 50, false);
            written(&mut blocks, block);
        }
        let (_, first) = blocks.next(&mut random, 50, false).unwrap();
        let (_, second) = blocks.next(&mut random, 50, false).unwrap();
        assert_ne!(first, second);
        assert_eq!(blocks.next(&mut random, 50, false), None);
    }
}
