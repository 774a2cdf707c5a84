//! The pieces of a loop: made, carried out by the kernel, put away.
#![expect(
    unsafe_code,
    reason = "pieces lend their memory to the kernel until they complete"
)]

use std::sync::Arc;

use super::files::Files;
use super::inbox::Inbox;
use super::operation::{Operation, index as offset_in};
use super::piece::{Memory, Piece, Progress, Step};
use super::plan::{Plan, Wanted};
use super::pool::Pool;
use super::ring::{self, Allocation, Direction, Ring};
use super::shares::Shares;
use super::through::Through;
use super::{Source, content};
use crate::disk::table::Table;
use crate::disk::{Deed, DiskError};

/// Most vectors of a piece in the tenant's memory (UIO_MAXIOV of linux/uio.h).
const MAX_VECTORS: usize = 1024;
/// Most vectors that are kept for another piece.
const MAX_SPARE: usize = 8;

/// What the kernel may still do for an operation that is given up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Left {
    /// Change what the disk holds.
    pub changes_blocks: bool,
    /// Use the tenant's memory.
    pub tenant_memory: bool,
}

#[derive(Debug)]
pub struct Pieces {
    pub shares: Shares,
    pub files: Files,
    table: Table<Piece>,
    /// Writes in the kernel that are done when they are on stable storage.
    through: usize,
    /// Vectors of pieces that are over, to be used again.
    spare: Vec<Vec<libc::iovec>>,
    /// A copy of the tenant's bytes, to be compared or put into others; kept for its capacity.
    copy: Vec<u8>,
    /// Tags of the operations that had to wait and were begun since they were last asked for.
    begun: Vec<u64>,
}

impl Pieces {
    /// No pieces yet; `ring` gets to know the pool.
    pub fn new(pool: Pool, inbox: Arc<Inbox>, ring: &mut Ring) -> Self {
        // SAFETY: `Io` drops its ring before this, which alone owns the pool.
        unsafe { ring.register(pool.whole()) };
        Self {
            shares: Shares::new(pool),
            files: Files::new(inbox, ring),
            table: Table::new(),
            through: 0,
            spare: Vec::new(),
            copy: Vec::new(),
            begun: Vec::new(),
        }
    }

