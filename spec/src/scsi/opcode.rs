//! Operation codes (SPC-4, SBC-4).

/// TEST UNIT READY.
pub const TEST_UNIT_READY: u8 = 0x00;
/// REQUEST SENSE.
pub const REQUEST_SENSE: u8 = 0x03;
/// FORMAT UNIT.
pub const FORMAT_UNIT: u8 = 0x04;
/// REASSIGN BLOCKS.
pub const REASSIGN_BLOCKS: u8 = 0x07;
/// READ(6).
pub const READ_6: u8 = 0x08;
/// WRITE(6).
pub const WRITE_6: u8 = 0x0a;
/// INQUIRY.
pub const INQUIRY: u8 = 0x12;
/// MODE SELECT(6).
pub const MODE_SELECT_6: u8 = 0x15;
/// RESERVE(6) (SPC-2).
pub const RESERVE_6: u8 = 0x16;
/// RELEASE(6) (SPC-2).
pub const RELEASE_6: u8 = 0x17;
/// MODE SENSE(6).
pub const MODE_SENSE_6: u8 = 0x1a;
/// START STOP UNIT.
pub const START_STOP_UNIT: u8 = 0x1b;
/// RECEIVE DIAGNOSTIC RESULTS.
pub const RECEIVE_DIAGNOSTIC_RESULTS: u8 = 0x1c;
/// SEND DIAGNOSTIC.
pub const SEND_DIAGNOSTIC: u8 = 0x1d;
/// PREVENT ALLOW MEDIUM REMOVAL.
pub const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
/// READ CAPACITY(10).
pub const READ_CAPACITY_10: u8 = 0x25;
/// READ(10).
pub const READ_10: u8 = 0x28;
/// WRITE(10).
pub const WRITE_10: u8 = 0x2a;
/// WRITE AND VERIFY(10).
pub const WRITE_AND_VERIFY_10: u8 = 0x2e;
/// VERIFY(10).
pub const VERIFY_10: u8 = 0x2f;
/// PRE-FETCH(10).
pub const PRE_FETCH_10: u8 = 0x34;
/// SYNCHRONIZE CACHE(10).
pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
/// READ DEFECT DATA(10).
pub const READ_DEFECT_DATA_10: u8 = 0x37;
/// WRITE BUFFER.
pub const WRITE_BUFFER: u8 = 0x3b;
/// READ BUFFER(10).
pub const READ_BUFFER: u8 = 0x3c;
/// WRITE SAME(10).
pub const WRITE_SAME_10: u8 = 0x41;
/// UNMAP.
pub const UNMAP: u8 = 0x42;
/// SANITIZE; the service action says which.
pub const SANITIZE: u8 = 0x48;
/// LOG SELECT.
pub const LOG_SELECT: u8 = 0x4c;
/// LOG SENSE.
pub const LOG_SENSE: u8 = 0x4d;
/// MODE SELECT(10).
pub const MODE_SELECT_10: u8 = 0x55;
/// RESERVE(10) (SPC-2).
pub const RESERVE_10: u8 = 0x56;
/// RELEASE(10) (SPC-2).
pub const RELEASE_10: u8 = 0x57;
/// MODE SENSE(10).
pub const MODE_SENSE_10: u8 = 0x5a;
/// PERSISTENT RESERVE IN; the service action says which.
pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
/// PERSISTENT RESERVE OUT; the service action says which.
pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
/// The variable length CDB; the service action says which.
pub const VARIABLE_LENGTH: u8 = 0x7f;
/// THIRD-PARTY COPY OUT; the service action says which.
pub const THIRD_PARTY_COPY_OUT: u8 = 0x83;
/// THIRD-PARTY COPY IN; the service action says which.
pub const THIRD_PARTY_COPY_IN: u8 = 0x84;
/// READ(16).
pub const READ_16: u8 = 0x88;
/// COMPARE AND WRITE.
pub const COMPARE_AND_WRITE: u8 = 0x89;
/// WRITE(16).
pub const WRITE_16: u8 = 0x8a;
/// ORWRITE(16).
pub const ORWRITE_16: u8 = 0x8b;
/// WRITE AND VERIFY(16).
pub const WRITE_AND_VERIFY_16: u8 = 0x8e;
/// VERIFY(16).
pub const VERIFY_16: u8 = 0x8f;
/// PRE-FETCH(16).
pub const PRE_FETCH_16: u8 = 0x90;
/// SYNCHRONIZE CACHE(16).
pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
/// WRITE SAME(16).
pub const WRITE_SAME_16: u8 = 0x93;
/// WRITE ATOMIC(16).
pub const WRITE_ATOMIC_16: u8 = 0x9c;
/// SERVICE ACTION IN(16); the service action says which.
pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
/// REPORT LUNS.
pub const REPORT_LUNS: u8 = 0xa0;
/// MAINTENANCE IN; the service action says which.
pub const MAINTENANCE_IN: u8 = 0xa3;
/// MAINTENANCE OUT; the service action says which.
pub const MAINTENANCE_OUT: u8 = 0xa4;
/// READ(12).
pub const READ_12: u8 = 0xa8;
/// WRITE(12).
pub const WRITE_12: u8 = 0xaa;
/// WRITE AND VERIFY(12).
pub const WRITE_AND_VERIFY_12: u8 = 0xae;
/// VERIFY(12).
pub const VERIFY_12: u8 = 0xaf;
/// READ DEFECT DATA(12).
pub const READ_DEFECT_DATA_12: u8 = 0xb7;

