//! A thread of an HBA: its mailbox, its rings and its disks in one io_uring loop.
//!
//! Most HBAs have one. Everything of a ring happens on one thread, so nothing here is locked: a ring
//! stops when its last task has ended. Where an HBA has several, each is a worker of its own with
//! rings of its own, and they tell each other what concerns more than these (`worker/fellows.rs`).
//!
//! On the way of a command workers of an HBA write to nothing that is in a cache line of another's:
//! tasks, rings, the loop and what is counted are each worker's, and what would be side by side
//! (`scsi`'s tallies and holds, the call eventfds of a socket) is aligned to lines of its own. What
//! they do share is written to by them all: reference counts of a unit, of a disk's file (by the
//! first of the commands under way and the last) and of the tenant's memory, the locks of a disk's
//! ranges, what is known of writes and flushes where those are cached (`marks`), and the call
//! counters of a function, which are side by side in session memory.
//! `cargo instructions` looks for whatever else there may be.

mod changes;
mod control;
mod deadlines;
mod fellows;
mod fences;
mod limits;
mod mailbox;
mod marks;
mod parting;
mod pauses;
mod polling;
mod shortcut;
mod snapshot;
mod team;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::device::kick_vector;
use spec::virtio_scsi::{CONTROL_QUEUE, EVENT_QUEUE, feature, response};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::fences::Patience;
use self::fences::{Fences, Settling};
use self::limits::Limits;
use self::mailbox::Unfinished;
pub(crate) use self::mailbox::{ACCEPTED, FEATURES};
pub(crate) use self::marks::{Marking, Marks};
use self::pauses::Pauses;
use self::polling::Polling;
pub(crate) use self::team::{Behind, Team};
use crate::attachment::Line;
use crate::disk::{self, DiskError, Event, Io, Reply};
use crate::events::Events;
use crate::fellow::Fellow;
use crate::front::{Asked, Front, Gone};
use crate::in_flight::Waiters;
use crate::inbox::{Question, UnitChange};
use crate::log_limit::LogLimit;
use crate::ring::{Chain, Violation};
use crate::ring_set::RingSet;
use crate::rings::{Left, Rings};
use crate::scsi::{Answer, Host, Step};
use crate::statistics::Statistics;
use crate::task::{Command, Fate, Finished, Name, Task, Tasks, Trial, Used};
use crate::task_management::{Functions, Waiter};

/// Most commands of one HBA that disks work on at a time; more stay in their rings.
const MAX_TASKS: usize = 1024;
/// Pieces of memory that their buffers are in, after which no more are fetched. QEMU's default rings
/// have at most 126 for a command; chains as long as can be would let one tenant have the memory
/// of all.
const MAX_PIECES: usize = 256 * MAX_TASKS;
/// Most requests fetched from a ring before the others have their turn.
const BATCH: usize = 64;
/// Requests of a batch after which the driver is shown what is back: it has something to do while
/// the rest is being done. It is called early for the first of these alone.
const SHOWN: usize = 8;
/// Wake-up token of the stop eventfd; vectors have their own number.
const STOP: u64 = 1 << 32;
/// Wake-up token of the function's release request.
const RELEASE: u64 = STOP + 1;
/// Wake-up token of the inbox.
const INBOX: u64 = RELEASE + 1;
/// Wake-up token of the kicks of ring 0, those of the others follow.
const KICK: u64 = STOP << 1;
/// Vector of the mailbox.
const MAILBOX: u64 = 0;

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The function is to be unplugged.
    Released,
    /// The HBA is no longer in the configuration.
    Removed,
}

/// Why a worker failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody is in front of it.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The loop broke.
    #[error("the I/O loop failed: {0}")]
    Loop(#[from] io::Error),
    /// Another worker of the HBA has ended.
    #[error("another worker of the HBA has ended, see the log")]
    Fellow,
}

/// The vectors of a function that a worker waits for.
pub(crate) struct Vectors<'a> {
    /// Each with its number; that of the mailbox, or of whatever requests come by, is 0.
    pub mine: Vec<(usize, &'a EventFd)>,
    /// How many the function has.
    pub count: usize,
}

