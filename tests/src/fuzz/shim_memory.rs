//! An appliance that writes anything to the mailbox, session memory and registers.
//!
//! The shim goes on to answer the storage VM's QEMU and the tenant's; a good appliance that comes
//! afterwards serves the same tenant.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use appliance::device::Device;
use appliance::memory::Mapping;
use arbitrary::Arbitrary;
use spec::device::{self, BAR_SESSION, DRIVER_VERSION, MAILBOX_REPLY, MAILBOX_REQUEST, STATUS};
use spec::mailbox::Header;
use spec::session;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::patience::{PATIENCE, read_first};
use super::residue::Residue;
use crate::world::{BLOCK, Function, Lun, MIB, Shape, Tenant, World, readable};

/// How often a good appliance comes, first after the first run, and what stays behind is counted.
const PROBE: u32 = 32;
/// How long the shim waits for an appliance: for this one it need not be long, but for the good one
/// on a machine that does much else.
const SHIM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a replug may take before another tenant is needed for it.
const COMING: Duration = Duration::from_secs(1);
/// Descriptors that may be there beside those of the first time.
const MARGIN: usize = 64;

#[derive(Debug, Arbitrary)]
struct Input {
    #[arbitrary(with = super::until_empty)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// What an appliance does first.
    Attach {
        vectors: u8,
        version: Option<u32>,
    },
    /// The request is answered as it should be, or not quite.
    Answer {
        status: u8,
        payload: u32,
        len: Option<u8>,
        sequence: Option<u32>,
        operation: Option<u16>,
    },
    /// Some of what follows is posted only when this is done.
    AnswerAll {
        base: u16,
    },
    Register {
        register: u8,
        value: u32,
    },
    Doorbell {
        ring: u8,
    },
    RingError {
        ring: u8,
        reason: u8,
    },
    Read {
        offset: u16,
    },
    Scribble {
        at: u32,
        #[arbitrary(with = super::counted)]
        bytes: Vec<u8>,
    },
    Call {
        ring: u8,
    },
    Vectors(u8),
    NoVectors,
    Reset,
    /// The kernel takes the function back.
    CleanUp,
    Kick {
        ring: u8,
    },
    Tenant(Act),
}

/// What the tenant's QEMU does meanwhile, without waiting.
#[derive(Debug, Arbitrary)]
enum Act {
    AskBase(u8),
    Disable(u8),
    Enable(u8),
    Reset,
    Leave,
    Return,
}

struct Stage {
    tenant: Tenant,
    world: World,
    runs: u32,
    residue: Option<Residue>,
}

fn shape() -> Shape {
    Shape {
        memory: vec![(0, 4 * MIB)],
        // Without acknowledgements the tenant's QEMU never waits for this appliance.
        protocol: Shape::default().protocol & !crate::world::protocol::REPLY_ACK,
        ..Shape::default()
    }
}

impl Stage {
    fn new() -> Self {
        let world = World::new()
            .lun(Lun::file(MIB))
            .drain_timeout(SHIM_PATIENCE)
            .grace(Duration::from_secs(1000))
            .without_appliance()
            .start();
        Self {
            tenant: world.tenant_like(shape()),
            world,
            runs: 0,
            residue: None,
        }
    }
}

