//! Operations on their way: cut into pieces, carried out by the kernel, put together again.
#![expect(
    unsafe_code,
    reason = "pieces lend their memory to the kernel until they complete"
)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::check::check;
use super::extents::{Question, Surveyor};
use super::inbox::{Inbox, Message, Place};
use super::operation::{Half, Lock, Operation, Plan, Turn, Wanted, Work, index};
use super::piece::{Memory, Piece, Progress, Step};
use super::pool::{Pool, Run};
use super::ring::{self, Allocation, Direction, Ring};
use super::shares::Shares;
use super::{Event, Request, Source};
use crate::disk::table::Table;
use crate::disk::{Disk, DiskError, Reply};

/// Most vectors of a piece in the tenant's memory (UIO_MAXIOV of linux/uio.h).
const MAX_VECTORS: usize = 1024;

#[derive(Debug)]
pub struct Transfers {
    shares: Shares,
    operations: Table<Operation>,
    pieces: Table<Piece>,
    surveyor: Surveyor,
    inbox: Arc<Inbox>,
    /// Operations that were not reported.
    live: usize,
    /// Of the next operation.
    serial: u64,
    /// A copy of the tenant's bytes, to be compared or put into others; kept for its capacity.
    copy: Vec<u8>,
    /// Kept between calls for its capacity.
    messages: Vec<Message>,
}

