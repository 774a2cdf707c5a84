use proptest::prelude::*;

use super::*;

/// A CSCD descriptor that names a unit by its NAA identifier.
const CSCD: [u8; 32] = [
    0xe4, 0x00, 0, 0, 0x01, 0x03, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 2, 0,
];
/// A segment descriptor: 3 blocks from block 5 of the first to block 9 of the second.
const SEGMENT: [u8; 28] = [
    0x02, 0x00, 0, 0x18, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9,
];

fn lid1(cscds: &[[u8; 32]], segments: &[&[u8]]) -> Vec<u8> {
    let segments = segments.concat();
    let mut list = vec![0; 16];
    list[0] = 7;
    list[2..4].copy_from_slice(&u16::try_from(cscds.len() * 32).unwrap().to_be_bytes());
    list[8..12].copy_from_slice(&u32::try_from(segments.len()).unwrap().to_be_bytes());
    list.extend(cscds.concat());
    list.extend(segments);
    list
}

fn good() -> Vec<u8> {
    lid1(&[CSCD, CSCD], &[&SEGMENT])
}

/// How the good list is taken when this byte is another.
fn with(byte: usize, value: u8) -> Result<List, Fault> {
    let mut list = good();
    list[byte] = value;
    parse(Format::Lid1, &list)
}

fn invalid_at(byte: u16, bit: u8) -> Result<List, Fault> {
    Err(Fault::InvalidParameter { byte, bit })
}

#[test]
fn a_list_says_which_blocks_go_where() {
    let list = parse(Format::Lid1, &good()).unwrap();
    assert_eq!(list.id, Some(7));
    let cscd = Cscd {
        device_type: 0,
        code_set: 1,
        kind: 3,
        designator: vec![1, 2, 3, 4, 5, 6, 7, 8],
        block_size: 512,
    };
    assert_eq!(list.cscds, [cscd.clone(), cscd]);
    let segment = Segment {
        source: 0,
        destination: 1,
        from: 5,
        to: 9,
        amount: Amount::OfSource(3),
    };
    assert_eq!(list.segments, [segment]);
    let counted_there = with(16 + 64 + 1, 0x02).unwrap();
    assert_eq!(counted_there.segments[0].amount, Amount::OfDestination(3));
}

#[test]
fn the_list_of_the_newer_command_has_a_longer_header() {
    let mut list = vec![0; 48];
    (list[0], list[3], list[16]) = (0x01, 0x20, 0xff);
    list[20..24].copy_from_slice(&[1, 2, 3, 4]);
    (list[43], list[45]) = (64, 28);
    list.extend([CSCD, CSCD].concat());
    list.extend(SEGMENT);
    let parsed = parse(Format::Lid4, &list).unwrap();
    let older = parse(Format::Lid1, &good()).unwrap();
    assert_eq!(parsed.id, Some(0x0102_0304));
    assert_eq!(
        (parsed.cscds, parsed.segments),
        (older.cscds, older.segments)
    );
    for (byte, value, bit) in [(0, 0, 7), (2, 1, 7), (16, 0xfe, 7), (15, 0x02, 1)] {
        let mut wrong = list.clone();
        wrong[byte] = value;
        let at = if byte == 16 { 16 } else { byte };
        let at = u16::try_from(at).unwrap();
        assert_eq!(parse(Format::Lid4, &wrong), invalid_at(at, bit));
    }
}

#[test]
fn a_list_identifier_is_kept_unless_nobody_will_ask() {
    assert_eq!(with(1, 0x10).unwrap().id, Some(7));
    assert_eq!(with(1, 0x08), invalid_at(1, 4));
    assert_eq!(with(1, 0x18), invalid_at(0, 7), "it has to be 0 then");
    let mut list = good();
    (list[0], list[1]) = (0, 0x18);
    assert_eq!(parse(Format::Lid1, &list).unwrap().id, None);
}

#[test]
fn a_segment_may_be_said_in_bytes() {
    let mut segment = [0; 32];
    (segment[0], segment[3], segment[7]) = (0x0a, 0x1c, 1);
    segment[8..12].copy_from_slice(&(256_u32 << 20).to_be_bytes());
    (segment[19], segment[27]) = (5, 9);
    let list = lid1(&[CSCD, CSCD], &[&segment]);
    let parsed = parse(Format::Lid1, &list).unwrap().segments[0];
    assert_eq!(parsed.amount, Amount::Bytes(256 << 20));
    assert_eq!((parsed.from, parsed.to), (5, 9));
    // DC and CAT make no difference.
    segment[1] = 0x03;
    let ignored = parse(Format::Lid1, &lid1(&[CSCD, CSCD], &[&segment]));
    assert_eq!(ignored.unwrap().segments[0], parsed);
    segment[1] = 0;
    for (byte, value, bit) in [(11, 1, 7), (29, 1, 7), (31, 1, 7), (3, 0x18, 7), (1, 4, 2)] {
        let mut wrong = segment;
        wrong[byte] = value;
        let mut list = lid1(&[CSCD, CSCD], &[&wrong]);
        if byte == 3 {
            list.truncate(list.len() - 4);
            list[11] -= 4;
        }
        let at = match byte {
            11 => 8,
            29 => 28,
            31 => 30,
            3 => 2,
            other => other,
        };
        let at = u16::try_from(80 + at).unwrap();
        assert_eq!(parse(Format::Lid1, &list), invalid_at(at, bit), "{byte}");
    }
}

