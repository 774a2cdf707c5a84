//! Where the next request comes from.

use super::error::Result;
use super::load::Load;
use super::slots::Operation;
use super::verify::Blocks;

/// A stream of numbers that look random, the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    #[inline]
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        let scaled = (u128::from(self.next()) * u128::from(bound)) >> 64;
        u64::try_from(scaled).unwrap_or_default()
    }

    /// A write in `write_percent` of 100 cases.
    #[inline]
    pub fn operation(&mut self, write_percent: u8) -> Operation {
        if write_percent > 0 && self.below(100) < u64::from(write_percent) {
            Operation::Write
        } else {
            Operation::Read
        }
    }
}

/// What one queue asks for.
pub struct Source {
    random: Random,
    write_percent: u8,
    /// Blocks of the disk.
    blocks: u64,
    /// The next block, where they come one after the other.
    following: Option<u64>,
    verified: Option<Blocks>,
}

impl Source {
    /// Blocks below `blocks`, as `load` has it; with `verified`, blocks of that, and checked.
    pub fn new(seed: u64, load: &Load, blocks: u64, verified: Option<Blocks>) -> Self {
        let mut random = Random::new(seed);
        Self {
            // Of several queues each begins elsewhere.
            following: load.sequential.then(|| random.below(blocks)),
            random,
            write_percent: load.write_percent,
            blocks,
            verified,
        }
    }

    /// The next request, and its block. `None` when there is none now.
    #[inline]
    pub fn next(&mut self, stopping: bool) -> Option<(Operation, u64)> {
        if let Some(blocks) = &mut self.verified {
            return blocks.next(&mut self.random, self.write_percent, stopping);
        }
        let operation = self.random.operation(self.write_percent);
        (!stopping).then(|| (operation, self.block()))
    }

    #[inline]
    fn block(&mut self) -> u64 {
        match &mut self.following {
            None => self.random.below(self.blocks),
            Some(next) => {
                let block = *next;
                *next = if block + 1 < self.blocks {
                    block + 1
                } else {
                    0
                };
                block
            }
        }
    }

    /// What a write of `block` has to carry, where it matters.
    #[inline]
    pub fn write_data(&mut self, block: u64) -> Option<&[u8]> {
        self.verified
            .as_mut()
            .map(|blocks| blocks.write_data(block))
    }

    /// The request for `block` is done; `data` copies what it brought.
    ///
    /// # Errors
    /// It brought what was not written there last.
    #[inline]
    pub fn done(
        &mut self,
        operation: Operation,
        block: u64,
        data: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let Some(blocks) = &mut self.verified else {
            return Ok(());
        };
        if operation == Operation::Read {
            data(blocks.room());
        }
        blocks.done(operation, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sequential: bool, write_percent: u8) -> Load {
        Load {
            sequential,
            write_percent,
            ..Load::of_depth(1)
        }
    }

    #[test]
    fn blocks_come_one_after_the_other_and_from_the_start_again() {
        let mut source = Source::new(7, &load(true, 0), 10, None);
        let (_, first) = source.next(false).unwrap();
        for after in 1..30 {
            let (_, block) = source.next(false).unwrap();
            assert_eq!(block, (first + after) % 10);
        }
    }

    #[test]
    fn blocks_are_spread_over_the_disk_and_stay_on_it() {
        let mut source = Source::new(7, &load(false, 0), 10, None);
        let mut seen = [0u32; 10];
        for _ in 0..1000 {
            let (operation, block) = source.next(false).unwrap();
            assert_eq!(operation, Operation::Read);
            seen[usize::try_from(block).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        assert_eq!(source.next(true), None);
    }

    #[test]
    fn the_mix_is_what_was_asked_for() {
        let mut source = Source::new(7, &load(false, 30), 10, None);
        let writes = (0..10_000)
            .filter(|_| source.next(false).unwrap().0 == Operation::Write)
            .count();
        assert!((2700..3300).contains(&writes), "{writes}");
    }
}