impl Transfers {
    /// No operations yet; `ring` gets to know the pool.
    pub fn new(pool: Pool, inbox: Arc<Inbox>, ring: &mut Ring) -> Self {
        // SAFETY: `Io` drops its ring before this, which alone owns the pool.
        unsafe { ring.register(pool.whole()) };
        Self {
            shares: Shares::new(pool),
            operations: Table::new(),
            pieces: Table::new(),
            surveyor: Surveyor::default(),
            inbox,
            live: 0,
            serial: 0,
            copy: Vec::new(),
            messages: Vec::new(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.live
    }

    /// Whether the kernel uses no memory of ours, and changes no disk because of us.
    pub fn is_idle(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn unfinished(&self) -> usize {
        self.operations.len()
    }

    pub fn submit(
        &mut self,
        disk: &Arc<dyn Disk>,
        request: Request,
        ring: &mut Ring,
        ready: &mut VecDeque<Event>,
    ) {
        let tag = request.tag;
        let pool = self.shares.pool().granules() * Pool::GRANULE;
        let file = check(disk.as_ref(), &request, pool).and_then(|()| disk.file_for(&request.op));
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                ready.push_back(Event::Done {
                    tag,
                    result: Err(error),
                });
                return;
            }
        };
        self.serial += 1;
        let mut operation = Operation::new(disk.as_ref(), file, request, self.serial);
        if operation.uses_pool() {
            operation.share = Some(self.shares.enter(&operation.file));
        }
        let index = self.operations.insert(operation);
        self.live += 1;
        self.advance(index, ring, ready);
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
        if operation.pieces == 0 || !operation.is_in_tenant_memory() {
            operation.data = None;
            if !std::mem::replace(&mut operation.reported, true) {
                self.live -= 1;
                ready.push_back(Event::Done {
                    tag: operation.tag,
                    result: Err(DiskError::Cancelled),
                });
            }
        }
        let mut may_change = false;
        for (piece_index, piece) in self.pieces.iter() {
            if piece.operation == index {
                may_change |= piece.step.changes_blocks();
                ring.cancel(
                    Source::Cancel.user_data(),
                    Source::Piece(piece_index).user_data(),
                );
            }
        }
        match &operation.lock {
            // Whoever comes now finds the blocks as they are when the kernel is done with them.
            Lock::Held(hold) if may_change => hold.fence(),
            _ => operation.lock = Lock::None,
        }
        self.advance(index, ring, ready);
    }

    /// Takes the kernel's result (bytes, or a negated errno) for a piece.
    pub fn complete(
        &mut self,
        index: usize,
        result: i32,
        ring: &mut Ring,
        ready: &mut VecDeque<Event>,
    ) {
        let Some(piece) = self.pieces.get_mut(index) else {
            debug_assert!(false, "completion without a piece");
            return;
        };
        let owner = piece.operation;
        let Some(operation) = self.operations.get_mut(owner) else {
            debug_assert!(false, "piece without an operation");
            return;
        };
        let (at, failed_at) = (piece.at, piece.at + piece.done as u64);
        match piece.progress(operation, result) {
            Progress::Again => return self.issue(index, ring),
            Progress::Over(Ok(())) => {
                if self.use_piece(index) {
                    return self.issue(index, ring);
                }
            }
            Progress::Over(Err(error)) => operation.fail(failed_at, error),
            Progress::Impossible => {
                if operation.wants(at) && !operation.try_otherwise(at) {
                    operation.fail(at, DiskError::Unsupported);
                }
            }
        }
        self.put_piece_away(index);
        self.advance(owner, ring, ready);
        self.serve_waiting(ring, ready);
    }

    /// Removes a piece whose work is over.
    fn put_piece_away(&mut self, index: usize) {
        let Some(piece) = self.pieces.remove(index) else {
            return;
        };
        let Some(operation) = self.operations.get_mut(piece.operation) else {
            return;
        };
        operation.pieces -= 1;
        let Some(share) = operation.share else {
            return;
        };
        match piece.memory {
            Memory::Pool(run) => self.shares.give_back(share, run),
            Memory::Pair(first, second) => {
                self.shares.give_back(share, first);
                self.shares.give_back(share, second);
            }
            Memory::Tenant(_) | Memory::None => {}
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
        while refused < self.shares.turns()
            && let Some(next) = self.shares.next_turn()
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
            if operation.failure.is_some() {
                if let Some(share) = operation.share
                    && std::mem::replace(&mut operation.waiting, false)
                {
                    self.shares.forget(share, index);
                }
                if operation.pieces == 0 {
                    self.end(index, ready);
                }
                return true;
            }
            if operation.waiting || !operation.has_range(index, &self.inbox) {
                return moved;
            }
            while let Some(operation) = self.operations.get(index)
                && let Some(plan) = operation.next()
            {
                let Some(piece) = self.make_piece(index, plan, its_turn) else {
                    break;
                };
                moved = true;
                self.issue(piece, ring);
            }
            let Some(operation) = self.operations.get_mut(index) else {
                return true;
            };
            if operation.pieces > 0 || operation.waiting {
                return moved;
            }
            moved = true;
            match operation.turn() {
                Turn::Stage => {}
                Turn::Sync => {
                    operation.pieces += 1;
                    let piece = Piece::new(index, 0, 0, Step::Sync, Memory::None);
                    let piece = self.pieces.insert(piece);
                    self.issue(piece, ring);
                    return true;
                }
                Turn::Ask => {
                    if let Err(error) = self.ask(index) {
                        self.fail(index, error);
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
        let Some(operation) = self.operations.remove(index) else {
            return;
        };
        if let Some(share) = operation.share {
            self.shares.leave(share);
        }
        if !operation.reported {
            self.live -= 1;
            ready.push_back(Event::Done {
                tag: operation.tag,
                result: match operation.failure {
                    Some(failure) => Err(failure.error),
                    None => Ok(operation.reply),
                },
            });
        }
    }

    // --- Pieces ----------------------------------------------------------------------------------

    /// Makes a piece, if there is memory for it; otherwise its operation waits.
    fn make_piece(&mut self, index: usize, plan: Plan, its_turn: bool) -> Option<usize> {
        let operation = self.operations.get_mut(index)?;
        let (len, memory) = match (plan.memory, operation.share) {
            (Wanted::None, _) => (plan.len, Memory::None),
            (Wanted::Tenant, _) => {
                let data = operation.data.as_ref()?;
                let mut vectors = data.iovecs(self::index(plan.at), plan.len);
                vectors.truncate(MAX_VECTORS);
                let len = vectors.iter().map(|vector| vector.iov_len).sum();
                (len, Memory::Tenant(vectors))
            }
            (_, None) => {
                debug_assert!(false, "a piece for which its operation has no share");
                return None;
            }
            (wanted, Some(share)) => {
                let behind = !its_turn && self.shares.has_waiting(share);
                let memory = if behind {
                    None
                } else {
                    self.shares.memory(share, wanted, plan.len)
                };
                let Some(memory) = memory else {
                    operation.waiting = true;
                    self.shares.wait(share, index, its_turn);
                    return None;
                };
                let len = match &memory {
                    Memory::Pool(run) => run.len(),
                    Memory::Pair(first, second) => first.len().min(second.len()),
                    Memory::Tenant(_) | Memory::None => 0,
                };
                (len, memory)
            }
        };
        if plan.step.changes_blocks()
            && let Memory::Pool(run) | Memory::Pair(run, _) = &memory
        {
            fill(
                operation,
                plan.at,
                &mut self.shares.pool_mut().bytes_mut(run)[..len],
            );
        }
        operation.issued += len as u64;
        operation.pieces += 1;
        let piece = Piece::new(index, plan.at, len, plan.step, memory);
        Some(self.pieces.insert(piece))
    }

    /// Uses what the kernel has done for a piece; whether it has another step.
    fn use_piece(&mut self, index: usize) -> bool {
        let Some(piece) = self.pieces.get_mut(index) else {
            return false;
        };
        let Some(operation) = self.operations.get_mut(piece.operation) else {
            return false;
        };
        if !operation.wants(piece.at) {
            return false;
        }
        let at = self::index(piece.at);
        let pool = self.shares.pool_mut();
        match (&operation.work, piece.step, &piece.memory) {
            (Work::Read, Step::Read, Memory::Pool(run)) => {
                if let Some(data) = &operation.data {
                    data.write_at(at, pool.bytes(run));
                }
                false
            }
            (
                Work::Compare | Work::CompareAndWrite(Half::Compare),
                Step::Read,
                Memory::Pool(run),
            ) => {
                let copy = copied(&mut self.copy, operation, at, run);
                let difference = first_difference(pool.bytes(run), copy);
                miscompare(operation, piece.at, difference);
                false
            }
            (Work::CompareSame(block), Step::Read, Memory::Pool(run)) => {
                // Pieces consist of whole blocks.
                let blocks = pool.bytes(run).chunks(block.len());
                let difference = (0..)
                    .step_by(block.len())
                    .zip(blocks)
                    .find_map(|(start, bytes)| Some(start + first_difference(bytes, block)?));
                miscompare(operation, piece.at, difference);
                false
            }
            (Work::Or, Step::Read, Memory::Pool(run)) => {
                let copy = copied(&mut self.copy, operation, at, run);
                for (byte, operand) in pool.bytes_mut(run).iter_mut().zip(copy) {
                    *byte |= *operand;
                }
                piece.begin(Step::Write);
                true
            }
            (Work::WriteVerify, Step::Write, Memory::Pair(..)) => {
                piece.begin(Step::ReadBack);
                true
            }
            (Work::WriteVerify, Step::ReadBack, Memory::Pair(written, read)) => {
                let (written, read) = (pool.bytes(written), pool.bytes(read));
                let difference = first_difference(&written[..piece.len], &read[..piece.len]);
                miscompare(operation, piece.at, difference);
                false
            }
            _ => false,
        }
    }

    /// Gives the kernel what is left of a piece.
    fn issue(&mut self, index: usize, ring: &mut Ring) {
        let Some(piece) = self.pieces.get(index) else {
            return;
        };
        let Some(operation) = self.operations.get(piece.operation) else {
            return;
        };
        let user_data = Source::Piece(index).user_data();
        let fd = operation.file.raw_fd();
        let offset = operation.offset + piece.at + piece.done as u64;
        let direction = match piece.step {
            Step::Read | Step::ReadBack => Direction::Read,
            Step::Write => Direction::Write,
            Step::WriteAtomic => Direction::WriteAtomic,
            Step::Punch => {
                return ring.allocate(user_data, fd, Allocation::Punch, offset, piece.len as u64);
            }
            Step::ZeroRange => {
                return ring.allocate(user_data, fd, Allocation::Zero, offset, piece.len as u64);
            }
            Step::Advise => return ring.advise(user_data, fd, offset, piece.len),
            Step::Sync => return ring.sync(user_data, fd),
        };
        let pool = self.shares.pool();
        let memory = match (&piece.memory, piece.step) {
            (Memory::Tenant(vectors), _) => ring::Memory::Vectors(vectors),
            (Memory::Pair(_, run), Step::ReadBack)
            | (Memory::Pool(run) | Memory::Pair(run, _), _) => ring::Memory::Pool {
                address: pool.address(run, piece.done),
                len: piece.len - piece.done,
            },
            (Memory::None, _) => {
                debug_assert!(false, "a transfer without memory");
                return;
            }
        };
        // SAFETY: the piece stays in the table until its completion: with it the runs (which
        // nobody else gets, and whose bytes are not looked at before) or the vectors; the
        // operation too, since it counts the piece, and with it the file and, for vectors, the
        // buffer whose mapping they point into (`cancel_operation` drops it only where there are
        // none). Should the kernel never answer, `leak` keeps all of it.
        unsafe { ring.transfer(user_data, fd, direction, offset, memory) };
    }

    /// Gives up all memory that the kernel may still use, without freeing it, and the locks on
    /// what it may still change.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.pieces, Table::new()));
        std::mem::forget(std::mem::replace(&mut self.operations, Table::new()));
        self.shares.leak();
    }
}

/// Writes what a piece at byte `at` puts on the disk into its memory.
fn fill(operation: &Operation, at: u64, to: &mut [u8]) {
    let at = match operation.work {
        Work::WriteSame(ref block) => {
            // Pieces begin with a block.
            for chunk in to.chunks_mut(block.len()) {
                chunk.copy_from_slice(&block[..chunk.len()]);
            }
            return;
        }
        Work::Zero(_) => return to.fill(0),
        // The second half of the buffer.
        Work::CompareAndWrite(_) => operation.len + at,
        _ => at,
    };
    if let Some(data) = &operation.data {
        data.read_at(index(at), to);
    }
}

/// The tenant's bytes for a run, read once into `copy`.
fn copied<'a>(copy: &'a mut Vec<u8>, operation: &Operation, at: usize, run: &Run) -> &'a [u8] {
    copy.clear();
    copy.resize(run.len(), 0);
    if let Some(data) = &operation.data {
        data.read_at(at, copy);
    }
    copy
}

/// Index of the first byte that differs.
fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    left.iter()
        .zip(right)
        .position(|(left, right)| left != right)
}

/// Fails an operation whose piece at byte `at` has a difference.
fn miscompare(operation: &mut Operation, at: u64, difference: Option<usize>) {
    if let Some(difference) = difference {
        let at = at + difference as u64;
        operation.fail(at, DiskError::Miscompare { at });
    }
}
