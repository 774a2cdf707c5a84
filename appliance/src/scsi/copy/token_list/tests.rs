use proptest::prelude::*;

use super::*;

fn descriptors(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (lba, blocks) in ranges {
        bytes.extend(lba.to_be_bytes());
        bytes.extend(blocks.to_be_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

fn sized(mut list: Vec<u8>, header: usize, ranges: &[(u64, u32)]) -> Vec<u8> {
    let ranges = descriptors(ranges);
    list.resize(header, 0);
    list[header - 2..].copy_from_slice(&u16::try_from(ranges.len()).unwrap().to_be_bytes());
    list.extend(ranges);
    let len = u16::try_from(list.len() - 2).unwrap();
    list[..2].copy_from_slice(&len.to_be_bytes());
    list
}

fn populate_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    sized(vec![], 16, ranges)
}

fn write_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    sized(vec![], 536, ranges)
}

const fn invalid_at<T>(byte: u16) -> Result<T, Fault> {
    Err(Fault::InvalidParameter { byte, bit: 7 })
}

#[test]
fn a_populate_list_says_which_blocks_and_for_how_long() {
    let mut list = populate_list(&[(5, 8), (0x1_0000_0000, 1)]);
    let range = |lba, blocks, at| Range { lba, blocks, at };
    let ranges = vec![range(5, 8, 16), range(0x1_0000_0000, 1, 32)];
    let parsed = populate(&list).unwrap();
    assert_eq!((parsed.inactivity, parsed.ranges), (60, ranges));
    list[4..8].copy_from_slice(&600_u32.to_be_bytes());
    assert_eq!(populate(&list).unwrap().inactivity, 600);
    list[4..8].copy_from_slice(&601_u32.to_be_bytes());
    assert_eq!(populate(&list), invalid_at(4));
}

#[test]
fn only_point_in_time_copies_that_a_change_ends_are_made() {
    let with = |rtv: u8, kind: u32| {
        let mut list = populate_list(&[(0, 1)]);
        list[2] = rtv;
        list[8..12].copy_from_slice(&kind.to_be_bytes());
        populate(&list).map(drop)
    };
    for kind in [0x0080_0000, 0x0080_0001, 0x0080_ffff] {
        assert_eq!(with(2, kind), Ok(()));
    }
    // Persistent; access upon reference; block device zero.
    for kind in [0x0080_0002, 0x0001_0000, 0xffff_0001, 0] {
        assert_eq!(with(2, kind), invalid_at(8));
        assert_eq!(with(0, kind), Ok(()), "without RTV it is not looked at");
    }
}

#[test]
fn a_write_list_has_the_token_and_where_in_it_to_begin() {
    let mut list = write_list(&[(3, 4)]);
    list[2] = 0x03;
    list[8..16].copy_from_slice(&9_u64.to_be_bytes());
    list[16..528].fill(0xab);
    let parsed = write(&list).unwrap();
    assert!(parsed.delete);
    assert_eq!((parsed.offset, *parsed.token), (9, [0xab; 512]));
    assert_eq!(parsed.ranges[0].at, 536);
    list[2] = 0x01;
    assert!(!write(&list).unwrap().delete, "IMMED");
}

#[test]
fn lists_that_are_too_short_have_the_wrong_length() {
    let (one, other) = (populate_list(&[(0, 1)]), write_list(&[(0, 1)]));
    assert_eq!(populate(&one[..15]), Err(Fault::ParameterListLength));
    assert_eq!(write(&other[..535]), Err(Fault::ParameterListLength));
    let mut short = one.clone();
    short[1] = 0x1d;
    assert_eq!(populate(&short), invalid_at(0));
    let mut short = other.clone();
    short[..2].copy_from_slice(&[0x02, 0x25]);
    assert_eq!(write(&short), invalid_at(0));
    let mut none = one;
    none[15] = 15;
    assert_eq!(populate(&none), invalid_at(14));
    let mut none = other;
    none[535] = 15;
    assert_eq!(write(&none), invalid_at(534));
}

#[test]
fn ranges_that_are_cut_are_none() {
    let list = populate_list(&[(0, 1), (8, 1)]);
    assert_eq!(populate(&list[..47]).unwrap().ranges.len(), 1);
    let mut odd = list;
    odd[15] = 31;
    assert_eq!(populate(&odd).unwrap().ranges.len(), 1);
}

#[test]
fn more_ranges_than_the_limit_are_too_many() {
    let ranges: Vec<_> = (0..65).map(|n| (n * 10, 1)).collect();
    assert_eq!(
        populate(&populate_list(&ranges[..64]))
            .unwrap()
            .ranges
            .len(),
        64
    );
    let too_many = Err(Fault::Copy(Problem::TooManySegments));
    assert_eq!(populate(&populate_list(&ranges)), too_many);
    let too_many = Err(Fault::Copy(Problem::TooManySegments));
    assert_eq!(write(&write_list(&ranges)), too_many);
}

#[test]
fn a_block_that_is_named_twice_is_an_invalid_field() {
    assert_eq!(populate(&populate_list(&[(8, 8), (0, 9)])), invalid_at(16));
    assert_eq!(write(&write_list(&[(0, 8), (7, 1)])), invalid_at(552));
    assert_eq!(
        populate(&populate_list(&[(u64::MAX, 5), (u64::MAX, 1)])),
        invalid_at(32)
    );
    // Neighbours, and no blocks at all.
    let apart = populate_list(&[(8, 8), (0, 8), (3, 0), (16, 1)]);
    assert_eq!(populate(&apart).unwrap().ranges.len(), 4);
}

proptest! {
    #[test]
    fn no_list_has_more_ranges_than_it_has_bytes_for(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2000),
        fitting: bool,
    ) {
        if fitting && bytes.len() >= 536 {
            (bytes[0], bytes[2], bytes[14], bytes[534]) = (0xff, 0, 0x01, 0x01);
            bytes[4..8].fill(0);
        }
        if let Ok(list) = populate(&bytes) {
            prop_assert!(list.ranges.len() <= 64 && 16 + 16 * list.ranges.len() <= bytes.len());
        }
        if let Ok(list) = write(&bytes) {
            prop_assert!(list.ranges.len() <= 64 && 536 + 16 * list.ranges.len() <= bytes.len());
        }
    }
}
