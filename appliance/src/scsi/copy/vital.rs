//! The third-party copy page of vital product data (SPC-4 §7.8.17; SBC-4 §6.6.9).

use spec::scsi::opcode;

use super::limits::{
    DEFAULT_INACTIVITY, MAX_CSCDS, MAX_DESCRIPTORS, MAX_INACTIVITY, MAX_OPERATIONS, MAX_RANGES,
    MAX_ROD, MAX_SEGMENT, MAX_SEGMENTS,
};
use super::list::{BLOCK_TO_BLOCK, IDENTIFICATION, OFFSET_TO_OFFSET};
use super::report::granularity;
use super::token_list::{CHANGE_VULNERABLE, POINT_IN_TIME};
use crate::scsi::table;

/// CSCD descriptor ID of the unit that the command is sent to.
pub const THIS_UNIT: u16 = 0xffff;

/// The descriptors for a unit with blocks of this size.
pub fn content(block_size: u32) -> Vec<u8> {
    let mut content = Vec::new();
    let mut add = |code: u16, mut rest: Vec<u8>| {
        rest.resize(rest.len().next_multiple_of(4), 0);
        content.extend(code.to_be_bytes());
        content.extend(u16::try_from(rest.len()).unwrap_or(0).to_be_bytes());
        content.extend(rest);
    };
    add(0x0000, rod_limits(block_size));
    add(0x0001, commands());
    add(0x0004, parameter_data());
    add(
        0x0008,
        vec![3, BLOCK_TO_BLOCK, OFFSET_TO_OFFSET, IDENTIFICATION],
    );
    let [high, low] = THIS_UNIT.to_be_bytes();
    add(0x000c, vec![0, 2, high, low]);
    add(0x0106, token_features());
    add(0x0108, rod_types());
    add(0x8001, general(block_size));
    content
}

/// Block device ROD limits.
fn rod_limits(block_size: u32) -> Vec<u8> {
    let blocks = MAX_ROD / u64::from(block_size);
    let mut rest = vec![0; 6];
    rest.extend(MAX_RANGES.to_be_bytes());
    rest.extend(MAX_INACTIVITY.to_be_bytes());
    rest.extend(DEFAULT_INACTIVITY.to_be_bytes());
    rest.extend(blocks.to_be_bytes());
    rest.extend(blocks.to_be_bytes()); // OPTIMAL TRANSFER COUNT
    rest
}

/// Supported commands: those of the table.
fn commands() -> Vec<u8> {
    let mut list = Vec::new();
    for code in [opcode::THIRD_PARTY_COPY_OUT, opcode::THIRD_PARTY_COPY_IN] {
        let actions = table::rows(code).iter();
        let actions: Vec<_> = actions
            .filter_map(|row| u8::try_from(row.service_action?).ok())
            .collect();
        list.extend([code, u8::try_from(actions.len()).unwrap_or(0)]);
        list.extend(actions);
    }
    list.insert(0, u8::try_from(list.len()).unwrap_or(0));
    list
}

/// Parameter data.
fn parameter_data() -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend(MAX_CSCDS.to_be_bytes());
    rest.extend(MAX_SEGMENTS.to_be_bytes());
    rest.extend(MAX_DESCRIPTORS.to_be_bytes());
    rest.extend([0; 16]); // no inline data
    rest
}

/// ROD token features: no tokens of others (REMOTE TOKENS 0h).
fn token_features() -> Vec<u8> {
    let mut rest = vec![0; 12];
    // A lifetime cannot be asked for: that of a token is until it is not used any more.
    for seconds in [0, 0, MAX_INACTIVITY] {
        rest.extend(u32::to_be_bytes(seconds));
    }
    rest.extend([0; 18]);
    rest.extend([0, 48]);
    // Block ROD device type specific features.
    rest.extend([0, 0, 0, 0x2c, 0, 0, 0, 0]);
    for bytes in [MAX_ROD; 4] {
        rest.extend(bytes.to_be_bytes());
    }
    rest.extend([0; 8]);
    rest
}

/// Supported ROD token and ROD types: those that POPULATE TOKEN makes (TOKEN_OUT). EXTENDED COPY
/// neither takes nor makes any (TOKEN_IN, ECPY_INT).
fn rod_types() -> Vec<u8> {
    let kinds = [POINT_IN_TIME, CHANGE_VULNERABLE];
    let mut rest = vec![0, 0];
    rest.extend(u16::try_from(64 * kinds.len()).unwrap_or(0).to_be_bytes());
    for kind in kinds {
        let mut descriptor = kind.to_be_bytes().to_vec();
        descriptor.push(0x01);
        descriptor.resize(64, 0);
        rest.extend(descriptor);
    }
    rest
}

/// General copy operations.
fn general(block_size: u32) -> Vec<u8> {
    let mut rest = u32::from(MAX_OPERATIONS).to_be_bytes().to_vec();
    rest.extend(u32::from(MAX_OPERATIONS).to_be_bytes());
    rest.extend(MAX_SEGMENT.to_be_bytes());
    rest.push(granularity(block_size));
    rest.resize(32, 0);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_a_unit_with_blocks_of_512_bytes() {
        #[rustfmt::skip]
        let mut expected = vec![
            // Block device ROD limits: 64 ranges, 600 s, 60 s, 524288 blocks.
            0x00, 0x00, 0x00, 0x20, 0, 0, 0, 0, 0, 0, 0x00, 0x40,
            0x00, 0x00, 0x02, 0x58, 0x00, 0x00, 0x00, 0x3c,
            0, 0, 0, 0, 0x00, 0x08, 0x00, 0x00, 0, 0, 0, 0, 0x00, 0x08, 0x00, 0x00,
            // Commands.
            0x00, 0x01, 0x00, 0x14, 16,
            0x83, 5, 0x00, 0x01, 0x10, 0x11, 0x1c,
            0x84, 7, 0x00, 0x01, 0x03, 0x04, 0x05, 0x06, 0x07, 0, 0, 0,
            // Parameter data: 16 CSCDs, 64 segments, 2560 bytes.
            0x00, 0x04, 0x00, 0x1c, 0, 0, 0, 0, 0, 16, 0, 64, 0, 0, 0x0a, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            // Descriptors, and CSCD IDs.
            0x00, 0x08, 0x00, 0x04, 3, 0x02, 0x0a, 0xe4,
            0x00, 0x0c, 0x00, 0x04, 0, 2, 0xff, 0xff,
            // ROD token features.
            0x01, 0x06, 0x00, 0x5c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x00, 0x02, 0x58,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x30,
            0x00, 0, 0x00, 0x2c, 0, 0, 0, 0,
            0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
            0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0,
            // ROD types.
            0x01, 0x08, 0x00, 0x84, 0, 0, 0x00, 0x80,
        ];
        for kind in [0, 1] {
            expected.extend([0x00, 0x80, 0x00, kind, 0x01]);
            expected.extend([0; 59]);
        }
        #[rustfmt::skip]
        expected.extend([
            // General: 64 copies, 256 MiB, granularity of 2^9 bytes.
            0x80, 0x01, 0x00, 0x20, 0, 0, 0, 64, 0, 0, 0, 64, 0x10, 0, 0, 0, 9,
        ]);
        expected.extend([0; 19]);
        assert_eq!(content(512), expected);
    }
}
