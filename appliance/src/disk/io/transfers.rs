//! Operations on their way: cut into pieces, carried out by the kernel, put together again.
#![expect(
    unsafe_code,
    reason = "pieces lend their memory to the kernel until they complete"
)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::pool::{Pool, Run};
use super::ring::{Direction, Memory, Ring};
use super::table::Table;
use super::{Event, Request, Source};
use crate::disk::{Cache, Disk, DiskError, Op, OpenFile, Reply};
use crate::memory::Segments;

/// Most bytes of a piece that goes through the bounce pool.
const MAX_POOL_PIECE: usize = 256 << 10;
/// Most bytes of a piece in the tenant's memory.
const MAX_TENANT_PIECE: usize = 1 << 20;
/// Most vectors of a piece in the tenant's memory (UIO_MAXIOV of linux/uio.h).
const MAX_VECTORS: usize = 1024;
/// Most pieces of one operation in the kernel at a time, so that a large one leaves room in the
/// pool for others.
const MAX_PIECES: usize = 4;
/// How often a piece that the kernel could not take for the moment is tried again.
const MAX_RETRIES: u8 = 8;
/// Bytes from which O_DIRECT can go on; a transfer that stops elsewhere met the file's end.
const SECTOR: usize = 512;

// What the kernel reports as moved is an i32.
const _: () = assert!(MAX_POOL_PIECE <= i32::MAX as usize);
const _: () = assert!(MAX_TENANT_PIECE <= i32::MAX as usize);

#[derive(Debug)]
struct Operation {
    tag: u64,
    file: Arc<OpenFile>,
    kind: Kind,
    offset: u64,
    len: usize,
    /// The tenant's buffer; on a direct disk `None` once nothing may touch it.
    data: Option<Segments>,
    /// Bytes that pieces were made for.
    issued: usize,
    /// Pieces in the kernel.
    pieces: usize,
    /// The first failure.
    result: Result<(), DiskError>,
    /// Queued for room in the pool.
    waiting: bool,
    /// Its final sync is issued, or it needs none.
    synced: bool,
    /// Had its `Done` though the kernel is still at it.
    reported: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

/// A part of an operation that the kernel carries out on its own.
#[derive(Debug)]
struct Piece {
    operation: usize,
    /// First byte and length within the operation.
    at: usize,
    len: usize,
    /// Bytes that the kernel has moved.
    done: usize,
    retries: u8,
    memory: PieceMemory,
}

#[derive(Debug)]
enum PieceMemory {
    Pool(Run),
    /// Vectors into the operation's `data`, which stays there while pieces are in the kernel.
    Tenant(Vec<libc::iovec>),
    /// None: a sync.
    Sync,
}

#[derive(Debug)]
pub struct Transfers {
    pool: Pool,
    operations: Table<Operation>,
    pieces: Table<Piece>,
    /// Operations that want room in the pool, first come, first served. Only while it is full.
    waiting: VecDeque<usize>,
    /// Operations that were not reported.
    live: usize,
}

impl Transfers {
    /// No operations yet; `ring` gets to know the pool.
    pub fn new(pool: Pool, ring: &mut Ring) -> Self {
        // SAFETY: `Io` drops its ring before this, which alone owns the pool.
        unsafe { ring.register(pool.whole()) };
        Self {
            pool,
            operations: Table::new(),
            pieces: Table::new(),
            waiting: VecDeque::new(),
            live: 0,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.live
    }

    /// Whether the kernel uses no memory of ours.
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
        let file = check(disk.as_ref(), &request).and_then(|()| disk.file_for(&request.op));
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
        let (kind, offset, len, sync) = match request.op {
            Op::Read { offset, len } => (Kind::Read, offset, len, false),
            Op::Write {
                offset, len, fua, ..
            } => (Kind::Write, offset, len, fua),
            _ => (Kind::Flush, 0, 0, true),
        };
        let index = self.operations.insert(Operation {
            tag,
            file,
            kind,
            offset,
            len,
            data: request.data,
            issued: 0,
            pieces: 0,
            result: Ok(()),
            waiting: false,
            synced: !sync,
            reported: false,
        });
        self.live += 1;
        self.advance(index, ring, ready);
    }

    pub fn cancel(&mut self, tag: u64, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let found = self
            .operations
            .iter_mut()
            .find(|(_, operation)| operation.tag == tag && !operation.reported);
        if let Some(index) = found.map(|(index, _)| index) {
            self.cancel_operation(index, ring, ready);
        }
    }

    pub fn cancel_all(&mut self, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let all: Vec<_> = self.operations.iter_mut().map(|(index, _)| index).collect();
        for index in all {
            self.cancel_operation(index, ring, ready);
        }
    }

