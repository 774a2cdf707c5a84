//! A log of what was written and promised, against which a disk is read back.

use std::collections::HashMap;

use crate::versions::{BLOCK, content, version};

/// What one block may hold: versions from the last promised one on, in order; 0 are zeros.
#[derive(Debug, Clone)]
struct History {
    /// (Version, whether it was acknowledged.)
    versions: Vec<(u64, bool)>,
}

/// A log of the writes to a disk of zeros.
#[derive(Debug, Default)]
pub struct WriteLog {
    blocks: HashMap<u64, History>,
    last: u64,
    acknowledged: u64,
    promised: u64,
}

/// A block that is not what it may be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// It holds no version whole.
    #[error("block {lba} is neither its old nor its new version, but a mixture")]
    Torn {
        /// Which block.
        lba: u64,
    },
    /// It holds a version that was replaced before a newer one was promised, or one never written.
    #[error("block {lba} has version {found}, but {promised} was promised")]
    Old {
        /// Which block.
        lba: u64,
        /// What it holds.
        found: u64,
        /// What it must hold at least.
        promised: u64,
    },
}

impl WriteLog {
    /// A new version of `blocks` blocks from `lba` on, about to be sent; its number and bytes.
    /// None of these blocks may have another under way.
    pub fn send(&mut self, lba: u64, blocks: u64) -> (u64, Vec<u8>) {
        self.last += 1;
        let version = self.last;
        let mut bytes = Vec::new();
        for block in lba..lba + blocks {
            self.history(block).versions.push((version, false));
            bytes.extend(content(block, version));
        }
        (version, bytes)
    }

    /// The version was acknowledged, and promised to last or not.
    pub fn acknowledge(&mut self, lba: u64, blocks: u64, version: u64, promised: bool) {
        self.acknowledged += 1;
        for block in lba..lba + blocks {
            let versions = &mut self.history(block).versions;
            for entry in versions.iter_mut().filter(|entry| entry.0 == version) {
                entry.1 = true;
            }
            if promised {
                self.promise(block, version);
            }
        }
        self.promised += u64::from(promised);
    }

    /// What is to be promised when a flush that is sent now is acknowledged.
    pub fn acknowledged(&self) -> Vec<(u64, u64)> {
        let blocks = self.blocks.iter();
        blocks
            .filter_map(|(&lba, history)| {
                let done = history.versions.iter().rfind(|(_, done)| *done)?;
                Some((lba, done.0))
            })
            .collect()
    }

    /// A version of a block was promised to last.
    pub fn promise(&mut self, lba: u64, version: u64) {
        let versions = &mut self.history(lba).versions;
        // A newer one may have been promised meanwhile.
        if let Some(at) = versions.iter().position(|entry| entry.0 == version) {
            versions.drain(..at);
        }
    }

    /// Checks what was read of the disk from its start on.
    ///
    /// # Errors
    /// The first [`Loss`].
    pub fn check(&self, disk: &[u8]) -> Result<(), Loss> {
        for (lba, bytes) in (0..).zip(disk.chunks(BLOCK)) {
            let found = version(lba, bytes).ok_or(Loss::Torn { lba })?;
            let zeros = [(0, true)];
            let history = self.blocks.get(&lba);
            let versions = history.map_or(&zeros[..], |history| &history.versions);
            if !versions.iter().any(|entry| entry.0 == found) {
                return Err(Loss::Old {
                    lba,
                    found,
                    promised: versions[0].0,
                });
            }
        }
        Ok(())
    }

    /// How many writes were acknowledged, and how many of them promised as they were.
    pub fn counts(&self) -> (u64, u64) {
        (self.acknowledged, self.promised)
    }

    /// The disk is on stable storage as it was read: that is what was promised from now on.
    pub fn begin_anew(&mut self, disk: &[u8]) {
        for (lba, bytes) in (0..).zip(disk.chunks(BLOCK)) {
            if let Some(version) = version(lba, bytes) {
                let versions = vec![(version, true)];
                self.blocks.insert(lba, History { versions });
            }
        }
    }

    fn history(&mut self, lba: u64) -> &mut History {
        self.blocks.entry(lba).or_insert_with(|| History {
            versions: vec![(0, true)],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_and_what_came_after_may_be_found_and_nothing_else() {
        let mut log = WriteLog::default();
        let (first, _) = log.send(0, 1);
        assert_eq!(log.check(&content(0, 0)), Ok(()), "not even acknowledged");
        log.acknowledge(0, 1, first, true);
        let (second, bytes) = log.send(0, 1);
        assert_eq!(bytes, content(0, second));
        assert_eq!(log.check(&content(0, first)), Ok(()));
        assert_eq!(log.check(&content(0, second)), Ok(()));
        let (found, promised) = (0, first);
        let lost = Loss::Old {
            lba: 0,
            found,
            promised,
        };
        assert_eq!(log.check(&content(0, 0)), Err(lost));
        let mut torn = content(0, first);
        torn[256..].copy_from_slice(&content(0, second)[256..]);
        assert_eq!(log.check(&torn), Err(Loss::Torn { lba: 0 }));
        assert_eq!(log.check(&content(1, first)), Err(Loss::Torn { lba: 0 }));
    }

    #[test]
    fn a_flush_promises_what_was_acknowledged_when_it_was_sent() {
        let mut log = WriteLog::default();
        let (first, _) = log.send(0, 1);
        log.acknowledge(0, 1, first, false);
        let flushed = log.acknowledged();
        let (second, _) = log.send(0, 1);
        log.acknowledge(0, 1, second, false);
        for (lba, version) in flushed {
            log.promise(lba, version);
        }
        assert!(log.check(&content(0, 0)).is_err());
        assert_eq!(log.check(&content(0, first)), Ok(()));
    }
}
