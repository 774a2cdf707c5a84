//! The thread of one HBA: its mailbox, its rings and its disks in one io_uring loop.
//!
//! Everything of an HBA happens on this one thread, so nothing here is locked: a task management
//! function sees every task, and a ring stops when its last task has ended.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::device::{BAR_TENANT, kick_vector};
use spec::mailbox::{BadRequest, Reply, Request};
use spec::virtio_scsi::{CONTROL_QUEUE, EVENT_QUEUE, response};
use vmm_sys_util::eventfd::EventFd;

use crate::disk::{self, DiskError, Event, Io};
use crate::memory::{Mapping, TableError, TableReadError, TenantMemory, mapped_len};
use crate::ring::Chain;
use crate::rings::{Left, Rings};
use crate::scsi::{Attention, Step, Target};
use crate::shim::{Asked, Shim, ShimGone};
use crate::task::{Command, Fate, Finished, Task, Tasks};
use crate::task_management::{ControlRequest, Functions, Plan};

/// Most commands of one HBA that disks work on at a time; more stay in their rings.
const MAX_TASKS: usize = 1024;
/// Most requests fetched from a ring before the others have their turn.
const BATCH: usize = 64;
/// How long a leaving worker waits for its disks.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Wake-up token of the stop eventfd; vectors have their own number.
const STOP: u64 = 1 << 32;
/// Wake-up token of the function's release request.
const RELEASE: u64 = STOP + 1;
/// Vector of the mailbox.
const MAILBOX: u64 = 0;
/// Granularity of mappings in bytes.
const PAGE: u64 = 4096;

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The function is to be unplugged.
    Released,
}

