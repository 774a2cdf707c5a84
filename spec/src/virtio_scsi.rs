//! The virtio-scsi structures that a tenant's driver puts into its rings (virtio 1.3 §5.6.6).
//!
//! Sizes are those of the default configuration, which QEMU's `vhost-user-scsi` does not let a
//! driver change: CDB 32 bytes, sense 96 bytes.

use crate::wire::{Truncated, array, le32, le64};

/// Index of the control queue.
pub const CONTROL_QUEUE: u16 = 0;
/// Index of the event queue.
pub const EVENT_QUEUE: u16 = 1;
/// Index of the first request queue.
pub const FIRST_REQUEST_QUEUE: u16 = 2;

/// Bytes of a CDB in a request (the default `cdb_size`).
pub const CDB_LEN: usize = 32;
/// Bytes of sense in a response (the default `sense_size`).
pub const SENSE_LEN: usize = 96;

/// Feature bits (virtio 1.3 §5.6.3).
pub mod feature {
    /// One request may have both data-out and data-in.
    pub const INOUT: u64 = 1 << 0;
    /// LUNs may come and go; events say so.
    pub const HOTPLUG: u64 = 1 << 1;
    /// LUN parameters may change; events say so.
    pub const CHANGE: u64 = 1 << 2;
    /// Requests may carry T10 protection information.
    pub const T10_PI: u64 = 1 << 3;
}

/// The `response` byte (virtio 1.3 §5.6.6.1).
pub mod response {
    /// The command was delivered; its status says how it ended.
    pub const OK: u8 = 0;
    /// The buffers hold fewer bytes than the command would move.
    pub const OVERRUN: u8 = 1;
    /// The command was aborted by a task management function.
    pub const ABORTED: u8 = 2;
    /// There is no such target.
    pub const BAD_TARGET: u8 = 3;
    /// The command was cancelled by a reset.
    pub const RESET: u8 = 4;
    /// The device is busy; try again.
    pub const BUSY: u8 = 5;
    /// A host or guest failure; the driver should not retry elsewhere.
    pub const TRANSPORT_FAILURE: u8 = 6;
    /// The target failed; another path may work.
    pub const TARGET_FAILURE: u8 = 7;
    /// The nexus failed; another path may work.
    pub const NEXUS_FAILURE: u8 = 8;
    /// Any other failure.
    pub const FAILURE: u8 = 9;
    /// A task management function succeeded (the task set, or the task, was there).
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    /// A task management function is not supported.
    pub const FUNCTION_REJECTED: u8 = 11;
    /// There is no such LUN.
    pub const INCORRECT_LUN: u8 = 12;
}

/// Task attributes (virtio 1.3 §5.6.6.1, `task_attr`).
pub mod task_attribute {
    /// SIMPLE.
    pub const SIMPLE: u8 = 0;
    /// ORDERED.
    pub const ORDERED: u8 = 1;
    /// HEAD OF QUEUE.
    pub const HEAD_OF_QUEUE: u8 = 2;
    /// ACA.
    pub const ACA: u8 = 3;
}

/// The header of a request: a SCSI command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Target and LUN: 1, target, LUN in SAM's flat or peripheral form.
    pub lun: [u8; 8],
    /// The driver's name for the task.
    pub tag: u64,
    /// See [`task_attribute`].
    pub task_attribute: u8,
    /// The CDB.
    pub cdb: [u8; CDB_LEN],
}

impl RequestHeader {
    /// Bytes before data-out.
    pub const LEN: usize = 19 + CDB_LEN;

    /// The header in `bytes`.
    #[inline]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut header = Self {
            lun: [0; 8],
            tag: 0,
            task_attribute: bytes[16],
            cdb: [0; CDB_LEN],
        };
        header.lun.copy_from_slice(&bytes[0..8]);
        header.tag = u64::from_le_bytes([
            bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15],
        ]);
        header.cdb.copy_from_slice(&bytes[19..]);
        header
    }

    /// Bytes before protection information and data-out where [`feature::T10_PI`] is negotiated.
    pub const TAGGED_LEN: usize = Self::LEN + 8;

    /// The header in `bytes` where [`feature::T10_PI`] is negotiated, and how many bytes of
    /// protection information come before data-out and data-in (`struct virtio_scsi_cmd_req_pi` of
    /// linux/virtio_scsi.h: they stand before the CDB).
    pub fn from_tagged_bytes(bytes: &[u8; Self::TAGGED_LEN]) -> (Self, [u32; 2]) {
        let mut plain = [0; Self::LEN];
        plain[..19].copy_from_slice(&bytes[..19]);
        plain[19..].copy_from_slice(&bytes[27..]);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (Self::from_bytes(&plain), [word(19), word(23)])
    }

    /// This header as a driver writes it where [`feature::T10_PI`] is negotiated.
    pub fn to_tagged_bytes(&self, [out, back]: [u32; 2]) -> [u8; Self::TAGGED_LEN] {
        let plain = self.to_bytes();
        let mut bytes = [0; Self::TAGGED_LEN];
        bytes[..19].copy_from_slice(&plain[..19]);
        bytes[19..23].copy_from_slice(&out.to_le_bytes());
        bytes[23..27].copy_from_slice(&back.to_le_bytes());
        bytes[27..].copy_from_slice(&plain[19..]);
        bytes
    }

    /// This header as a driver writes it.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.lun);
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16] = self.task_attribute;
        bytes[19..].copy_from_slice(&self.cdb);
        bytes
    }
}

