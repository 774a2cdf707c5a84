//! Sense keys and additional sense codes (SPC-4 §4.5).

/// A sense key with its additional sense code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenseCode {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

const fn code(key: u8, asc: u8, ascq: u8) -> SenseCode {
    SenseCode { key, asc, ascq }
}

/// NO SENSE: nothing to report.
pub const NO_SENSE: SenseCode = code(0x0, 0x00, 0x00);
/// NOT READY, LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED.
pub const INITIALIZING_COMMAND_REQUIRED: SenseCode = code(0x2, 0x04, 0x02);
/// NOT READY, MEDIUM NOT PRESENT.
pub const MEDIUM_NOT_PRESENT: SenseCode = code(0x2, 0x3a, 0x00);
/// MEDIUM ERROR, WRITE ERROR.
pub const WRITE_ERROR: SenseCode = code(0x3, 0x0c, 0x00);
/// MEDIUM ERROR, UNRECOVERED READ ERROR.
pub const UNRECOVERED_READ_ERROR: SenseCode = code(0x3, 0x11, 0x00);
/// HARDWARE ERROR, INTERNAL TARGET FAILURE.
pub const INTERNAL_TARGET_FAILURE: SenseCode = code(0x4, 0x44, 0x00);
/// ILLEGAL REQUEST, PARAMETER LIST LENGTH ERROR.
pub const PARAMETER_LIST_LENGTH_ERROR: SenseCode = code(0x5, 0x1a, 0x00);
/// ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
pub const INVALID_OPERATION_CODE: SenseCode = code(0x5, 0x20, 0x00);
/// ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE.
pub const LBA_OUT_OF_RANGE: SenseCode = code(0x5, 0x21, 0x00);
/// ILLEGAL REQUEST, INVALID FIELD IN CDB.
pub const INVALID_FIELD_IN_CDB: SenseCode = code(0x5, 0x24, 0x00);
/// ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
pub const LOGICAL_UNIT_NOT_SUPPORTED: SenseCode = code(0x5, 0x25, 0x00);
/// ILLEGAL REQUEST, INVALID FIELD IN PARAMETER LIST.
pub const INVALID_FIELD_IN_PARAMETER_LIST: SenseCode = code(0x5, 0x26, 0x00);
/// ILLEGAL REQUEST, SAVING PARAMETERS NOT SUPPORTED.
pub const SAVING_NOT_SUPPORTED: SenseCode = code(0x5, 0x39, 0x00);
/// ILLEGAL REQUEST, INVALID MESSAGE ERROR.
pub const INVALID_MESSAGE: SenseCode = code(0x5, 0x49, 0x00);
/// UNIT ATTENTION, POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
pub const POWER_ON_OR_RESET: SenseCode = code(0x6, 0x29, 0x00);
/// UNIT ATTENTION, BUS DEVICE RESET FUNCTION OCCURRED.
pub const DEVICE_RESET: SenseCode = code(0x6, 0x29, 0x03);
/// UNIT ATTENTION, I_T NEXUS LOSS OCCURRED.
pub const NEXUS_LOSS: SenseCode = code(0x6, 0x29, 0x07);
/// UNIT ATTENTION, MODE PARAMETERS CHANGED.
pub const MODE_PARAMETERS_CHANGED: SenseCode = code(0x6, 0x2a, 0x01);
/// UNIT ATTENTION, CAPACITY DATA HAS CHANGED.
pub const CAPACITY_CHANGED: SenseCode = code(0x6, 0x2a, 0x09);
/// UNIT ATTENTION, THIN PROVISIONING SOFT THRESHOLD REACHED.
pub const SOFT_THRESHOLD_REACHED: SenseCode = code(0x6, 0x38, 0x07);
/// UNIT ATTENTION, COMMANDS CLEARED BY ANOTHER INITIATOR.
pub const COMMANDS_CLEARED: SenseCode = code(0x6, 0x2f, 0x00);
/// UNIT ATTENTION, REPORTED LUNS DATA HAS CHANGED.
pub const REPORTED_LUNS_CHANGED: SenseCode = code(0x6, 0x3f, 0x0e);
/// DATA PROTECT, WRITE PROTECTED.
pub const WRITE_PROTECTED: SenseCode = code(0x7, 0x27, 0x00);
/// DATA PROTECT, LOGICAL UNIT SOFTWARE WRITE PROTECTED.
pub const SOFTWARE_WRITE_PROTECTED: SenseCode = code(0x7, 0x27, 0x02);
/// DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT.
pub const SPACE_ALLOCATION_FAILED: SenseCode = code(0x7, 0x27, 0x07);
/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION FAILURE.
pub const COMMUNICATION_FAILURE: SenseCode = code(0xb, 0x08, 0x00);
/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION TIME-OUT.
pub const COMMUNICATION_TIME_OUT: SenseCode = code(0xb, 0x08, 0x01);
/// MISCOMPARE, MISCOMPARE DURING VERIFY OPERATION.
pub const MISCOMPARE: SenseCode = code(0xe, 0x1d, 0x00);
