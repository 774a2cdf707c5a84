//! How one command ended, as far as it is counted.

use std::time::Instant;

use spec::virtio_scsi::response;

use crate::scsi::Answer;

/// Bytes of a CDB that are kept of it.
pub(crate) const CDB: usize = 32;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// What it was.
    pub cdb: [u8; CDB],
    /// When it was begun.
    pub since: Instant,
    /// When its disk was given it, if it had to wait for that.
    pub begun: Option<Instant>,
    /// The virtio-scsi response.
    pub response: u8,
    /// SAM status.
    pub status: u8,
    /// The sense key, with CHECK CONDITION.
    pub key: Option<u8>,
    /// ASC and ASCQ, with CHECK CONDITION.
    pub code: (u8, u8),
    /// Bytes that the tenant got.
    pub read: u64,
    /// Bytes that the tenant gave.
    pub written: u64,
}

impl Ending {
    /// That of a command which a virtio-scsi response other than OK ended.
    pub fn failed(cdb: [u8; CDB], since: Instant, response: u8) -> Self {
        Self {
            cdb,
            since,
            begun: None,
            response,
            status: 0,
            key: None,
            code: (0, 0),
            read: 0,
            written: 0,
        }
    }

    /// That of a command which moved just what its buffers have room for, and was begun and is over
    /// in one turn of the loop.
    #[inline]
    pub fn moved(cdb: [u8; CDB], now: Instant, (data_out, data_in): (usize, usize)) -> Self {
        Self {
            read: data_in as u64,
            written: data_out as u64,
            ..Self::failed(cdb, now, response::OK)
        }
    }

    /// That of a command which was answered, with buffers of these lengths.
    pub fn answered(
        cdb: [u8; CDB],
        since: Instant,
        answer: &Answer,
        (data_out, data_in): (usize, usize),
    ) -> Self {
        let moved = |len: usize| (len as u64).saturating_sub(answer.residual.into());
        let (key, code) = match *answer.sense {
            // SPC-4, fixed and descriptor format sense data.
            [
                // The first bit says whether INFORMATION has a meaning.
                0x70 | 0x71 | 0xf0 | 0xf1,
                _,
                key,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                asc,
                ascq,
                ..,
            ] => (Some(key & 0xf), (asc, ascq)),
            [0x72 | 0x73, key, asc, ascq, ..] => (Some(key & 0xf), (asc, ascq)),
            _ => (None, (0, 0)),
        };
        Self {
            cdb,
            since,
            begun: None,
            response: response::OK,
            status: answer.status,
            key,
            code,
            read: moved(data_in),
            written: if data_in == 0 { moved(data_out) } else { 0 },
        }
    }

    /// Whether it was GOOD.
    pub fn is_good(&self) -> bool {
        self.response == response::OK && self.status == spec::scsi::status::GOOD
    }
}
