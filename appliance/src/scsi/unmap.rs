//! The parameter list of UNMAP (SBC-4, UNMAP).

use super::fault::Fault;
use super::limits::{MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS};

/// What every list has before its descriptors.
const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// LBA and number of blocks of each descriptor in `list`, which is all that was sent. Descriptors
/// that are not there as a whole are none.
///
/// # Errors
/// [`Fault::ParameterListLength`] without a header; [`Fault::InvalidParameter`] for descriptors
/// that contradict UNMAP DATA LENGTH, or ask for more than the limits allow.
pub fn descriptors(list: &[u8]) -> Result<Vec<(u64, u32)>, Fault> {
    let Some((header, rest)) = list.split_at_checked(HEADER_LEN) else {
        return Err(Fault::ParameterListLength);
    };
    let data_len = u16::from_be_bytes([header[0], header[1]]);
    let descriptors_len = u16::from_be_bytes([header[2], header[3]]);
    let too_many = Fault::InvalidParameter { byte: 2, bit: 7 };
    // Six bytes of the header are counted. Blocks that are given back are lost: a list that
    // contradicts itself is not guessed at.
    if descriptors_len > data_len.saturating_sub(6) {
        return Err(too_many);
    }
    let here = rest.len().min(descriptors_len.into());
    let mut total = 0_u32;
    let mut descriptors = Vec::new();
    for (index, descriptor) in (0_u16..).zip(rest[..here].chunks_exact(DESCRIPTOR_LEN)) {
        if index == MAX_UNMAP_DESCRIPTORS {
            return Err(too_many);
        }
        let (lba, blocks) = descriptor.split_at(8);
        let lba = lba.iter().fold(0, |lba, &byte| lba << 8 | u64::from(byte));
        let blocks = u32::from_be_bytes([blocks[0], blocks[1], blocks[2], blocks[3]]);
        total = total.saturating_add(blocks);
        if total > MAX_UNMAP_BLOCKS {
            // NUMBER OF LOGICAL BLOCKS of this descriptor.
            let byte = 8 + 16 * index + 8;
            return Err(Fault::InvalidParameter { byte, bit: 7 });
        }
        descriptors.push((lba, blocks));
    }
    Ok(descriptors)
}

/// Adds bytes, as (offset, length), to `ranges`: to the last of them if they go on where it ends, so
/// that granules are whole though they were named block by block.
pub fn join(ranges: &mut Vec<(u64, u64)>, (offset, len): (u64, u64)) {
    match ranges.last_mut() {
        Some((start, before)) if start.checked_add(*before) == Some(offset) => *before += len,
        _ => ranges.push((offset, len)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list as it should be.
    fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
        let len = u16::try_from(descriptors.len() * 16).unwrap();
        let mut list = (len + 6).to_be_bytes().to_vec();
        list.extend(len.to_be_bytes());
        list.extend([0; 4]);
        for (lba, blocks) in descriptors {
            list.extend(lba.to_be_bytes());
            list.extend(blocks.to_be_bytes());
            list.extend([0; 4]);
        }
        list
    }

    #[test]
    fn descriptors_are_read_in_order() {
        let bytes = [
            0, 38, 0, 32, 0, 0, 0, 0, // header
            0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 1, 2, 0, 0, 0, 0, // first
            0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, // second
        ];
        assert_eq!(
            descriptors(&bytes),
            Ok(vec![(0x0001_0203_0405_0607, 0x0102), (9, 0)])
        );
    }

    #[test]
    fn a_list_without_a_header_has_the_wrong_length() {
        assert_eq!(
            descriptors(&[0, 6, 0, 0, 0, 0, 0]),
            Err(Fault::ParameterListLength)
        );
        assert_eq!(descriptors(&[0, 6, 0, 0, 0, 0, 0, 0]), Ok(vec![]));
        assert_eq!(descriptors(&[0; 8]), Ok(vec![]));
    }

    #[test]
    fn a_descriptor_that_is_cut_is_none() {
        let mut cut_by_the_cdb = list(&[(1, 1), (2, 1)]);
        cut_by_the_cdb.pop();
        assert_eq!(descriptors(&cut_by_the_cdb), Ok(vec![(1, 1)]));
        let mut cut_by_its_length = list(&[(1, 1), (2, 1)]);
        cut_by_its_length[3] = 31;
        assert_eq!(descriptors(&cut_by_its_length), Ok(vec![(1, 1)]));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_an_invalid_field() {
        let mut list = list(&[(1, 1)]);
        list[1] = 21;
        assert_eq!(
            descriptors(&list),
            Err(Fault::InvalidParameter { byte: 2, bit: 7 })
        );
    }

    #[test]
    fn more_descriptors_than_the_limit_are_an_invalid_field() {
        assert_eq!(descriptors(&list(&[(0, 1); 256])).unwrap().len(), 256);
        assert_eq!(
            descriptors(&list(&[(0, 1); 257])),
            Err(Fault::InvalidParameter { byte: 2, bit: 7 })
        );
    }

    #[test]
    fn more_blocks_than_the_limit_are_an_invalid_field() {
        let most = [(0, 0x0f_ffff), (0, 1)];
        assert_eq!(descriptors(&list(&most)), Ok(most.to_vec()));
        assert_eq!(
            descriptors(&list(&[(0, 0x0f_ffff), (0, 2)])),
            Err(Fault::InvalidParameter { byte: 32, bit: 7 })
        );
        assert_eq!(
            descriptors(&list(&[(0, 1), (0, u32::MAX)])),
            Err(Fault::InvalidParameter { byte: 32, bit: 7 })
        );
    }

    proptest! {
        #[test]
        fn whatever_a_list_says_no_descriptor_comes_from_outside_it(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            fitting: bool,
        ) {
            let mut bytes = bytes;
            if fitting && bytes.len() >= 8 {
                bytes[..2].fill(0xff);
            }
            if let Ok(descriptors) = descriptors(&bytes) {
                prop_assert!(descriptors.len() * 16 + 8 <= bytes.len());
                for ((lba, blocks), chunk) in descriptors.iter().zip(bytes[8..].chunks(16)) {
                    prop_assert_eq!(&lba.to_be_bytes()[..], &chunk[..8]);
                    prop_assert_eq!(&blocks.to_be_bytes()[..], &chunk[8..12]);
                }
            }
        }
    }
}
