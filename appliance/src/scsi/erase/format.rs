//! FORMAT UNIT: its parameter list (SBC-4, FORMAT UNIT).

use super::job::{Fill, Job, Kind, Pattern};
use crate::disk::Protection;
use crate::scsi::fault::Fault;

/// Most bytes of a parameter list that mean something: the long header, an initialization pattern
/// descriptor, a block.
pub const MAX_FORMAT_LIST: usize = 8 + 4 + 4096;

/// FOV and IMMED of a header's byte 1, and the bits that FOV lets through.
const FOV: u8 = 0x80;
const OPTIONS: u8 = 0x78;
const IP: u8 = 0x08;
const IMMED: u8 = 0x02;
/// What of byte 1 has no meaning here: DSP, which is obsolete, and a vendor's bit.
const UNKNOWN: u8 = 0x05;

/// What its CDB says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatUnit {
    /// FMTDATA: there is a parameter list.
    pub has_list: bool,
    /// LONGLIST: its header is the longer one.
    pub long: bool,
    /// FFMT: the medium need not be overwritten.
    pub fast: bool,
}

impl FormatUnit {
    /// Bytes of the list's header.
    pub fn header(&self) -> usize {
        match (self.has_list, self.long) {
            (false, _) => 0,
            (true, false) => 4,
            (true, true) => 8,
        }
    }
}

/// What FORMAT UNIT asks for, whether at once, and bytes of the list that were looked at. `tags` is
/// the protection information that the unit has, and the CDB's FMTPINFO; `list` is what there is of
/// it; `thin` says whether the disk gives blocks back.
///
/// `None` if the list says that there is more of it.
///
/// # Errors
/// [`Fault::InvalidParameter`], and [`Fault::InvalidField`] for an FMTPINFO that is not the unit's.
pub fn format(
    command: FormatUnit,
    tags: Option<(Protection, u8)>,
    list: &[u8],
    block_size: u32,
    thin: bool,
) -> Result<Option<(Job, bool, usize)>, Fault> {
    let usage = usage(command, tags)?;
    let header = command.header();
    let Some(bytes) = list.get(..header) else {
        return Ok(None);
    };
    let mut fill = if command.fast && !thin {
        // SBC-4: nothing is overwritten, and blocks hold what they held.
        Fill::Nothing
    } else {
        Fill::Zeros
    };
    let (mut immediate, mut moved) = (false, header);
    if header > 0 {
        let flags = bytes[1];
        check_header(command, bytes, usage)?;
        immediate = flags & IMMED != 0;
        if flags & IP != 0 {
            let Some(rest) = list.get(header..) else {
                return Ok(None);
            };
            match pattern(rest, header, block_size)? {
                None => return Ok(None),
                Some((found, len)) => {
                    moved += len;
                    if let Some(pattern) = found {
                        fill = Fill::Pattern {
                            pattern,
                            passes: 1,
                            invert: false,
                        };
                    }
                }
            }
        }
    }
    let kind = Kind::Format;
    Ok(Some((Job { kind, fill }, immediate, moved)))
}

/// The PROTECTION FIELD USAGE with which a unit stays what it is (SBC-4, table 44). It never becomes
/// one of another type, since that is a matter of its configuration: FMTPINFO 00b asks for type 0.
fn usage(command: FormatUnit, tags: Option<(Protection, u8)>) -> Result<u8, Fault> {
    match tags {
        None => Ok(0),
        // SBC-4 §5.4.1: FMTPINFO has to come with a list.
        Some((Protection::Type1, 0b10)) if command.has_list => Ok(0b000),
        Some((Protection::Type3, 0b11)) if command.has_list => Ok(0b001),
        Some(_) => Err(Fault::InvalidField { byte: 1, bit: 7 }),
    }
}