impl<'a> Vectors<'a> {
    /// Requests come by `bell`, and each ring brings what it is kicked by.
    pub fn only(bell: &'a EventFd) -> Self {
        Self {
            mine: vec![(0, bell)],
            count: 1,
        }
    }
}

/// A worker of an HBA; the fields are dropped in this order, `io` after a limited time for its disks.
pub(crate) struct Worker {
    io: Io,
    // These hold mappings of the function; they go before `shim`, which holds the function.
    tasks: Tasks,
    functions: Functions,
    fences: Fences,
    rings: Rings,
    /// Counts the memory tables, so that a task knows which one it used.
    memory: u64,
    features: u64,
    events: Events,
    host: Host,
    line: Line,
    vectors: usize,
    /// Rings to be served in this turn of the loop.
    ready: RingSet,
    /// Rings that wait for room among the tasks.
    starved: RingSet,
    /// A request of the shim whose reply is still owed.
    unfinished: Option<(Asked, Unfinished)>,
    /// What a reset waits for.
    settling: Option<Settling>,
    end: Option<Ended>,
    polling: Polling,
    /// Takes no new commands.
    drained: bool,
    statistics: Statistics,
    chains: Vec<Chain>,
    happened: Vec<Event>,
    /// When this turn of the loop began.
    now: Instant,
    /// When tasks were last looked at for their deadlines.
    looked: Instant,
    late: LogLimit,
    pauses: Pauses,
    limits: Limits,
    marks: Marks,
    /// Other units to be seen, in order; the first change is under way.
    changes: VecDeque<UnitChange>,
    /// Who asked meanwhile.
    asked: Vec<Question>,
    /// What other workers of the HBA want, before commands were fetched again that it is about.
    early: Vec<Fellow>,
    shim: Box<dyn Front>,
}

impl Worker {
    /// A worker that is woken by `vectors`, `stop`, the function's release request and what comes on
    /// `line`.
    ///
    /// # Errors
    /// What io_uring_setup(2) reports.
    pub fn new(
        shim: Box<dyn Front>,
        host: Host,
        line: Line,
        vectors: &Vectors<'_>,
        stop: &EventFd,
    ) -> io::Result<Self> {
        let mut io = Io::new().map_err(io::Error::other)?;
        for (token, vector) in &vectors.mine {
            io.watch(vector, *token as u64)?;
        }
        io.watch(stop, STOP)?;
        if let Some(release) = shim.release_request() {
            io.watch(release, RELEASE)?;
        }
        io.watch(line.inbox.bell(), INBOX)?;
        let now = Instant::now();
        let marks = line.marks.clone();
        let kept = line.roster.take_over(host.hba(), line.team.place());
        let mut statistics = Statistics::new(kept);
        for (address, unit) in host.units() {
            if line.team.is_first() {
                marks.look_at(unit, &*shim);
            }
            statistics.begin(address, unit.name());
        }
        let limits = Limits::new(host.hba(), line.inbox.weak_bell());
        Ok(Self {
            io,
            tasks: Tasks::new(MAX_TASKS, MAX_PIECES),
            functions: Functions::default(),
            fences: Fences::default(),
            rings: Rings::default(),
            memory: 0,
            features: 0,
            events: Events::default(),
            host,
            line,
            vectors: vectors.count,
            ready: RingSet::default(),
            starved: RingSet::default(),
            unfinished: None,
            settling: None,
            end: None,
            polling: Polling::new(),
            drained: false,
            statistics,
            chains: Vec::with_capacity(BATCH),
            happened: Vec::new(),
            now,
            looked: now,
            late: LogLimit::new(now),
            pauses: Pauses::new(now),
            limits,
            marks,
            changes: VecDeque::new(),
            asked: Vec::new(),
            early: Vec::new(),
            shim,
        })
    }

    /// Ends the worker: what is under way is cancelled, without answers, and every mapping of the
    /// function let go. Returns the loop if a disk does not finish what was begun.
    ///
    /// The line is returned, too: as long as it is there, whoever waits for the tasks of all others
    /// at a unit waits for what a disk has not finished here.
    pub fn close(mut self) -> (Option<Io>, Line) {
        // Later than what was told in the turn before.
        self.statistics.hba.turns += 1;
        let place = self.line.team.place();
        let roster = &self.line.roster;
        roster.keep(self.host.hba(), place, self.totals());
        // The rest goes when this returns, in its order.
        let Self { io, line, .. } = self;
        let unfinished = io.close();
        if unfinished.is_some() {
            line.inbox.linger();
        }
        (unfinished, line)
    }

