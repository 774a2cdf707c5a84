//! Why a command failed, and the one map from that to status and sense.

use spec::scsi::sense::{self, SenseCode};
use spec::scsi::status;

use super::access::Access;
use super::attention::Attention;
use super::copy::{Problem, Segment};
use super::erase::What;
use crate::disk::{BadTag, DiskError};

/// What a command was doing when its disk failed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    Read,
    Write,
    Flush,
    Verify,
    CompareAndWrite,
}

/// What a disk does for a command, for the sake of what is told when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    pub during: During,
    /// First block.
    pub lba: u64,
    /// How many.
    pub blocks: u64,
    /// Bytes of each, not 0.
    pub block_size: u32,
}

/// Why a command did not end with GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The unit has no command with this operation code or service action.
    InvalidOpcode,
    /// A field of the CDB asks for what there is not; its first byte, and its highest bit.
    InvalidField { byte: u8, bit: u8 },
    /// Data-out is not as long as what the CDB asks for.
    DataOutLength,
    /// A field of the parameter list asks for what there is not; likewise.
    InvalidParameter { byte: u16, bit: u8 },
    /// The parameter list is too short for what every list has.
    ParameterListLength,
    /// A task attribute that asks for what there is not.
    InvalidAttribute,
    /// The unit was stopped.
    Stopped,
    /// The blocks of the unit are being erased, and so many parts of 65536 are.
    Erasing(What, u16),
    /// That has failed.
    EraseFailed(What),
    /// It failed some time ago, and what blocks hold is not known.
    FormatCorrupted,
    /// Nothing was written that could be read.
    Sequence,
    /// It is at work on something that does not bear another beside it.
    Busy,
    /// Another initiator has reserved the unit, or this one is not registered as it says.
    Reserved,
    /// The reservation that is to be released is of another type.
    InvalidRelease,
    /// No more registrations can be kept.
    NoRoomToRegister,
    /// The port by which the unit is reached is in this state.
    NotAccessible(Access),
    /// Writes that the unit acknowledged are lost with the storage VM.
    UnitLost,
    /// No logical unit at this LUN.
    NoUnit,
    /// Blocks outside the logical unit; the first LBA that is wrong.
    OutOfRange { lba: u64 },
    /// Saved mode pages.
    SavingNotSupported,
    /// Mode pages cannot be saved for a reason of our own.
    SavingFailed,
    /// A write to a read-only logical unit.
    WriteProtected,
    /// A write to a logical unit that an initiator has write-protected.
    SoftwareWriteProtected,
    /// Something happened that the initiator must be told before.
    Attention(Attention),
    /// The disk failed.
    Disk { error: DiskError, work: Work },
    /// A third-party copy was refused, or ended before its time.
    Copy(Problem),
    /// The disk answered what it was not asked.
    BadReply,
    /// The command took longer than a command may.
    Expired,
    /// The appliance before this one may have carried the command out, or not, or a part of a copy
    /// is, and a second time is another matter.
    Interrupted,
    /// What was written is in a cache that nobody will flush, as the initiator ended caching
    /// meanwhile.
    CacheEnded,
}

/// Status of a command, with sense data where it is CHECK CONDITION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Check(Sense),
    Status(u8),
}