/// Checks what a header asks for. Certification (DCRT), stopping (STPF) and the primary list (DPRY)
/// are about defects, which the disk underneath mends by itself: any value will do.
fn check_header(command: FormatUnit, header: &[u8], usage: u8) -> Result<(), Fault> {
    let flags = header[1];
    if let Some(bit) = (header[0] ^ usage).checked_ilog2() {
        return Err(invalid(0, bit));
    }
    if let Some(bit) = (flags & UNKNOWN).checked_ilog2() {
        return Err(invalid(1, bit));
    }
    if flags & FOV == 0
        && let Some(bit) = (flags & OPTIONS).checked_ilog2()
    {
        return Err(invalid(1, bit));
    }
    if command.long {
        // P_I_INFORMATION and PROTECTION INTERVAL EXPONENT likewise; byte 2 is reserved.
        for at in [2, 3] {
            if let Some(bit) = header[at].checked_ilog2() {
                return Err(invalid(at, bit));
            }
        }
    }
    // DEFECT LIST LENGTH: blocks cannot be kept out of use.
    let defects = if command.long { 4 } else { 2 };
    if header[defects..].iter().any(|&byte| byte != 0) {
        return Err(invalid(defects, 7));
    }
    Ok(())
}

/// The pattern of an initialization pattern descriptor, which starts at byte `at` of the list, and
/// its length; no pattern means zeros. `None` if the list ends before it does.
fn pattern(
    descriptor: &[u8],
    at: usize,
    block_size: u32,
) -> Result<Option<(Option<Pattern>, usize)>, Fault> {
    let Some((&[flags, kind, high, low], rest)) = descriptor.split_first_chunk::<4>() else {
        return Ok(None);
    };
    // SI: what is out of initiators' reach is not ours. Two bits beside it are obsolete.
    if let Some(bit) = flags.checked_ilog2() {
        return Err(invalid(at, bit));
    }
    let len = u16::from_be_bytes([high, low]);
    if u32::from(len) > block_size {
        return Err(invalid(at + 2, 7));
    }
    let len = usize::from(len);
    match kind {
        // A default pattern, which the list may hold all the same.
        0x00 => Ok((rest.len() >= len).then_some((None, 4 + len))),
        0x01 => {
            let Some(bytes) = rest.get(..len) else {
                return Ok(None);
            };
            let pattern = Pattern::new(bytes).ok_or(invalid(at + 2, 7))?;
            Ok(Some((Some(pattern), 4 + len)))
        }
        _ => Err(invalid(at + 1, 7)),
    }
}

