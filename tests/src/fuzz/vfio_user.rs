//! Any byte stream, with any descriptors, on the vfio-user socket, in the middle of a session.
//!
//! The function answers each command that wants an answer once, in order, and with no more bytes
//! than QEMU has room for; nothing blocks, and no descriptor stays behind.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use appliance::memory::Mapping;
use arbitrary::Arbitrary;
use host_shim::device::{DeviceEvent, Profile, Refusal, VhostPci};
use host_shim::vfio_user::{Connection, Progress};
use spec::mailbox::{Request, RingSetup};
use spec::session::{self, MemoryEntry};
use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::residue::Residue;
use crate::world::TenantMemory;

/// Bytes of a message's header.
const HEADER_LEN: usize = 16;
/// Most bytes of one message: more than the server keeps.
const MAX_MESSAGE: usize = 32 << 10;
/// Bytes of the tenant's memory.
const TENANT_LEN: u64 = 1 << 20;
/// A reply, and one that says that the command failed.
const REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;
const NO_REPLY: u32 = 1 << 4;

#[derive(Debug, Arbitrary)]
struct Input {
    hangs_up: bool,
    greets: bool,
    #[arbitrary(with = super::until_empty)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Message {
        id: u16,
        command: u8,
        flags: Flags,
        body: Body,
        /// What the size field says too much or too little.
        size: Option<i16>,
        fds: u8,
        kind: Kind,
    },
    Bytes(#[arbitrary(with = super::counted)] Vec<u8>),
    Post(Asked),
    Publish(Vec<(u16, u16, u16)>),
    Kick(u16),
    Refuse,
    FrontendUp(bool),
    ForgiveRings,
    Doze,
    /// The appliance writes into session memory.
    Scribble {
        at: u32,
        #[arbitrary(with = super::counted)]
        bytes: Vec<u8>,
    },
    /// The appliance writes the reply slot, and then the register.
    Answer {
        operation: u16,
        len: u8,
        status: u8,
        sequence: i8,
        payload: u32,
    },
    /// Back to what an appliance does first.
    Attach,
}

#[derive(Debug, Arbitrary)]
enum Flags {
    Command,
    NoReply,
    Wild(u32),
}

#[derive(Debug, Arbitrary)]
enum Body {
    Bytes(#[arbitrary(with = super::counted)] Vec<u8>),
    Words(Vec<u32>),
    Access {
        region: u8,
        offset: u16,
        count: u8,
        #[arbitrary(with = super::counted)]
        data: Vec<u8>,
    },
    Irqs {
        flags: u8,
        index: u8,
        start: u8,
        count: u8,
    },
    Zeros(u16),
}

#[derive(Debug, Arbitrary)]
enum Kind {
    Event,
    Null,
    Full,
}

#[derive(Debug, Arbitrary)]
enum Asked {
    Features(u64),
    Memory(u32),
    Start { ring: u16, size: u8 },
    Stop(u16),
    Reset,
    Disconnect,
}

/// The commands that the protocol has.
const COMMANDS: [u16; 14] = [1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 9, 10, 8, 10];

/// The client's end, and what it is owed.
struct Client {
    stream: UnixStream,
    /// What was sent and has not been seen to be a message yet.
    sent: Vec<u8>,
    /// Commands that are owed a reply: id, command, and most bytes of it.
    owed: VecDeque<(u16, u16, usize)>,
    received: Vec<u8>,
    /// Nothing more is owed: framing is lost.
    is_broken: bool,
}

impl Client {
    fn send(&mut self, bytes: &[u8], fds: &[Box<dyn AsRawFd>]) {
        let mut rest = bytes;
        if !fds.is_empty() && !bytes.is_empty() {
            let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
            match self.stream.send_with_fds(&[bytes], &raw) {
                Ok(len) => rest = &bytes[len..],
                Err(_) => return,
            }
        }
        let mut done = bytes.len() - rest.len();
        while done < bytes.len() {
            match self.stream.write(&bytes[done..]) {
                Ok(len) => done += len,
                Err(_) => break,
            }
        }
        self.sent.extend(&bytes[..done]);
        self.parse_sent();
    }

