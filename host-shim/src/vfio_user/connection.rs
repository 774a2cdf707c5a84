//! One connected vfio-user client: framing and flow, without waiting.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::device::VhostPci;
use crate::journal::{self, Journal};
use crate::kept::{Kept, KeptFd};
use crate::log_budget::LogBudget;

use super::server::{Incoming, Outgoing, Server};
use super::socket::{self, Received, Recorded};
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
/// What it has received and sent stands in its journal, so that a next supervisor goes on in
/// the middle of a message: each is carried out and answered once.
///
/// Dropping it ends the connection so that QEMU survives: QEMU 11.1 aborts if its server closes
/// a socket with unread bytes in it, so no more are let in and those that are there are read.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    server: Server,
    journal: Arc<Mutex<Journal>>,
    kept: Kept,
    /// Bytes received of the current message, and its descriptors.
    received: usize,
    fds: Vec<KeptFd>,
    too_many_fds: bool,
    /// Descriptors came that are of no use any more.
    let_go: bool,
    /// The file of a reply that is being sent.
    file: Option<KeptFd>,
    complaints: LogBudget,
    #[cfg(test)]
    pub(super) steps: super::steps::Steps,
}

impl Connection {
    /// Takes over a stream that a client has just connected, and makes it non-blocking. It is to
    /// be watched for being readable and writable; edges suffice.
    ///
    /// # Errors
    /// What fcntl(2) reports, or why memory for its journal cannot be had.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let journal = Arc::new(Mutex::new(Journal::new()?));
        Self::begin(stream, journal, Kept::alone())
    }

    /// As [`Self::new`] with a journal that outlives this process, as what is in `kept` does.
    pub(crate) fn begin(
        stream: UnixStream,
        journal: Arc<Mutex<Journal>>,
        kept: Kept,
    ) -> io::Result<Self> {
        lock(&journal).begin();
        Self::with(stream, journal, kept, Server::default())
    }

    /// Goes on with the connection of a supervisor that is gone, to the function `device`.
    pub(crate) fn resume(
        stream: UnixStream,
        journal: Arc<Mutex<Journal>>,
        kept: Kept,
        device: &VhostPci,
    ) -> io::Result<Self> {
        let region = lock(&journal).unsent().and_then(|answer| answer.region);
        let file = region.and_then(|index| device.region(index)?.mapped);
        let server = Server::resumed(device.is_open());
        let mut this = Self::with(stream, journal, kept, server)?;
        this.file = file.map(|(file, _)| file);
        Ok(this)
    }

    fn with(
        stream: UnixStream,
        journal: Arc<Mutex<Journal>>,
        kept: Kept,
        server: Server,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let incoming = lock(&journal).incoming();
        Ok(Self {
            stream,
            server,
            received: incoming.received,
            fds: incoming
                .fds
                .iter()
                .filter_map(|name| kept.get(*name))
                .collect(),
            too_many_fds: incoming.too_many_fds,
            let_go: false,
            file: None,
            journal,
            kept,
            complaints: LogBudget::new(Instant::now()),
            #[cfg(test)]
            steps: super::steps::Steps::default(),
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
            let header = connection.header();
            let refusal = header.wants_reply().then(|| Outgoing::refusal(header));
            if connection.answer(refusal, None).is_err() {
                return;
            }
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

    /// Whether descriptors came since this was asked last that [`Kept::tidy`] is to look after.
    pub(crate) fn take_let_go(&mut self) -> bool {
        std::mem::take(&mut self.let_go)
    }

    fn serve_batch(&mut self, device: &mut VhostPci) -> Result<Progress, Closed> {
        for _ in 0..BATCH {
            if !self.flush()? || !self.receive()? {
                return Ok(Progress::Waiting);
            }
            self.serve(device)?;
        }
        // The last reply may still have to be sent.
        self.flush()?;
        Ok(Progress::More)
    }

    /// Carries out the message that is complete.
    fn serve(&mut self, device: &mut VhostPci) -> io::Result<()> {
        let header = self.header();
        let len = self.received - HEADER_LEN;
        let message = (len <= MAX_PAYLOAD).then(|| self.journal().input(self.received));
        let incoming = Incoming {
            header,
            payload: message.as_ref().map(|message| &message[HEADER_LEN..]),
            fds: std::mem::take(&mut self.fds),
            too_many_fds: self.too_many_fds,
        };
        self.let_go |= !incoming.fds.is_empty();
        self.step()?;
        let (reply, refused) = self.server.serve(incoming, device);
        self.step()?;
        if let Some(reason) = refused
            && let Some(suppressed) = self.complaints.take(Instant::now())
        {
            let command = header.command;
            tracing::warn!(command, suppressed, "vfio-user command refused: {reason}");
        }
        self.answer(reply, Some(device))
    }

    /// Writes down what became of a message, and what is to be answered. From here on it is not
    /// carried out again.
    fn answer(&mut self, reply: Option<Outgoing>, device: Option<&mut VhostPci>) -> io::Result<()> {
        let mut region = None;
        let mut record = None;
        let (bytes, file) = reply.map_or((Vec::new(), None), |reply| (reply.bytes, reply.fd));
        if let Some(device) = device {
            region = file.as_ref().and_then(|file| device.region_of(file));
            if device.take_changed() {
                record = Some(device.record()?);
            }
        }
        self.journal().answer(&bytes, region, record.as_deref())?;
        self.file = file;
        self.step()
    }

    /// Sends what is left of the last reply; returns whether nothing is.
    fn flush(&mut self) -> Result<bool, Closed> {
        loop {
            let (left, sent, place) = {
                let journal = self.journal();
                let Some(answer) = journal.unsent() else {
                    return Ok(true);
                };
                let left = answer.bytes.len() - answer.sent;
                if left == 0 {
                    journal.message_done();
                    drop(journal);
                    self.received = 0;
                    self.fds.clear();
                    self.too_many_fds = false;
                    self.file = None;
                    self.step()?;
                    return Ok(true);
                }
                (left, answer.sent, journal.send())
            };
            self.step()?;
            // It goes with the first byte.
            let file = self.file.clone().filter(|_| sent == 0);
            let result = {
                let journal = self.journal();
                let recorded = Recorded {
                    memory: journal.memory(),
                    call: place.call,
                    bytes: place.bytes,
                    len: left,
                };
                recorded.send(&self.stream, file.as_ref().map(|file| file.as_fd()))
            };
            self.step()?;
            match result {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives the rest of a message; returns whether it is complete.
    fn receive(&mut self) -> Result<bool, Closed> {
        let mut peeked = [0; 4096];
        loop {
            // Exactly up to the end of the header, then of the message: what is read together
            // cannot be told apart when descriptors come with it.
            let (left, is_kept) = if self.received < HEADER_LEN {
                (HEADER_LEN - self.received, true)
            } else {
                let size = self.header().size;
                let total = usize::try_from(size).unwrap_or(usize::MAX);
                let len = total.checked_sub(HEADER_LEN).ok_or(Closed::Framing(size))?;
                if self.received == total {
                    return Ok(true);
                }
                (total - self.received, len <= MAX_PAYLOAD)
            };
            let mut fds = Vec::new();
            let to = &mut peeked[..left.min(4096)];
            let seen = match socket::peek(&self.stream, to, &mut fds) {
                Ok(seen) => seen,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            match (seen.len, self.received) {
                (0, 0) => return Err(Closed::Eof),
                (0, _) => return Err(Closed::Truncated),
                _ => {}
            }
            self.take_in(&seen, fds, is_kept)?;
        }
    }

    /// Receives what was seen, after its descriptors are where they outlive this process.
    fn take_in(&mut self, seen: &Received, fds: Vec<OwnedFd>, is_kept: bool) -> Result<(), Closed> {
        let fresh = fds.len();
        let too_many = seen.too_many_fds || self.fds.len() + fresh > super::wire::MAX_FDS;
        let too_many = too_many || self.too_many_fds;
        let mut all = self.fds.clone();
        if too_many {
            all.clear();
        } else {
            all.extend(fds.into_iter().map(|fd| self.kept.keep(fd)));
        }
        let next = journal::Incoming {
            received: self.received,
            fds: all.iter().map(KeptFd::name).collect(),
            too_many_fds: too_many,
        };
        let place = self
            .journal()
            .receive(&next, if too_many { 0 } else { fresh });
        let place = if is_kept {
            place
        } else {
            Journal::skipped(place)
        };
        self.step()?;
        let moved = {
            let journal = self.journal();
            let recorded = Recorded {
                memory: journal.memory(),
                call: place.call,
                bytes: place.bytes,
                len: seen.len,
            };
            recorded.receive(&self.stream)
        };
        self.step()?;
        self.let_go |= too_many && !self.fds.is_empty();
        // What was seen is there: nobody else reads.
        self.received += moved?;
        self.fds = all;
        self.too_many_fds = too_many;
        Ok(())
    }

    fn header(&self) -> Header {
        let bytes = self.journal().input(HEADER_LEN);
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&bytes);
        Header::parse(&header)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    /// A moment at which the process may be killed; tests do it.
    #[cfg(test)]
    fn step(&mut self) -> io::Result<()> {
        self.steps.next()
    }

    #[cfg(not(test))]
    fn step(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
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
