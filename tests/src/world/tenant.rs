//! A tenant VM: its RAM, its QEMU's vhost-user frontend, its virtio-scsi driver.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use spec::virtio_scsi::{Event, feature};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::frontend::{Frontend, FrontendError, Inflight, VringAddress, protocol, request};
use super::initiator::{Initiator, PATIENCE, POISON};
use super::readiness::readable;
use super::ring::{Buffer, DriverRing, EVENT_IDX, INDIRECT_DESC, VERSION_1};
use super::tenant_memory::{MIB, Region, TenantMemory, user_address};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VIRTIO_SCSI_EVENT_LEN` of Linux: buffers in the event queue.
const EVENT_BUFFERS: usize = 8;
/// Bytes of an event buffer.
const EVENT_LEN: u32 = 16;

type Result<T> = std::result::Result<T, FrontendError>;

/// What a tenant looks like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Guest-physical ranges of its RAM, (address, length).
    pub memory: Vec<(u64, u64)>,
    /// Whether its memory file is sealed against shrinking, as QEMU's are.
    pub sealed: bool,
    /// Request queues.
    pub queues: u16,
    /// Entries of each ring.
    pub ring_size: u16,
    /// Virtio features that its driver would like.
    pub features: u64,
    /// vhost-user protocol features that its QEMU knows.
    pub protocol: u64,
    /// Whether its QEMU offers T10_PI, as it does with `t10_pi=on` whatever the backend offers.
    pub t10_pi: bool,
    /// Whether it asks to be told of rings that are retired, which QEMU does not.
    pub wants_errors: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            memory: vec![(0, 32 * MIB)],
            sealed: true,
            queues: 1,
            ring_size: 128,
            features: VERSION_1 | INDIRECT_DESC | EVENT_IDX,
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::INFLIGHT_SHMFD
                | protocol::RESET_DEVICE
                | protocol::CONFIGURE_MEM_SLOTS,
            t10_pi: false,
            wants_errors: false,
        }
    }
}

/// A tenant VM.
pub struct Tenant {
    /// Its shape.
    pub shape: Shape,
    memory: Arc<TenantMemory>,
    socket: PathBuf,
    frontend: Option<Frontend>,
    /// The control queue.
    pub control: Initiator,
    /// The event queue.
    pub events: Initiator,
    /// Where the buffers in the event queue are, by head.
    event_buffers: HashMap<u16, u64>,
    /// The request queues.
    pub queues: Vec<Initiator>,
    /// Virtio features in force.
    features: u64,
    /// The memory regions that the backend was told of.
    told: Vec<Region>,
    /// The avail index to start each ring with.
    bases: Vec<u32>,
    /// What its QEMU keeps from the first start after a reset to the next reset.
    pub inflight: Option<Inflight>,
    protocol: u64,
    /// Where each ring is reported as retired.
    errors: Vec<EventFd>,
    /// What calls go to until the device has started; QEMU's masked notifier, which it forgets.
    masked: EventFd,
}

impl Tenant {
    /// A tenant that is switched on but has not connected to the socket of its HBA yet.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub fn new(socket: &Path, shape: Shape) -> Self {
        let memory = TenantMemory::new(&shape.memory, shape.sealed).expect("tenant RAM");
        let memory = Arc::new(memory);
        let ring = || Initiator::new(&memory, DriverRing::new(&memory, 0, shape.ring_size));
        let queues = (0..shape.queues).map(|_| ring()).collect();
        let (control, events) = (ring(), ring());
        Self {
            socket: socket.to_owned(),
            frontend: None,
            control,
            events,
            event_buffers: HashMap::new(),
            queues,
            features: 0,
            told: Vec::new(),
            bases: vec![0; 2 + usize::from(shape.queues)],
            inflight: None,
            protocol: 0,
            masked: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            errors: (0..2 + shape.queues)
                .map(|_| EventFd::new(EFD_NONBLOCK).expect("an eventfd"))
                .collect(),
            memory,
            shape,
        }
    }

    /// How often `ring` was reported as retired since it was last asked; waits for the first time.
    ///
    /// # Panics
    /// If the tenant did not want to be told.
    pub fn errors(&self, ring: u16, patience: Duration) -> u64 {
        assert!(self.shape.wants_errors);
        let errors = &self.errors[usize::from(ring)];
        match readable(errors, patience) {
            Ok(true) => errors.read().expect("an eventfd"),
            _ => 0,
        }
    }

    /// Its RAM.
    pub fn memory(&self) -> &Arc<TenantMemory> {
        &self.memory
    }

    /// Its vhost-user connection.
    ///
    /// # Panics
    /// If it is not connected.
    pub fn frontend(&self) -> &Frontend {
        self.frontend.as_ref().expect("the tenant is connected")
    }

    /// Whether it has a vhost-user connection, as far as it knows.
    pub fn is_connected(&self) -> bool {
        self.frontend.is_some()
    }

    /// Whether the backend has hung up. What it owes replies to must have been read.
    pub fn was_dropped(&self) -> bool {
        let frontend = self.frontend.as_ref();
        frontend
            .is_some_and(|frontend| !matches!(frontend.answers_within(Duration::ZERO), Ok(false)))
    }

    /// The driver on the first request queue.
    pub fn initiator(&mut self) -> &mut Initiator {
        &mut self.queues[0]
    }

    /// Connects, as QEMU does when the device is realized or the backend is back.
    ///
    /// # Errors
    /// The backend is not there or does not answer as it should.
    pub fn connect(&mut self) -> Result<()> {
        let mut frontend = Frontend::new(connect(&self.socket)?);
        self.told.clear();
        let offered = frontend.get(request::GET_FEATURES)?;
        if offered & PROTOCOL_FEATURES != 0 {
            let known = frontend.get(request::GET_PROTOCOL_FEATURES)? & self.shape.protocol;
            frontend.set(request::SET_PROTOCOL_FEATURES, known)?;
            self.protocol = known;
            if known & protocol::MQ != 0 {
                let queues = frontend.get(request::GET_QUEUE_NUM)?;
                if queues < u64::from(self.shape.queues) {
                    return Err(FrontendError::BadReply {
                        request: request::GET_QUEUE_NUM,
                        reason: format!("{queues} queues are too few"),
                    });
                }
            }
            if known & protocol::CONFIGURE_MEM_SLOTS != 0 {
                frontend.get(request::GET_MAX_MEM_SLOTS)?;
            }
        }
        frontend.tell(request::SET_OWNER)?;
        self.features = frontend.get(request::GET_FEATURES)? & self.shape.features;
        if self.shape.t10_pi {
            self.features |= feature::T10_PI;
        }
        frontend.reply_ack = self.protocol & protocol::REPLY_ACK != 0;
        for (ring, _) in self.rings() {
            frontend.set_vring_fd(request::SET_VRING_CALL, ring, Some(&self.masked))?;
            let errors = self.shape.wants_errors.then(|| &self.errors[ring as usize]);
            frontend.set_vring_fd(request::SET_VRING_ERR, ring, errors)?;
        }
        self.frontend = Some(frontend);
        let features = self.features;
        for queue in self.all() {
            queue.ring.negotiated(features);
            queue.indirect = features & INDIRECT_DESC != 0;
            queue.tagged = features & feature::T10_PI != 0;
        }
        Ok(())
    }

    /// Starts the device, as QEMU does at DRIVER_OK.
    ///
    /// # Errors
    /// The backend refused something, or is gone.
    pub fn start(&mut self) -> Result<()> {
        self.start_rings(0..2 + u32::from(self.shape.queues))?;
        self.post_event_buffers();
        Ok(())
    }

    /// Linux's virtio_scsi gives the event queue its buffers when it has set up all rings.
    fn post_event_buffers(&mut self) {
        if self.events.ring.avail_index() != 0 {
            return;
        }
        for _ in 0..EVENT_BUFFERS.min(self.events.ring.room()) {
            self.post_event_buffer(EVENT_LEN);
        }
    }

    /// Gives the event queue one more buffer, of `len` bytes.
    pub fn post_event_buffer(&mut self, len: u32) {
        let gpa = self.memory.allocate(0, Event::LEN as u64);
        self.memory.write(gpa, &[POISON; Event::LEN]);
        let head = self.events.ring.add(&[Buffer::writable(gpa, len)], None);
        self.event_buffers.insert(head, gpa);
        self.events.ring.kick_if_wanted();
    }

    /// The next event, if one comes in time; its buffer is not given back.
    ///
    /// # Panics
    /// If what comes is no event.
    pub fn take_event(&mut self, timeout: Duration) -> Option<Event> {
        let used = self.events.ring.take_used(timeout)?;
        let gpa = self.event_buffers.remove(&used.head).expect("a buffer");
        let bytes = self.memory.read(gpa, Event::LEN);
        self.memory.free(gpa, Event::LEN as u64);
        assert!(used.len <= EVENT_LEN, "bytes of an event");
        let bytes: [u8; Event::LEN] = bytes.try_into().expect("as long as an event");
        Some(Event::from_bytes(&bytes))
    }

    /// The next event; its buffer goes back, as Linux's driver does it.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.take_event(PATIENCE)?;
        self.post_event_buffer(EVENT_LEN);
        Some(event)
    }

    /// Starts only `rings`, as firmware does; all of them are enabled nevertheless.
    ///
    /// # Errors
    /// The backend refused something, or is gone.
    pub fn start_rings(&mut self, rings: impl IntoIterator<Item = u32>) -> Result<()> {
        self.set_features()?;
        self.send_inflight()?;
        self.set_features()?;
        self.send_memory(self.memory.regions().to_vec())?;
        for ring in rings {
            self.configure_ring(ring)?;
        }
        for (ring, _) in self.rings() {
            self.frontend()
                .set_vring(request::SET_VRING_ENABLE, ring, 1)?;
        }
        for (ring, queue) in self.rings() {
            self.frontend()
                .set_vring_fd(request::SET_VRING_CALL, ring, Some(queue.call_fd()))?;
        }
        Ok(())
    }

    /// GET_INFLIGHT_FD at the first start after a reset, SET_INFLIGHT_FD at each.
    fn send_inflight(&mut self) -> Result<()> {
        if self.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return Ok(());
        }
        let frontend = self.frontend.as_ref().expect("the tenant is connected");
        if self.inflight.is_none() {
            let rings = 2 + self.shape.queues;
            self.inflight = frontend.get_inflight(rings, self.shape.ring_size)?;
        }
        match &self.inflight {
            Some(memory) => frontend.set_inflight(memory),
            None => Ok(()),
        }
    }

    /// SET_VRING_NUM, BASE, ADDR and KICK of one ring.
    ///
    /// # Errors
    /// The backend refused something, or is gone.
    pub fn configure_ring(&self, ring: u32) -> Result<()> {
        let queue = self.ring(ring);
        let frontend = self.frontend();
        let user = self.address_of();
        frontend.set_vring(request::SET_VRING_NUM, ring, u32::from(queue.size()))?;
        let base = self.bases[ring as usize];
        frontend.set_vring(request::SET_VRING_BASE, ring, base)?;
        frontend.set_vring_address(
            ring,
            VringAddress {
                descriptor: user(queue.descriptors()),
                used: user(queue.used()),
                avail: user(queue.avail()),
            },
        )?;
        frontend.set_vring_fd(request::SET_VRING_KICK, ring, Some(queue.kick_fd()))
    }

    /// Tells the backend which regions there are, as QEMU does: only what changed where it can,
    /// the whole table where not.
    ///
    /// # Errors
    /// The backend refused something, or is gone.
    pub fn send_memory(&mut self, regions: Vec<Region>) -> Result<()> {
        let user = self.address_of();
        let file = self.memory.file();
        let frontend = self.frontend();
        if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            for gone in self.told.iter().filter(|told| !regions.contains(told)) {
                frontend.rem_mem_reg(gone, user)?;
            }
            for new in regions.iter().filter(|region| !self.told.contains(region)) {
                frontend.add_mem_reg(new, file, user)?;
            }
        } else {
            let table: Vec<_> = regions.iter().map(|region| (*region, file)).collect();
            frontend.set_mem_table(&table, user)?;
        }
        self.told = regions;
        Ok(())
    }

    /// Stops the device, as QEMU does at `stop`; the bases are kept for the next start.
    ///
    /// # Errors
    /// The backend refused something, did not drain in time, or is gone.
    pub fn stop(&mut self) -> Result<()> {
        for (ring, _) in self.rings() {
            self.frontend()
                .set_vring(request::SET_VRING_ENABLE, ring, 0)?;
        }
        for ring in 0..2 + u32::from(self.shape.queues) {
            self.frontend().ask_vring_base(ring)?;
            self.bases[ring as usize] = self.frontend().vring_base(ring)?;
        }
        Ok(())
    }

    /// Resets the device, as the guest's driver does: stop, RESET_DEVICE, and fresh rings.
    ///
    /// # Errors
    /// The backend refused something, did not drain in time, or is gone.
    pub fn reset(&mut self) -> Result<()> {
        self.stop()?;
        self.frontend().tell(request::RESET_DEVICE)?;
        self.forget_rings();
        Ok(())
    }

    /// What is left of the rings after a reset: nothing.
    pub fn forget_rings(&mut self) {
        for queue in self.all() {
            queue.reset();
        }
        for (_, gpa) in self.event_buffers.drain() {
            self.memory.free(gpa, Event::LEN as u64);
        }
        self.bases.fill(0);
        self.inflight = None;
    }

    /// Sends a task management function on the control queue (virtio 1.3 §5.6.6.2); returns the
    /// response byte, or nothing if none came.
    pub fn task_management(&mut self, function: u32, lun: [u8; 8], tag: u64) -> Option<u8> {
        let at = self.send_function(function, lun, tag);
        self.function_answer(at, PATIENCE)
    }

    /// Sends a task management function without waiting for its answer.
    pub fn send_function(&mut self, function: u32, lun: [u8; 8], tag: u64) -> u64 {
        let mut request = vec![0; 4];
        request.extend(function.to_le_bytes());
        request.extend(lun);
        request.extend(tag.to_le_bytes());
        let at = self.memory.allocate(0, 4096);
        self.memory.write(at, &request);
        self.memory.write(at + 64, &[POISON]);
        let ring = &mut self.control.ring;
        ring.add(
            &[Buffer::readable(at, 24), Buffer::writable(at + 64, 1)],
            None,
        );
        ring.kick_if_wanted();
        at
    }

    /// The answer to a function that was sent, the oldest without one; nothing if none comes.
    ///
    /// # Panics
    /// If the answer is not one byte.
    pub fn function_answer(&mut self, at: u64, timeout: Duration) -> Option<u8> {
        let used = self.control.ring.take_used(timeout)?;
        assert_eq!(used.len, 1, "bytes of the response");
        Some(self.memory.read(at + 64, 1)[0])
    }

    /// Gives `ring` another call eventfd, as QEMU does when the guest masks or unmasks it.
    ///
    /// # Errors
    /// The backend refused, or is gone.
    pub fn swap_call(&mut self, ring: u32) -> Result<()> {
        self.ring_mut(ring).new_call_fd();
        let call = self.ring(ring).call_fd();
        self.frontend()
            .set_vring_fd(request::SET_VRING_CALL, ring, Some(call))
    }

    /// Drops the vhost-user connection, as a killed QEMU does.
    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// Connects again and goes on with the same rings, as QEMU with `reconnect-ms` does.
    ///
    /// # Errors
    /// The backend is not there or does not answer as it should.
    pub fn reconnect(&mut self) -> Result<()> {
        self.disconnect();
        self.connect()?;
        // QEMU's virtio_queue_restore_last_avail_idx.
        for ring in 0..2 + u32::from(self.shape.queues) {
            self.bases[ring as usize] = u32::from(self.ring(ring).used_index());
        }
        self.start()
    }

    /// Avail index recorded for `ring` by the last stop.
    pub fn base(&self, ring: u32) -> u32 {
        self.bases[ring as usize]
    }

    /// Starts with these avail indices instead of 0; for rings that were prepared so.
    pub fn set_base(&mut self, ring: u32, base: u32) {
        self.bases[ring as usize] = base;
    }

    /// Virtio features in force.
    pub fn features(&self) -> u64 {
        self.features
    }

    fn set_features(&mut self) -> Result<()> {
        let features = self.features;
        // QEMU always sets the bit by which the backend knows that rings start disabled.
        self.frontend()
            .set(request::SET_FEATURES, features | PROTOCOL_FEATURES)
    }

    fn address_of(&self) -> fn(u64) -> u64 {
        if self.protocol & protocol::GPA_ADDRESSES != 0 {
            |gpa| gpa
        } else {
            user_address
        }
    }

    fn ring(&self, ring: u32) -> &DriverRing {
        let queue = match ring {
            0 => &self.control,
            1 => &self.events,
            n => &self.queues[n as usize - 2],
        };
        &queue.ring
    }

    fn ring_mut(&mut self, ring: u32) -> &mut DriverRing {
        let queue = match ring {
            0 => &mut self.control,
            1 => &mut self.events,
            n => &mut self.queues[n as usize - 2],
        };
        &mut queue.ring
    }

    fn rings(&self) -> impl Iterator<Item = (u32, &DriverRing)> {
        (0..2 + u32::from(self.shape.queues)).map(|ring| (ring, self.ring(ring)))
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Initiator> {
        [&mut self.control, &mut self.events]
            .into_iter()
            .chain(&mut self.queues)
    }
}

/// Connects to `socket`, waiting a little for its listener as `reconnect-ms` does.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}