fn invalid(byte: usize, bit: u32) -> Fault {
    Fault::InvalidParameter {
        byte: u16::try_from(byte).unwrap_or(u16::MAX),
        bit: u8::try_from(bit).unwrap_or(7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: FormatUnit = FormatUnit {
        has_list: true,
        long: false,
        fast: false,
    };

    fn of(command: FormatUnit, list: &[u8]) -> Result<Option<(Fill, bool, usize)>, Fault> {
        let found = format(command, None, list, 512, true)?;
        Ok(found.map(|(job, immediate, moved)| (job.fill, immediate, moved)))
    }

    fn wrong(command: FormatUnit, list: &[u8]) -> (u16, u8) {
        match of(command, list) {
            Err(Fault::InvalidParameter { byte, bit }) => (byte, bit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_list_blocks_become_zeros() {
        let plain = FormatUnit {
            has_list: false,
            ..SHORT
        };
        assert_eq!(of(plain, &[]), Ok(Some((Fill::Zeros, false, 0))));
        let fast = FormatUnit {
            fast: true,
            ..plain
        };
        assert_eq!(of(fast, &[]), Ok(Some((Fill::Zeros, false, 0))), "thin");
        let thick = format(fast, None, &[], 512, false).unwrap().unwrap();
        assert_eq!(thick.0.fill, Fill::Nothing);
    }

    #[test]
    fn the_immediate_bit_is_in_both_headers() {
        let long = FormatUnit {
            long: true,
            ..SHORT
        };
        assert_eq!(of(SHORT, &[0, 2, 0, 0]), Ok(Some((Fill::Zeros, true, 4))));
        assert_eq!(
            of(long, &[0, 2, 0, 0, 0, 0, 0, 0]),
            Ok(Some((Fill::Zeros, true, 8)))
        );
        assert_eq!(of(SHORT, &[0, 2, 0]), Ok(None), "there is more of it");
        assert_eq!(of(long, &[0, 2, 0, 0]), Ok(None));
    }

    #[test]
    fn a_pattern_is_taken_and_has_to_fit_a_block() {
        let list = [0, 0x88, 0, 0, 0, 1, 0, 2, 0xab, 0xcd];
        let pattern = Fill::Pattern {
            pattern: Pattern::new(&[0xab, 0xcd]).unwrap(),
            passes: 1,
            invert: false,
        };
        assert_eq!(of(SHORT, &list), Ok(Some((pattern, false, 10))));
        assert_eq!(of(SHORT, &list[..9]), Ok(None));
        assert_eq!(of(SHORT, &list[..7]), Ok(None));
        let default = [0, 0x88, 0, 0, 0, 0, 0, 0];
        assert_eq!(of(SHORT, &default), Ok(Some((Fill::Zeros, false, 8))));
        assert_eq!(wrong(SHORT, &[0, 0x88, 0, 0, 0, 1, 2, 1]), (6, 7));
        assert_eq!(wrong(SHORT, &[0, 0x88, 0, 0, 0, 1, 0, 0]), (6, 7));
        assert_eq!(wrong(SHORT, &[0, 0x88, 0, 0, 0, 2, 0, 0]), (5, 7));
        assert_eq!(wrong(SHORT, &[0, 0x88, 0, 0, 0x20, 1, 0, 1]), (4, 5));
    }

    #[test]
    fn what_there_is_not_is_pointed_at() {
        let long = FormatUnit {
            long: true,
            ..SHORT
        };
        assert_eq!(wrong(SHORT, &[1, 0, 0, 0]), (0, 0), "protection");
        assert_eq!(wrong(SHORT, &[0, 0x04, 0, 0]), (1, 2), "DSP");
        assert_eq!(wrong(SHORT, &[0, 0x08, 0, 0]), (1, 3), "IP without FOV");
        assert_eq!(wrong(SHORT, &[0, 0, 0, 8]), (2, 7), "defects");
        assert_eq!(wrong(long, &[0, 0, 0, 0x10, 0, 0, 0, 0]), (3, 4));
        assert_eq!(wrong(long, &[0, 0, 0, 0, 0, 0, 0, 8]), (4, 7));
        let certified = of(SHORT, &[0, 0xf0, 0, 0]);
        assert_eq!(certified, Ok(Some((Fill::Zeros, false, 4))));
    }
    #[test]
    fn a_unit_with_protection_information_is_formatted_to_its_own_type_or_not_at_all() {
        let no_list = FormatUnit {
            has_list: false,
            ..SHORT
        };
        let told = |command, kind, fmtpinfo, usage| {
            format(
                command,
                Some((kind, fmtpinfo)),
                &[usage, 0, 0, 0],
                512,
                true,
            )
            .map(drop)
        };
        let in_cdb = Err(Fault::InvalidField { byte: 1, bit: 7 });
        let in_list = |bit| Err(Fault::InvalidParameter { byte: 0, bit });
        // SBC-4, table 44: SPT 000b, then 100b.
        for (kind, fmtpinfo, usage, expected) in [
            (Protection::Type1, 0b10, 0, Ok(())),
            (Protection::Type1, 0b10, 1, in_list(0)),
            (Protection::Type1, 0b10, 4, in_list(2)),
            (Protection::Type1, 0b11, 0, in_cdb),
            (Protection::Type1, 0b11, 1, in_cdb),
            (Protection::Type3, 0b11, 1, Ok(())),
            (Protection::Type3, 0b11, 0, in_list(0)),
            (Protection::Type3, 0b11, 2, in_list(1)),
            (Protection::Type3, 0b10, 0, in_cdb),
        ] {
            let result = told(SHORT, kind, fmtpinfo, usage);
            assert_eq!(result, expected, "{kind} {fmtpinfo:02b}b {usage}");
            assert_eq!(told(no_list, kind, fmtpinfo, 0), in_cdb, "no list");
            for other in [0b00, 0b01] {
                assert_eq!(told(SHORT, kind, other, usage), in_cdb);
            }
        }
    }
}
