//! Any byte stream, with any descriptors, on the vhost-user socket, before and during a session.
//!
//! The shim lets the connection end in bounded time, a neighbour notices nothing, and the next
//! tenant is served.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use arbitrary::Arbitrary;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::patience::{PATIENCE, read_first, write_first};
use super::residue::Residue;
use crate::world::{BLOCK, Lun, MIB, Region, Shape, Tenant, World, readable};

/// Runs after which a tenant of good manners is served, and what stays behind is counted.
const PROBE: u32 = 32;
/// Descriptors that may be there beside those of the first time: of a connection that is being
/// let go, and of one that has just come.
const MARGIN: usize = 64;
/// What the neighbour has on its disk.
const NEIGHBOUR: [u8; BLOCK] = [0x77; BLOCK];

#[derive(Debug, Arbitrary)]
struct Input {
    half_closes: bool,
    /// What was said before, in good manners.
    before: Before,
    #[arbitrary(with = super::until_empty)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Before {
    Nothing,
    Connected,
    Started,
    Stopped,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Message {
        request: u8,
        flags: Option<u32>,
        payload: Payload,
        size: Option<i16>,
        fds: Vec<Fd>,
    },
    Bytes(#[arbitrary(with = super::counted)] Vec<u8>),
    Kick(bool),
    /// What the shim has said is read.
    Listen,
}

#[derive(Debug, Arbitrary)]
enum Payload {
    U64(u64),
    Small(u8),
    State {
        ring: u8,
        value: u16,
    },
    Address {
        ring: u8,
        descriptors: u16,
        used: u16,
        avail: u16,
        base: Option<u64>,
    },
    Region(Area),
    Table(Vec<Area>),
    Bytes(#[arbitrary(with = super::counted)] Vec<u8>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Area {
    /// In pages.
    gpa: u16,
    len: u16,
    offset: u16,
    wild: Option<u64>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Fd {
    Memory,
    Event,
    Unsealed,
    Null,
    Socket,
}

struct Stage {
    neighbour: Tenant,
    world: World,
    runs: u32,
    residue: Residue,
}

impl Stage {
    fn new() -> Self {
        let world = World::new()
            .lun(Lun::file(MIB))
            .another_hba()
            .lun(Lun::file(MIB))
            .drain_timeout(Duration::from_secs(1))
            .start();
        let mut neighbour = world.tenant_of(1, Shape::default());
        write_first(neighbour.initiator(), &NEIGHBOUR);
        serve(&world);
        Self {
            neighbour,
            world,
            runs: 0,
            residue: Residue::now(),
        }
    }
}

/// A tenant of good manners comes, reads and goes.
fn serve(world: &World) {
    read_first(world.tenant().initiator());
}

thread_local! {
    /// The same for all runs, since it takes long to set up; it ends in order with its thread.
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

pub(super) fn run(bytes: &[u8]) {
    let Some(input) = super::parse::<Input>(bytes) else {
        return;
    };
    STAGE.with_borrow_mut(|stage| stage.get_or_insert_with(Stage::new).run(input));
}

impl Stage {
    fn run(&mut self, input: Input) {
        speak(&self.world, input);
        assert_eq!(read_first(self.neighbour.initiator()), NEIGHBOUR);
        self.runs += 1;
        if self.runs.is_multiple_of(PROBE) {
            serve(&self.world);
            self.residue.wait_for_at_most(MARGIN);
        }
    }
}

fn speak(world: &World, input: Input) {
    let mut tenant = world.tenant_not_started(Shape {
        memory: vec![(0, MIB), (4 * MIB, MIB)],
        ring_size: 16,
        ..Shape::default()
    });
    // The shim may still be letting the last connection go, and then takes its time.
    if tenant.connect().is_err() {
        return;
    }
    match input.before {
        Before::Nothing | Before::Connected => {}
        Before::Started => drop(tenant.start()),
        Before::Stopped => drop(tenant.start().and_then(|()| tenant.stop())),
    }
    let stream = tenant.frontend().stream();
    stream.set_nonblocking(true).expect("a socket");
    let mut said = [0; 4096];
    for step in input.steps.into_iter().take(64) {
        match step {
            Step::Message {
                request,
                flags,
                payload,
                size,
                fds,
            } => {
                let payload = bytes_of(payload);
                let len = u32::try_from(payload.len()).expect("it is short");
                let len = len.wrapping_add_signed(size.unwrap_or(0).into());
                // The requests of the protocol, and a few that it has not.
                let header = [u32::from(request % 50), flags.unwrap_or(1), len];
                let mut bytes = words(&header);
                bytes.extend(payload);
                send(stream, &bytes, &descriptors(&tenant, &fds));
            }
            Step::Bytes(bytes) => send(stream, &bytes, &[]),
            Step::Kick(many) => {
                for _ in 0..if many { 1000 } else { 1 } {
                    tenant.queues[0].ring.kick_fd().write(1).expect("a kick");
                }
            }
            Step::Listen => drop((&*stream).read(&mut said)),
        }
    }
    let how = if input.half_closes {
        Shutdown::Write
    } else {
        Shutdown::Both
    };
    let _ = stream.shutdown(how);
    loop {
        assert!(
            readable(stream, PATIENCE).expect("epoll"),
            "the shim keeps the connection"
        );
        match (&*stream).read(&mut said) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}

fn send(mut stream: &UnixStream, bytes: &[u8], fds: &[Box<dyn AsRawFd>]) {
    let mut rest = bytes;
    if !fds.is_empty() && !bytes.is_empty() {
        let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        match stream.send_with_fds(&[bytes], &raw) {
            Ok(len) => rest = &bytes[len..],
            Err(_) => return,
        }
    }
    // What the shim does not take now, or any more, is not its business.
    let _ = stream.write(rest);
}

fn descriptors(tenant: &Tenant, fds: &[Fd]) -> Vec<Box<dyn AsRawFd>> {
    let open = |fd: &Fd| -> Option<Box<dyn AsRawFd>> {
        Some(match fd {
            Fd::Memory => Box::new(tenant.memory().file().try_clone().ok()?),
            Fd::Event => Box::new(EventFd::new(EFD_NONBLOCK).ok()?),
            Fd::Unsealed => {
                let file = tempfile::tempfile().ok()?;
                file.set_len(2 * MIB).ok()?;
                Box::new(file)
            }
            Fd::Null => Box::new(File::open("/dev/null").ok()?),
            Fd::Socket => Box::new(UnixStream::pair().ok()?.0),
        })
    };
    fds.iter().take(12).filter_map(open).collect()
}

fn bytes_of(payload: Payload) -> Vec<u8> {
    match payload {
        Payload::U64(value) => value.to_le_bytes().to_vec(),
        Payload::Small(value) => u64::from(value).to_le_bytes().to_vec(),
        Payload::State { ring, value } => words(&[ring.into(), value.into()]),
        Payload::Address {
            ring,
            descriptors,
            used,
            avail,
            base,
        } => {
            let base = base.unwrap_or(crate::world::user_address(0));
            let mut bytes = words(&[ring.into(), 0]);
            for at in [descriptors, used, avail] {
                bytes.extend(base.wrapping_add(u64::from(at) << 4).to_le_bytes());
            }
            bytes.extend([0; 8]);
            bytes
        }
        Payload::Region(area) => {
            let mut bytes = words(&[0, 0]);
            bytes.extend(area_bytes(area));
            bytes
        }
        Payload::Table(areas) => {
            let areas = &areas[..areas.len().min(12)];
            let mut bytes = words(&[u32::try_from(areas.len()).expect("at most 12"), 0]);
            bytes.extend(areas.iter().copied().flat_map(area_bytes));
            bytes
        }
        Payload::Bytes(bytes) => bytes,
    }
}

fn area_bytes(area: Area) -> Vec<u8> {
    let region = Region {
        gpa: area.wild.unwrap_or(u64::from(area.gpa) << 12),
        len: u64::from(area.len) << 12,
        offset: u64::from(area.offset) << 12,
    };
    [region.gpa, region.len, region.user_address(), region.offset]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
