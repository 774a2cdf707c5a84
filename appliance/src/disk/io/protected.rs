//! An operation on a disk with protection information: part by part, with the tenant's buffer.

use std::sync::Arc;

use super::inbox::{Inbox, Place};
use super::operation::{Lock, Operation, index};
use super::work::Work;
use crate::disk::protected::{
    Chunk, Crew, Deed, Found, GROUP, Job, MAX_CHUNK, MAX_ERASE, Protected, Seat, Tag, Tags, Worked,
};
use crate::disk::{Disk, DiskError, Op};
use crate::memory::Segments;

/// Most bytes that are copied for one part.
const MAX_COPY: usize = 256 << 10;

/// Such an operation.
#[derive(Debug)]
pub struct Tagged {
    what: Protected,
    block_size: u32,
    /// What is erased may be given back.
    thin: bool,
    /// Ranges of an [`Op::Unmap`] that were begun.
    begun: usize,
    crew: Arc<Crew>,
    /// Leave to have the next part done.
    seat: Option<Seat>,
    /// Where it is told of that, while it waits for it.
    queued: Option<(Arc<Inbox>, Place)>,
}

/// What became of the attempt to have the next part done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedOver {
    /// It is being done, or will be when there is a seat.
    Yes,
    Failed(DiskError),
}

impl Tagged {
    /// What `what` does, the first byte, and how many; `None` if the disk has no tags.
    pub fn new(what: Protected, disk: &dyn Disk) -> Option<(Self, u64, u64)> {
        let disk = disk.protected()?;
        let (offset, len) = extent(&what.op);
        let tagged = Self {
            what,
            block_size: disk.geometry().block_size,
            thin: disk.abilities().thin.is_some(),
            begun: 0,
            crew: Arc::clone(disk.crew()),
            seat: None,
            queued: None,
        };
        Some((tagged, offset, len))
    }

    /// Whether it needs the blocks for itself.
    pub fn changes_blocks(&self) -> bool {
        self.what.op.changes_blocks()
    }

    /// The bytes that others are kept away from: whole groups, since their tags are one piece.
    pub fn range(&self, offset: u64, len: u64) -> (u64, u64) {
        let group = GROUP * u64::from(self.block_size);
        let start = offset - offset % group;
        let end = offset
            .saturating_add(len)
            .div_ceil(group)
            .saturating_mul(group);
        (start, end - start)
    }

    /// First byte and length of the next range, if there are several.
    pub fn next_range(&mut self) -> Option<(u64, u64)> {
        let Op::Unmap { ranges, .. } = &self.what.op else {
            return None;
        };
        let next = ranges.get(self.begun).copied();
        self.begun += 1;
        next
    }

    /// The part from byte `at` of the operation on.
    fn chunk(&self, offset: u64, at: u64, left: u64, data: Option<&Segments>) -> Chunk {
        let block_size = u64::from(self.block_size);
        let most = match self.what.op {
            // All at once, and no more is asked for.
            Op::CompareAndWrite { .. } => u64::MAX,
            Op::Zero { unmap: true, .. } | Op::Unmap { .. } => MAX_ERASE,
            Op::WriteSame { .. } | Op::Zero { .. } | Op::Check { .. } => MAX_CHUNK as u64,
            Op::Mend { .. } => block_size,
            _ => MAX_COPY as u64,
        };
        let len = index(left.min(most));
        let (at_index, prefix) = (index(at), self.what.prefix);
        let copied = |at: usize, len: usize| {
            let mut bytes = vec![0; len];
            if let Some(data) = data {
                data.read_at(at, &mut bytes);
            }
            bytes
        };
        let block = || copied(prefix, index(block_size));
        let first = at / block_size;
        let blocks = len / index(block_size);
        // Of so many blocks, from this one of the buffer on.
        let tags = |number: usize, blocks: usize| match prefix {
            0 if self.what.unchecked => Tags::Unchecked,
            0 => Tags::Made,
            _ => Tags::Given(copied(number * Tag::LEN, blocks * Tag::LEN)),
        };
        // Of the first block, which the one in the buffer is.
        let tag = || match tags(0, 1) {
            Tags::Given(given) => Tags::Given(self.tag_of(first, &given).to_vec()),
            other => other,
        };
        let written = |verify| Deed::Write {
            data: copied(prefix + at_index, len),
            tags: tags(index(first), blocks),
            verify,
        };
        let compares = self.what.compares;
        let deed = match self.what.op {
            Op::Read { .. } => Deed::Read,
            Op::Write { .. } => written(false),
            Op::WriteVerify { .. } => written(true),
            Op::WriteSame { .. } => Deed::Same {
                block: block(),
                tag: tag(),
            },
            Op::Zero { unmap: true, .. } | Op::Unmap { .. } => Deed::Erase {
                gives_back: self.thin,
            },
            Op::Zero { .. } => Deed::Same {
                block: vec![0; index(block_size)],
                tag: tag(),
            },
            Op::Mend { .. } => Deed::Mend,
            Op::Compare { same: true, .. } => Deed::CompareSame {
                block: block(),
                tag: tag(),
                compares,
            },
            Op::Compare { .. } => Deed::Compare {
                data: copied(prefix + at_index, len),
                tags: tags(index(first), blocks),
                compares,
            },
            // Of the two instances, the second is written; the tags of the first are of no use.
            Op::CompareAndWrite { .. } => Deed::CompareAndWrite {
                compare: copied(prefix, len),
                write: copied(prefix + len, len),
                tags: tags(blocks, blocks),
            },
            Op::Or { .. } => Deed::Or {
                data: copied(prefix + at_index, len),
                tags: tags(index(first), blocks),
            },
            _ => Deed::Check,
        };
        Chunk {
            lba: (offset + at) / block_size,
            blocks,
            checks: self.what.checks,
            deed,
        }
    }

