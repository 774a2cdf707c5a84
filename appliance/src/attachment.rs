//! One HBA in service: how its function or socket is taken up, and how it is let go.

mod crew;
mod line;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use spec::device::{
    self, BAR_SESSION, DEVICE_TYPE, DEVICE_TYPE_SCSI, DRIVER_VERSION, ERROR, HBA_UUID, MAGIC,
    MAGIC_VALUE, MAX_VECTORS, RESET, STATUS, VECTORS, VERSION, status,
};
use spec::session;
use spec::version::{CURRENT, Version};
use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::crew::{Crew, Shared};
pub(crate) use self::line::Line;
use crate::device::Device;
use crate::disk::Io;
use crate::memory::window::Findings;
use crate::memory::{SessionMemory, TooShort};
use crate::pinning;
use crate::scsi::{BadLun, Host};
use crate::shim::Shim;
use crate::spread::Spread;
use crate::vhost_user::WorkerEnd;
pub use crate::worker::Ended;
use crate::worker::{Failure, Vectors, Worker};

/// Why a function is not taken up.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A register, a BAR or an interrupt cannot be reached.
    #[error("{what} failed: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        error: io::Error,
    },
    /// The function has another MAGIC.
    #[error("its MAGIC register reads {0:#010x}, so it is no vhost-pci function, or a dead one")]
    Magic(u32),
    /// The versions do not work together.
    #[error(
        "the shim speaks version {shim} and this appliance {CURRENT}, which do not work together; \
         update the {}, so that major versions are equal and minor ones at most one apart",
        if *shim < CURRENT { "host-shim" } else { "appliance" }
    )]
    Version {
        /// The shim's version.
        shim: Version,
    },
    /// The tenant's device is not a SCSI host.
    #[error("its virtio device type is {0}, this appliance serves type {DEVICE_TYPE_SCSI} (SCSI)")]
    DeviceType(u32),
    /// No HBA of the configuration has this UUID.
    #[error(
        "no [[hba]] of the configuration has the UUID {0}; add one with uuid = \"{0}\", or start \
         the host-shim with the --hba of one that exists. The function is left alone"
    )]
    UnknownHba(Uuid),
    /// No HBA of the configuration has this name.
    #[error(
        "no [[hba]] of the configuration is named {0:?}; add one, or give the --hba of one that exists"
    )]
    NoSuchHba(String),
    /// Another function or socket has the same HBA.
    #[error(
        "HBA {hba:?} is attached already through another function or socket, or its disks have not \
         finished what was begun there; give each host-shim, or each socket, an --hba of its own"
    )]
    Attached {
        /// Name of the HBA.
        hba: String,
    },
    /// BAR4 is not session memory.
    #[error(transparent)]
    Session(#[from] TooShort),
    /// The HBA has a LUN that it cannot have.
    #[error(transparent)]
    Target(BadLun),
    /// The shim set REFUSED.
    #[error("the shim refused this appliance: {}", refusal(*.0))]
    Refused(u32),
    /// The thread could not be started, or ended before it said anything.
    #[error("its worker could not be started: {0}")]
    Worker(String),
}

fn refusal(error: u32) -> String {
    match error {
        device::error::VERSION => format!(
            "it does not work with version {CURRENT}; update the older of host-shim and appliance"
        ),
        device::error::NO_VECTORS => {
            "it sees no MSI vector enabled; the storage VM needs a vIOMMU \
             with interrupt remapping (-device intel-iommu,intremap=on,caching-mode=on)"
                .into()
        }
        other => format!("error {other}, see the host-shim's log"),
    }
}

impl AttachError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, error }
    }

    /// Whether trying the same function again may help without anybody's doing.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Io { .. }
                | Self::Magic(_)
                | Self::Attached { .. }
                | Self::Worker(_)
                // Neither attached nor refused: reset meanwhile.
                | Self::Refused(device::error::NONE)
        )
    }
}

/// What the registers of a function say about it.
pub(crate) struct Identity {
    /// The I_T nexus.
    pub hba: Uuid,
}

impl Identity {
    /// Reads and checks the identity of a function. It is not changed by that, unless its version
    /// is another: then its shim is told ours.
    ///
    /// # Errors
    /// [`AttachError`] for a function that is none of ours or of a version that does not work
    /// with this one.
    pub fn read(device: &dyn Device) -> Result<Self, AttachError> {
        let read = |offset| {
            device
                .read32(offset)
                .map_err(AttachError::io("reading a register"))
        };
        let magic = read(MAGIC)?;
        if magic != MAGIC_VALUE {
            return Err(AttachError::Magic(magic));
        }
        let shim = Version::from_register(read(VERSION)?);
        if !shim.works_with(CURRENT) {
            introduce(device);
            return Err(AttachError::Version { shim });
        }
        let device_type = read(DEVICE_TYPE)?;
        if device_type != DEVICE_TYPE_SCSI {
            return Err(AttachError::DeviceType(device_type));
        }
        let mut uuid = [0; 16];
        for (offset, word) in (HBA_UUID..).step_by(4).zip(uuid.chunks_exact_mut(4)) {
            word.copy_from_slice(&read(offset)?.to_le_bytes());
        }
        Ok(Self {
            hba: Uuid::from_bytes(uuid),
        })
    }
}

