//! Operations on their way, from being submitted to being reported.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::check::check;
use super::extents::{Question, Surveyor};
use super::files::Files;
use super::held::Holds;
use super::inbox::{Inbox, Message, Place};
use super::operation::{Lock, Operation, Turn};
use super::pieces::Pieces;
use super::pool::Pool;
use super::protected::HandedOver;
use super::ring::Ring;
use super::work::Work;
use super::{Event, Request};
use crate::disk::table::Table;
use crate::disk::{Disk, DiskError, Op, Reply};
use crate::memory::Segments;

/// Most operations of a file, in all loops, that were reported as cancelled though the kernel is
/// still at them; then there are no new ones until it gets on. Otherwise somebody who begins and
/// cancels without end would fill the memory while a disk hangs.
const MAX_ABANDONED: usize = 256;

#[derive(Debug)]
pub struct Transfers {
    operations: Table<Operation>,
    pieces: Pieces,
    holds: Holds,
    surveyor: Surveyor,
    inbox: Arc<Inbox>,
    /// Operations that were not reported.
    live: usize,
    /// Copies that filesystems are at.
    offered: usize,
    /// Of the next operation.
    serial: u64,
    /// Kept between calls for its capacity.
    messages: Vec<Message>,
}

impl Transfers {
    /// No operations yet; `ring` gets to know the pool.
    pub fn new(pool: Pool, inbox: Arc<Inbox>, ring: &mut Ring) -> Self {
        Self {
            operations: Table::new(),
            pieces: Pieces::new(pool, Arc::clone(&inbox), ring),
            holds: Holds::default(),
            surveyor: Surveyor::default(),
            inbox,
            live: 0,
            offered: 0,
            serial: 0,
            messages: Vec::new(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.live
    }

    /// Whether the kernel uses no memory of ours, and changes no disk because of us.
    pub fn is_idle(&self) -> bool {
        self.pieces.is_empty() && self.offered == 0
    }

    /// Whether a write is in the kernel that is done when it is on stable storage.
    pub fn has_through(&self) -> bool {
        self.pieces.has_through()
    }

    pub fn take_begun(&mut self) -> Vec<u64> {
        self.pieces.take_begun()
    }

    pub fn unfinished(&self) -> usize {
        self.operations.len()
    }

    /// How an operation ends that its disk carries out at once; `None` if it has to be submitted.
    pub fn at_once(
        &self,
        disk: &dyn Disk,
        op: &Op,
        data: Option<&Segments>,
    ) -> Option<Result<Reply, DiskError>> {
        if !disk.answers_at_once() {
            return None;
        }
        match self.check(disk, op, data) {
            Ok(()) => disk.at_once(op, data),
            Err(error) => Some(Err(error)),
        }
    }

    fn check(&self, disk: &dyn Disk, op: &Op, data: Option<&Segments>) -> Result<(), DiskError> {
        let pool = self.pieces.shares.pool().granules() * Pool::GRANULE;
        check(disk, op, data, pool)
    }

    pub fn submit(
        &mut self,
        disk: &Arc<dyn Disk>,
        request: Request,
        ring: &mut Ring,
        ready: &mut VecDeque<Event>,
    ) {
        let tag = request.tag;
        let checked = self.check(disk.as_ref(), &request.op, request.data.as_ref());
        if checked.is_ok()
            && let Some(result) = disk.at_once(&request.op, request.data.as_ref())
        {
            ready.push_back(Event::Done { tag, result });
            return;
        }
        let file = checked
            .and_then(|()| disk.file_for(&request.op))
            .and_then(|file| {
                let abandoned = file.abandoned().load(Ordering::Relaxed);
                // A barrier is nothing for the kernel, and waits for just those.
                if abandoned < MAX_ABANDONED || matches!(request.op, Op::Barrier | Op::Watch(_)) {
                    Ok(file)
                } else {
                    Err(DiskError::Busy)
                }
            });
        let source = match &request.op {
            Op::Copy {
                source, from, len, ..
            } => {
                let (offset, len) = (*from, usize::try_from(*len).unwrap_or(usize::MAX));
                let read = source.0.file_for(&Op::Read { offset, len });
                let read = read.map(Arc::clone).map(Some);
                read.map_err(DiskError::of_source)
            }
            _ => Ok(None),
        };
        let files = file.and_then(|file| {
            let source = source?;
            let calm = match &source {
                // A copy within a disk has a lock there, and waits for that.
                Some(other) if !Arc::ptr_eq(other.ranges(), file.ranges()) => {
                    Some(other.ranges().calm().ok_or(DiskError::Busy)?)
                }
                _ => None,
            };
            Ok((file, source, calm))
        });
        let (file, source, calm) = match files {
            Ok(files) => files,
            Err(error) => {
                ready.push_back(Event::Done {
                    tag,
                    result: Err(error),
                });
                return;
            }
        };
        self.serial += 1;
        let file = self.holds.hold(file);
        let mut operation = Operation::new(disk.as_ref(), file, request, self.serial);
        if let Some(source) = source {
            operation.calm = calm;
            operation.copy_from(self.holds.hold(&source));
        }
        if operation.uses_pool() {
            operation.share = Some(self.pieces.shares.enter(&operation.file));
        }
        let index = self.operations.insert(operation);
        self.live += 1;
        self.advance(index, ring, ready);
        if let Some(operation) = self.operations.get_mut(index) {
            operation.late = operation.pieces == 0;
        }
    }

    pub fn cancel(&mut self, tag: u64, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let found = self
            .operations
            .iter()
            .find(|(_, operation)| operation.tag == tag && !operation.reported);
        if let Some((index, _)) = found {
            self.cancel_operation(index, ring, ready);
        }
    }

    pub fn cancel_all(&mut self, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let all: Vec<_> = self.operations.iter().map(|(index, _)| index).collect();
        for index in all {
            self.cancel_operation(index, ring, ready);
        }
    }

    fn cancel_operation(&mut self, index: usize, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let Some(operation) = self.operations.get_mut(index) else {
            return;
        };
        operation.cancel();
        let left = self.pieces.give_up(index, ring);
        if !left.tenant_memory {
            operation.data = None;
            if !std::mem::replace(&mut operation.reported, true) {
                if operation.pieces > 0 {
                    operation.abandon();
                }
                self.live -= 1;
                ready.push_back(Event::Done {
                    tag: operation.tag,
                    result: Err(DiskError::Cancelled),
                });
            }
        }
        match &operation.lock {
            // Whoever comes now finds the blocks as they are when the kernel is done with them.
            Lock::Held(hold) if left.changes_blocks => hold.fence(),
            _ => operation.lock = Lock::None,
        }
        self.advance(index, ring, ready);
        // It may have been in the way of others of its file.
        self.serve_waiting(ring, ready);
    }

    /// Takes the kernel's result (bytes, or a negated errno) for a piece.
    pub fn complete(
        &mut self,
        index: usize,
        result: i32,
        ring: &mut Ring,
        ready: &mut VecDeque<Event>,
    ) {
        let over = self
            .pieces
            .complete(index, result, &mut self.operations, ring);
        if let Some(owner) = over {
            self.advance(owner, ring, ready);
            self.serve_waiting(ring, ready);
        }
    }

    /// Takes what other threads have to say.
    pub fn take_messages(&mut self, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let mut messages = std::mem::take(&mut self.messages);
        self.inbox.take(&mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Granted(place) => {
                    // It may be cancelled by now; then it has given its range up, too.
                    if let Some(operation) = self.at(place) {
                        operation.take_range();
                        self.advance(place.operation, ring, ready);
                    }
                }
                Message::Seat(place, seat) => {
                    // Of one that is over, the next in the queue has it.
                    if let Some(operation) = self.at(place) {
                        operation.take_seat(seat);
                        self.advance(place.operation, ring, ready);
                    }
                }
                Message::Worked(place, worked) => {
                    if let Some(operation) = self.at(place) {
                        operation.take_worked(worked);
                        self.advance(place.operation, ring, ready);
                    }
                }
                Message::Landed(place, landed) => {
                    self.offered -= 1;
                    if let Some(operation) = self.at(place) {
                        operation.take_landed(landed);
                        self.advance(place.operation, ring, ready);
                    }
                }
                Message::Gone(id) => self.files().forget(id, ring),
                Message::Extents(place, answer) => {
                    if let Some(operation) = self.at(place) {
                        match answer {
                            Ok(extents) => operation.reply = Reply::Allocation(extents),
                            Err(error) => {
                                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                                operation.fail(0, DiskError::from_errno(errno));
                            }
                        }
                        self.end(place.operation, ready);
                    }
                }
            }
        }
        self.messages = messages;
    }

    fn at(&mut self, place: Place) -> Option<&mut Operation> {
        self.operations
            .get_mut(place.operation)
            .filter(|operation| operation.serial == place.serial)
    }

    // --- What is next ----------------------------------------------------------------------------

    /// Does what is next for an operation; behind those of its file that wait for the pool.
    fn advance(&mut self, index: usize, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        self.advance_in_turn(index, false, ring, ready);
    }

    /// Lets those that wait for the pool have what there is, file after file, until there is
    /// nothing for any of them.
    fn serve_waiting(&mut self, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let mut refused = 0;
        while refused < self.pieces.shares.turns()
            && let Some(next) = self.pieces.shares.next_turn()
        {
            if let Some(operation) = self.operations.get_mut(next) {
                operation.waiting = false;
            }
            if self.advance_in_turn(next, true, ring, ready) {
                refused = 0;
            } else {
                refused += 1;
            }
        }
    }

    /// Does what is next for an operation, whose turn at the pool it is or not: more pieces, its
    /// next stage, or its end. Returns whether it did anything.
    fn advance_in_turn(
        &mut self,
        index: usize,
        its_turn: bool,
        ring: &mut Ring,
        ready: &mut VecDeque<Event>,
    ) -> bool {
        let mut moved = false;
        loop {
            let Some(operation) = self.operations.get_mut(index) else {
                return true;
            };
            // At the end, too, when all is read.
            operation.check_source();
            if operation.failure.is_some() {
                if let Some(share) = operation.share
                    && std::mem::replace(&mut operation.waiting, false)
                {
                    self.pieces.shares.forget(share, index);
                }
                if operation.pieces == 0 {
                    self.end(index, ready);
                }
                return true;
            }
            if operation.waiting || !operation.has_range(index, &self.inbox) {
                return moved;
            }
            while let Some(plan) = operation.next()
                && self.pieces.make(index, operation, plan, its_turn, ring)
            {
                moved = true;
            }
            if operation.pieces > 0 || operation.waiting {
                return moved;
            }
            moved = true;
            match operation.turn() {
                Turn::Stage => {}
                Turn::Sync => {
                    self.pieces.sync(index, operation, ring);
                    return true;
                }
                Turn::Ask => {
                    if let Err(error) = self.ask(index) {
                        self.fail(index, error);
                    }
                }
                Turn::HandOver => {
                    let place = Place {
                        operation: index,
                        serial: operation.serial,
                    };
                    match operation.hand_over(place, &self.inbox) {
                        HandedOver::Yes => return true,
                        HandedOver::Failed(error) => self.fail(index, error),
                    }
                }
                Turn::Offer => {
                    let place = Place {
                        operation: index,
                        serial: operation.serial,
                    };
                    if operation.hand_copy_over(place, &self.inbox) {
                        self.offered += 1;
                        return true;
                    }
                }
                Turn::Wait => return true,
                Turn::End => {
                    self.end(index, ready);
                    return true;
                }
            }
        }
    }

    fn fail(&mut self, index: usize, error: DiskError) {
        if let Some(operation) = self.operations.get_mut(index) {
            operation.fail(0, error);
        }
    }

    /// Asks which extents there are.
    fn ask(&mut self, index: usize) -> Result<(), DiskError> {
        let Some(operation) = self.operations.get(index) else {
            return Ok(());
        };
        let Work::Allocation {
            end, block, limit, ..
        } = operation.work
        else {
            return Ok(());
        };
        let question = Question {
            file: Arc::clone(&operation.file),
            offset: operation.offset,
            end,
            block,
            limit,
            place: Place {
                operation: index,
                serial: operation.serial,
            },
        };
        self.surveyor.ask(question, &self.inbox)
    }

    /// Reports an operation that has no pieces any more, unless it was reported.
    fn end(&mut self, index: usize, ready: &mut VecDeque<Event>) {
        let Some(operation) = self.operations.get_mut(index) else {
            return;
        };
        if let Some(share) = operation.share {
            self.pieces.shares.leave(share);
        }
        if !operation.reported {
            self.live -= 1;
            ready.push_back(Event::Done {
                tag: operation.tag,
                result: match operation.failure {
                    Some(failure) => Err(failure.error),
                    None => Ok(std::mem::replace(&mut operation.reply, Reply::Done)),
                },
            });
        }
        // Both may be the same.
        let is_last = operation.file.is_last() || operation.source.is_some();
        self.operations.forget(index);
        if is_last {
            self.holds.let_go();
        }
    }

    /// The files that the ring knows.
    pub fn files(&mut self) -> &mut Files {
        &mut self.pieces.files
    }

    /// Gives up all memory that the kernel may still use, without freeing it, and the locks on
    /// what it may still change.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.operations, Table::new()));
        self.pieces.leak();
    }
}