thread_local! {
    /// The same for all runs, since it takes long to set up; it ends in order with its thread.
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

pub(super) fn run(bytes: &[u8]) {
    let Some(Input { steps }) = super::parse(bytes) else {
        return;
    };
    STAGE.with_borrow_mut(|stage| stage.get_or_insert_with(Stage::new).run(steps));
}

impl Stage {
    fn run(&mut self, steps: Vec<Step>) {
        let mut appliance = Hostile::enter(&self.world, &mut self.tenant);
        for step in steps.into_iter().take(80) {
            // Where the tenant has come back with other in-flight memory there is another function.
            if !appliance.has_session() {
                appliance.leave();
                appliance = Hostile::enter(&self.world, &mut self.tenant);
            }
            appliance.step(step, &mut self.tenant);
        }
        appliance.leave();
        assert_shim_answers(&self.world, &mut self.tenant);
        self.runs += 1;
        if self.runs % PROBE == 1 {
            self.world.start_appliance();
            come_back(&mut self.tenant);
            assert_eq!(read_first(self.tenant.initiator()), [0; BLOCK]);
            self.world.stop_appliance();
            let first = self.residue.get_or_insert_with(Residue::now);
            first.wait_for_at_most(MARGIN);
        }
    }
}

/// The tenant's QEMU connects anew, with a driver that starts anew.
fn come_back(tenant: &mut Tenant) {
    tenant.disconnect();
    tenant.forget_rings();
    tenant.connect().expect("the shim is there");
    tenant.start().expect("the shim takes the session");
}

/// The function that is plugged now. A shim whose tenant left while it was replugged has none until
/// a tenant comes.
fn plugged(world: &World, tenant: &mut Tenant) -> Arc<Function> {
    let begun = Instant::now();
    let mut asked = begun;
    while !world.is_plugged(0) {
        assert!(begun.elapsed() < PATIENCE, "the function does not return");
        if asked.elapsed() > COMING {
            come_back(tenant);
            asked = Instant::now();
        }
        thread::sleep(Duration::from_millis(1));
    }
    world.function()
}

/// The function can be read and reset, once it is not replugged any more.
fn assert_shim_answers(world: &World, tenant: &mut Tenant) {
    let begun = Instant::now();
    loop {
        let function = plugged(world, tenant);
        let answers = || -> std::io::Result<_> {
            let magic = function.read32(device::MAGIC)?;
            function.clean_up()?;
            Ok((magic, function.read32(STATUS)?))
        };
        match answers() {
            Ok((magic, status)) => {
                assert_eq!(magic, device::MAGIC_VALUE);
                assert_eq!(status & device::status::BACKEND_UP, 0);
                return;
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Session memory while it is mapped.
type Session = Arc<Mutex<Option<Mapping>>>;

fn locked(session: &Session) -> MutexGuard<'_, Option<Mapping>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Hostile {
    function: Arc<Function>,
    session: Session,
    /// Lets session memory go when the function is asked for.
    release: JoinHandle<()>,
}

impl Hostile {
    fn enter(world: &World, tenant: &mut Tenant) -> Self {
        let begun = Instant::now();
        let (function, session) = loop {
            let function = plugged(world, tenant);
            match function.map(BAR_SESSION, session::LEN) {
                Ok(session) => break (function, session),
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        };
        let session = Arc::new(Mutex::new(Some(session)));
        let (asked, held) = (function.clone(), session.clone());
        let release = thread::spawn(move || {
            let request = asked.release_request().expect("a request interrupt");
            while !readable(request, PATIENCE).expect("an eventfd") {}
            request.read().expect("a readable eventfd");
            *locked(&held) = None;
        });
        Self {
            function,
            session,
            release,
        }
    }

    /// False once it was asked for the function.
    fn has_session(&self) -> bool {
        locked(&self.session).is_some()
    }

    fn leave(self) {
        *locked(&self.session) = None;
        self.function.ask_back();
        self.release.join().expect("no panic");
    }

    /// What the shim answers does not matter; that it does is waited for by each access.
    fn step(&self, step: Step, tenant: &mut Tenant) {
        let function = &self.function;
        match step {
            Step::Attach { vectors, version } => {
                self.vectors(vectors);
                let version = version.unwrap_or(spec::version::CURRENT.to_register());
                let _ = function.write32(DRIVER_VERSION, version);
                let _ = function.write32(STATUS, device::status::BACKEND_UP);
            }
            Step::Answer {
                status,
                payload,
                len,
                sequence,
                operation,
            } => {
                let (posted, asked) = self.asked();
                let sequence = sequence.unwrap_or(posted);
                let header = Header {
                    sequence,
                    operation: operation.map_or(asked.operation, u32::from),
                    len: len.map_or(length(asked.operation), u32::from),
                    status: status.into(),
                };
                self.reply(header, payload);
            }
            Step::AnswerAll { base } => {
                for _ in 0..24 {
                    let (sequence, asked) = self.asked();
                    if sequence == 0 || asked.sequence != sequence {
                        break;
                    }
                    let header = Header {
                        len: length(asked.operation),
                        status: 0,
                        ..asked
                    };
                    self.reply(header, base.into());
                }
            }
            Step::Register { register, value } => {
                let _ = function.write32(u64::from(register % 24) * 4, value);
            }
            Step::Doorbell { ring } => {
                let _ = function.write32(device::doorbell(ring.into()), 1);
            }
            Step::RingError { ring, reason } => {
                let value = u32::from(ring) | u32::from(reason) << 16;
                let _ = function.write32(device::RING_ERROR, value);
            }
            Step::Read { offset } => drop(function.read32(u64::from(offset) & !3)),
            Step::Scribble { at, bytes } => self.write(u64::from(at), &bytes),
            Step::Call { ring } => {
                let at = session::call_counter(ring.into());
                self.write(at, &[ring.wrapping_mul(31)]);
            }
            Step::Vectors(count) => self.vectors(count),
            Step::NoVectors => drop(function.disable_vectors()),
            Step::Reset => drop(function.client().reset()),
            Step::CleanUp => drop(function.clean_up()),
            Step::Kick { ring } => {
                let queue = if ring % 2 == 0 {
                    &mut tenant.control
                } else {
                    &mut tenant.queues[0]
                };
                queue.ring.kick();
            }
            Step::Tenant(act) => perform(tenant, &act),
        }
    }

    fn vectors(&self, count: u8) {
        let make = |_| EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let fds: Vec<_> = (0..1 + count % 32).map(make).collect();
        let fds: Vec<_> = fds.iter().collect();
        let _ = self.function.enable_vectors(&fds);
    }

    /// The register and the slot of the shim's request.
    fn asked(&self) -> (u32, Header) {
        let sequence = self.function.read32(MAILBOX_REQUEST).unwrap_or(0);
        let mut asked = [0; 16];
        if let Some(session) = &*locked(&self.session) {
            session.read(0x1000, &mut asked);
        }
        (sequence, Header::from_bytes(&asked).expect("16 bytes"))
    }

    fn reply(&self, header: Header, payload: u32) {
        self.write(session::MAILBOX_REPLY, &header.to_bytes());
        self.write(session::MAILBOX_REPLY + 16, &payload.to_le_bytes());
        let _ = self.function.write32(MAILBOX_REPLY, header.sequence);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let at = at % session::LEN;
        let left = usize::try_from(session::LEN - at).expect("128 KiB");
        if let Some(session) = &*locked(&self.session)
            && let Some(slice) = session.slice(at, bytes.len().min(left))
        {
            slice.copy_from(bytes);
        }
    }
}

/// Payload bytes of the reply to an operation: StopRing's is the base.
fn length(operation: u32) -> u32 {
    if operation == 257 { 4 } else { 0 }
}

fn perform(tenant: &mut Tenant, act: &Act) {
    use crate::world::request;
    if matches!(act, Act::Return) {
        tenant.disconnect();
        tenant.forget_rings();
        let _ = tenant.connect().and_then(|()| tenant.start());
        return;
    }
    if !tenant.is_connected() {
        return;
    }
    let frontend = tenant.frontend();
    let _ = match act {
        Act::AskBase(ring) => frontend.ask_vring_base((ring % 4).into()),
        Act::Disable(ring) => frontend.set_vring(request::SET_VRING_ENABLE, (ring % 4).into(), 0),
        Act::Enable(ring) => frontend.set_vring(request::SET_VRING_ENABLE, (ring % 4).into(), 1),
        Act::Reset => frontend.tell(request::RESET_DEVICE),
        Act::Leave | Act::Return => {
            tenant.disconnect();
            Ok(())
        }
    };
}