/// Service actions.
pub mod service_action {
    /// Of PERSISTENT RESERVE IN: READ KEYS.
    pub const READ_KEYS: u16 = 0x00;
    /// Of PERSISTENT RESERVE IN: READ RESERVATION.
    pub const READ_RESERVATION: u16 = 0x01;
    /// Of PERSISTENT RESERVE IN: REPORT CAPABILITIES.
    pub const REPORT_CAPABILITIES: u16 = 0x02;
    /// Of PERSISTENT RESERVE IN: READ FULL STATUS.
    pub const READ_FULL_STATUS: u16 = 0x03;
    /// Of PERSISTENT RESERVE OUT: REGISTER.
    pub const REGISTER: u16 = 0x00;
    /// Of PERSISTENT RESERVE OUT: RESERVE.
    pub const RESERVE: u16 = 0x01;
    /// Of PERSISTENT RESERVE OUT: RELEASE.
    pub const RELEASE: u16 = 0x02;
    /// Of PERSISTENT RESERVE OUT: CLEAR.
    pub const CLEAR: u16 = 0x03;
    /// Of PERSISTENT RESERVE OUT: PREEMPT.
    pub const PREEMPT: u16 = 0x04;
    /// Of PERSISTENT RESERVE OUT: PREEMPT AND ABORT.
    pub const PREEMPT_AND_ABORT: u16 = 0x05;
    /// Of PERSISTENT RESERVE OUT: REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_AND_IGNORE_EXISTING_KEY: u16 = 0x06;
    /// Of PERSISTENT RESERVE OUT: REGISTER AND MOVE.
    pub const REGISTER_AND_MOVE: u16 = 0x07;
    /// Of the variable length CDB: READ(32).
    pub const READ_32: u16 = 0x0009;
    /// Of the variable length CDB: VERIFY(32).
    pub const VERIFY_32: u16 = 0x000a;
    /// Of the variable length CDB: WRITE(32).
    pub const WRITE_32: u16 = 0x000b;
    /// Of the variable length CDB: WRITE AND VERIFY(32).
    pub const WRITE_AND_VERIFY_32: u16 = 0x000c;
    /// Of the variable length CDB: WRITE SAME(32).
    pub const WRITE_SAME_32: u16 = 0x000d;
    /// Of THIRD-PARTY COPY OUT: EXTENDED COPY(LID1).
    pub const EXTENDED_COPY_LID1: u16 = 0x00;
    /// Of THIRD-PARTY COPY OUT: EXTENDED COPY(LID4).
    pub const EXTENDED_COPY_LID4: u16 = 0x01;
    /// Of THIRD-PARTY COPY OUT: POPULATE TOKEN.
    pub const POPULATE_TOKEN: u16 = 0x10;
    /// Of THIRD-PARTY COPY OUT: WRITE USING TOKEN.
    pub const WRITE_USING_TOKEN: u16 = 0x11;
    /// Of THIRD-PARTY COPY OUT: COPY OPERATION ABORT.
    pub const COPY_OPERATION_ABORT: u16 = 0x1c;
    /// Of THIRD-PARTY COPY IN: RECEIVE COPY STATUS(LID1).
    pub const RECEIVE_COPY_STATUS_LID1: u16 = 0x00;
    /// Of THIRD-PARTY COPY IN: RECEIVE COPY DATA(LID1).
    pub const RECEIVE_COPY_DATA_LID1: u16 = 0x01;
    /// Of THIRD-PARTY COPY IN: RECEIVE COPY OPERATING PARAMETERS.
    pub const RECEIVE_COPY_OPERATING_PARAMETERS: u16 = 0x03;
    /// Of THIRD-PARTY COPY IN: RECEIVE COPY FAILURE DETAILS(LID1).
    pub const RECEIVE_COPY_FAILURE_DETAILS_LID1: u16 = 0x04;
    /// Of THIRD-PARTY COPY IN: RECEIVE COPY STATUS(LID4).
    pub const RECEIVE_COPY_STATUS_LID4: u16 = 0x05;
    /// Of THIRD-PARTY COPY IN: RECEIVE COPY DATA(LID4).
    pub const RECEIVE_COPY_DATA_LID4: u16 = 0x06;
    /// Of THIRD-PARTY COPY IN: RECEIVE ROD TOKEN INFORMATION.
    pub const RECEIVE_ROD_TOKEN_INFORMATION: u16 = 0x07;
    /// Of SERVICE ACTION IN(16): READ CAPACITY(16).
    pub const READ_CAPACITY_16: u16 = 0x10;
    /// Of SERVICE ACTION IN(16): GET LBA STATUS.
    pub const GET_LBA_STATUS: u16 = 0x12;
    /// Of SANITIZE: OVERWRITE.
    pub const SANITIZE_OVERWRITE: u16 = 0x01;
    /// Of SANITIZE: BLOCK ERASE.
    pub const SANITIZE_BLOCK_ERASE: u16 = 0x02;
    /// Of SANITIZE: EXIT FAILURE MODE.
    pub const SANITIZE_EXIT_FAILURE_MODE: u16 = 0x1f;
    /// Of MAINTENANCE IN: REPORT IDENTIFYING INFORMATION.
    pub const REPORT_IDENTIFYING_INFORMATION: u16 = 0x05;
    /// Of MAINTENANCE OUT: SET IDENTIFYING INFORMATION.
    pub const SET_IDENTIFYING_INFORMATION: u16 = 0x06;
    /// Of MAINTENANCE IN: REPORT TIMESTAMP.
    pub const REPORT_TIMESTAMP: u16 = 0x0f;
    /// Of MAINTENANCE OUT: SET TIMESTAMP.
    pub const SET_TIMESTAMP: u16 = 0x0f;
    /// Of MAINTENANCE IN: REPORT TARGET PORT GROUPS.
    pub const REPORT_TARGET_PORT_GROUPS: u16 = 0x0a;
    /// Of MAINTENANCE OUT: SET TARGET PORT GROUPS.
    pub const SET_TARGET_PORT_GROUPS: u16 = 0x0a;
    /// Of MAINTENANCE IN: REPORT SUPPORTED OPERATION CODES.
    pub const REPORT_SUPPORTED_OPERATION_CODES: u16 = 0x0c;
    /// Of MAINTENANCE IN: REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    pub const REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS: u16 = 0x0d;
}
