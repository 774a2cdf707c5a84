//! Protection information of a logical block (SBC-4, protection information model).

use crc::{CRC_16_T10_DIF, Crc, Table};
use serde::Deserialize;

/// The CRC of the guards.
static GUARD: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_T10_DIF);

/// What the protection information of a disk means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protection {
    /// The reference tag is the low half of the LBA.
    Type1,
    /// The reference tag is the initiator's.
    Type3,
}

impl std::fmt::Display for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Type1 => "type1",
            Self::Type3 => "type3",
        })
    }
}

/// The protection information of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// LOGICAL BLOCK GUARD: the CRC of the data.
    pub guard: u16,
    /// LOGICAL BLOCK APPLICATION TAG.
    pub application: u16,
    /// LOGICAL BLOCK REFERENCE TAG.
    pub reference: u32,
}

/// What of it is checked. The application tag never is: nobody tells us what it has to be
/// (APP_CHK 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checks {
    /// The guard against the data.
    pub guard: bool,
    /// The reference tag against the LBA, where it has to do with that.
    pub reference: bool,
}

/// What of it is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadTag {
    /// The guard is not that of the data.
    Guard,
    /// The reference tag is not that of the LBA.
    Reference,
}

impl std::fmt::Display for BadTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Guard => "guard",
            Self::Reference => "reference tag",
        })
    }
}

/// The guard of a block's data.
pub fn guard(data: &[u8]) -> u16 {
    GUARD.checksum(data)
}

impl Checks {
    /// Everything that can be.
    pub const ALL: Self = Self {
        guard: true,
        reference: true,
    };
}

impl Tag {
    /// Bytes of it.
    pub const LEN: usize = 8;
    /// As after formatting: nothing is checked.
    pub const UNCHECKED: Self = Self {
        guard: 0xffff,
        application: 0xffff,
        reference: 0xffff_ffff,
    };

    /// What a block is given whose initiator sends none. The application tag is 0, since FFFFh
    /// would end checking, and ATO 0 leaves it to us.
    pub fn of(data: &[u8], lba: u64, protection: Protection) -> Self {
        Self {
            guard: guard(data),
            application: 0,
            reference: match protection {
                Protection::Type1 => low_half(lba),
                Protection::Type3 => 0xffff_ffff,
            },
        }
    }

    /// The tag of the block so many after its own, with the same data (SBC-4 §5.52): one that
    /// checks nothing stays as it is.
    pub fn following(self, blocks: u64, protection: Protection) -> Self {
        match protection {
            _ if self == Self::UNCHECKED => self,
            Protection::Type1 => Self {
                reference: self.reference.wrapping_add(low_half(blocks)),
                ..self
            },
            Protection::Type3 => self,
        }
    }

