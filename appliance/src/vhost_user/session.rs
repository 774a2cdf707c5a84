//! What a frontend has said, and how far the worker has come with it.
//!
//! The session keeps two states, as the shim does: what the frontend *recorded* (features, memory,
//! rings), and what the worker was *told* and has acknowledged. [`Session::sync`] asks the worker
//! for one step after the other until they are the same.

use std::fs::File;
use std::sync::Arc;

use spec::device::MAX_RINGS;
use spec::mailbox::{Reply, RingSetup};
use spec::virtio_scsi::{CONTROL_QUEUE, FIRST_REQUEST_QUEUE};
use vmm_sys_util::eventfd::EventFd;

use super::eventfd::eventfd;
use super::inflight::{Inflight, InflightError};
use super::link::{Link, NoReply};
use super::log::{Log, LogError};
use super::regions::{MemoryError, Region, Regions};
use super::{LOG_ALL, Options, PROTOCOL_FEATURES};
use crate::front::{Request, Start};
use crate::worker::ACCEPTED;

/// Largest vring (virtio 1.3 §2.7).
const MAX_SIZE: u32 = 32768;

/// Why a message is refused; the connection is dropped then.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Memory that is not taken.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Features that were not offered.
    #[error("virtio features {0:#x} were not offered; is packed=on? turn it off")]
    Features(u64),
    /// A ring index out of range.
    #[error("there is no vring {0}, the last is {last}; lower num_queues of vhost-user-scsi-pci", last = MAX_RINGS - 1)]
    NoSuchRing(u32),
    /// A ring size that virtio does not have.
    #[error(
        "vring {ring} has {size} entries; a split ring has a power of two up to {MAX_SIZE} \
         (virtqueue_size of vhost-user-scsi-pci)"
    )]
    RingSize {
        /// Index of the ring.
        ring: u16,
        /// Entries.
        size: u32,
    },
    /// A base that is not a 16-bit index.
    #[error(
        "vring {ring} is to start at {base}, which is no avail index; is packed=on? turn it off"
    )]
    RingBase {
        /// Index of the ring.
        ring: u16,
        /// The base.
        base: u32,
    },
    /// A ring that is to run without memory: QEMU leaves out RAM that it does not share.
    #[error(
        "vring {0} is started before any memory was named: the tenant's RAM is private, most \
         likely; give its QEMU -object memory-backend-memfd,id=mem,size=…,share=on and -machine \
         …,memory-backend=mem"
    )]
    NoMemory(u16),
    /// A ring that is to run where no memory is.
    #[error("vring {0} does not lie in the tenant's memory; the tenant's QEMU is at fault")]
    OutsideMemory(u16),
    /// A descriptor that is not what it should be.
    #[error("vring {ring}: {error}; the tenant's QEMU is at fault")]
    Eventfd {
        /// Index of the ring.
        ring: u16,
        /// What is wrong with it.
        error: std::io::Error,
    },
    /// An eventfd that cannot be signalled.
    #[error(
        "vring {ring}: no io_uring for its interrupts: {error}; raise the limits of open files and \
         memory of this program"
    )]
    Signal {
        /// Index of the ring.
        ring: u16,
        /// Why not.
        error: std::io::Error,
    },
    /// A log that is not taken.
    #[error(transparent)]
    Log(#[from] LogError),
    /// In-flight memory that is not taken.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The worker did not get there.
    #[error(transparent)]
    NoReply(#[from] NoReply),
    /// The worker refused.
    #[error("the HBA refused: {}", std::io::Error::from_raw_os_error(*.0))]
    Worker(i32),
}

/// Where the three parts of a vring are, in addresses of the frontend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub descriptor_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

/// What a frontend has said about one vring.
#[derive(Debug, Default)]
struct Ring {
    size: Option<u16>,
    addresses: Option<Addresses>,
    /// Avail index of the next request to fetch.
    base: u16,
    kick: Option<EventFd>,
    enabled: bool,
    /// It ran on this connection.
    ran: bool,
}

/// The session of one HBA; it outlives its frontends.
#[derive(Debug)]
pub(super) struct Session {
    hba: Arc<str>,
    link: Link,
    options: Options,
    features: Option<u64>,
    memory: Regions,
    rings: Vec<Ring>,
    /// What the frontend has set since it connected and since the last reset.
    inflight: Option<Inflight>,
    log: Log,
    /// The driver has reset the device on this connection, so it has met nobody else since.
    fresh: bool,
    told: Told,
}

/// What the worker was told and has acknowledged.
#[derive(Debug, Default)]
struct Told {
    /// Anything since the last Disconnect.
    anything: bool,
    features: Option<u64>,
    /// Version of the memory table.
    memory: Option<u64>,
    /// Version of the log, if it is in force.
    log: Option<u64>,
    rings: Vec<Option<RingSetup>>,
}

impl Told {
    fn nothing() -> Self {
        Self {
            rings: vec![None; MAX_RINGS],
            ..Self::default()
        }
    }
}

impl Session {
    /// A session of the HBA `hba` without a frontend, whose worker is at the other end of `link`.
    pub fn new(hba: Arc<str>, link: Link, options: Options) -> Self {
        Self {
            hba,
            link,
            options,
            features: None,
            memory: Regions::new(options.trust_memory),
            rings: (0..MAX_RINGS).map(|_| Ring::default()).collect(),
            inflight: None,
            log: Log::default(),
            fresh: false,
            told: Told::nothing(),
        }
    }

    /// SET_FEATURES.
    ///
    /// # Errors
    /// [`Refused`], as for every message here.
    pub fn set_features(&mut self, features: u64) -> Result<(), Refused> {
        let lacking = features & !(ACCEPTED | PROTOCOL_FEATURES | LOG_ALL);
        if lacking != 0 {
            return Err(Refused::Features(lacking));
        }
        self.features = Some(features);
        self.sync()
    }

    /// SET_MEM_TABLE.
    pub fn set_memory(
        &mut self,
        regions: impl IntoIterator<Item = (Region, File)>,
    ) -> Result<(), Refused> {
        self.memory.replace(regions)?;
        self.sync()
    }

    /// ADD_MEM_REG.
    pub fn add_region(&mut self, region: Region, file: File) -> Result<(), Refused> {
        self.memory.add(region, file)?;
        self.sync()
    }

    /// REM_MEM_REG; nothing uses the region any more when this returns.
    pub fn remove_region(&mut self, region: &Region) -> Result<(), Refused> {
        self.memory.remove(region)?;
        self.sync()
    }

    /// SET_VRING_NUM.
    pub fn set_size(&mut self, ring: u32, size: u32) -> Result<(), Refused> {
        let index = index(ring)?;
        let entries = Some(size).filter(|size| size.is_power_of_two() && *size <= MAX_SIZE);
        let entries = entries.and_then(|size| u16::try_from(size).ok());
        let entries = entries.ok_or(Refused::RingSize { ring: index, size })?;
        self.ring(index).size = Some(entries);
        self.sync()
    }

    /// SET_VRING_ADDR; `log` is the guest address at which changes of the used ring are marked.
    pub fn set_addresses(
        &mut self,
        ring: u32,
        addresses: Addresses,
        log: Option<u64>,
    ) -> Result<(), Refused> {
        let ring = index(ring)?;
        self.ring(ring).addresses = Some(addresses);
        self.log.set_used(ring, log);
        self.sync()
    }

    /// SET_VRING_BASE.
    pub fn set_base(&mut self, ring: u32, base: u32) -> Result<(), Refused> {
        let ring = index(ring)?;
        let base = u16::try_from(base).map_err(|_| Refused::RingBase { ring, base })?;
        self.ring(ring).base = base;
        Ok(())
    }

    /// GET_VRING_BASE: the ring is stopped, and nothing of it is in flight when this returns.
    pub fn stop_for_base(&mut self, ring: u32) -> Result<u16, Refused> {
        let ring = index(ring)?;
        self.ring(ring).kick = None;
        self.sync()?;
        Ok(self.ring(ring).base)
    }

    /// SET_VRING_KICK. Without an eventfd the ring does not run: there is nothing to wake us.
    pub fn set_kick(&mut self, ring: u32, file: Option<File>) -> Result<(), Refused> {
        let ring = index(ring)?;
        let kick = taken(ring, file)?;
        // Should it run with another eventfd, it is started anew with this one.
        self.ring(ring).kick = None;
        self.sync()?;
        self.ring(ring).kick = kick;
        self.check_place(ring)?;
        self.sync()
    }

    /// SET_VRING_CALL.
    pub fn set_call(&mut self, ring: u32, file: Option<File>) -> Result<(), Refused> {
        let ring = index(ring)?;
        let call = taken(ring, file)?;
        let set = self.link.calls().set_call(ring, call);
        set.map_err(|error| Refused::Signal { ring, error })
    }

    /// SET_VRING_ERR.
    pub fn set_error(&mut self, ring: u32, file: Option<File>) -> Result<(), Refused> {
        let ring = index(ring)?;
        self.link.calls().set_error(ring, taken(ring, file)?);
        Ok(())
    }

    /// SET_VRING_ENABLE.
    pub fn set_enabled(&mut self, ring: u32, enabled: bool) -> Result<(), Refused> {
        let ring = index(ring)?;
        self.ring(ring).enabled = enabled;
        self.check_place(ring)?;
        self.sync()
    }

    /// SET_LOG_BASE: nothing is marked in the log before any more when this returns.
    pub fn set_log(&mut self, file: &File, offset: u64, len: u64) -> Result<(), Refused> {
        self.log.set_base(file, offset, len)?;
        self.sync()
    }

    /// SET_INFLIGHT_FD. Rings that run are started anew, with their records in this memory.
    pub fn set_inflight(&mut self, inflight: Inflight) -> Result<(), Refused> {
        for index in rings() {
            if self.told.rings[usize::from(index)].is_some() {
                self.stop(index)?;
            }
        }
        self.inflight = Some(inflight);
        self.sync()
    }

    /// RESET_DEVICE.
    pub fn reset(&mut self) -> Result<(), Refused> {
        self.forget_rings();
        self.fresh = true;
        if self.told.features.is_some() || self.told.rings.iter().any(Option::is_some) {
            self.tell(Request::Reset)?;
            self.told.features = None;
            self.told.rings.fill(None);
        }
        Ok(())
    }

    /// The frontend is gone: what it said is forgotten, and its memory let go, when this returns.
    ///
    /// # Errors
    /// [`NoReply::Gone`] if there is nobody to be told.
    pub fn disconnect(&mut self) -> Result<(), NoReply> {
        self.forget_rings();
        self.link.calls().clear();
        if self.told.anything {
            match self
                .link
                .ask(Request::Disconnect, Some(self.options.patience))
            {
                Err(NoReply::Late) => {
                    tracing::error!(
                        hba = &*self.hba,
                        "what its frontend left does not end, a disk hangs, most likely; the next \
                         frontend is served when it has"
                    );
                    self.link.ask(Request::Disconnect, None)?;
                }
                told => {
                    told?;
                }
            }
        }
        self.told = Told::nothing();
        self.fresh = false;
        self.memory.clear();
        self.log.clear();
        Ok(())
    }

    fn forget_rings(&mut self) {
        self.features = None;
        self.inflight = None;
        self.rings.fill_with(Ring::default);
    }

    fn ring(&mut self, index: u16) -> &mut Ring {
        &mut self.rings[usize::from(index)]
    }

    /// A ring that is to run must be in memory.
    fn check_place(&self, index: u16) -> Result<(), Refused> {
        let ring = &self.rings[usize::from(index)];
        let described = ring.size.is_some() && ring.addresses.is_some();
        if !self.is_started(ring) || !described || self.setup(index).is_some() {
            Ok(())
        } else if self.memory.is_empty() {
            Err(Refused::NoMemory(index))
        } else {
            Err(Refused::OutsideMemory(index))
        }
    }

    /// Whether the frontend wants the ring to run, wherever it is.
    fn is_started(&self, ring: &Ring) -> bool {
        // Without PROTOCOL_FEATURES there is no SET_VRING_ENABLE: rings start enabled.
        let enabled = self
            .features
            .is_some_and(|features| ring.enabled || features & PROTOCOL_FEATURES == 0);
        enabled && ring.kick.is_some()
    }

    /// How the ring is to run; `None` if it is not, or not all about it is known.
    fn setup(&self, index: u16) -> Option<RingSetup> {
        let ring = &self.rings[usize::from(index)];
        let addresses = ring.addresses.filter(|_| self.is_started(ring))?;
        let (size, memory) = (ring.size?, self.inflight.as_ref());
        Some(RingSetup {
            ring: index,
            size,
            base: Some(ring.base),
            inflight: memory.and_then(|memory| memory.region(index, size)),
            descriptor_table: self.memory.translate(addresses.descriptor_table)?,
            avail_ring: self.memory.translate(addresses.avail_ring)?,
            used_ring: self.memory.translate(addresses.used_ring)?,
        })
    }

    /// Has the worker take the next steps, until it is where the frontend wants it to be.
    fn sync(&mut self) -> Result<(), Refused> {
        let device = |features| features & !(PROTOCOL_FEATURES | LOG_ALL);
        let features = self.features.map(device);
        let log = self.log.version().filter(|_| self.wants_log());
        // Of what is in flight nobody has taken note, so it has to end before marking begins.
        let log_begins = log.is_some() && self.told.log.is_none();
        let other_features = self.told.features != features || log_begins;
        for index in rings() {
            let Some(told) = self.told.rings[usize::from(index)] else {
                continue;
            };
            let same = self
                .setup(index)
                .is_some_and(|wanted| is_same(&wanted, &told));
            if !same || other_features {
                self.stop(index)?;
            }
        }
        if let Some(features) = features.filter(|_| other_features) {
            self.tell(Request::SetFeatures(features))?;
            self.told.features = Some(features);
        }
        if self.told.log != log {
            let logging = log.and_then(|_| self.log.logging());
            self.tell(Request::SetLog(logging))?;
            self.told.log = log;
        }
        self.sync_memory()?;
        // The control ring last: task management has to find what is to be carried out again.
        for index in rings().filter(|index| *index != CONTROL_QUEUE) {
            self.start_if_wanted(index)?;
        }
        if !rings().any(|index| self.comes_soon(index)) {
            self.start_if_wanted(CONTROL_QUEUE)?;
        }
        Ok(())
    }

    /// Whether the frontend has set a request ring up, and has only to enable it: QEMU sets up all
    /// rings before it enables the first.
    fn comes_soon(&self, index: u16) -> bool {
        let ring = &self.rings[usize::from(index)];
        let is_set_up = ring.kick.is_some() && ring.size.is_some() && ring.addresses.is_some();
        index >= FIRST_REQUEST_QUEUE && is_set_up && !ring.ran && !self.is_started(ring)
    }

    /// Starts a ring that is to run and does not.
    fn start_if_wanted(&mut self, index: u16) -> Result<(), Refused> {
        match self.setup(index) {
            Some(setup) if self.told.rings[usize::from(index)].is_none() => {
                self.start(index, setup)
            }
            _ => Ok(()),
        }
    }

    /// Whether the frontend wants to see what is written.
    fn wants_log(&self) -> bool {
        self.features
            .is_some_and(|features| features & LOG_ALL != 0)
    }

    /// Tells of memory when it is needed, and then of each change.
    fn sync_memory(&mut self) -> Result<(), Refused> {
        let version = self.memory.version();
        let needed = self.told.memory.is_some() || rings().any(|ring| self.setup(ring).is_some());
        if needed && self.told.memory != Some(version) {
            let memory = self.memory.memory()?;
            self.tell(Request::SetMemory(memory))?;
            self.told.memory = Some(version);
        }
        Ok(())
    }

    fn start(&mut self, index: u16, setup: RingSetup) -> Result<(), Refused> {
        let ring = &mut self.rings[usize::from(index)];
        let kick = ring.kick.as_ref().map(EventFd::try_clone).transpose();
        let kick = kick.map_err(|error| Refused::Eventfd { ring: index, error })?;
        let taken_over = !std::mem::replace(&mut ring.ran, true) && !self.fresh;
        let inflight = self.inflight.as_ref().filter(|_| setup.inflight.is_some());
        let inflight = inflight.map(|memory| Arc::clone(memory.mapping()));
        self.tell(Request::StartRing(Start {
            setup,
            kick,
            inflight,
            taken_over,
        }))?;
        self.told.rings[usize::from(index)] = Some(setup);
        // A call may have been lost while nobody ran it.
        self.link.calls().call(index);
        Ok(())
    }

    fn stop(&mut self, index: u16) -> Result<(), Refused> {
        let reply = self.tell(Request::StopRing(index))?;
        self.told.rings[usize::from(index)] = None;
        if let Reply::Base(base) = reply {
            self.ring(index).base = base;
        }
        Ok(())
    }

    fn tell(&mut self, request: Request) -> Result<Reply, Refused> {
        self.told.anything = true;
        match self.link.ask(request, Some(self.options.patience))? {
            Reply::Failed(errno) => Err(Refused::Worker(errno.cast_signed())),
            reply => Ok(reply),
        }
    }
}

/// Whether two setups are the same ring; where it goes on does not matter.
fn is_same(one: &RingSetup, other: &RingSetup) -> bool {
    let base = other.base;
    RingSetup { base, ..*one } == *other
}

fn rings() -> impl Iterator<Item = u16> {
    (0..).take(MAX_RINGS)
}

/// The index of a ring that there is.
fn index(ring: u32) -> Result<u16, Refused> {
    let index = u16::try_from(ring).ok();
    let index = index.filter(|index| usize::from(*index) < MAX_RINGS);
    index.ok_or(Refused::NoSuchRing(ring))
}

fn taken(ring: u16, file: Option<File>) -> Result<Option<EventFd>, Refused> {
    let taken = file.map(eventfd).transpose();
    taken.map_err(|error| Refused::Eventfd { ring, error })
}