/// The response to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Valid bytes of `sense`.
    pub sense_len: u32,
    /// Data bytes that were not transferred.
    pub residual: u32,
    /// SAM status.
    pub status: u8,
    /// See [`response`].
    pub response: u8,
    /// Sense data.
    pub sense: [u8; SENSE_LEN],
}

impl Response {
    /// Bytes before data-in.
    pub const LEN: usize = 12 + SENSE_LEN;

    /// A response as the driver reads it, with as much of `sense` as has room.
    #[inline]
    pub fn answer(response: u8, status: u8, residual: u32, sense: &[u8]) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let len = sense.len().min(SENSE_LEN);
        if len > 0 {
            bytes[12..12 + len].copy_from_slice(&sense[..len]);
            // At most SENSE_LEN.
            bytes[0..4].copy_from_slice(&u32::try_from(len).unwrap_or_default().to_le_bytes());
        }
        bytes[4..8].copy_from_slice(&residual.to_le_bytes());
        bytes[10] = status;
        bytes[11] = response;
        bytes
    }

    /// The response in `bytes`.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut sense = [0; SENSE_LEN];
        sense.copy_from_slice(&bytes[12..]);
        Self {
            sense_len: word(0),
            residual: word(4),
            status: bytes[10],
            response: bytes[11],
            sense,
        }
    }
}

/// A request on the control queue (virtio 1.3 §5.6.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A task management function; answered by one response byte.
    TaskManagement {
        /// See [`task_management`].
        function: u32,
        /// Target and LUN.
        lun: [u8; 8],
        /// Tag of the task, where the function names one.
        tag: u64,
    },
    /// Asynchronous notification query or subscribe; answered by the events (`u32`, those
    /// granted) and a response byte.
    Notification {
        /// Whether to subscribe rather than query.
        subscribe: bool,
        /// Target and LUN.
        lun: [u8; 8],
        /// Events asked for.
        events: u32,
    },
    /// A type that the standard does not define.
    Unknown(u32),
}

/// Task management functions (virtio 1.3 §5.6.6.2, `subtype`).
pub mod task_management {
    /// ABORT TASK.
    pub const ABORT_TASK: u32 = 0;
    /// ABORT TASK SET.
    pub const ABORT_TASK_SET: u32 = 1;
    /// CLEAR ACA.
    pub const CLEAR_ACA: u32 = 2;
    /// CLEAR TASK SET.
    pub const CLEAR_TASK_SET: u32 = 3;
    /// I_T NEXUS RESET.
    pub const I_T_NEXUS_RESET: u32 = 4;
    /// LOGICAL UNIT RESET.
    pub const LOGICAL_UNIT_RESET: u32 = 5;
    /// QUERY TASK.
    pub const QUERY_TASK: u32 = 6;
    /// QUERY TASK SET.
    pub const QUERY_TASK_SET: u32 = 7;
}

impl Control {
    /// Most bytes of a control request.
    pub const MAX_LEN: usize = 24;

    /// The request in the readable bytes of a control chain.
    pub fn parse(bytes: &[u8]) -> Result<Self, Truncated> {
        match le32(bytes, 0)? {
            0 => Ok(Self::TaskManagement {
                function: le32(bytes, 4)?,
                lun: array(bytes, 8)?,
                tag: le64(bytes, 16)?,
            }),
            kind @ (1 | 2) => Ok(Self::Notification {
                subscribe: kind == 2,
                lun: array(bytes, 4)?,
                events: le32(bytes, 12)?,
            }),
            unknown => Ok(Self::Unknown(unknown)),
        }
    }
}