    /// Works until told to stop or to let the function go.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&mut self) -> Result<Ended, Failure> {
        self.begin()?;
        loop {
            if let Some(end) = self.turn()? {
                return Ok(end);
            }
        }
    }

    /// Acts on a request that came before its vector was watched.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn begin(&mut self) -> Result<(), Failure> {
        self.serve_mailbox()
    }

    /// One turn of the loop: waits until something happens, and acts on all that has. Returns why
    /// the worker is to end, if it is.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn turn(&mut self) -> Result<Option<Ended>, Failure> {
        let mut happened = std::mem::take(&mut self.happened);
        self.io.wait(self.rest(), &mut happened)?;
        self.now = Instant::now();
        self.statistics.hba.turns += 1;
        self.note_begun();
        for event in happened.drain(..) {
            match event {
                Event::Wake(token) => self.wake(token)?,
                Event::Done { tag, result } => self.disk_done(tag, result),
            }
        }
        self.happened = happened;
        if self.end.is_some() {
            // What has ended is back, for whoever serves the rings next.
            self.rings.call_for_all(&*self.shim);
            return Ok(self.end);
        }
        for ring in std::mem::take(&mut self.ready) {
            self.serve(ring);
        }
        if !self.early.is_empty() {
            self.hear_what_was_early()?;
        }
        self.expire();
        self.try_held();
        self.let_limited_go();
        self.rings.call(self.now, &*self.shim);
        self.finish_request()?;
        self.poll();
        Ok(None)
    }

    fn wake(&mut self, token: u64) -> Result<(), Failure> {
        match token {
            STOP => self.end = Some(Ended::Stopped),
            RELEASE => self.end = Some(Ended::Released),
            INBOX => {
                self.limits.look(self.now);
                self.serve_inbox()?;
            }
            KICK.. => {
                self.statistics.hba.kicks += 1;
                self.ready
                    .insert(u16::try_from(token - KICK).unwrap_or(u16::MAX));
            }
            vector => {
                if vector == MAILBOX {
                    self.serve_mailbox()?;
                }
                self.statistics.hba.kicks += u64::from(vector != MAILBOX || self.vectors == 1);
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

    // --- Rings ---------------------------------------------------------------------------------

    /// Serves a ring: at most one batch, the rest in the next turn of the loop. Returns how many
    /// requests that were.
    fn serve(&mut self, ring: u16) -> usize {
        if ring == EVENT_QUEUE {
            self.serve_events();
            return 0;
        }
        // Task management must get through when a disk hangs and every task is taken.
        let room = match ring {
            CONTROL_QUEUE => BATCH,
            // What an appliance before this one began is no new command.
            _ if self.drained && !self.rings.has_commands_again() => 0,
            _ => self.tasks.room().min(BATCH),
        }
        .min(self.rings.room(ring));
        // And it must find the tasks that it is about.
        let early = ring == CONTROL_QUEUE && self.rings.has_commands_again();
        if room == 0 || early {
            self.starved.insert(ring);
            return 0;
        }
        let mut chains = std::mem::take(&mut self.chains);
        let again = self.rings.fetch_again(ring, room, &mut chains, &*self.shim);
        let left = if again {
            Left::More
        } else {
            self.rings.fetch(ring, room, &mut chains, &*self.shim)
        };
        if ring == CONTROL_QUEUE && !chains.is_empty() {
            self.catch_up();
        }
        let count = chains.len();
        self.statistics.hba.fetched(ring, count);
        if ring == CONTROL_QUEUE {
            for chain in chains.drain(..) {
                self.control(ring, chain);
            }
        } else {
            for (done, chain) in (1..).zip(&mut chains) {
                if again || !self.shortcut(ring, chain) {
                    self.command(ring, chain, again);
                }
                if done % SHOWN == 0 {
                    self.rings.show(ring, done == SHOWN, &*self.shim);
                }
            }
            chains.clear();
        }
        self.chains = chains;
        if left == Left::More {
            self.ready.insert(ring);
        }
        if again && !self.rings.has_commands_again() {
            self.ready.insert(CONTROL_QUEUE);
        }
        count
    }

    /// Gives a command back, for which `waiters` wait, as soon as its turn comes.
    fn complete(&mut self, ring: u16, finished: &Finished, name: Name, waiters: Waiters) {
        let Finished { chain, ending } = finished;
        self.statistics
            .ended(name.place, name.tag, ending, self.now);
        let taken = self.now.saturating_duration_since(ending.since);
        self.polling.ended(taken);
        self.give_back(ring, *chain, Some(name), waiters);
    }

    /// Gives a control request back.
    fn complete_control(&mut self, ring: u16, chain: Used) {
        self.give_back(ring, chain, None, Waiters::new());
    }

    /// Gives a chain back to its ring, as soon as its turn comes.
    #[inline]
    fn give_back(&mut self, ring: u16, chain: Used, name: Option<Name>, waiters: Waiters) {
        let back = self.rings.complete(ring, chain, name, waiters, &*self.shim);
        self.has_room(ring);
        self.release(back);
    }

    /// Something of a ring has ended, which may have waited for that.
    fn has_room(&mut self, ring: u16) {
        if self.starved.remove(ring) {
            self.ready.insert(ring);
        }
    }

    /// Retires a ring because of the request at `head`.
    fn reject(&mut self, ring: u16, head: u16, violation: Violation) {
        let back = self.rings.reject(ring, head, violation, &*self.shim);
        self.release(back);
        // It may have waited for what this ring had to fetch again.
        self.ready.insert(CONTROL_QUEUE);
    }

    /// Answers the functions of which a task has gone back, where that was the last.
    fn release(&mut self, functions: Waiters) {
        for function in functions {
            if let Some(owed) = self.functions.is_back(function) {
                self.pay(owed);
            }
        }
    }

    // --- SCSI commands -------------------------------------------------------------------------

    /// A command; `again` if an appliance before this one may have carried it out.
    fn command(&mut self, ring: u16, chain: &mut Chain, again: bool) {
        self.polling.came();
        if let Err(violation) = Command::check(chain, self.features) {
            return self.reject(ring, chain.head, violation);
        }
        let command = Command::of(chain, self.features, self.now);
        let header = &command.header;
        let name = Name {
            place: self.host.place(header.lun),
            tag: header.tag,
        };
        tracing::trace!(hba = self.shim.hba(), ring, tag = header.tag, "pop");
        let started = if command.is_bidirectional() && self.features & feature::INOUT == 0 {
            // virtio 1.3 §5.6.6.1.1: not negotiated, so not looked at.
            None
        } else if command.is_overrun() {
            Some(Step::Overrun)
        } else if again
            && let Some(answer) = self
                .host
                .not_again(header.lun, &header.cdb, command.buffers())
        {
            Some(Step::Answer(answer))
        } else if control::may_preempt(&header.cdb) && !self.functions.has_room() {
            // No initiator has so many under way that it waits for.
            Some(Step::Answer(Answer::busy(command.buffers())))
        } else {
            Some(self.host.start_at(
                (header.lun, name.place),
                header.task_attribute,
                &header.cdb,
                command.buffers(),
            ))
        };
        let finished = match started {
            None => command.fail(response::FAILURE),
            Some(Step::Answer(answer)) => command.answer(&answer, 0),
            Some(Step::Preempt { preempted, pending }) => {
                let waiter = Waiter {
                    ring,
                    name,
                    memory: self.memory,
                    command,
                    pending,
                    since: self.now,
                };
                return self.preempt(preempted, waiter);
            }
            Some(Step::NoTarget) => command.fail(response::BAD_TARGET),
            Some(Step::Overrun) => command.fail(response::OVERRUN),
            Some(Step::Disk {
                disk,
                op,
                mut pending,
                patience,
            }) => {
                let over = if self.limits.concern(pending.unit()) {
                    self.over_limit(pending.unit(), &op)
                } else {
                    None
                };
                if over.is_some() && self.holds_enough() {
                    self.not_held();
                    let finished = command.answer(&pending.end(Err(DiskError::Busy)), 0);
                    return self.complete(ring, &finished, name, Waiters::new());
                }
                let (op, marking) = self.marks.begin(op, &mut pending, &*self.shim);
                let (data, data_in) = match pending.buffer() {
                    Some(own) => (Cow::Owned(own), 0),
                    None => command.data_for(&op),
                };
                let changes = op.changes_blocks() || pending.changes_blocks();
                let on = disk.as_ref().unwrap_or(pending.unit().disk());
                let mut ended = match over {
                    None => self.io.at_once(on.as_ref(), &op, Some(&data)),
                    Some(_) => None,
                };
                if matches!(ended, Some(Ok(_)))
                    && marking == Marking::None
                    && self.pauses.is_empty()
                    && !pending.is_copy()
                    && let Some(result) = ended.take()
                {
                    // Nobody else could have seen it under way, so it need be no task. The clock is
                    // read once in a turn.
                    pending.took(Duration::ZERO);
                    let finished = command.answer(&pending.end(result), data_in);
                    return self.complete(ring, &finished, name, Waiters::new());
                }
                let data = (ended.is_none() && over.is_none()).then(|| data.into_owned());
                let known_by = header.tag;
                let tag = self.tasks.insert(Task {
                    ring,
                    name,
                    memory: self.memory,
                    fate: Fate::Live,
                    waiters: Vec::new(),
                    command,
                    again: pauses::again(&pending, &op),
                    trial: Trial::None,
                    limited: false,
                    changes,
                    marking,
                    pending,
                    data_in,
                    since: self.now,
                    begun: None,
                    patience,
                });
                let Some(task) = self.tasks.get(tag) else {
                    return;
                };
                // Not held for a command by itself: all workers would count that in one place.
                let disk = disk.as_ref().unwrap_or(task.pending.unit().disk());
                if let Some(cost) = over {
                    let disk = Arc::clone(disk);
                    return self.hold_over(tag, disk, op, cost);
                }
                tracing::trace!(hba = self.shim.hba(), ring, tag = known_by, ?op, "submit");
                return match ended {
                    Some(result) => self.disk_done(tag, result),
                    None => self.io.submit(disk, disk::Request { tag, op, data }),
                };
            }
        };
        tracing::trace!(hba = self.shim.hba(), ring, tag = name.tag, "push");
        self.complete(ring, &finished, name, Waiters::new());
    }

    fn disk_done(&mut self, name: u64, result: Result<Reply, DiskError>) {
        if Fences::is_fence(name) {
            return self.fence_done(name, &result);
        }
        let Some(result) = self.hold(name, result) else {
            self.is_begun(name);
            return;
        };
        if let Some(task) = self.tasks.get_mut(name)
            && let Some((disk, op)) = task.go_on(&result)
        {
            tracing::trace!(hba = self.shim.hba(), ?op, "go on");
            return self.go_on(name, disk, op);
        }
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let (unit, marking) = (task.pending.unit(), task.marking);
        self.marks.end(unit, marking, result.is_ok(), &*self.shim);
        if result.is_ok() {
            let time = self.now.saturating_duration_since(task.since);
            task.pending.took(time);
        }
        // Room for one more.
        self.ready.add(std::mem::take(&mut self.starved));
        let (ring, known_by) = (task.ring, task.name);
        tracing::trace!(
            hba = self.shim.hba(),
            ring,
            tag = known_by.tag,
            ?result,
            "reap, push"
        );
        let waiters = std::mem::take(&mut task.waiters);
        let begun = task.begun;
        let finished = task.finish(result).map(|finished| finished.begun_at(begun));
        self.tasks.forget(name);
        let (end, back): (Waiters, Waiters) = if waiters.is_empty() {
            (waiters, Waiters::new())
        } else {
            waiters
                .into_iter()
                .partition(|&function| self.functions.waits_for_ends(function))
        };
        match finished {
            Some(finished) => self.complete(ring, &finished, known_by, back),
            None => self.release(back),
        }
        self.release(end);
    }
}