impl Fault {
    /// The one map from faults to what the initiator sees.
    pub fn ending(self) -> Ending {
        let code = match self {
            Self::InvalidOpcode => sense::INVALID_OPERATION_CODE,
            Self::InvalidField { .. } | Self::DataOutLength => sense::INVALID_FIELD_IN_CDB,
            Self::InvalidParameter { .. } => sense::INVALID_FIELD_IN_PARAMETER_LIST,
            Self::ParameterListLength => sense::PARAMETER_LIST_LENGTH_ERROR,
            Self::InvalidAttribute => sense::INVALID_MESSAGE,
            Self::Stopped => sense::INITIALIZING_COMMAND_REQUIRED,
            Self::Erasing(What::Format, _) => sense::FORMAT_IN_PROGRESS,
            Self::Erasing(What::Sanitize, _) => sense::SANITIZE_IN_PROGRESS,
            Self::EraseFailed(What::Format) => sense::FORMAT_COMMAND_FAILED,
            Self::EraseFailed(What::Sanitize) => sense::SANITIZE_COMMAND_FAILED,
            Self::FormatCorrupted => sense::MEDIUM_FORMAT_CORRUPTED,
            Self::Sequence => sense::COMMAND_SEQUENCE_ERROR,
            Self::Busy => return Ending::Status(status::BUSY),
            Self::Reserved => return Ending::Status(status::RESERVATION_CONFLICT),
            Self::InvalidRelease => sense::INVALID_RELEASE,
            Self::NoRoomToRegister => sense::INSUFFICIENT_REGISTRATION_RESOURCES,
            Self::NotAccessible(Access::Unavailable) => sense::PORT_IN_UNAVAILABLE_STATE,
            Self::NotAccessible(_) => sense::PORT_IN_STANDBY_STATE,
            // Initiators try it again; it is written to stable storage then.
            Self::CacheEnded => return Ending::Status(status::BUSY),
            // A hardware error, which Linux does not try again; nothing that passes by itself.
            Self::UnitLost => sense::LOGICAL_UNIT_FAILURE,
            Self::NoUnit => sense::LOGICAL_UNIT_NOT_SUPPORTED,
            Self::OutOfRange { .. } => sense::LBA_OUT_OF_RANGE,
            Self::SavingNotSupported => sense::SAVING_NOT_SUPPORTED,
            Self::WriteProtected => sense::WRITE_PROTECTED,
            Self::SoftwareWriteProtected => sense::SOFTWARE_WRITE_PROTECTED,
            Self::Attention(attention) => attention.code(),
            Self::Copy(problem) => problem.code(),
            Self::BadReply | Self::SavingFailed => sense::INTERNAL_TARGET_FAILURE,
            // ABORTED COMMAND, since initiators try such a command again: a disk that was slow
            // once need not be so for ever. A medium error would fail it for good, and so would
            // COMMAND TIMEOUT DURING PROCESSING: Linux takes that for a command duration limit.
            Self::Expired => sense::COMMUNICATION_TIME_OUT,
            // ABORTED COMMAND as well: nobody knows what became of it, and the initiator decides.
            Self::Interrupted => sense::COMMUNICATION_FAILURE,
            Self::Disk { error, work } => match disk_ending(error, work.during) {
                Ok(code) => code,
                Err(status) => return Ending::Status(status),
            },
        };
        Ending::Check(Sense {
            code,
            field: self.field(),
            information: self.information(),
            segment: match self {
                Self::Copy(problem) => problem.segment(),
                _ => None,
            },
            progress: self.progress(),
        })
    }

    fn field(self) -> Option<Field> {
        match self {
            Self::InvalidField { byte, bit } => Some(Field {
                in_cdb: true,
                byte: byte.into(),
                bit,
            }),
            Self::InvalidParameter { byte, bit } => Some(Field {
                in_cdb: false,
                byte,
                bit,
            }),
            _ => None,
        }
    }

    fn progress(self) -> Option<u16> {
        match self {
            Self::Erasing(_, parts) => Some(parts),
            _ => None,
        }
    }

    /// INFORMATION; `None` where it is not known exactly.
    fn information(self) -> Option<u64> {
        match self {
            Self::OutOfRange { lba } => Some(lba),
            Self::Copy(problem) => problem.information(),
            Self::Disk {
                error: DiskError::Miscompare { at },
                work,
            } => match work.during {
                // SBC-4, COMPARE AND WRITE: the offset in data-out of the first byte that differs.
                During::CompareAndWrite => Some(at),
                // For any other command, the block that the error is about.
                _ => Some(work.lba.saturating_add(at / u64::from(work.block_size))),
            },
            Self::Disk {
                error: DiskError::Protection { at, .. } | DiskError::TagMiscompare { at, .. },
                work,
            } => Some(work.lba.saturating_add(at / u64::from(work.block_size))),
            // Which of several blocks failed, the disk does not say.
            Self::Disk {
                error: DiskError::Io(_) | DiskError::OutOfRange,
                work: Work { lba, blocks: 1, .. },
            } => Some(lba),
            _ => None,
        }
    }
}