/// Kinds of events and their details (virtio 1.3 §5.6.6.3).
pub mod event {
    /// Nothing happened, or nothing that is known.
    pub const NO_EVENT: u32 = 0;
    /// A logical unit was reset, has come or has gone; the reason says which.
    pub const TRANSPORT_RESET: u32 = 1;
    /// A parameter of a logical unit is another; the reason is the additional sense code, and the
    /// qualifier from bit 8 on.
    pub const PARAM_CHANGE: u32 = 3;
    /// Bit that goes with any kind: others were lost before it.
    pub const MISSED: u32 = 1 << 31;
    /// Reason of a transport reset: the unit has come.
    pub const RESCAN: u32 = 1;
    /// Reason of a transport reset: the unit has gone.
    pub const REMOVED: u32 = 2;
}

/// An event, as reported on the event queue (virtio 1.3 §5.6.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Kind, see [`event`].
    pub event: u32,
    /// Target and LUN.
    pub lun: [u8; 8],
    /// Detail of the kind.
    pub reason: u32,
}

impl Event {
    /// Bytes of an event.
    pub const LEN: usize = 16;

    /// This event as the driver reads it.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&self.event.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.lun);
        bytes[12..16].copy_from_slice(&self.reason.to_le_bytes());
        bytes
    }

    /// The event in `bytes`.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut lun = [0; 8];
        lun.copy_from_slice(&bytes[4..12]);
        Self {
            event: word(0),
            lun,
            reason: word(12),
        }
    }
}

const _: () = {
    assert!(RequestHeader::LEN == 51);
    assert!(Response::LEN == 108);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_header_survives_its_bytes() {
        let header = RequestHeader {
            lun: [1, 0, 0x40, 3, 0, 0, 0, 0],
            tag: 0x0102_0304_0506_0708,
            task_attribute: 1,
            cdb: [0x28; CDB_LEN],
        };
        assert_eq!(RequestHeader::from_bytes(&header.to_bytes()), header);
    }

    #[test]
    fn the_lengths_of_protection_information_stand_before_the_cdb() {
        let header = RequestHeader {
            lun: [1, 0, 0x40, 3, 0, 0, 0, 0],
            tag: 0x0102_0304_0506_0708,
            task_attribute: 1,
            cdb: [0x28; CDB_LEN],
        };
        let bytes = header.to_tagged_bytes([0x0102, 0x0304]);
        assert_eq!(bytes[16..28], [1, 0, 0, 2, 1, 0, 0, 4, 3, 0, 0, 0x28]);
        assert_eq!(
            RequestHeader::from_tagged_bytes(&bytes),
            (header, [0x0102, 0x0304])
        );
    }

    #[test]
    fn a_response_survives_its_bytes() {
        let response = Response {
            sense_len: 96,
            residual: 512,
            status: 2,
            response: response::OVERRUN,
            sense: [7; SENSE_LEN],
        };
        let bytes = Response::answer(response::OVERRUN, 2, 512, &[7; 97]);
        assert_eq!(Response::from_bytes(&bytes), response);
        let short = Response::from_bytes(&Response::answer(response::OK, 2, 0, &[7; 18]));
        assert_eq!(
            (short.sense_len, short.sense[17], short.sense[18]),
            (18, 7, 0)
        );
    }

    #[test]
    fn an_event_is_little_endian_with_its_lun_in_the_middle() {
        let capacity_changed = Event {
            event: event::PARAM_CHANGE | event::MISSED,
            lun: [1, 2, 0x41, 3, 0, 0, 0, 0],
            reason: 0x092a,
        };
        let bytes = [3, 0, 0, 0x80, 1, 2, 0x41, 3, 0, 0, 0, 0, 0x2a, 9, 0, 0];
        assert_eq!(capacity_changed.to_bytes(), bytes);
        assert_eq!(Event::from_bytes(&bytes), capacity_changed);
    }

    #[test]
    fn a_control_request_is_parsed_by_its_type() {
        let mut abort = [0; 24];
        abort[4] = 5;
        abort[8] = 1;
        abort[16] = 9;
        assert_eq!(
            Control::parse(&abort),
            Ok(Control::TaskManagement {
                function: task_management::LOGICAL_UNIT_RESET,
                lun: [1, 0, 0, 0, 0, 0, 0, 0],
                tag: 9
            })
        );
        assert_eq!(Control::parse(&abort[..23]), Err(Truncated));
        assert_eq!(Control::parse(&7u32.to_le_bytes()), Ok(Control::Unknown(7)));
    }
}
