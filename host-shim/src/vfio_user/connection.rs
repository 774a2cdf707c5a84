//! One connected vfio-user client: framing and flow, without waiting.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::device::VhostPci;
use crate::log_budget::LogBudget;

use super::server::{Incoming, Outgoing, Server};
use super::socket;
use super::wire::{HEADER_LEN, Header, MAX_PAYLOAD};

/// Messages served before the caller gets a turn.
const BATCH: usize = 64;
/// Bytes that are read away at most when a connection is dropped.
const MAX_DRAIN: usize = 16 << 20;

/// What [`Connection::ready`] left to do.
#[must_use = "with More, no event will come for what is left"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing until the socket is readable, or writable, again.
    Waiting,
    /// A batch was served and more may be there: call again without waiting for the socket.
    More,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// QEMU closed it: the device was unplugged, or QEMU quit.
    #[error("the storage VM's QEMU closed the device")]
    Eof,
    /// It was closed in the middle of a message.
    #[error("the storage VM's QEMU was cut off in the middle of a message")]
    Truncated,
    /// A message said that it is shorter than its header.
    #[error("the storage VM's QEMU sent a message of {0} bytes, shorter than its header")]
    Framing(u32),
    /// The socket failed.
    #[error("the socket to the storage VM's QEMU failed: {0}")]
    Io(#[from] io::Error),
}

/// One connected vfio-user client.
///
/// Dropping it ends the connection so that QEMU survives: QEMU 11.1 aborts if its server closes
/// a socket with unread bytes in it, so no more are let in and those that are there are read.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    server: Server,
    message: Partial,
    /// A reply that did not fit into the socket, and how much of it did. Nothing is read before
    /// it is sent, so there is never a second one.
    unsent: Option<(Outgoing, usize)>,
    complaints: LogBudget,
}

/// The message being received.
#[derive(Debug, Default)]
struct Partial {
    header: [u8; HEADER_LEN],
    /// Bytes received, of header and payload.
    received: usize,
    /// The payload as far as it is kept: all of it or, if it is too long, nothing.
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
    too_many_fds: bool,
}

impl Connection {
    /// Takes over a stream that a client has just connected, and makes it non-blocking. It is to
    /// be watched for being readable and writable; edges suffice.
    ///
    /// # Errors
    /// What fcntl(2) reports.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            server: Server::default(),
            message: Partial::default(),
            unsent: None,
            complaints: LogBudget::new(Instant::now()),
        })
    }

    /// Refuses a client that has just connected: what it has asked already is answered by an
    /// error, so that it does not wait, and nothing is left unread.
    pub fn turn_away(stream: UnixStream) {
        let Ok(mut connection) = Self::new(stream) else {
            return;
        };
        if connection.stream.shutdown(Shutdown::Read).is_err() {
            return;
        }
        while let (Ok(true), Ok(true)) = (connection.flush(), connection.receive()) {
            let header = Header::parse(&connection.message.header);
            connection.message = Partial::default();
            connection.unsent = header.wants_reply().then(|| (Outgoing::refusal(header), 0));
        }
    }

    /// Reads what is there, does it at once and answers. Never waits; after a batch of messages
    /// it lets the caller have a turn ([`Progress::More`]). Call
    /// [`VhostPci::take_event`] afterwards, whatever the result.
    ///
    /// # Errors
    /// [`Closed`] if the connection is over: the device knows already, and the connection is to
    /// be dropped.
    pub fn ready(&mut self, device: &mut VhostPci) -> Result<Progress, Closed> {
        self.serve_batch(device)
            .inspect_err(|_| device.client_gone())
    }

    /// Ends the connection from our side: nothing more is let in, what QEMU has sent is still
    /// done and answered, so that it does not wait for an answer until it gives up (5 s).
    pub fn close(mut self, device: &mut VhostPci) {
        if self.stream.shutdown(Shutdown::Read).is_ok() {
            while let Ok(Progress::More) = self.serve_batch(device) {}
        }
        device.client_gone();
    }

    fn serve_batch(&mut self, device: &mut VhostPci) -> Result<Progress, Closed> {
        for _ in 0..BATCH {
            if !self.flush()? || !self.receive()? {
                return Ok(Progress::Waiting);
            }
            self.serve(device);
        }
        // The last reply may still have to be sent.
        self.flush()?;
        Ok(Progress::More)
    }

    /// Carries out the message that is complete.
    fn serve(&mut self, device: &mut VhostPci) {
        let message = &mut self.message;
        let header = Header::parse(&message.header);
        let complete = HEADER_LEN + message.payload.len() == message.received;
        let incoming = Incoming {
            header,
            payload: complete.then_some(&message.payload),
            fds: std::mem::take(&mut message.fds),
            too_many_fds: message.too_many_fds,
        };
        let (reply, refused) = self.server.serve(incoming, device);
        message.received = 0;
        message.payload.clear();
        message.too_many_fds = false;
        self.unsent = reply.map(|reply| (reply, 0));
        if let Some(reason) = refused
            && let Some(suppressed) = self.complaints.take(Instant::now())
        {
            let command = header.command;
            tracing::warn!(command, suppressed, "vfio-user command refused: {reason}");
        }
    }

    /// Sends what is left of the last reply; returns whether nothing is.
    fn flush(&mut self) -> Result<bool, Closed> {
        while let Some((message, sent)) = &mut self.unsent {
            let fd = message.fd.as_ref().map(|fd| fd.as_fd());
            match socket::send(&self.stream, &message.bytes[*sent..], fd) {
                Ok(len) => {
                    *sent += len;
                    // It went with the first byte.
                    message.fd = None;
                    if *sent == message.bytes.len() {
                        self.unsent = None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Receives the rest of a message; returns whether it is complete.
    fn receive(&mut self) -> Result<bool, Closed> {
        let mut skipped = [0; 4096];
        loop {
            let message = &mut self.message;
            // Exactly up to the end of the header, then of the message: what is read together
            // cannot be told apart when descriptors come with it.
            let to = match message.header.get_mut(message.received..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => {
                    let size = Header::parse(&message.header).size;
                    let total = usize::try_from(size).unwrap_or(usize::MAX);
                    let len = total.checked_sub(HEADER_LEN).ok_or(Closed::Framing(size))?;
                    let left = total - message.received;
                    if left == 0 {
                        return Ok(true);
                    }
                    if len <= MAX_PAYLOAD {
                        message.payload.resize(len, 0);
                        &mut message.payload[message.received - HEADER_LEN..]
                    } else {
                        &mut skipped[..left.min(4096)]
                    }
                }
            };
            match socket::receive(&self.stream, to, &mut message.fds) {
                Ok(received) => {
                    message.too_many_fds |=
                        received.too_many_fds || message.fds.len() > super::wire::MAX_FDS;
                    if message.too_many_fds {
                        message.fds.clear();
                    }
                    match (received.len, message.received) {
                        (0, 0) => return Err(Closed::Eof),
                        (0, _) => return Err(Closed::Truncated),
                        (len, _) => message.received += len,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // From here on QEMU gets EPIPE when it sends; what it sent before is read away. Errors
        // mean that the other side is gone, which is just as well.
        if self.stream.shutdown(Shutdown::Read).is_err() {
            return;
        }
        let mut bytes = [0; 4096];
        let mut drained = 0;
        while let Ok(received) = socket::receive(&self.stream, &mut bytes, &mut Vec::new()) {
            drained += received.len;
            if received.len == 0 || drained > MAX_DRAIN {
                return;
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