    /// Finds the messages in what was sent.
    fn parse_sent(&mut self) {
        while !self.is_broken && self.sent.len() >= HEADER_LEN {
            let field = |at| u32::from_le_bytes(word(&self.sent, at));
            let size = usize::try_from(field(4)).expect("64 bits");
            if size < HEADER_LEN {
                self.is_broken = true;
                return;
            }
            if self.sent.len() < size {
                return;
            }
            let [a, b, c, d] = word(&self.sent, 0);
            let (id, command) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            let flags = field(8);
            let body = &self.sent[HEADER_LEN..size];
            let length = |at: usize| match body.get(at..at + 4) {
                Some(_) => usize::try_from(u32::from_le_bytes(word(body, at))).expect("64 bits"),
                None => 0,
            };
            // What QEMU has room for: as much as it sent, as it said (argsz), or as it reads.
            let room = match command {
                // These it asks with as many bytes as the answer has.
                4 | 7 => size.max(2 * HEADER_LEN),
                5 => size.max(HEADER_LEN.saturating_add(length(0))),
                9 => size.saturating_add(length(12)),
                _ => size,
            };
            if flags & 0xf == 0 && flags & NO_REPLY == 0 {
                self.owed.push_back((id, command, room));
            }
            self.sent.drain(..size);
        }
    }