/// Sense or status for an error of the disk.
const fn disk_ending(error: DiskError, during: During) -> Result<SenseCode, u8> {
    Ok(match error {
        DiskError::Io(_) => match during {
            During::Read | During::Verify => sense::UNRECOVERED_READ_ERROR,
            During::Write | During::CompareAndWrite => sense::WRITE_ERROR,
            // Not a medium error, which Linux answers by flushing again: the kernel and disks forget
            // what they could not write, so a second flush would succeed without it.
            During::Flush => sense::INTERNAL_TARGET_FAILURE,
        },
        DiskError::WritesLost => sense::WRITE_ERROR,
        DiskError::NoSpace => sense::SPACE_ALLOCATION_FAILED,
        DiskError::Gone => sense::MEDIUM_NOT_PRESENT,
        DiskError::ReadOnly => sense::WRITE_PROTECTED,
        DiskError::OutOfRange => sense::LBA_OUT_OF_RANGE,
        DiskError::Truncated | DiskError::TenantMemory => sense::INTERNAL_TARGET_FAILURE,
        DiskError::SourceFailed => sense::THIRD_PARTY_DEVICE_FAILURE,
        DiskError::Miscompare { .. } => sense::MISCOMPARE,
        DiskError::Protection { bad, .. } => match bad {
            BadTag::Guard => sense::GUARD_CHECK_FAILED,
            BadTag::Reference => sense::REFERENCE_TAG_CHECK_FAILED,
        },
        DiskError::TagMiscompare { bad, .. } => match bad {
            BadTag::Guard => sense::GUARD_MISCOMPARE,
            BadTag::Reference => sense::REFERENCE_TAG_MISCOMPARE,
        },
        DiskError::Unsupported => sense::INVALID_OPERATION_CODE,
        DiskError::Busy => return Err(status::BUSY),
        DiskError::Cancelled => return Err(status::TASK_ABORTED),
    })
}

/// Where in the CDB or in the parameter list something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// In the CDB; otherwise in the parameter list.
    pub in_cdb: bool,
    pub byte: u16,
    pub bit: u8,
}

impl Field {
    /// Sense-key specific data of ILLEGAL REQUEST: SKSV, C/D, BPV, bit; byte
    /// (SPC-4 §4.5.2.4.2).
    fn pointer(self) -> [u8; 3] {
        let in_cdb = if self.in_cdb { 0x40 } else { 0 };
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | in_cdb | 0x08 | (self.bit & 7), high, low]
    }
}

/// How sense data is told (SPC-4, Control mode page: D_SENSE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SenseFormat {
    /// 18 bytes; an LBA that needs more than 32 bits cannot be told.
    #[default]
    Fixed,
    /// As long as there is something to tell.
    Descriptor,
}

impl From<bool> for SenseFormat {
    /// The format that a DESC or D_SENSE bit asks for.
    fn from(descriptor: bool) -> Self {
        if descriptor {
            Self::Descriptor
        } else {
            Self::Fixed
        }
    }
}

/// Sense data before it is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    pub code: SenseCode,
    /// What is wrong in what the initiator sent.
    pub field: Option<Field>,
    /// INFORMATION: the LBA it is about, unless the command has another use for it.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION: the segment of a copy.
    pub segment: Option<Segment>,
    /// PROGRESS INDICATION: so many parts of 65536.
    pub progress: Option<u16>,
}

impl Sense {
    /// Only a code.
    pub const fn new(code: SenseCode) -> Self {
        Self {
            code,
            field: None,
            information: None,
            segment: None,
            progress: None,
        }
    }

