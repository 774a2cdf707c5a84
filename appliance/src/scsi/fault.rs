//! Why a command failed, and the one map from that to status and sense.

use spec::scsi::sense::{self, SenseCode};
use spec::scsi::status;

use super::attention::Attention;
use crate::disk::DiskError;

/// What a command was doing when its disk failed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    Read,
    Write,
    Flush,
}

/// Why a command did not end with GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No command of ours has this operation code or service action.
    InvalidOpcode,
    /// A field of the CDB asks for what there is not; its first byte, and its highest bit.
    InvalidField { byte: u8, bit: u8 },
    /// A field of the parameter list asks for what there is not; its first byte, and its highest
    /// bit.
    InvalidParameter { byte: u16, bit: u8 },
    /// The parameter list ends in the middle of something.
    ParameterListLength,
    /// A task attribute that asks for what there is not.
    InvalidAttribute,
    /// The unit was stopped.
    Stopped,
    /// Another initiator has reserved the unit.
    Reserved,
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
    Disk {
        error: DiskError,
        during: During,
        lba: u64,
    },
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
            Self::InvalidField { .. } => sense::INVALID_FIELD_IN_CDB,
            Self::InvalidParameter { .. } => sense::INVALID_FIELD_IN_PARAMETER_LIST,
            Self::ParameterListLength => sense::PARAMETER_LIST_LENGTH_ERROR,
            Self::InvalidAttribute => sense::INVALID_MESSAGE,
            Self::Stopped => sense::INITIALIZING_COMMAND_REQUIRED,
            Self::Reserved => return Ending::Status(status::RESERVATION_CONFLICT),
            Self::NoUnit => sense::LOGICAL_UNIT_NOT_SUPPORTED,
            Self::OutOfRange { .. } => sense::LBA_OUT_OF_RANGE,
            Self::SavingNotSupported => sense::SAVING_NOT_SUPPORTED,
            Self::SavingFailed => sense::INTERNAL_TARGET_FAILURE,
            Self::WriteProtected => sense::WRITE_PROTECTED,
            Self::SoftwareWriteProtected => sense::SOFTWARE_WRITE_PROTECTED,
            Self::Attention(attention) => attention.code(),
            Self::Disk { error, during, .. } => match (error, during) {
                (DiskError::Io(_), During::Read) => sense::UNRECOVERED_READ_ERROR,
                (DiskError::Io(_), During::Write | During::Flush) | (DiskError::WritesLost, _) => {
                    sense::WRITE_ERROR
                }
                (DiskError::NoSpace, _) => sense::SPACE_ALLOCATION_FAILED,
                (DiskError::Gone, _) => sense::MEDIUM_NOT_PRESENT,
                (DiskError::ReadOnly, _) => sense::WRITE_PROTECTED,
                (DiskError::OutOfRange, _) => sense::LBA_OUT_OF_RANGE,
                (DiskError::Truncated | DiskError::TenantMemory, _) => {
                    sense::INTERNAL_TARGET_FAILURE
                }
                // Byte positions are not told yet.
                (DiskError::Miscompare { .. }, _) => sense::MISCOMPARE,
                (DiskError::Unsupported, _) => sense::INVALID_OPERATION_CODE,
                (DiskError::Busy, _) => return Ending::Status(status::BUSY),
                (DiskError::Cancelled, _) => return Ending::Status(status::TASK_ABORTED),
            },
        };
        let (field, information) = match self {
            Self::InvalidField { byte, bit } => (
                Some(Pointer {
                    in_cdb: true,
                    byte: byte.into(),
                    bit,
                }),
                None,
            ),
            Self::InvalidParameter { byte, bit } => (
                Some(Pointer {
                    in_cdb: false,
                    byte,
                    bit,
                }),
                None,
            ),
            Self::OutOfRange { lba } | Self::Disk { lba, .. } => (None, Some(lba)),
            _ => (None, None),
        };
        Ending::Check(Sense {
            code,
            field,
            information,
        })
    }
}

/// Which field is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Of the CDB, or else of the parameter list.
    pub in_cdb: bool,
    /// Its first byte.
    pub byte: u16,
    /// Its highest bit there.
    pub bit: u8,
}

/// Sense data before it is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    pub code: SenseCode,
    /// The field that is wrong.
    pub field: Option<Pointer>,
    /// INFORMATION: the LBA it is about.
    pub information: Option<u64>,
}

impl Sense {
    /// Only a code.
    pub const fn new(code: SenseCode) -> Self {
        Self {
            code,
            field: None,
            information: None,
        }
    }

    /// Fixed format, current error (SPC-4 §4.5.3).
    pub fn fixed(&self) -> Vec<u8> {
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
        if let Some(field) = self.field {
            bytes[15..18].copy_from_slice(&field_pointer(field));
        }
        bytes.to_vec()
    }

    /// Descriptor format, current error (SPC-4 §4.5.2).
    pub fn descriptor(&self) -> Vec<u8> {
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
        if let Some(field) = self.field {
            let [a, b, c] = field_pointer(field);
            // Sense-key specific descriptor.
            bytes.extend([0x02, 0x06, 0, 0, a, b, c, 0]);
        }
        bytes[7] = u8::try_from(bytes.len() - 8).unwrap_or(0);
        bytes
    }
}

/// Sense-key specific data of ILLEGAL REQUEST: SKSV, C/D (in the CDB), BPV, bit; byte
/// (SPC-4 §4.5.2.4.2).
const fn field_pointer(pointer: Pointer) -> [u8; 3] {
    let in_cdb = if pointer.in_cdb { 0x40 } else { 0 };
    let [high, low] = pointer.byte.to_be_bytes();
    [0x80 | in_cdb | 0x08 | (pointer.bit & 7), high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(fault: Fault) -> Vec<u8> {
        match fault.ending() {
            Ending::Check(sense) => sense.fixed(),
            Ending::Status(status) => panic!("status {status:#x}"),
        }
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
    fn an_invalid_parameter_is_pointed_at_in_the_parameter_list() {
        assert_eq!(
            fixed(Fault::InvalidParameter {
                byte: 0x102,
                bit: 4
            }),
            [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x8c, 1, 2
            ]
        );
    }

    #[test]
    fn a_read_error_carries_its_lba_where_it_fits() {
        let error = |lba| Fault::Disk {
            error: DiskError::Io(5),
            during: During::Read,
            lba,
        };
        assert_eq!(
            fixed(error(0x0102_0304)),
            [0xf0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
        );
        assert_eq!(fixed(error(1 << 32))[..7], [0x70, 0, 3, 0, 0, 0, 0]);
        let Ending::Check(sense) = error(1 << 32).ending() else {
            panic!("no sense")
        };
        assert_eq!(
            sense.descriptor(),
            [
                0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn shortage_and_cancellation_are_statuses() {
        let ending = |error| {
            Fault::Disk {
                error,
                during: During::Write,
                lba: 0,
            }
            .ending()
        };
        assert_eq!(ending(DiskError::Busy), Ending::Status(0x08));
        assert_eq!(ending(DiskError::Cancelled), Ending::Status(0x40));
    }
}
