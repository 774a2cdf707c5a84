//! Where the blocks of a disk with protection information are in its file.
//!
//! | bytes | what |
//! |---|---|
//! | 4096 | header |
//! | 4096 | tags of the first group: 16 bytes for each block |
//! | 256 blocks | their data |
//! | … | the next group |
//!
//! Tags are near their data and move with it when a file is copied, and a file that grows has room
//! for more at its end. Everything begins at a multiple of 4096, so that physical blocks of that
//! size are written whole.

/// Bytes of the header.
pub const HEADER: usize = 4096;
/// Bytes of the tags of a group.
pub const PAGE: usize = 4096;
/// Bytes of the tags of a block.
pub const ENTRY: usize = 16;
/// Blocks of a group.
pub const GROUP: u64 = (PAGE / ENTRY) as u64;

const _: () = assert!((GROUP * 512).is_multiple_of(4096));

/// The layout for blocks of one size.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Bytes of a block.
    pub block_size: u32,
}

impl Layout {
    fn block(self) -> u64 {
        self.block_size.into()
    }

    /// Bytes of a group with its tags.
    fn stride(self) -> u64 {
        PAGE as u64 + GROUP * self.block()
    }

    /// How many blocks a file of `len` bytes has room for.
    pub fn blocks_in(self, len: u64) -> u64 {
        let room = len.saturating_sub(HEADER as u64);
        let rest = (room % self.stride()).saturating_sub(PAGE as u64);
        room / self.stride() * GROUP + rest / self.block()
    }

    /// First byte of the tags of a group.
    pub fn page_at(self, group: u64) -> u64 {
        HEADER as u64 + group * self.stride()
    }

    /// First byte of a block's data; the blocks up to the end of its group follow it.
    pub fn block_at(self, lba: u64) -> u64 {
        self.page_at(lba / GROUP) + PAGE as u64 + lba % GROUP * self.block()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_256_blocks_follow_the_header_each_behind_its_tags() {
        let layout = Layout { block_size: 512 };
        assert_eq!(layout.page_at(0), 4096);
        assert_eq!(layout.block_at(0), 8192);
        assert_eq!(layout.block_at(255), 8192 + 255 * 512);
        assert_eq!(layout.page_at(1), 4096 + 4096 + 131_072);
        assert_eq!(layout.block_at(256), 4096 + 4096 + 131_072 + 4096);
        let layout = Layout { block_size: 4096 };
        assert_eq!(layout.block_at(257), 4096 + 4096 + (1 << 20) + 4096 + 4096);
    }

    #[test]
    fn every_block_that_is_counted_has_its_place_and_no_other_would() {
        for block_size in [512, 4096] {
            let layout = Layout { block_size };
            for len in (0..3_400_000).step_by(512) {
                let blocks = layout.blocks_in(len);
                let end = |lba| layout.block_at(lba) + u64::from(block_size);
                assert!(blocks == 0 || end(blocks - 1) <= len, "{len}");
                assert!(end(blocks) > len, "{len}");
            }
        }
    }
}