#[test]
fn what_is_not_there_as_a_whole_has_the_wrong_length() {
    let list = good();
    for len in [1, 15, 16, 16 + 31, 16 + 64, list.len() - 1] {
        let parsed = parse(Format::Lid1, &list[..len]);
        assert_eq!(parsed, Err(Fault::ParameterListLength), "{len}");
    }
    // A part of a CSCD descriptor, or of a segment's.
    assert_eq!(with(3, 63), Err(Fault::ParameterListLength));
    assert_eq!(with(80 + 3, 0x19), Err(Fault::ParameterListLength));
    assert_eq!(with(15, 1), Err(Fault::ParameterListLength), "inline data");
}

#[test]
fn limits_are_looked_at_before_descriptors_are() {
    let fault = |problem| Err(Fault::Copy(problem));
    let most = [CSCD; 16];
    let segments = vec![SEGMENT.as_slice(); 64];
    assert!(parse(Format::Lid1, &lid1(&most, &segments)).is_ok());
    let mut wrong = [CSCD; 17];
    wrong[0][0] = 0xe0;
    let list = lid1(&wrong, &[&SEGMENT]);
    assert_eq!(parse(Format::Lid1, &list), fault(Problem::TooManyCscds));
    let list = lid1(&wrong[..1], &vec![SEGMENT.as_slice(); 65]);
    assert_eq!(parse(Format::Lid1, &list), fault(Problem::TooManySegments));
    // 17 * 32 + 73 * 28 bytes are more than 2560.
    let list = lid1(&wrong, &vec![SEGMENT.as_slice(); 73]);
    assert_eq!(parse(Format::Lid1, &list), Err(Fault::ParameterListLength));
    let mut inline = good();
    inline[15] = 4;
    inline.extend([0; 4]);
    assert_eq!(parse(Format::Lid1, &inline), fault(Problem::InlineData));
}

#[test]
fn descriptors_of_other_types_are_not_supported() {
    for code in [0xe0, 0xe5, 0xea, 0xfe, 0x02] {
        assert_eq!(with(16, code), Err(Fault::Copy(Problem::UnsupportedCscd)));
    }
    for code in [0x00, 0x03, 0x0d, 0xbe, 0xe4] {
        let parsed = with(16 + 64, code);
        assert_eq!(parsed, Err(Fault::Copy(Problem::UnsupportedSegment)));
    }
}

#[test]
fn fields_that_ask_for_what_there_is_not_are_pointed_at() {
    assert_eq!(with(80 + 1, 0x04), invalid_at(81, 2), "FCO");
    assert_eq!(with(80 + 1, 0x80), invalid_at(81, 7));
    assert_eq!(
        with(16 + 7, 21),
        invalid_at(23, 7),
        "a designator of 21 bytes"
    );
    assert!(with(80 + 1, 0x01).is_ok(), "CAT");
    // LU ID TYPE, NUL, RELATIVE INITIATOR PORT IDENTIFIER.
    assert!(with(17, 0xe0).is_ok() && with(19, 3).is_ok());
}

proptest! {
    #[test]
    fn whatever_a_list_says_no_more_comes_of_it_than_the_limits(
        mut bytes in prop::collection::vec(any::<u8>(), 0..3000),
        newer: bool,
        cscds in 0..20_u16,
        segments in 0..80_u32,
        fitting in prop::bool::weighted(0.9),
    ) {
        let format = if newer { Format::Lid4 } else { Format::Lid1 };
        let header = header_len(format);
        if fitting && bytes.len() > header {
            bytes[1] &= 0x10;
            if newer {
                (bytes[0], bytes[2], bytes[3], bytes[15], bytes[16]) = (1, 0, 0x20, 0, 0xff);
                bytes[42..44].copy_from_slice(&(cscds * 32).to_be_bytes());
                bytes[44..46].copy_from_slice(&u16::try_from(segments * 28).unwrap().to_be_bytes());
                bytes[46..48].fill(0);
            } else {
                bytes[2..4].copy_from_slice(&(cscds * 32).to_be_bytes());
                bytes[8..12].copy_from_slice(&(segments * 28).to_be_bytes());
                bytes[12..16].fill(0);
            }
            let places = (header..).step_by(32).take(cscds.into());
            for at in places {
                if let Some(place) = bytes.get_mut(at..at + 8) {
                    (place[0], place[7]) = (0xe4, place[7] % 24);
                }
            }
            let first = header + usize::from(cscds) * 32;
            for at in (first..).step_by(28).take(80) {
                if let Some(place) = bytes.get_mut(at..at + 4) {
                    place.copy_from_slice(&[0x02, place[1] & 3, 0, 0x18]);
                }
            }
        }
        if let Ok(list) = parse(format, &bytes) {
            prop_assert!(list.cscds.len() <= 16 && list.segments.len() <= 64);
            prop_assert!(list.cscds.iter().all(|cscd| cscd.designator.len() <= 20));
            let used = list.cscds.len() * 32 + list.segments.len() * 28;
            prop_assert!(header + used <= bytes.len());
        }
    }
}