    fn cancel_operation(&mut self, index: usize, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let Some(operation) = self.operations.get_mut(index) else {
            return;
        };
        operation.result = Err(DiskError::Cancelled);
        if operation.waiting {
            operation.waiting = false;
            self.waiting.retain(|&waiting| waiting != index);
        }
        if operation.file.cache() == Cache::Direct {
            operation.data = None;
        }
        // A write is reported when it can no longer land after, and on top of, a newer one.
        let harmless = match operation.kind {
            Kind::Read => operation.data.is_none(),
            Kind::Write => false,
            Kind::Flush => true,
        };
        if harmless && !operation.reported {
            operation.reported = true;
            self.live -= 1;
            ready.push_back(Event::Done {
                tag: operation.tag,
                result: Err(DiskError::Cancelled),
            });
        }
        for (piece_index, piece) in self.pieces.iter_mut() {
            if piece.operation == index {
                ring.cancel(
                    Source::Cancel.user_data(),
                    Source::Piece(piece_index).user_data(),
                );
            }
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
        match piece.progress(operation, result) {
            Progress::Again => {
                self.issue(index, ring);
                return;
            }
            Progress::Over(Ok(())) => {}
            Progress::Over(Err(error)) => operation.result = operation.result.and(Err(error)),
        }
        operation.pieces -= 1;
        if let Some(piece) = self.pieces.remove(index)
            && let PieceMemory::Pool(run) = piece.memory
        {
            if operation.kind == Kind::Read
                && operation.result.is_ok()
                && let Some(data) = &operation.data
            {
                data.write_at(piece.at, self.pool.bytes_mut(&run));
            }
            self.pool.give_back(run);
        }
        self.advance(owner, ring, ready);
        while !self.pool.is_full()
            && let Some(next) = self.waiting.pop_front()
        {
            if let Some(operation) = self.operations.get_mut(next) {
                operation.waiting = false;
            }
            self.advance_first(next, ring, ready);
        }
    }

    /// Does what is next for an operation; behind those that wait for the pool.
    fn advance(&mut self, index: usize, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        let Some(operation) = self.operations.get_mut(index) else {
            return;
        };
        let wants_pool = operation.file.cache() == Cache::Direct
            && operation.result.is_ok()
            && operation.issued < operation.len;
        if wants_pool && !self.waiting.is_empty() {
            if !operation.waiting {
                operation.waiting = true;
                self.waiting.push_back(index);
            }
            return;
        }
        self.advance_first(index, ring, ready);
    }

    /// Does what is next for an operation: more pieces, its sync, or its end.
    fn advance_first(&mut self, index: usize, ring: &mut Ring, ready: &mut VecDeque<Event>) {
        while let Some(piece) = self.next_piece(index) {
            self.issue(piece, ring);
        }
        let Some(operation) = self.operations.get_mut(index) else {
            return;
        };
        if operation.result.is_err() && operation.waiting {
            operation.waiting = false;
            self.waiting.retain(|&waiting| waiting != index);
        }
        if operation.pieces > 0 || operation.waiting {
            return;
        }
        if operation.result.is_ok() && !operation.synced {
            operation.synced = true;
            operation.pieces += 1;
            let piece = self.pieces.insert(Piece {
                operation: index,
                at: 0,
                len: 0,
                done: 0,
                retries: 0,
                memory: PieceMemory::Sync,
            });
            self.issue(piece, ring);
            return;
        }
        if let Some(operation) = self.operations.remove(index)
            && !operation.reported
        {
            self.live -= 1;
            ready.push_back(Event::Done {
                tag: operation.tag,
                result: operation.result.map(|()| Reply::Done),
            });
        }
    }

    /// Makes the next piece of an operation, if it has one, may have it and finds room for it.
    fn next_piece(&mut self, index: usize) -> Option<usize> {
        let operation = self.operations.get_mut(index)?;
        if operation.result.is_err() || operation.pieces >= MAX_PIECES {
            return None;
        }
        let at = operation.issued;
        let left = operation.len - at;
        if left == 0 {
            return None;
        }
        let data = operation.data.as_ref()?;
        let (len, memory) = match operation.file.cache() {
            Cache::WriteBack => {
                let mut vectors = data.iovecs(at, left.min(MAX_TENANT_PIECE));
                vectors.truncate(MAX_VECTORS);
                let len = vectors.iter().map(|vector| vector.iov_len).sum();
                (len, PieceMemory::Tenant(vectors))
            }
            Cache::Direct => {
                let Some(run) = self.pool.take(left.min(MAX_POOL_PIECE)) else {
                    operation.waiting = true;
                    self.waiting.push_front(index);
                    return None;
                };
                if operation.kind == Kind::Write {
                    data.read_at(at, self.pool.bytes_mut(&run));
                }
                (run.len(), PieceMemory::Pool(run))
            }
        };
        operation.issued += len;
        operation.pieces += 1;
        Some(self.pieces.insert(Piece {
            operation: index,
            at,
            len,
            done: 0,
            retries: 0,
            memory,
        }))
    }

    /// Gives the kernel what is left of a piece.
    fn issue(&mut self, index: usize, ring: &mut Ring) {
        let Some(piece) = self.pieces.get_mut(index) else {
            return;
        };
        let Some(operation) = self.operations.get_mut(piece.operation) else {
            return;
        };
        let user_data = Source::Piece(index).user_data();
        let fd = operation.file.raw_fd();
        let direction = match operation.kind {
            Kind::Read => Direction::Read,
            Kind::Write | Kind::Flush => Direction::Write,
        };
        let memory = match &piece.memory {
            PieceMemory::Sync => {
                ring.sync(user_data, fd);
                return;
            }
            PieceMemory::Pool(run) => Memory::Pool {
                address: self.pool.address(run, piece.done),
                len: piece.len - piece.done,
            },
            PieceMemory::Tenant(vectors) => Memory::Vectors(vectors),
        };
        let offset = operation.offset + (piece.at + piece.done) as u64;
        // SAFETY: the piece stays in the table until its completion: with it the run (which
        // nobody else gets, and whose bytes are not looked at before) or the vectors; the
        // operation too, since it counts the piece, and with it the file and, on a write-back
        // disk, the buffer whose mapping the vectors point into (`cancel_operation` drops it only
        // on direct disks). Should the kernel never answer, `leak` keeps all of it.
        unsafe { ring.transfer(user_data, fd, direction, offset, memory) };
    }

    /// Gives up all memory that the kernel may still use, without freeing it.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.pieces, Table::new()));
        std::mem::forget(std::mem::replace(&mut self.operations, Table::new()));
        self.pool.leak();
    }
}

enum Progress {
    /// The rest has to be issued.
    Again,
    Over(Result<(), DiskError>),
}

impl Piece {
    /// What `result` (bytes, or a negated errno) means for the piece.
    fn progress(&mut self, operation: &Operation, result: i32) -> Progress {
        let moved = match usize::try_from(result) {
            Err(_) => {
                let errno = -result;
                let transient = matches!(errno, libc::EAGAIN | libc::EINTR);
                if transient && operation.result.is_ok() && self.retries < MAX_RETRIES {
                    self.retries += 1;
                    return Progress::Again;
                }
                let error = Err(DiskError::from_errno(errno));
                return Progress::Over(match self.memory {
                    PieceMemory::Sync => operation.file.flushed(error),
                    PieceMemory::Pool(_) | PieceMemory::Tenant(_) => error,
                });
            }
            Ok(moved) => moved,
        };
        if matches!(self.memory, PieceMemory::Sync) {
            return Progress::Over(operation.file.flushed(Ok(())));
        }
        self.done += moved;
        if self.done >= self.len {
            return Progress::Over(Ok(()));
        }
        if operation.result.is_err() {
            // Failed or cancelled meanwhile: no more of it.
            return Progress::Over(Ok(()));
        }
        let stuck = matches!(self.memory, PieceMemory::Pool(_)) && !moved.is_multiple_of(SECTOR);
        if moved == 0 || stuck {
            return Progress::Over(Err(match operation.kind {
                Kind::Read => DiskError::Truncated,
                Kind::Write | Kind::Flush => DiskError::Io(libc::EIO),
            }));
        }
        if let (PieceMemory::Tenant(vectors), Some(data)) = (&mut self.memory, &operation.data) {
            *vectors = data.iovecs(self.at + self.done, self.len - self.done);
        }
        Progress::Again
    }
}

/// Checks a request against disk and buffer.
fn check(disk: &dyn Disk, request: &Request) -> Result<(), DiskError> {
    let (offset, len) = match request.op {
        Op::Read { offset, len } | Op::Write { offset, len, .. } => (offset, len),
        Op::Flush => return Ok(()),
        _ => return Err(DiskError::Unsupported),
    };
    let geometry = disk.geometry();
    let block_size = u64::from(geometry.block_size);
    let len_bytes = u64::try_from(len).map_err(|_| DiskError::OutOfRange)?;
    let end = offset.checked_add(len_bytes).ok_or(DiskError::OutOfRange)?;
    let size = geometry.blocks.saturating_mul(block_size);
    let aligned = offset.is_multiple_of(block_size) && len_bytes.is_multiple_of(block_size);
    let room = request.data.as_ref().map_or(0, Segments::len);
    if end > size || !aligned || room < len {
        return Err(DiskError::OutOfRange);
    }
    Ok(())
}
