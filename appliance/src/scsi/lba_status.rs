//! GET LBA STATUS: which blocks have space of their own.

use crate::disk::Extent;

/// PROVISIONING STATUS: mapped, or not known.
const MAPPED: u8 = 0;
/// PROVISIONING STATUS: deallocated.
const DEALLOCATED: u8 = 1;

const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// STARTING LOGICAL BLOCK ADDRESS.
    pub lba: u64,
    /// Number of blocks of the unit, more than `lba`.
    pub blocks: u64,
    /// Bytes of a block, not 0.
    pub block_size: u32,
    /// Most descriptors, at least 1.
    pub limit: usize,
    /// ALLOCATION LENGTH.
    pub allocation: usize,
}

impl Ask {
    /// Descriptors that an allocation length has room for, at least one (SBC-4, GET LBA STATUS).
    pub fn limit(allocation: usize, most: usize) -> usize {
        (allocation.saturating_sub(HEADER_LEN) / DESCRIPTOR_LEN).clamp(1, most)
    }

    /// Bytes that the data may have.
    pub fn most(&self) -> usize {
        let all = self.limit.saturating_mul(DESCRIPTOR_LEN) + HEADER_LEN;
        self.allocation.min(all)
    }

    /// LBA status data for blocks of which nothing is known but that they can be read.
    pub fn unknown(&self) -> Vec<u8> {
        self.list([(self.blocks - self.lba, MAPPED)])
    }

    /// LBA status data from the disk's extents; `None` if these cannot be: none at all, an empty
    /// one, or pieces of blocks.
    pub fn data(&self, extents: &[Extent]) -> Option<Vec<u8>> {
        let block_size = u64::from(self.block_size);
        let mut runs: Vec<(u64, u8)> = Vec::new();
        for extent in extents {
            if extent.len == 0 || extent.len % block_size != 0 {
                return None;
            }
            let blocks = extent.len / block_size;
            let status = if extent.allocated {
                MAPPED
            } else {
                DEALLOCATED
            };
            match runs.last_mut() {
                Some((run, last)) if *last == status => *run = run.saturating_add(blocks),
                _ => runs.push((blocks, status)),
            }
        }
        (!runs.is_empty()).then(|| self.list(runs))
    }

    /// The descriptors of runs that follow each other from the start, cut at the allocation
    /// length.
    fn list(&self, runs: impl IntoIterator<Item = (u64, u8)>) -> Vec<u8> {
        let mut list = Vec::new();
        let mut lba = self.lba;
        for (run, status) in runs.into_iter().take(self.limit) {
            let run = run.min(self.blocks - lba);
            if run == 0 {
                break;
            }
            // A run that four bytes cannot tell is told as far as they go; the rest is for the
            // next command, since neighbours are to have different states.
            let told = u32::try_from(run).unwrap_or(u32::MAX);
            list.extend(lba.to_be_bytes());
            list.extend(told.to_be_bytes());
            list.extend([status, 0, 0, 0]);
            lba += u64::from(told);
            if u64::from(told) < run {
                break;
            }
        }
        // PARAMETER DATA LENGTH does not count itself.
        let len = u32::try_from(list.len() + HEADER_LEN - 4).unwrap_or(u32::MAX);
        let mut data = len.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(list);
        data.truncate(self.allocation);
        data
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ASK: Ask = Ask {
        lba: 0x10,
        blocks: 0x100,
        block_size: 512,
        limit: 4,
        allocation: 1024,
    };

    fn extent(blocks: u64, allocated: bool) -> Extent {
        Extent {
            len: blocks * 512,
            allocated,
        }
    }

    #[test]
    fn neighbours_of_one_state_are_one_descriptor() {
        let data = ASK
            .data(&[extent(1, true), extent(2, true), extent(4, false)])
            .unwrap();
        assert_eq!(
            data,
            [
                0, 0, 0, 36, 0, 0, 0, 0, // header
                0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 3, 0, 0, 0, 0, // mapped
                0, 0, 0, 0, 0, 0, 0, 0x13, 0, 0, 0, 4, 1, 0, 0, 0, // deallocated
            ]
        );
    }

    #[test]
    fn nothing_is_told_of_blocks_beyond_the_unit() {
        let data = ASK
            .data(&[extent(1 << 40, true), extent(1, false)])
            .unwrap();
        assert_eq!(data.len(), 24);
        assert_eq!(data[16..24], [0, 0, 0, 0xf0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_run_longer_than_four_bytes_ends_the_list() {
        let large = Ask {
            lba: 0,
            blocks: 1 << 40,
            ..ASK
        };
        let data = large
            .data(&[extent(1 << 33, false), extent(1, true)])
            .unwrap();
        assert_eq!(
            data,
            [
                0, 0, 0, 20, 0, 0, 0, 0, // header
                0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
            ]
        );
    }

    #[test]
    fn the_limit_and_the_allocation_length_cut_the_list() {
        let extents = [extent(1, true), extent(1, false), extent(1, true)];
        let two = Ask { limit: 2, ..ASK };
        assert_eq!(two.data(&extents).unwrap().len(), 8 + 2 * 16);
        let short = Ask {
            allocation: 10,
            ..ASK
        };
        assert_eq!(
            short.data(&extents).unwrap(),
            [0, 0, 0, 52, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(Ask::limit(0, 256), 1);
        assert_eq!(Ask::limit(24 + 15, 256), 1);
        assert_eq!(Ask::limit(40, 256), 2);
        assert_eq!(Ask::limit(usize::MAX, 256), 256);
    }

    #[test]
    fn extents_that_cannot_be_are_no_answer() {
        assert_eq!(ASK.data(&[]), None);
        assert_eq!(ASK.data(&[extent(0, true)]), None);
        let odd = Extent {
            len: 513,
            allocated: true,
        };
        assert_eq!(ASK.data(&[odd]), None);
    }

    proptest! {
        #[test]
        fn whatever_a_disk_says_is_told_in_order_and_inside_the_unit(
            extents in prop::collection::vec((any::<u64>(), any::<bool>()), 0..20),
            fitting: bool,
            limit in 1..8_usize,
            allocation in 0..200_usize,
        ) {
            let extents: Vec<_> = extents
                .into_iter()
                .map(|(len, allocated)| {
                    let len = if fitting { (1 + len % 0x80) * 512 } else { len };
                    Extent { len, allocated }
                })
                .collect();
            let ask = Ask { limit, allocation: usize::MAX, ..ASK };
            if let Some(data) = ask.data(&extents) {
                let mut lba = 0x10;
                let mut last = None;
                for descriptor in data[8..].chunks(16) {
                    prop_assert_eq!(&descriptor[..8], &u64::to_be_bytes(lba));
                    let blocks = u32::from_be_bytes(descriptor[8..12].try_into().unwrap());
                    lba += u64::from(blocks);
                    prop_assert!(blocks > 0 && lba <= 0x100);
                    prop_assert_ne!(last.replace(descriptor[12]), Some(descriptor[12]));
                }
                prop_assert!(last.is_some() && data.len() <= 8 + 16 * limit);
                let cut = Ask { allocation, ..ask }.data(&extents).unwrap();
                prop_assert_eq!(&cut[..], &data[..data.len().min(allocation)]);
            }
        }
    }
}
