//! A vhost-user frontend: the messages of the tenant's QEMU, one function each.
//!
//! Crate `vhost` has one too, but it neither leaves out a reply nor sends what is wrong, and a
//! test of the shim's patience needs both.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::readiness::readable;
use super::tenant_memory::Region;

/// Message codes of the vhost-user protocol.
pub mod request {
    #![expect(missing_docs, reason = "the names are those of the protocol's text")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Protocol feature bits.
pub mod protocol {
    /// Several queues.
    pub const MQ: u64 = 1 << 0;
    /// SET_LOG_BASE with a file.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// Replies on request.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// RESET_DEVICE.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// ADD_MEM_REG and REM_MEM_REG.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// Guest-physical addresses in place of QEMU's own.
    pub const GPA_ADDRESSES: u64 = 1 << 21;
}

const HEADER_LEN: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the payload of SET_VRING_KICK, CALL and ERR: no file descriptor comes along.
const NO_FD: u64 = 1 << 8;
/// How long a reply may take unless a test says otherwise; longer than any deadline of World.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a message got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The backend answered "no".
    #[error("the backend refused vhost-user request {request} (status {status})")]
    Refused {
        /// Code of the request.
        request: u32,
        /// What it answered.
        status: u64,
    },
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Closed,
    /// No answer came in time.
    #[error("no answer to vhost-user request {request}")]
    Timeout {
        /// Code of the request.
        request: u32,
    },
    /// The answer is not one.
    #[error("not a reply to vhost-user request {request}: {reason}")]
    BadReply {
        /// Code of the request.
        request: u32,
        /// What is wrong.
        reason: String,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for FrontendError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

type Result<T> = std::result::Result<T, FrontendError>;

/// Where a vring is, in the addresses of the frontend.
#[derive(Debug, Clone, Copy)]
pub struct VringAddress {
    /// Descriptor table.
    pub descriptor: u64,
    /// Used ring.
    pub used: u64,
    /// Avail ring.
    pub avail: u64,
}

/// In-flight memory as the backend gave it.
#[derive(Debug)]
pub struct Inflight {
    /// Bytes of all regions.
    pub len: u64,
    /// Offset of the first in the file.
    pub offset: u64,
    /// Rings.
    pub rings: u16,
    /// Most entries of a ring.
    pub entries: u16,
    /// The file.
    pub file: File,
}

impl Inflight {
    fn payload(len: u64, offset: u64, rings: u16, entries: u16) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend(len.to_le_bytes());
        payload.extend(offset.to_le_bytes());
        payload.extend(rings.to_le_bytes());
        payload.extend(entries.to_le_bytes());
        payload.extend([0; 4]);
        payload
    }
}

/// One vhost-user connection.
pub struct Frontend {
    stream: UnixStream,
    /// Messages until the connection is dropped.
    left: Cell<u32>,
    /// Whether REPLY_ACK was negotiated.
    pub reply_ack: bool,
}

impl Frontend {
    /// A frontend on `stream`, before any message.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            left: Cell::new(u32::MAX),
            reply_ack: false,
        }
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends `messages` more messages and hangs up, as a QEMU does that is killed meanwhile.
    pub fn hang_up_after(&self, messages: u32) {
        self.left.set(messages);
    }

    /// Asks for a `u64`.
    ///
    /// # Errors
    /// No, or no proper, answer.
    pub fn get(&self, request: u32) -> Result<u64> {
        self.send(request, 0, &[], &[])?;
        self.reply_u64(request)
    }