    /// The tag of the block so many after the first of a WRITE SAME, whose tag is given (SBC-4,
    /// WRITE SAME(10): the reference tag is one more for each block).
    fn tag_of(&self, number: u64, given: &[u8]) -> [u8; Tag::LEN] {
        let mut bytes = [0; Tag::LEN];
        bytes.copy_from_slice(given);
        self.crew
            .following(Tag::from_bytes(bytes), number)
            .to_bytes()
    }

    /// Puts what was read into the tenant's buffer.
    fn deliver(&self, at: u64, found: &Found, data: Option<&Segments>) {
        let Some(data) = data else { return };
        let prefix = self.what.prefix;
        data.write_at(prefix + index(at), &found.data);
        if prefix > 0 {
            let first = index(at / u64::from(self.block_size));
            data.write_at(first * Tag::LEN, &found.tags);
        }
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        if let Some((inbox, place)) = &self.queued {
            self.crew.leave(inbox, *place);
        }
    }
}

/// Bytes that an operation is about, which [`super::check`] has checked.
fn extent(op: &Op) -> (u64, u64) {
    match *op {
        Op::Read { offset, len }
        | Op::Write { offset, len, .. }
        | Op::WriteVerify { offset, len }
        | Op::CompareAndWrite { offset, len, .. }
        | Op::Or { offset, len, .. } => (offset, len as u64),
        Op::WriteSame { offset, len, .. }
        | Op::Compare { offset, len, .. }
        | Op::Check { offset, len }
        | Op::Mend { offset, len }
        | Op::Zero { offset, len, .. } => (offset, len),
        // Range by range.
        _ => (0, 0),
    }
}

impl Operation {
    /// Has the next part of an operation with tags done, whose range is locked.
    pub fn hand_over(&mut self, place: Place, inbox: &Arc<Inbox>) -> HandedOver {
        let (offset, at, left) = (self.offset, self.issued, self.len - self.issued);
        let Work::Protected(Some(tagged)) = &mut self.work else {
            return HandedOver::Failed(DiskError::Unsupported);
        };
        if tagged.queued.is_some() {
            return HandedOver::Yes;
        }
        let Some(seat) = tagged
            .seat
            .take()
            .or_else(|| tagged.crew.seat(inbox, place))
        else {
            tagged.queued = Some((Arc::clone(inbox), place));
            return HandedOver::Yes;
        };
        let Lock::Held(hold) = std::mem::replace(&mut self.lock, Lock::None) else {
            return HandedOver::Failed(DiskError::Busy);
        };
        let job = Job {
            chunk: tagged.chunk(offset, at, left, self.data.as_ref()),
            file: Arc::clone(&self.file),
            hold,
            seat,
            inbox: Arc::clone(inbox),
            place,
        };
        match tagged.crew.give(job) {
            Ok(()) => {
                // As a piece in the kernel would be.
                self.pieces += 1;
                HandedOver::Yes
            }
            Err(error) => HandedOver::Failed(error),
        }
    }

    /// Takes the seat that it waited for.
    pub fn take_seat(&mut self, seat: Seat) {
        if let Work::Protected(Some(tagged)) = &mut self.work {
            tagged.queued = None;
            tagged.seat = Some(seat);
        }
    }

    /// Takes what became of a part.
    pub fn take_worked(&mut self, worked: Worked) {
        self.pieces -= 1;
        let at = self.issued;
        let Work::Protected(Some(tagged)) = &self.work else {
            return;
        };
        match worked.result {
            Ok(found) => {
                // What was cancelled has no buffer any more.
                tagged.deliver(at, &found, self.data.as_ref());
                self.issued += worked.blocks as u64 * u64::from(tagged.block_size);
            }
            Err(DiskError::Miscompare { at: where_ }) => {
                self.fail(at, DiskError::Miscompare { at: at + where_ });
            }
            Err(DiskError::TagMiscompare { at: where_, bad }) => {
                let at = at + where_;
                self.fail(at, DiskError::TagMiscompare { at, bad });
            }
            Err(DiskError::Protection { at: where_, bad }) => {
                let at = at + where_;
                self.fail(at, DiskError::Protection { at, bad });
            }
            Err(error) => self.fail(at, error),
        }
        self.lock = Lock::Held(worked.hold);
    }
}