    /// Bytes in this format.
    pub fn bytes(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.fixed(),
            SenseFormat::Descriptor => self.descriptor(),
        }
    }

    /// Sense-key specific data (SPC-4, sense key specific sense data): a pointer to what is wrong,
    /// or SKSV and PROGRESS INDICATION.
    fn specific(&self) -> Option<[u8; 3]> {
        let progress = self.progress.map(|parts| {
            let [high, low] = parts.to_be_bytes();
            [0x80, high, low]
        });
        self.field.map(Field::pointer).or(progress)
    }

    /// Fixed format, current error (SPC-4 §4.5.3).
    fn fixed(&self) -> Vec<u8> {
        let mut bytes = [0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.code.key;
        if let Some(lba) = self.information.and_then(|lba| u32::try_from(lba).ok()) {
            bytes[0] |= 0x80; // VALID
            bytes[3..7].copy_from_slice(&lba.to_be_bytes());
        }
        bytes[7] = 10; // ADDITIONAL SENSE LENGTH
        bytes[12] = self.code.asc;
        bytes[13] = self.code.ascq;
        if let Some(specific) = self.specific() {
            bytes[15..18].copy_from_slice(&specific);
        }
        if let Some(segment) = self.segment {
            bytes[10..12].copy_from_slice(&segment.number.to_be_bytes());
            if let Some(pointer) = segment.pointer() {
                bytes[15..18].copy_from_slice(&pointer);
            }
        }
        bytes.to_vec()
    }

    /// Descriptor format, current error (SPC-4 §4.5.2).
    fn descriptor(&self) -> Vec<u8> {
        let mut bytes = vec![
            0x72,
            self.code.key,
            self.code.asc,
            self.code.ascq,
            0,
            0,
            0,
            0,
        ];
        if let Some(lba) = self.information {
            // Information descriptor, VALID.
            bytes.extend([0x00, 0x0a, 0x80, 0x00]);
            bytes.extend(lba.to_be_bytes());
        }
        if let Some(segment) = self.segment {
            // Command-specific information descriptor.
            bytes.extend([0x01, 0x0a, 0, 0, 0, 0]);
            bytes.extend(segment.number.to_be_bytes());
            bytes.extend([0; 4]);
        }
        let of_segment = self.segment.and_then(Segment::pointer);
        if let Some([a, b, c]) = of_segment.or(self.specific()) {
            // Sense-key specific descriptor.
            bytes.extend([0x02, 0x06, 0, 0, a, b, c, 0]);
        }
        bytes[7] = u8::try_from(bytes.len() - 8).unwrap_or(0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sense(fault: Fault) -> Sense {
        match fault.ending() {
            Ending::Check(sense) => sense,
            Ending::Status(status) => panic!("status {status:#x}"),
        }
    }

    fn fixed(fault: Fault) -> Vec<u8> {
        sense(fault).bytes(SenseFormat::Fixed)
    }

    /// The disk's error in 4 blocks of 512 bytes from `lba`, or in one.
    fn disk(error: DiskError, during: During, lba: u64, blocks: u64) -> Fault {
        let work = Work {
            during,
            lba,
            blocks,
            block_size: 512,
        };
        Fault::Disk { error, work }
    }

    #[test]
    fn an_invalid_field_is_pointed_at() {
        assert_eq!(
            fixed(Fault::InvalidField { byte: 1, bit: 7 }),
            [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1
            ]
        );
    }

    #[test]
    fn an_invalid_parameter_is_pointed_at_in_the_list() {
        let fault = Fault::InvalidParameter {
            byte: 0x0110,
            bit: 7,
        };
        assert_eq!(
            fixed(fault),
            [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x8f, 1, 0x10
            ]
        );
        assert_eq!(
            sense(fault).bytes(SenseFormat::Descriptor),
            [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x8f, 1, 0x10, 0]
        );
    }

    #[test]
    fn lengths_that_do_not_fit_have_no_field_to_point_at() {
        assert_eq!(fixed(Fault::DataOutLength)[12..], [0x24, 0, 0, 0, 0, 0]);
        assert_eq!(
            fixed(Fault::ParameterListLength)[12..],
            [0x1a, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_read_error_carries_its_lba_where_it_fits() {
        let error = |lba| disk(DiskError::Io(5), During::Read, lba, 1);
        assert_eq!(
            fixed(error(0x0102_0304)),
            [0xf0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
        );
        assert_eq!(fixed(error(1 << 32))[..7], [0x70, 0, 3, 0, 0, 0, 0]);
        assert_eq!(
            sense(error(1 << 32)).bytes(SenseFormat::Descriptor),
            [
                0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn an_error_somewhere_in_several_blocks_names_none_of_them() {
        let error = disk(DiskError::Io(5), During::Read, 7, 4);
        assert_eq!(fixed(error)[..7], [0x70, 0, 3, 0, 0, 0, 0]);
    }

    #[test]
    fn a_miscompare_tells_the_byte_of_a_compare_and_write_and_the_block_of_a_verify() {
        let miscompare = DiskError::Miscompare { at: 0x0405 };
        let told = |during| fixed(disk(miscompare, during, 0x10, 4));
        assert_eq!(
            told(During::CompareAndWrite),
            [
                0xf0, 0, 0xe, 0, 0, 4, 5, 10, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0, 0
            ]
        );
        assert_eq!(
            told(During::Verify),
            [
                0xf0, 0, 0xe, 0, 0, 0, 0x12, 10, 0, 0, 0, 0, 0x1d, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn a_command_that_took_too_long_is_an_aborted_one() {
        assert_eq!(
            fixed(Fault::Expired),
            [
                0x70, 0, 0xb, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x08, 1, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn every_error_of_a_disk_has_its_key_and_code() {
        let during = [
            During::Read,
            During::Write,
            During::Flush,
            During::Verify,
            During::CompareAndWrite,
        ];
        for (error, codes) in [
            (DiskError::NoSpace, [7, 0x27, 7]),
            (DiskError::WritesLost, [3, 0x0c, 0]),
            (DiskError::Gone, [2, 0x3a, 0]),
            (DiskError::ReadOnly, [7, 0x27, 0]),
            (DiskError::OutOfRange, [5, 0x21, 0]),
            (DiskError::Truncated, [4, 0x44, 0]),
            (DiskError::TenantMemory, [4, 0x44, 0]),
            (DiskError::Unsupported, [5, 0x20, 0]),
            (DiskError::SourceFailed, [0xa, 0x0d, 1]),
            (DiskError::Miscompare { at: 0 }, [0xe, 0x1d, 0]),
            (
                DiskError::Protection {
                    at: 0,
                    bad: BadTag::Guard,
                },
                [0xb, 0x10, 1],
            ),
            (
                DiskError::Protection {
                    at: 0,
                    bad: BadTag::Reference,
                },
                [0xb, 0x10, 3],
            ),
            (
                DiskError::TagMiscompare {
                    at: 0,
                    bad: BadTag::Guard,
                },
                [0xe, 0x10, 1],
            ),
            (
                DiskError::TagMiscompare {
                    at: 0,
                    bad: BadTag::Reference,
                },
                [0xe, 0x10, 3],
            ),
        ] {
            for during in during {
                let sense = fixed(disk(error, during, 0, 4));
                assert_eq!(
                    [sense[2], sense[12], sense[13]],
                    codes,
                    "{error} {during:?}"
                );
            }
        }
        let codes = [(3, 0x11), (3, 0x0c), (4, 0x44), (3, 0x11), (3, 0x0c)];
        for (during, (key, asc)) in during.into_iter().zip(codes) {
            let sense = fixed(disk(DiskError::Io(5), during, 0, 4));
            assert_eq!(
                [sense[2], sense[12], sense[13]],
                [key, asc, 0],
                "{during:?}"
            );
        }
    }

    #[test]
    fn shortage_and_cancellation_are_statuses() {
        let ending = |error| disk(error, During::Write, 0, 1).ending();
        assert_eq!(ending(DiskError::Busy), Ending::Status(0x08));
        assert_eq!(ending(DiskError::Cancelled), Ending::Status(0x40));
    }
}