/// Why a worker failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The function does not answer.
    #[error(transparent)]
    Shim(#[from] ShimGone),
    /// The loop broke.
    #[error("the I/O loop failed: {0}")]
    Loop(#[from] io::Error),
}

/// Why a memory table is not taken up.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Read(#[from] TableReadError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("BAR2 cannot be mapped: {0}")]
    Map(#[from] io::Error),
}

impl Refused {
    /// What the shim is told.
    fn errno(&self) -> i32 {
        match self {
            Self::Read(_) => libc::EAGAIN,
            Self::Table(_) => libc::EINVAL,
            Self::Map(error) => error.raw_os_error().unwrap_or(libc::ENXIO),
        }
    }
}

/// One HBA at work.
pub(crate) struct Worker {
    io: Io,
    /// Fields below hold mappings of the function; they go before `shim`, which holds it.
    tasks: Tasks,
    functions: Functions,
    rings: Rings,
    mapping: Option<Arc<Mapping>>,
    /// Counts the memory tables, so that a task knows which one it used.
    memory: u64,
    features: u64,
    target: Target,
    vectors: usize,
    /// Rings to be served in this turn of the loop.
    ready: BTreeSet<u16>,
    /// Rings that wait for room among the tasks.
    starved: BTreeSet<u16>,
    unfinished: Option<(Asked, Unfinished)>,
    end: Option<Ended>,
    chains: Vec<Chain>,
    shim: Shim,
}

/// A request of the shim that waits for tasks to end.
#[derive(Debug, Clone, Copy)]
enum Unfinished {
    Stop(u16),
    /// Until no task uses a memory table before this one.
    Memory(u64),
    Reset,
    Disconnect,
}

impl Worker {
    /// A worker that is woken by `vectors` (the first is the mailbox's), `stop` and the
    /// function's release request.
    ///
    /// # Errors
    /// What io_uring_setup(2) reports.
    pub fn new(
        shim: Shim,
        target: Target,
        vectors: &[EventFd],
        stop: &EventFd,
    ) -> io::Result<Self> {
        let mut io = Io::new().map_err(io::Error::other)?;
        for (token, vector) in (MAILBOX..).zip(vectors) {
            io.watch(vector, token)?;
        }
        io.watch(stop, STOP)?;
        if let Some(release) = shim.device().release_request() {
            io.watch(release, RELEASE)?;
        }
        Ok(Self {
            io,
            tasks: Tasks::new(MAX_TASKS),
            functions: Functions::default(),
            rings: Rings::default(),
            mapping: None,
            memory: 0,
            features: 0,
            target,
            vectors: vectors.len(),
            ready: BTreeSet::new(),
            starved: BTreeSet::new(),
            unfinished: None,
            end: None,
            chains: Vec::with_capacity(BATCH),
            shim,
        })
    }

    /// Works until told to stop or to let the function go.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&mut self) -> Result<Ended, Failure> {
        // A request may have come before its vector was watched.
        self.serve_mailbox()?;
        let mut events = Vec::new();
        loop {
            let timeout = (!self.ready.is_empty()).then_some(Duration::ZERO);
            self.io.wait(timeout, &mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Wake(token) => self.wake(token)?,
                    Event::Done { tag, result } => self.disk_done(tag, result),
                }
            }
            if let Some(end) = self.end {
                return Ok(end);
            }
            for ring in std::mem::take(&mut self.ready) {
                self.serve(ring);
            }
            self.rings.call(&self.shim);
            self.finish_request()?;
        }
    }

    /// Ends everything that is under way, without answers, and lets the tenant's memory go.
    pub fn leave(&mut self) {
        self.abandon();
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut events = Vec::new();
        while self.io.in_flight() > 0 {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                tracing::error!(
                    hba = self.shim.hba(),
                    "{} disk operations did not end in {} s; see the kernel log for a hung disk",
                    self.io.in_flight(),
                    DRAIN_LIMIT.as_secs()
                );
                break;
            }
            if let Err(error) = self.io.wait(Some(rest), &mut events) {
                tracing::error!(hba = self.shim.hba(), "the I/O loop failed: {error}");
                break;
            }
            for event in events.drain(..) {
                if let Event::Done { tag, .. } = event {
                    drop(self.tasks.remove(tag));
                }
            }
        }
        self.let_memory_go();
    }

    fn wake(&mut self, token: u64) -> Result<(), Failure> {
        match token {
            STOP => self.end = Some(Ended::Stopped),
            RELEASE => self.end = Some(Ended::Released),
            vector => {
                if vector == MAILBOX {
                    self.serve_mailbox()?;
                }
                // With one vector, kicks come on the mailbox's.
                for ring in self.rings.started() {
                    if kick_vector(usize::from(ring), self.vectors) as u64 == vector {
                        self.ready.insert(ring);
                    }
                }
            }
        }
        Ok(())
    }

    // --- The mailbox ---------------------------------------------------------------------------

    fn serve_mailbox(&mut self) -> Result<(), Failure> {
        while let Some((asked, request)) = self.shim.request()? {
            tracing::debug!(hba = self.shim.hba(), ?request, "mailbox");
            let reply = match request {
                Ok(request) => self.act(asked, request),
                Err(error) => {
                    tracing::error!(
                        hba = self.shim.hba(),
                        "the shim asked for nonsense: {error}"
                    );
                    Some(failed(match error {
                        BadRequest::UnknownOperation(_) => libc::EOPNOTSUPP,
                        BadRequest::Length | BadRequest::Ring => libc::EINVAL,
                    }))
                }
            };
            match reply {
                Some(reply) => self.shim.reply(asked, reply)?,
                None => self.finish_request()?,
            }
        }
        Ok(())
    }

    /// Acts on a request; without a reply it is unfinished.
    fn act(&mut self, asked: Asked, request: Request) -> Option<Reply> {
        let unfinished = match request {
            Request::SetFeatures { features } => {
                self.features = features;
                return Some(Reply::Done);
            }
            Request::SetMemory { generation } => match self.set_memory(generation) {
                Ok(()) => Unfinished::Memory(self.memory),
                Err(errno) => return Some(failed(errno)),
            },
            Request::StartRing(setup) => {
                let started = self.rings.start(&setup, self.features, &self.shim);
                self.ready.insert(setup.ring);
                return Some(started.map_or_else(failed, |()| Reply::Done));
            }
            Request::StopRing { ring } => {
                if !self.rings.stop(ring) {
                    return Some(failed(libc::ENOENT));
                }
                Unfinished::Stop(ring)
            }
            Request::Reset => {
                self.abandon();
                Unfinished::Reset
            }
            Request::Disconnect => {
                self.abandon();
                Unfinished::Disconnect
            }
        };
        self.unfinished = Some((asked, unfinished));
        None
    }

    /// Answers the unfinished request, if it is finished now.
    fn finish_request(&mut self) -> Result<(), Failure> {
        let Some((asked, unfinished)) = self.unfinished else {
            return Ok(());
        };
        let reply = match unfinished {
            Unfinished::Stop(ring) => {
                // The last completions are called for before the shim hears that it is over.
                self.rings.call(&self.shim);
                self.rings.take_stopped(ring).map(Reply::Base)
            }
            Unfinished::Memory(memory) => {
                let in_use = self.tasks.iter().any(|task| task.memory < memory)
                    || self.functions.use_memory_before(memory);
                (!in_use).then_some(Reply::Done)
            }
            Unfinished::Reset => self.tasks.is_empty().then(|| {
                self.target.establish(None, Attention::PowerOn);
                Reply::Done
            }),
            Unfinished::Disconnect => self.tasks.is_empty().then(|| {
                self.let_memory_go();
                self.target.establish(None, Attention::PowerOn);
                Reply::Done
            }),
        };
        if let Some(reply) = reply {
            self.unfinished = None;
            self.shim.reply(asked, reply)?;
        }
        Ok(())
    }

    /// Takes the memory table of `generation` up.
    ///
    /// # Errors
    /// The errno for the shim, after a log line; the old memory stays then.
    fn set_memory(&mut self, generation: u32) -> Result<(), i32> {
        let memory = self.read_memory(generation).map_err(|refused| {
            tracing::error!(hba = self.shim.hba(), "memory table refused: {refused}");
            refused.errno()
        })?;
        self.memory += 1;
        self.rings.set_memory(memory, &self.shim);
        self.ready.extend(self.rings.started());
        Ok(())
    }

    fn read_memory(&mut self, generation: u32) -> Result<Option<Arc<TenantMemory>>, Refused> {
        let table = self.shim.memory_table(generation)?;
        let len = mapped_len(&table)?;
        if len == 0 {
            return Ok(None);
        }
        let mapping = self.mapping_of(len)?;
        Ok(Some(Arc::new(TenantMemory::new(mapping, table)?)))
    }

    /// The mapping of the first `len` bytes of BAR2 or more; the one in use, if it is that long.
    fn mapping_of(&mut self, len: u64) -> io::Result<Arc<Mapping>> {
        if let Some(mapping) = &self.mapping
            && mapping.len() as u64 >= len
        {
            return Ok(Arc::clone(mapping));
        }
        let device = self.shim.device();
        let bar_len = device.bar_len(BAR_TENANT)?;
        if len > bar_len {
            return Err(io::Error::other(format!(
                "the table needs {len} bytes of BAR2, which has {bar_len}"
            )));
        }
        let pages = len.checked_next_multiple_of(PAGE).unwrap_or(len);
        let mapping = Arc::new(device.map(BAR_TENANT, pages)?);
        self.mapping = Some(Arc::clone(&mapping));
        Ok(mapping)
    }

    fn let_memory_go(&mut self) {
        self.rings.set_memory(None, &self.shim);
        self.mapping = None;
    }

    /// Forgets every ring and ends every task without an answer.
    fn abandon(&mut self) {
        self.rings.forget();
        self.functions.forget();
        self.ready.clear();
        self.starved.clear();
        self.features = 0;
        for (name, task) in self.tasks.iter_mut() {
            task.fate = Fate::Abandoned;
            task.waiters.clear();
            self.io.cancel(name);
        }
    }

    // --- Rings ---------------------------------------------------------------------------------

    /// Serves a ring: at most one batch, the rest in the next turn of the loop.
    fn serve(&mut self, ring: u16) {
        if ring == EVENT_QUEUE {
            // Buffers stay in the ring until there is an event to report.
            self.rings.look_at(ring, &self.shim);
            return;
        }
        // Task management must get through when a disk hangs and every task is taken.
        let room = match ring {
            CONTROL_QUEUE => BATCH,
            _ => self.tasks.room().min(BATCH),
        };
        if room == 0 {
            self.starved.insert(ring);
            return;
        }
        let mut chains = std::mem::take(&mut self.chains);
        let left = self.rings.fetch(ring, room, &mut chains, &self.shim);
        for chain in chains.drain(..) {
            if ring == CONTROL_QUEUE {
                self.control(ring, chain);
            } else {
                self.command(ring, chain);
            }
        }
        self.chains = chains;
        if left == Left::More {
            self.ready.insert(ring);
        }
    }

    fn complete(&mut self, ring: u16, finished: Finished) {
        self.rings
            .complete(ring, finished.head, finished.written, &self.shim);
    }

    // --- SCSI commands -------------------------------------------------------------------------

    fn command(&mut self, ring: u16, chain: Chain) {
        let command = match Command::parse(chain) {
            Ok(command) => command,
            Err(violation) => return self.rings.reject(ring, violation, &self.shim),
        };
        let header = command.header;
        tracing::trace!(hba = self.shim.hba(), ring, tag = header.tag, "pop");
        let finished = match self
            .target
            .start(header.lun, &header.cdb, command.buffers())
        {
            Step::Answer(answer) => command.answer(&answer, 0),
            Step::NoTarget => command.fail(response::BAD_TARGET),
            Step::Overrun => command.fail(response::OVERRUN),
            Step::Disk { disk, op, pending } => {
                let place = self.target.place(header.lun);
                let (data, data_in) = command.data_for(&op);
                let tag = self.tasks.insert(Task {
                    ring,
                    place,
                    tag: header.tag,
                    memory: self.memory,
                    fate: Fate::Live,
                    waiters: Vec::new(),
                    command,
                    pending,
                    data_in,
                });
                tracing::trace!(hba = self.shim.hba(), ring, tag = header.tag, ?op, "submit");
                return self.io.submit(&disk, disk::Request { tag, op, data });
            }
        };
        tracing::trace!(hba = self.shim.hba(), ring, tag = header.tag, "push");
        self.complete(ring, finished);
    }

    fn disk_done(&mut self, name: u64, result: Result<(), DiskError>) {
        let Some(mut task) = self.tasks.remove(name) else {
            return;
        };
        // Room for one more.
        self.ready.append(&mut self.starved);
        let (ring, tag) = (task.ring, task.tag);
        tracing::trace!(hba = self.shim.hba(), ring, tag, ?result, "reap, push");
        let waiters = std::mem::take(&mut task.waiters);
        if let Some(finished) = task.finish(result) {
            self.complete(ring, finished);
        }
        for function in waiters {
            if let Some((ring, finished)) = self.functions.task_ended(function) {
                self.complete(ring, finished);
            }
        }
    }

    // --- Task management -----------------------------------------------------------------------

    fn control(&mut self, ring: u16, chain: Chain) {
        let request = match ControlRequest::parse(chain) {
            Ok(request) => request,
            Err(violation) => return self.rings.reject(ring, violation, &self.shim),
        };
        tracing::debug!(hba = self.shim.hba(), ring, ?request, "task management");
        let answer = match request.plan(&self.target) {
            Plan::Answer(code) => code,
            Plan::Query(scope) => {
                if self.tasks.iter().any(|task| scope.has(task)) {
                    response::FUNCTION_SUCCEEDED
                } else {
                    response::OK
                }
            }
            Plan::End(scope, with, attention) => {
                let Some(place) = self.functions.vacancy() else {
                    let finished = request.answer(response::FUNCTION_REJECTED);
                    return self.complete(ring, finished);
                };
                let mut waits_for = 0;
                for (name, task) in self.tasks.iter_mut().filter(|(_, task)| scope.has(task)) {
                    task.fate = Fate::Failed(with);
                    task.waiters.push(place);
                    waits_for += 1;
                    self.io.cancel(name);
                }
                if let Some(attention) = attention {
                    self.target.establish(scope.unit(), attention);
                }
                if waits_for > 0 {
                    return self
                        .functions
                        .wait(place, ring, self.memory, waits_for, request);
                }
                response::OK
            }
        };
        let finished = request.answer(answer);
        self.complete(ring, finished);
    }
}

fn failed(errno: i32) -> Reply {
    Reply::Failed(errno.unsigned_abs())
}