/// Asks a shim of another version to be attached, so that it refuses and its log has both
/// versions too: these registers mean the same in every version.
fn introduce(device: &dyn Device) {
    let told = device
        .write32(DRIVER_VERSION, CURRENT.to_register())
        .and_then(|()| device.write32(STATUS, status::BACKEND_UP));
    if let Err(error) = told {
        tracing::debug!("telling the shim our version: {error}");
    }
}

/// The UUIDs of the HBAs that are attached, each held by its worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<HashSet<Uuid>>>);

/// One HBA's place among the attached, given back on drop.
struct Claim {
    claims: Claims,
    hba: Uuid,
}

impl Claims {
    fn claim(&self, hba: Uuid) -> Option<Claim> {
        self.with(|set| set.insert(hba)).then(|| Claim {
            claims: self.clone(),
            hba,
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashSet<Uuid>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.with(|set| set.remove(&self.hba));
    }
}

/// By which a worker is told to end.
#[derive(Debug)]
struct Stop {
    bell: EventFd,
    /// Whether the storage VM may be switched off after that.
    in_order: AtomicBool,
}

/// An HBA in service. Dropping it lets its function or socket go, as [`Self::detach`] does.
#[derive(Debug)]
#[must_use = "dropping an attachment ends it"]
pub struct Attachment {
    hba: Arc<str>,
    stop: Arc<Stop>,
    /// Set when `outcome` has what is to be received.
    over: Arc<AtomicBool>,
    outcome: mpsc::Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
    /// How fast the CPU reads the tenant's memory, set when the first ring has started.
    window: Arc<OnceLock<Findings>>,
}

/// How a worker ended; its device is gone.
struct Outcome {
    ended: Result<Ended, String>,
    /// Whether its thread still waits for a disk.
    lingers: bool,
}

impl Attachment {
    /// Takes the function behind `device` up as the HBA `hba`, named `name`, that shows `host` and
    /// hears of changes on `line`.
    pub(crate) fn start(
        device: Arc<dyn Device>,
        claims: &Claims,
        hba: Uuid,
        name: &str,
        host: Host,
        line: Line,
    ) -> Result<Self, AttachError> {
        let window = Arc::default();
        let found = Arc::clone(&window);
        let mut attachment = Self::spawn(claims, hba, name, move |hba, stop, started| {
            serve(device, (hba, found), (host, line), stop, started)
        })?;
        attachment.window = window;
        Ok(attachment)
    }

    /// As [`Self::start`], for what `front` brings from a vhost-user socket.
    pub(crate) fn start_at_socket(
        front: WorkerEnd,
        claims: &Claims,
        hba: Uuid,
        name: &str,
        host: Host,
        line: Line,
    ) -> Result<Self, AttachError> {
        Self::spawn(claims, hba, name, move |hba, stop, started| {
            serve_socket(front, hba, (host, line), stop, started)
        })
    }

    /// Starts a worker's thread, whose life `serve` is.
    fn spawn(
        claims: &Claims,
        hba: Uuid,
        name: &str,
        serve: impl FnOnce(&Arc<str>, &Stop, &Started) -> Life + Send + 'static,
    ) -> Result<Self, AttachError> {
        let claim = claims.claim(hba).ok_or_else(|| AttachError::Attached {
            hba: name.to_owned(),
        })?;
        let name: Arc<str> = name.into();
        let stop = Arc::new(Stop {
            bell: eventfd()?,
            in_order: AtomicBool::new(false),
        });
        let thread_stop = Arc::clone(&stop);
        let (started, start) = mpsc::sync_channel(1);
        let (end, outcome) = mpsc::sync_channel(1);
        let over = Arc::new(AtomicBool::new(false));
        let thread_over = Arc::clone(&over);
        let hba = Arc::clone(&name);
        let thread = std::thread::Builder::new()
            .name(format!("hba-{name}").chars().take(15).collect())
            .spawn(move || {
                let Life {
                    ended,
                    unfinished,
                    line,
                    lingering,
                } = serve(&hba, &thread_stop, &started);
                // Another function may be attached after the device was dropped, but not before
                // the last write has landed: it would come after newer ones.
                let lingers = unfinished.is_some() || !lingering.is_empty();
                let claim = lingers.then_some(claim);
                let line = line.filter(|_| lingers);
                let _ = end.send(Outcome { ended, lingers });
                thread_over.store(true, Ordering::Release);
                if let Some(io) = unfinished {
                    tracing::error!(
                        hba = &*hba,
                        requests = io.unfinished(),
                        "a disk does not finish what was begun; the HBA is not attached again \
                         before it has"
                    );
                    io.drain();
                    tracing::info!(hba = &*hba, "the disk has finished");
                }
                for worker in lingering {
                    let _ = worker.join();
                }
                drop((line, claim));
            })
            .map_err(AttachError::io("starting a thread"))?;
        let mut attachment = Self {
            hba: name,
            stop,
            over,
            outcome,
            thread: Some(thread),
            window: Arc::default(),
        };
        match start.recv() {
            Ok(Ok(())) => Ok(attachment),
            Ok(Err(error)) => {
                // The thread ends with the same error.
                let _ = attachment.end();
                Err(error)
            }
            Err(_) => Err(AttachError::Worker("it panicked, see the log".into())),
        }
    }

    /// Name of the HBA.
    pub fn hba(&self) -> &str {
        &self.hba
    }

    /// How fast the CPU reads the tenant's memory through the function's window; `None` before the
    /// first ring has started, and at a socket, where there is no window.
    pub fn window(&self) -> Option<Findings> {
        self.window.get().copied()
    }

    /// Whether the function was let go by itself: unplugged or failed.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
            || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells the worker to put what write-back LUNs have acknowledged on stable storage, and to let
    /// the function go then; nobody waits for that here.
    pub fn stop(&self) {
        self.stop.in_order.store(true, Ordering::Release);
        self.ring_stop();
    }

    fn ring_stop(&self) {
        if let Err(error) = self.stop.bell.write(1) {
            tracing::error!(
                hba = &*self.hba,
                "the worker cannot be told to stop: {error}"
            );
        }
    }

    /// Lets the function go: what is under way is cancelled, every mapping and then the device
    /// is dropped.
    ///
    /// # Errors
    /// What ended the attachment before, if something did.
    pub fn detach(mut self) -> Result<Ended, String> {
        self.end()
    }

    fn end(&mut self) -> Result<Ended, String> {
        let Some(thread) = self.thread.take() else {
            return Ok(Ended::Stopped);
        };
        self.ring_stop();
        match self.outcome.recv() {
            // Its thread may take as long as the disk does.
            Ok(Outcome {
                ended,
                lingers: true,
            }) => ended,
            Ok(Outcome { ended, .. }) => {
                let _ = thread.join();
                ended
            }
            Err(_) => Err("its worker panicked, see the log".into()),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(hba = &*self.hba, "{error}");
        }
    }
}

/// By which the thread of a worker says whether it works.
type Started = mpsc::SyncSender<Result<(), AttachError>>;

/// How the workers of an HBA ended.
struct Life {
    /// How the first did.
    ended: Result<Ended, String>,
    /// What a disk has not finished for it.
    unfinished: Option<Io>,
    /// What neighbours reach it by meanwhile.
    line: Option<Line>,
    /// The threads of others that still wait for a disk.
    lingering: Vec<JoinHandle<()>>,
}

/// BACKEND_UP and the MSI vectors, taken back on drop, whatever happens.
struct Up(Arc<dyn Device>);

impl Drop for Up {
    fn drop(&mut self) {
        let down = self.0.write32(STATUS, 0);
        if let Err(error) = down.and_then(|()| self.0.disable_vectors()) {
            tracing::debug!("letting a function go: {error}");
        }
    }
}

/// The life of an HBA's first worker. Every mapping is gone when it returns, then the device; what a
/// disk has not finished is returned. (Tenant memory that it uses keeps both until it has.)
fn serve(
    device: Arc<dyn Device>,
    (hba, window): (&Arc<str>, Arc<OnceLock<Findings>>),
    (host, line): (Host, Line),
    stop: &Stop,
    started: &Started,
) -> Life {
    // Dropped in reverse: the worker with its mappings, BACKEND_UP, the device.
    let up = Up(device);
    let (worker, crew) = match take_up(&up.0, (hba, window), (host, line), &stop.bell) {
        Ok(taken_up) => taken_up,
        Err(error) => {
            drop(up);
            return fail(error, started);
        }
    };
    let _ = started.send(Ok(()));
    let life = live(worker, crew, stop);
    drop(up);
    life
}

/// The life of a worker thread behind a vhost-user socket.
fn serve_socket(
    front: WorkerEnd,
    hba: &Arc<str>,
    (host, line): (Host, Line),
    stop: &Stop,
    started: &Started,
) -> Life {
    match take_up_socket(front, hba, (host, line), &stop.bell) {
        Ok((worker, crew)) => {
            let _ = started.send(Ok(()));
            live(worker, crew, stop)
        }
        Err(error) => fail(error, started),
    }
}

fn take_up_socket(
    front: WorkerEnd,
    hba: &Arc<str>,
    (host, mut line): (Host, Line),
    stop: &EventFd,
) -> Result<(Worker, Crew), AttachError> {
    stay(&line)?;
    let shared = Shared {
        hba,
        host: &host,
        spread: Spread::by_ring(line.workers()),
        side: &|| front.side(),
        vectors: &[],
    };
    let crew = Crew::start(&shared, &mut line)?;
    let worker = front
        .bell()
        .and_then(|bell| Worker::new(Box::new(front), host, line, &Vectors::only(&bell), stop))
        .map_err(AttachError::io("setting up io_uring"))?;
    Ok((worker, crew))
}

/// Keeps the first worker where it is to be.
fn stay(line: &Line) -> Result<(), AttachError> {
    pinning::keep_on(line.team.cpu()).map_err(AttachError::io("keeping a worker on its CPU"))
}

/// The life of an HBA's workers, until the first ends.
fn live(mut worker: Worker, crew: Crew, stop: &Stop) -> Life {
    let mut ended = worker.run();
    // At the same time as this one.
    crew.stop();
    let in_order = matches!(ended, Ok(Ended::Stopped)) && stop.in_order.load(Ordering::Acquire);
    let ((unfinished, line), lingering) = if in_order {
        // None of the others acknowledges anything from here on.
        let lingering = crew.join();
        ended = worker.part().map(|()| Ended::Stopped);
        (worker.close(), lingering)
    } else {
        let closed = worker.close();
        (closed, crew.join())
    };
    if !lingering.is_empty() {
        line.inbox.linger();
    }
    Life {
        ended: ended.map_err(|failure: Failure| failure.to_string()),
        unfinished,
        line: Some(line),
        lingering,
    }
}

fn fail(error: AttachError, started: &Started) -> Life {
    let text = error.to_string();
    let _ = started.send(Err(error));
    Life {
        ended: Err(text),
        unfinished: None,
        line: None,
        lingering: Vec::new(),
    }
}

fn take_up(
    device: &Arc<dyn Device>,
    (hba, window): (&Arc<str>, Arc<OnceLock<Findings>>),
    (host, mut line): (Host, Line),
    stop: &EventFd,
) -> Result<(Worker, Crew), AttachError> {
    stay(&line)?;
    let write = |offset, value| {
        device
            .write32(offset, value)
            .map_err(AttachError::io("writing a register"))
    };
    let read = |offset| {
        device
            .read32(offset)
            .map_err(AttachError::io("reading a register"))
    };
    // Whatever an appliance before us left there.
    write(RESET, 1)?;
    let mapping = device
        .map(BAR_SESSION, session::LEN)
        .map_err(AttachError::io("mapping session memory (BAR4)"))?;
    let session = SessionMemory::new(mapping)?;
    let mut vectors = enable_vectors(device)?;
    // What the shim thinks decides which vector a kick comes on.
    let seen = usize::try_from(read(VECTORS)?).unwrap_or(usize::MAX);
    vectors.truncate(seen.max(1));
    let shim = Shim::new(Arc::clone(device), session, Arc::clone(hba), window)
        .map_err(AttachError::io("reading a register"))?;
    let spread = Spread::by_vector(line.workers(), vectors.len());
    let shared = Shared {
        hba: shim.name(),
        host: &host,
        spread,
        side: &|| shim.side(),
        vectors: &vectors,
    };
    let crew = Crew::start(&shared, &mut line)?;
    let mine = vectors.iter().enumerate();
    let mine = Vectors {
        mine: mine
            .filter(|(vector, _)| spread.of_vector(*vector) == 0)
            .collect(),
        count: vectors.len(),
    };
    let worker = Worker::new(Box::new(shim), host, line, &mine, stop)
        .map_err(AttachError::io("setting up io_uring"))?;
    write(DRIVER_VERSION, CURRENT.to_register())?;
    write(STATUS, status::BACKEND_UP)?;
    if read(STATUS)? & (status::BACKEND_UP | status::REFUSED) != status::BACKEND_UP {
        return Err(AttachError::Refused(read(ERROR)?));
    }
    Ok((worker, crew))
}

fn enable_vectors(device: &Arc<dyn Device>) -> Result<Vec<EventFd>, AttachError> {
    // As many as a function may offer; the device takes as many as this one does.
    let mut vectors = (0..MAX_VECTORS)
        .map(|_| eventfd())
        .collect::<Result<Vec<_>, _>>()?;
    let granted = device
        .enable_vectors(&vectors.iter().collect::<Vec<_>>())
        .map_err(AttachError::io("enabling MSI vectors"))?;
    vectors.truncate(granted);
    Ok(vectors)
}

fn eventfd() -> Result<EventFd, AttachError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(AttachError::io("making an eventfd"))
}

#[cfg(test)]
mod tests;