    /// Takes the replies that are there.
    fn receive(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.recv_with_fd(&mut bytes) {
                Ok((0, _)) => break,
                Ok((len, _fd)) => self.received.extend(&bytes[..len]),
                Err(_) => break,
            }
        }
        while self.received.len() >= HEADER_LEN {
            let field = |at| u32::from_le_bytes(word(&self.received, at));
            let (size, flags, errno) = (field(4), field(8), field(12));
            let size = usize::try_from(size).expect("64 bits");
            assert!(size >= HEADER_LEN, "a reply shorter than its header");
            if self.received.len() < size {
                return;
            }
            let [a, b, c, d] = word(&self.received, 0);
            let got = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            let (id, command, room) = self.owed.pop_front().expect("a reply nobody waits for");
            assert_eq!(got, (id, command), "the reply to another command");
            assert_eq!(flags & REPLY, REPLY, "a reply that says it is none");
            let failed = flags & ERROR != 0;
            assert_eq!(failed, errno != 0, "errno {errno} with flags {flags:#x}");
            assert!(
                size <= room,
                "{size} bytes answer {command}, QEMU has room for {room}"
            );
            self.received.drain(..size);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes[at..at + 4].try_into().expect("four bytes")
}

pub(super) fn run(bytes: &[u8]) {
    let Some(input) = super::parse::<Input>(bytes) else {
        return;
    };
    let before = Residue::now();
    serve(input);
    assert_eq!(Residue::now().fds, before.fds, "descriptors stay behind");
}

fn serve(input: Input) {
    let memory = TenantMemory::new(&[(0, TENANT_LEN)], true).expect("tenant RAM");
    let mut device = VhostPci::new(&Profile::new("hba0", Uuid::nil())).expect("a function");
    let file = memory.file().try_clone().expect("a descriptor");
    device
        .set_tenant_memory(OwnedFd::from(file))
        .expect("sealed memory");
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    let mut connection = Some(Connection::new(theirs).expect("a connection"));
    let mut client = Client {
        stream: ours,
        sent: Vec::new(),
        owed: VecDeque::new(),
        received: Vec::new(),
        is_broken: false,
    };
    let mut session = None;
    if input.greets {
        client.send(&message(0, 1, 0, &version(), 0), &[]);
        pump(&mut connection, &mut device, &mut client);
        session = map_session(&mut connection, &mut device, &mut client);
    }
    for step in input.steps.into_iter().take(100) {
        match step {
            Step::Post(asked) => drop(device.post(request(asked))),
            Step::Publish(entries) => {
                let entries: Vec<_> = entries
                    .into_iter()
                    .map(|(at, len, offset)| MemoryEntry {
                        guest_address: u64::from(at) << 12,
                        len: u64::from(len) << 8,
                        bar_offset: u64::from(offset) << 8,
                    })
                    .collect();
                let is_inside = entries
                    .iter()
                    .all(|entry| entry.len != 0 && entry.bar_offset + entry.len <= TENANT_LEN);
                let published = device.publish_memory(&entries).is_ok();
                assert_eq!(
                    published,
                    is_inside && entries.len() <= session::MEMORY_SLOTS
                );
            }
            Step::Kick(ring) => device.kick(ring),
            Step::Refuse => device.refuse(Refusal::Timeout),
            Step::FrontendUp(up) => device.set_frontend_up(up),
            Step::ForgiveRings => device.clear_ring_errors(),
            Step::Doze => {
                let mut rings = Vec::new();
                if device.arm() {
                    device.collect_calls(|ring| rings.push(ring));
                    assert!(!rings.is_empty(), "a call came, but for no ring");
                }
                device.disarm();
            }
            Step::Scribble { at, bytes } => {
                if let Some(session) = &session {
                    scribble(session, at, &bytes);
                }
            }
            Step::Attach => attach(&mut client),
            Step::Answer {
                operation,
                len,
                status,
                sequence,
                payload,
            } => {
                // The device's own number is in its registers; it starts at 1 and counts.
                let sequence = u32::from(sequence.unsigned_abs());
                let slot = [
                    sequence,
                    operation.into(),
                    len.into(),
                    status.into(),
                    payload,
                ];
                if let Some(session) = &session {
                    scribble(session, 0x2000, &words(&slot));
                }
                register(&mut client, spec::device::MAILBOX_REPLY, sequence);
            }
            Step::Bytes(bytes) => client.send(&bytes[..bytes.len().min(MAX_MESSAGE)], &[]),
            Step::Message {
                id,
                command,
                flags,
                body,
                size,
                fds,
                kind,
            } => {
                let command = match command {
                    0..200 => COMMANDS[usize::from(command) % COMMANDS.len()],
                    wild => wild.into(),
                };
                let flags = match flags {
                    Flags::Command => 0,
                    Flags::NoReply => NO_REPLY,
                    Flags::Wild(flags) => flags,
                };
                let bytes = message(id, command, flags, &payload(body), size.unwrap_or(0));
                let fds: Vec<_> = (0..fds % 24).filter_map(|_| descriptor(&kind)).collect();
                client.send(&bytes, &fds);
            }
        }
        pump(&mut connection, &mut device, &mut client);
    }
    if input.hangs_up {
        client.stream.shutdown(Shutdown::Both).expect("a socket");
    } else if let Some(connection) = connection.take() {
        connection.close(&mut device);
        client.receive();
        if !client.is_broken && client.sent.is_empty() {
            assert!(client.owed.is_empty(), "{:?} without a reply", client.owed);
        }
    }
    pump(&mut connection, &mut device, &mut client);
    drop(connection);
    assert!(
        !device.backend_up() || !input.hangs_up,
        "attached to nobody"
    );
}

/// Lets the function do what it was asked, and its owner what a supervisor does then.
fn pump(connection: &mut Option<Connection>, device: &mut VhostPci, client: &mut Client) {
    // Each turn serves messages or ends; what a client can send at once is soon served.
    for _ in 0..1000 {
        let Some(open) = connection else { return };
        let progress = open.ready(device);
        let mut events = 0;
        while let Some(event) = device.take_event() {
            events += 1;
            assert!(events < 1000, "events without end");
            if let DeviceEvent::Reply { sequence } = event
                && device.reply(sequence).is_err()
            {
                device.refuse(Refusal::BadReply);
            }
        }
        client.receive();
        match progress {
            Ok(Progress::Waiting) => return,
            Ok(Progress::More) => {}
            Err(_) => {
                *connection = None;
                client.owed.clear();
                client.is_broken = true;
                return;
            }
        }
    }
    panic!("the function never comes to rest");
}

/// Session memory, as the storage VM's QEMU maps it.
fn map_session(
    connection: &mut Option<Connection>,
    device: &mut VhostPci,
    client: &mut Client,
) -> Option<Mapping> {
    let mut body = words(&[64, 0, 4, 0]);
    body.extend([0; 48]);
    // Asked without `pump`, which would let the descriptor go.
    client.send(&message(1, 5, 0, &body, 0), &[]);
    let _ = connection.as_mut()?.ready(device);
    let mut reply = [0; 128];
    let (_, file) = client.stream.recv_with_fd(&mut reply).ok()?;
    client.owed.clear();
    let len = usize::try_from(session::LEN).expect("128 KiB");
    let file = file.expect("the descriptor of BAR4");
    Some(Mapping::new(file.as_fd(), 0, len, None).expect("a mapping"))
}

fn attach(client: &mut Client) {
    let fds: Vec<_> = (0..4).filter_map(|_| descriptor(&Kind::Event)).collect();
    let irqs = message(2, 8, 0, &words(&[20, 1 << 2 | 1 << 5, 1, 0, 4]), 0);
    client.send(&irqs, &fds);
    register(
        client,
        spec::device::DRIVER_VERSION,
        spec::version::CURRENT.to_register(),
    );
    register(
        client,
        spec::device::STATUS,
        spec::device::status::BACKEND_UP,
    );
}

fn register(client: &mut Client, offset: u64, value: u32) {
    let mut body = offset.to_le_bytes().to_vec();
    body.extend(words(&[0, 4, value]));
    client.send(&message(3, 10, 0, &body, 0), &[]);
}

fn scribble(session: &Mapping, at: u32, bytes: &[u8]) {
    let at = u64::from(at) % session::LEN;
    let left = usize::try_from(session::LEN - at).expect("128 KiB");
    let bytes = &bytes[..bytes.len().min(left)];
    if let Some(slice) = session.slice(at, bytes.len()) {
        slice.copy_from(bytes);
    }
}

fn request(asked: Asked) -> Request {
    match asked {
        Asked::Features(features) => Request::SetFeatures { features },
        Asked::Memory(generation) => Request::SetMemory { generation },
        Asked::Start { ring, size } => Request::StartRing(RingSetup {
            ring,
            size: 1 << (size % 16),
            base: None,
            inflight: None,
            descriptor_table: 0,
            avail_ring: 0x1000,
            used_ring: 0x2000,
        }),
        Asked::Stop(ring) => Request::StopRing { ring },
        Asked::Reset => Request::Reset,
        Asked::Disconnect => Request::Disconnect,
    }
}

fn version() -> Vec<u8> {
    let mut payload = vec![0; 4];
    // As long as QEMU's, whose reply must not be longer.
    payload.extend(br#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535}}"#);
    payload.push(0);
    payload
}

fn payload(body: Body) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes,
        Body::Words(list) => words(&list),
        Body::Access {
            region,
            offset,
            count,
            data,
        } => {
            let mut payload = u64::from(offset).to_le_bytes().to_vec();
            payload.extend(words(&[u32::from(region % 10), u32::from(count)]));
            payload.extend(data);
            payload
        }
        Body::Irqs {
            flags,
            index,
            start,
            count,
        } => words(&[20, flags.into(), index.into(), start.into(), count.into()]),
        Body::Zeros(len) => vec![0; len.into()],
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn message(id: u16, command: u16, flags: u32, payload: &[u8], off: i16) -> Vec<u8> {
    let payload = &payload[..payload.len().min(MAX_MESSAGE)];
    let size = u32::try_from(HEADER_LEN + payload.len()).expect("bounded");
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(command.to_le_bytes());
    bytes.extend(words(&[size.wrapping_add_signed(off.into()), flags, 0]));
    bytes.extend(payload);
    bytes
}

fn descriptor(kind: &Kind) -> Option<Box<dyn AsRawFd>> {
    Some(match kind {
        Kind::Null => Box::new(std::fs::File::open("/dev/null").ok()?),
        Kind::Event => Box::new(EventFd::new(EFD_NONBLOCK).ok()?),
        Kind::Full => {
            // A write to it would block.
            let event = EventFd::new(0).ok()?;
            event.write(u64::MAX - 1).ok()?;
            Box::new(event)
        }
    })
}