    /// Sets a `u64`.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set(&self, request: u32, value: u64) -> Result<()> {
        self.acknowledged(request, &value.to_le_bytes(), &[])
    }

    /// A message without payload that has no reply.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn tell(&self, request: u32) -> Result<()> {
        self.send(request, 0, &[], &[])
    }

    /// SET_VRING_NUM, BASE or ENABLE.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set_vring(&self, request: u32, ring: u32, value: u32) -> Result<()> {
        self.acknowledged(request, &words(&[ring, value]), &[])
    }

    /// SET_VRING_KICK, CALL or ERR.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set_vring_fd(&self, request: u32, ring: u32, fd: Option<&EventFd>) -> Result<()> {
        let flag = if fd.is_none() { NO_FD } else { 0 };
        let fds: Vec<_> = fd.map(AsRawFd::as_raw_fd).into_iter().collect();
        self.acknowledged(request, &(u64::from(ring) | flag).to_le_bytes(), &fds)
    }

    /// SET_VRING_ADDR.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set_vring_address(&self, ring: u32, address: VringAddress) -> Result<()> {
        self.set_vring_address_and_log(ring, address, None)
    }

    /// As [`Self::set_vring_address`], with the guest address under which changes of the used ring
    /// are to be logged.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set_vring_address_and_log(
        &self,
        ring: u32,
        address: VringAddress,
        log: Option<u64>,
    ) -> Result<()> {
        let mut payload = words(&[ring, u32::from(log.is_some())]);
        let log = log.unwrap_or(0);
        for field in [address.descriptor, address.used, address.avail, log] {
            payload.extend(field.to_le_bytes());
        }
        self.acknowledged(request::SET_VRING_ADDR, &payload, &[])
    }

    /// GET_VRING_BASE without waiting for the answer.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn ask_vring_base(&self, ring: u32) -> Result<()> {
        self.send(request::GET_VRING_BASE, 0, &words(&[ring, 0]), &[])
    }

    /// The answer to [`Self::ask_vring_base`].
    ///
    /// # Errors
    /// No, or no proper, answer.
    pub fn vring_base(&self, ring: u32) -> Result<u32> {
        let (payload, _) = self.reply(request::GET_VRING_BASE)?;
        match payload[..] {
            [a, b, c, d, w, x, y, z] if u32::from_le_bytes([a, b, c, d]) == ring => {
                Ok(u32::from_le_bytes([w, x, y, z]))
            }
            _ => Err(FrontendError::BadReply {
                request: request::GET_VRING_BASE,
                reason: format!("payload {payload:?}"),
            }),
        }
    }

    /// SET_MEM_TABLE with the regions of one file.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set_mem_table(&self, regions: &[(Region, &File)], user: fn(u64) -> u64) -> Result<()> {
        let mut payload = words(&[u32::try_from(regions.len()).unwrap_or(u32::MAX), 0]);
        for (region, _) in regions {
            payload.extend(region_bytes(region, user));
        }
        let fds: Vec<_> = regions.iter().map(|(_, file)| file.as_raw_fd()).collect();
        self.acknowledged(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// ADD_MEM_REG.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn add_mem_reg(&self, region: &Region, file: &File, user: fn(u64) -> u64) -> Result<()> {
        let mut payload = words(&[0, 0]);
        payload.extend(region_bytes(region, user));
        self.acknowledged(request::ADD_MEM_REG, &payload, &[file.as_raw_fd()])
    }

    /// REM_MEM_REG.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn rem_mem_reg(&self, region: &Region, user: fn(u64) -> u64) -> Result<()> {
        let mut payload = words(&[0, 0]);
        payload.extend(region_bytes(region, user));
        self.acknowledged(request::REM_MEM_REG, &payload, &[])
    }

    /// SET_LOG_BASE, which is always answered.
    ///
    /// # Errors
    /// No, or no proper, answer.
    pub fn set_log_base(&self, file: &File, offset: u64, len: u64) -> Result<()> {
        let request = request::SET_LOG_BASE;
        let payload = [len.to_le_bytes(), offset.to_le_bytes()].concat();
        self.send(request, 0, &payload, &[file.as_raw_fd()])?;
        self.reply(request).map(drop)
    }

    /// GET_INFLIGHT_FD; nothing if the backend has none for so many rings and entries.
    ///
    /// # Errors
    /// No, or no proper, answer.
    pub fn get_inflight(&self, rings: u16, entries: u16) -> Result<Option<Inflight>> {
        let request = request::GET_INFLIGHT_FD;
        self.send(request, 0, &Inflight::payload(0, 0, rings, entries), &[])?;
        let (payload, file) = self.reply(request)?;
        let u64_at = |at: usize| {
            let bytes = payload.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        match (u64_at(0), u64_at(8), file) {
            (Some(0), ..) => Ok(None),
            (Some(len), Some(offset), Some(file)) => Ok(Some(Inflight {
                len,
                offset,
                rings,
                entries,
                file,
            })),
            _ => Err(FrontendError::BadReply {
                request,
                reason: format!("payload {payload:?}"),
            }),
        }
    }

    /// SET_INFLIGHT_FD.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn set_inflight(&self, memory: &Inflight) -> Result<()> {
        let Inflight {
            len,
            offset,
            rings,
            entries,
            ref file,
        } = *memory;
        let payload = Inflight::payload(len, offset, rings, entries);
        self.acknowledged(request::SET_INFLIGHT_FD, &payload, &[file.as_raw_fd()])
    }

    /// Sends a message, and waits for its acknowledgement if REPLY_ACK was negotiated.
    ///
    /// # Errors
    /// No, or no good, answer where REPLY_ACK wants one.
    pub fn acknowledged(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        let flags = if self.reply_ack { NEED_REPLY } else { 0 };
        self.send(request, flags, payload, fds)?;
        if !self.reply_ack {
            return Ok(());
        }
        match self.reply_u64(request)? {
            0 => Ok(()),
            status => Err(FrontendError::Refused { request, status }),
        }
    }

    /// Whether the backend says anything, or hangs up, within `timeout`.
    ///
    /// # Errors
    /// What epoll(7) reports.
    pub fn answers_within(&self, timeout: Duration) -> io::Result<bool> {
        readable(&self.stream, timeout)
    }

    fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.stream.shutdown(Shutdown::Both)?,
        }
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut message = words(&[request, VERSION | flags, len]);
        message.extend(payload);
        if fds.is_empty() {
            (&self.stream).write_all(&message)?;
        } else {
            let sent = self
                .stream
                .send_with_fds(&[&message[..]], fds)
                .map_err(io::Error::from)?;
            (&self.stream).write_all(&message[sent..])?;
        }
        Ok(())
    }

    fn reply_u64(&self, request: u32) -> Result<u64> {
        let (payload, _) = self.reply(request)?;
        let bytes = payload[..]
            .try_into()
            .map_err(|_| FrontendError::BadReply {
                request,
                reason: format!("{} payload bytes in place of 8", payload.len()),
            })?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn reply(&self, request: u32) -> Result<(Vec<u8>, Option<File>)> {
        let mut header = [0; HEADER_LEN];
        let file = self.receive(request, &mut header)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if word(0) != request || word(4) & REPLY == 0 {
            return Err(FrontendError::BadReply {
                request,
                reason: format!("request {} with flags {:#x}", word(0), word(4)),
            });
        }
        let mut payload = vec![0; word(8) as usize];
        self.receive(request, &mut payload)?;
        Ok((payload, file))
    }

    fn receive(&self, request: u32, bytes: &mut [u8]) -> Result<Option<File>> {
        let mut done = 0;
        let mut kept = None;
        while done < bytes.len() {
            if !readable(&self.stream, PATIENCE)? {
                return Err(FrontendError::Timeout { request });
            }
            let (n, file) = self
                .stream
                .recv_with_fd(&mut bytes[done..])
                .map_err(io::Error::from)?;
            if n == 0 {
                return Err(FrontendError::Closed);
            }
            done += n;
            kept = file.or(kept);
        }
        Ok(kept)
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn region_bytes(region: &Region, user: fn(u64) -> u64) -> Vec<u8> {
    [region.gpa, region.len, user(region.gpa), region.offset]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}