    /// Takes the tags of the operations that had to wait and were begun since the last time.
    pub fn take_begun(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.begun)
    }

    /// Whether none is in the kernel.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Makes a piece of the operation at `owner` and gives it to the kernel, if there is memory
    /// for it; otherwise the operation waits for some, first of its file if it is its turn.
    pub fn make(
        &mut self,
        owner: usize,
        operation: &mut Operation,
        plan: Plan,
        its_turn: bool,
        ring: &mut Ring,
    ) -> bool {
        let Some((len, memory)) = self.memory(owner, operation, plan, its_turn) else {
            return false;
        };
        if plan.step.changes_blocks()
            && let Memory::Pool(run) | Memory::Pair(run, _) = &memory
        {
            let bytes = self.shares.pool_mut().bytes_mut(run);
            content::fill(operation, plan.at, &mut bytes[..len]);
        }
        let at = operation.place(plan.at, len);
        operation.issued += len as u64;
        let mut piece = Piece::new(owner, at, len, plan.step, memory);
        piece.through = Through::of(operation, at, len);
        self.begin(piece, operation, ring);
        true
    }

    /// Gives the kernel the sync that ends the operation at `owner`.
    pub fn sync(&mut self, owner: usize, operation: &mut Operation, ring: &mut Ring) {
        let piece = Piece::new(owner, 0, 0, Step::Sync, Memory::None);
        self.begin(piece, operation, ring);
    }

    fn begin(&mut self, piece: Piece, operation: &mut Operation, ring: &mut Ring) {
        operation.pieces += 1;
        if std::mem::take(&mut operation.late) {
            self.begun.push(operation.tag);
        }
        if piece.step.gives_back() {
            operation.file.settled().begin_change();
        }
        let is_sync = piece.step == Step::Sync;
        let index = self.table.insert(piece);
        if is_sync {
            operation.file.tell(Deed::SyncBegun(index));
        }
        self.issue(index, operation, ring);
    }

    /// Memory for a piece, and for how many bytes of it.
    fn memory(
        &mut self,
        owner: usize,
        operation: &mut Operation,
        plan: Plan,
        its_turn: bool,
    ) -> Option<(usize, Memory)> {
        let share = match (plan.memory, operation.share) {
            (Wanted::None, _) => return Some((plan.len, Memory::None)),
            (Wanted::Tenant, _) => {
                let data = operation.data.as_ref()?;
                let mut vectors = self.spare.pop().unwrap_or_default();
                vectors.extend(data.iovecs(offset_in(plan.at), plan.len).take(MAX_VECTORS));
                let len = vectors.iter().map(|vector| vector.iov_len).sum();
                return Some((len, Memory::Tenant(vectors)));
            }
            (_, None) => {
                debug_assert!(false, "a piece for which its operation has no share");
                return None;
            }
            (_, Some(share)) => share,
        };
        let memory = if its_turn || !self.shares.has_waiting(share) {
            self.shares.memory(share, plan.memory, plan.len)
        } else {
            None
        };
        let Some(memory) = memory else {
            operation.waiting = true;
            self.shares.wait(share, owner, its_turn);
            return None;
        };
        let len = match &memory {
            Memory::Pool(run) => run.len(),
            Memory::Pair(first, second) => first.len().min(second.len()),
            Memory::Tenant(_) | Memory::None => 0,
        };
        Some((len, memory))
    }

    /// Whether a write is in the kernel that is done when it is on stable storage.
    pub fn has_through(&self) -> bool {
        self.through > 0
    }

    /// Takes the kernel's result (bytes, or a negated errno) for a piece; returns its operation if
    /// the piece is over.
    pub fn complete(
        &mut self,
        index: usize,
        result: i32,
        operations: &mut Table<Operation>,
        ring: &mut Ring,
    ) -> Option<usize> {
        let Some(piece) = self.table.get_mut(index) else {
            debug_assert!(false, "completion without a piece");
            return None;
        };
        let owner = piece.operation;
        let Some(operation) = operations.get_mut(owner) else {
            debug_assert!(false, "piece without an operation");
            return None;
        };
        if piece.step == Step::Write && piece.through == Through::Yes {
            self.through -= 1;
        }
        let again = match piece.progress(operation, result) {
            Progress::Again => true,
            Progress::Over(Ok(())) => {
                // Of one that is cancelled, not all may be written.
                let is_through = piece.step == Step::Write
                    && piece.through == Through::Yes
                    && piece.done >= piece.len;
                match piece.step {
                    Step::Write | Step::WriteAtomic => {
                        let (offset, len) = (operation.offset + piece.at, piece.len as u64);
                        operation.file.tell(if is_through {
                            Deed::WrittenThrough { offset, len }
                        } else {
                            Deed::Written { offset, len }
                        });
                        operation.count_copied(len);
                    }
                    Step::Sync => operation.file.tell(Deed::Synced(index)),
                    _ => {}
                }
                operation.sync = match piece.step {
                    // It was all that there was to write.
                    Step::Write if is_through => false,
                    Step::Punch | Step::ZeroRange => {
                        operation.sync || operation.file.syncs_allocation()
                    }
                    Step::Write | Step::WriteAtomic => {
                        operation.sync || operation.file.syncs_writes()
                    }
                    Step::Read | Step::ReadBack | Step::Advise | Step::Sync => operation.sync,
                };
                let pool = self.shares.pool_mut();
                content::take(piece, operation, pool, &mut self.copy)
            }
            Progress::Over(Err(error)) => {
                let is_source = piece.step == Step::Read && operation.source.is_some();
                let error = if is_source { error.of_source() } else { error };
                if !operation.mend(error) {
                    operation.fail(piece.at + piece.done as u64, error);
                }
                false
            }
            Progress::Impossible => {
                if operation.wants(piece.at) && !operation.try_otherwise(piece.at) {
                    operation.fail(piece.at, DiskError::Unsupported);
                }
                false
            }
        };
        if again {
            self.issue(index, operation, ring);
            return None;
        }
        self.put_away(index, operation);
        Some(owner)
    }

    /// Removes a piece that is over.
    fn put_away(&mut self, index: usize, operation: &mut Operation) {
        operation.pieces -= 1;
        let Some(piece) = self.table.remove(index) else {
            return;
        };
        if piece.step.gives_back() {
            operation.file.settled().end_change();
        }
        if let Memory::Tenant(vectors) = piece.memory {
            return self.keep_vectors(vectors);
        }
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

    /// Keeps the vectors of a piece that is over, if they are few as those of most are.
    fn keep_vectors(&mut self, mut vectors: Vec<libc::iovec>) {
        if vectors.capacity() <= MAX_SPARE {
            vectors.clear();
            self.spare.push(vectors);
        }
    }

    /// Asks the kernel to give up the pieces of the operation at `owner`.
    pub fn give_up(&self, owner: usize, ring: &mut Ring) -> Left {
        let mut left = Left::default();
        for (index, piece) in self.table.iter() {
            if piece.operation == owner {
                left.changes_blocks |= piece.step.changes_blocks();
                left.tenant_memory |= matches!(piece.memory, Memory::Tenant(_));
                ring.cancel(Source::Cancel.user_data(), Source::Piece(index).user_data());
            }
        }
        left
    }

    /// Gives the kernel what is left of a piece.
    fn issue(&mut self, index: usize, operation: &Operation, ring: &mut Ring) {
        let Some(piece) = self.table.get(index) else {
            return;
        };
        let user_data = Source::Piece(index).user_data();
        let (file, offset) = operation.target(piece.step, piece.at + piece.done as u64);
        let file = file.handle(|file| self.files.handle(file, ring));
        let direction = match piece.step {
            Step::Read | Step::ReadBack => Direction::Read,
            Step::Write if piece.through == Through::Yes => {
                self.through += 1;
                Direction::WriteThrough
            }
            Step::Write => Direction::Write,
            Step::WriteAtomic => Direction::WriteAtomic,
            Step::Punch => {
                return ring.allocate(user_data, file, Allocation::Punch, offset, piece.len as u64);
            }
            Step::ZeroRange => {
                return ring.allocate(user_data, file, Allocation::Zero, offset, piece.len as u64);
            }
            Step::Advise => return ring.advise(user_data, file, offset, piece.len),
            Step::Sync => return ring.sync(user_data, file),
        };
        let memory = match (&piece.memory, piece.step) {
            (Memory::Tenant(vectors), _) => ring::Memory::Vectors(vectors),
            (Memory::Pair(_, run), Step::ReadBack)
            | (Memory::Pool(run) | Memory::Pair(run, _), _) => ring::Memory::Pool {
                address: self.shares.pool().address(run, piece.done),
                len: piece.len - piece.done,
            },
            // A piece that moves data is made with memory.
            (Memory::None, _) => ring::Memory::Vectors(&[]),
        };
        // SAFETY: the piece stays in the table until its completion: with it the runs (which
        // nobody else gets, and whose bytes are not looked at before) or the vectors; the
        // operation too, since it counts the piece, and with it the file (whose slot is no other's
        // before it is gone) and, for vectors, the buffer whose mapping they point into
        // (`Transfers::cancel` drops it only where there are none). Should the kernel never answer,
        // `leak` keeps all of it.
        unsafe { ring.transfer(user_data, file, direction, offset, memory) };
    }

    /// Gives up all memory that the kernel may still use, without freeing it.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.table, Table::new()));
        self.shares.leak();
    }
}