    /// The tag in big-endian bytes.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            guard: u16::from_be_bytes([a, b]),
            application: u16::from_be_bytes([c, d]),
            reference: u32::from_be_bytes([e, f, g, h]),
        }
    }

    /// Its big-endian bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [a, b] = self.guard.to_be_bytes();
        let [c, d] = self.application.to_be_bytes();
        let [e, f, g, h] = self.reference.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// Whether, being on the medium, it says that nothing is to be checked.
    pub fn is_unchecked(self, protection: Protection) -> bool {
        self.application == 0xffff
            && match protection {
                Protection::Type1 => true,
                Protection::Type3 => self.reference == 0xffff_ffff,
            }
    }

    /// Compares it with what was sent, as far as `compares` says (SBC-4, table 128). The application
    /// tag never is, nor a type 3 reference tag: ATO 0 leaves both to us. Where either says that
    /// nothing is to be checked, nothing is.
    ///
    /// # Errors
    /// [`BadTag`]: of several, the guard.
    pub fn compare(
        self,
        sent: Self,
        protection: Protection,
        compares: Checks,
    ) -> Result<(), BadTag> {
        if self.is_unchecked(protection) || sent.is_unchecked(protection) {
            return Ok(());
        }
        if compares.guard && self.guard != sent.guard {
            return Err(BadTag::Guard);
        }
        let is_of_lba = protection == Protection::Type1;
        if compares.reference && is_of_lba && self.reference != sent.reference {
            return Err(BadTag::Reference);
        }
        Ok(())
    }

    /// Checks it against the data and the LBA.
    ///
    /// # Errors
    /// [`BadTag`]: of several, the guard.
    pub fn check(
        self,
        data: &[u8],
        lba: u64,
        protection: Protection,
        checks: Checks,
    ) -> Result<(), BadTag> {
        if checks.guard && self.guard != guard(data) {
            return Err(BadTag::Guard);
        }
        let is_of_lba = protection != Protection::Type1 || self.reference == low_half(lba);
        if checks.reference && !is_of_lba {
            return Err(BadTag::Reference);
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the reference tag is the least significant four bytes"
)]
const fn low_half(lba: u64) -> u32 {
    lba as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_those_of_the_standards_examples() {
        // SBC-4, logical block guard, test cases.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).map(|n| 0xff - n).collect();
        let mut ones_first = [0; 32];
        ones_first[..2].fill(0xff);
        assert_eq!(guard(&[0; 32]), 0x0000);
        assert_eq!(guard(&[0xff; 32]), 0xa293);
        assert_eq!(guard(&ascending), 0x0224);
        assert_eq!(guard(&ones_first), 0x21b8);
        assert_eq!(guard(&descending), 0xa0b7);
    }

    #[test]
    fn a_tag_is_big_endian() {
        let tag = Tag {
            guard: 0x0102,
            application: 0x0304,
            reference: 0x0506_0708,
        };
        assert_eq!(tag.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Tag::from_bytes([1, 2, 3, 4, 5, 6, 7, 8]), tag);
    }

    #[test]
    fn a_type_1_tag_names_the_low_half_of_its_lba_and_a_type_3_tag_does_not() {
        let lba = 0x1_0203_0405;
        let tag = Tag::of(&[0xff; 32], lba, Protection::Type1);
        assert_eq!(tag.to_bytes(), [0xa2, 0x93, 0, 0, 2, 3, 4, 5]);
        let tag = Tag::of(&[0xff; 32], lba, Protection::Type3);
        assert_eq!(tag.to_bytes(), [0xa2, 0x93, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn what_is_wrong_is_named_the_guard_first() {
        let check = |bytes, protection, checks| {
            Tag::from_bytes(bytes).check(&[0xff; 32], 5, protection, checks)
        };
        let all = Checks::ALL;
        let good = [0xa2, 0x93, 9, 9, 0, 0, 0, 5];
        let other_lba = [0xa2, 0x93, 9, 9, 0, 0, 0, 6];
        let nothing_right = [0xa2, 0x92, 9, 9, 0, 0, 0, 6];
        assert_eq!(check(good, Protection::Type1, all), Ok(()));
        assert_eq!(
            check(other_lba, Protection::Type1, all),
            Err(BadTag::Reference)
        );
        assert_eq!(check(other_lba, Protection::Type3, all), Ok(()));
        for protection in [Protection::Type1, Protection::Type3] {
            assert_eq!(check(nothing_right, protection, all), Err(BadTag::Guard));
            assert_eq!(check(nothing_right, protection, Checks::default()), Ok(()));
        }
    }

    #[test]
    fn tags_are_compared_but_for_what_the_standard_leaves_to_us() {
        let compare = |sent, protection, compares| {
            Tag::from_bytes([1, 2, 3, 4, 0, 0, 0, 5]).compare(
                Tag::from_bytes(sent),
                protection,
                compares,
            )
        };
        let (all, reference) = (
            Checks::ALL,
            Checks {
                guard: false,
                reference: true,
            },
        );
        let other_application = [1, 2, 9, 9, 0, 0, 0, 5];
        let other_guard = [1, 3, 3, 4, 0, 0, 0, 5];
        let other_reference = [1, 2, 3, 4, 0, 0, 0, 6];
        let unchecked = [9, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for protection in [Protection::Type1, Protection::Type3] {
            assert_eq!(compare(other_application, protection, all), Ok(()));
            assert_eq!(compare(other_guard, protection, all), Err(BadTag::Guard));
            assert_eq!(compare(other_guard, protection, reference), Ok(()));
            assert_eq!(compare(unchecked, protection, all), Ok(()));
        }
        let told = compare(other_reference, Protection::Type1, reference);
        assert_eq!(told, Err(BadTag::Reference));
        assert_eq!(compare(other_reference, Protection::Type3, all), Ok(()));
    }

    #[test]
    fn the_same_block_again_has_the_next_reference_tag_unless_nothing_is_checked() {
        let tag = Tag::from_bytes([1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff]);
        let next = tag.following(3, Protection::Type1);
        assert_eq!(next.to_bytes(), [1, 2, 3, 4, 0, 0, 0, 2]);
        assert_eq!(tag.following(3, Protection::Type3), tag);
        let unchecked = Tag::from_bytes([0xff; 8]);
        assert_eq!(unchecked.following(3, Protection::Type1), unchecked);
    }

    #[test]
    fn an_application_tag_of_ones_ends_checking_for_type_3_only_with_the_reference_tag() {
        let half = Tag::from_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert!(half.is_unchecked(Protection::Type1));
        assert!(!half.is_unchecked(Protection::Type3));
        assert!(Tag::UNCHECKED.is_unchecked(Protection::Type3));
        let other = Tag::from_bytes([0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(!other.is_unchecked(Protection::Type1));
        assert!(!other.is_unchecked(Protection::Type3));
    }
}
