//! One SCSI command of the tenant, from its descriptor chain to its response.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::virtio_scsi::{RequestHeader, Response, feature, response};

use crate::disk::{Disk, DiskError, Op, Reply};
use crate::memory::Segments;
use crate::ring::{Chain, Violation};
use crate::scsi::{Answer, Buffers, Pending, Place, Tags};
use crate::statistics::Ending;
use crate::worker::Marking;

/// A command that was fetched; it goes back to its ring by [`Self::answer`] or [`Self::fail`].
#[derive(Debug)]
#[must_use = "a command must go back to its ring"]
pub(crate) struct Command {
    /// The request header, a copy.
    pub header: RequestHeader,
    /// When it was fetched.
    pub since: Instant,
    head: u16,
    data_out: Segments,
    response: Segments,
    data_in: Segments,
    /// Protection information; `None` if there is none.
    tags: Option<Box<TagBuffers>>,
}

/// Buffers with protection information.
#[derive(Debug)]
struct TagBuffers {
    /// Before data-out.
    out: Segments,
    /// Before data-in.
    back: Segments,
    /// They are longer than what there is.
    overrun: bool,
}

/// A chain that has been written to and can go back to its ring, as an element of the used ring says
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a chain must go back to its ring"]
pub(crate) struct Used {
    /// The chain.
    pub head: u16,
    /// Bytes written to its buffers.
    pub written: u32,
}

/// A command that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a chain must go back to its ring"]
pub(crate) struct Finished {
    /// Its chain.
    pub chain: Used,
    /// How it ended.
    pub ending: Ending,
}

impl Finished {
    /// It was one that had to wait until then for its disk, if it had to.
    pub fn begun_at(mut self, begun: Option<Instant>) -> Self {
        self.ending.begun = begun;
        self
    }
}

/// A command on which a disk works.
#[derive(Debug)]
pub(crate) struct Task {
    /// The ring that it came from.
    pub ring: u16,
    /// What task management knows it by.
    pub name: Name,
    /// Which memory table its buffers were found with.
    pub memory: u64,
    /// What is to become of it.
    pub fate: Fate,
    /// Numbers of the functions that wait for its end.
    pub waiters: Vec<u64>,
    /// How to answer it.
    pub command: Command,
    /// How to finish it.
    pub pending: Pending,
    /// What to try again should the disk fail and its unit pause; `None` if it is not to be held.
    pub again: Option<Op>,
    /// Where it is when its unit pauses.
    pub trial: Trial,
    /// A limit keeps it from its disk.
    pub limited: bool,
    /// Whether it may change blocks.
    pub changes: bool,
    /// What it has to do with the mark of its unit.
    pub marking: Marking,
    /// Data-in bytes that the disk writes.
    pub data_in: usize,
    /// When it was begun.
    pub since: Instant,
    /// When its disk was given it, if it had to wait for that.
    pub begun: Option<Instant>,
    /// How long it may take.
    pub patience: Duration,
}

/// What task management knows a command by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    /// What it is for.
    pub place: Place,
    /// The driver's name for it.
    pub tag: u64,
}

/// Where a task of a unit that pauses is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trial {
    /// It is none of those.
    None,
    /// The disk has failed it, and has it no more.
    Held,
    /// The disk has it again.
    Tried,
}

/// What is to become of a task. All but the first are cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered with how it ended.
    Live,
    /// It was held, and a reservation keeps it from its disk meanwhile; it is answered so.
    Fenced,
    /// Its time is over, and it is answered so, unless it ended by itself.
    Expired {
        /// Whether the log says that the disk does not let go of it.
        stuck: bool,
    },
    /// Its logical unit is gone, and it is answered so.
    Gone,
    /// It is answered with this virtio-scsi response.
    Failed(u8),
    /// It is not answered: its ring is gone.
    Abandoned,
}

impl Fate {
    /// What becomes of a task of this fate when another comes over it: the one that says least to
    /// the tenant.
    pub fn or(self, other: Self) -> Self {
        let weight = |fate| match fate {
            Self::Live => 0,
            Self::Fenced => 1,
            Self::Expired { .. } => 2,
            Self::Gone => 3,
            Self::Failed(_) => 4,
            Self::Abandoned => 5,
        };
        if weight(other) >= weight(self) {
            other
        } else {
            self
        }
    }
}

impl Command {
    /// Whether there is a command in a chain, with these features negotiated.
    ///
    /// # Errors
    /// [`Violation::TooShort`] if header or response do not fit.
    #[inline]
    pub fn check(chain: &Chain, features: u64) -> Result<(), Violation> {
        let header = if features & feature::T10_PI == 0 {
            RequestHeader::LEN
        } else {
            RequestHeader::TAGGED_LEN
        };
        enough("readable", &chain.readable, header)?;
        enough("writable", &chain.writable, Response::LEN)
    }

    /// The command in a chain that was fetched at `since` and [checked](Self::check) with these
    /// features; its buffers are taken.
    #[inline]
    pub fn of(chain: &mut Chain, features: u64, since: Instant) -> Self {
        if features & feature::T10_PI != 0 {
            return Self::of_tagged(chain, since);
        }
        let mut bytes = [0; RequestHeader::LEN];
        chain.readable.read_at(0, &mut bytes);
        Self {
            header: RequestHeader::from_bytes(&bytes),
            since,
            head: chain.head,
            data_out: chain.readable.split_off(RequestHeader::LEN),
            data_in: chain.writable.split_off(Response::LEN),
            response: chain.writable.take(),
            tags: None,
        }
    }

    /// The command in a chain whose header says how much protection information there is.
    #[inline(never)]
    fn of_tagged(chain: &mut Chain, since: Instant) -> Self {
        let Chain {
            head,
            readable,
            writable,
        } = chain;
        let mut bytes = [0; RequestHeader::TAGGED_LEN];
        readable.read_at(0, &mut bytes);
        let (header, lengths) = RequestHeader::from_tagged_bytes(&bytes);
        let mut out = readable.split_off(RequestHeader::TAGGED_LEN);
        let mut back = writable.split_off(Response::LEN);
        let [wants_out, wants_back] = lengths.map(|len| usize::try_from(len).unwrap_or(usize::MAX));
        let overrun = wants_out > out.len() || wants_back > back.len();
        let data_out = out.split_off(wants_out);
        let data_in = back.split_off(wants_back);
        let tags = TagBuffers { out, back, overrun };
        Self {
            header,
            since,
            head: *head,
            data_out,
            data_in,
            response: writable.take(),
            tags: (lengths != [0; 2]).then(|| Box::new(tags)),
        }
    }

    /// Whether there is less protection information than the header says.
    pub fn is_overrun(&self) -> bool {
        self.tags.as_ref().is_some_and(|tags| tags.overrun)
    }

    /// Whether it has data buffers of both directions.
    pub fn is_bidirectional(&self) -> bool {
        !self.data_out.is_empty() && !self.data_in.is_empty()
    }

    /// Pieces of memory that its buffers are in.
    fn pieces(&self) -> usize {
        let tags = self.tags.iter().flat_map(|tags| [&tags.out, &tags.back]);
        let buffers = [&self.data_out, &self.response, &self.data_in];
        buffers.into_iter().chain(tags).map(Segments::pieces).sum()
    }

    /// The data buffers.
    pub fn buffers(&self) -> Buffers<'_> {
        Buffers {
            data_out: &self.data_out,
            data_in: self.data_in.len(),
            tags: self.tags.as_ref().map_or_else(Tags::default, |tags| {
                Tags::new(tags.out.len(), tags.back.len())
            }),
        }
    }

    /// The buffer that `op` moves data from or to, and how many bytes of it are data-in.
    pub fn data_for(&self, op: &Op) -> (Cow<'_, Segments>, usize) {
        let (data, len) = match op.plain().data_in() {
            0 => (&self.data_out, 0),
            len => (&self.data_in, len),
        };
        let Some(tags) = self.tags.as_ref().filter(|_| op.prefix() > 0) else {
            return (Cow::Borrowed(data), len);
        };
        let mut tagged = if len == 0 { &tags.out } else { &tags.back }.clone();
        tagged.append(data);
        (Cow::Owned(tagged), len)
    }

    /// Writes the answer; `read` bytes of data-in were written by a disk before.
    pub fn answer(&self, answer: &Answer, read: usize) -> Finished {
        let data = self.data_in.write_at(0, &answer.data).max(read);
        let response =
            Response::answer(response::OK, answer.status, answer.residual, &answer.sense);
        let buffers = (self.data_out.len(), self.data_in.len());
        let ending = Ending::answered(self.header.cdb, self.since, answer, buffers);
        self.finish(&response, data, ending)
    }

    /// Writes a virtio-scsi response other than OK, without data.
    pub fn fail(&self, response: u8) -> Finished {
        let ending = Ending::failed(self.header.cdb, self.since, response);
        let longest = self.data_out.len().max(self.data_in.len());
        let residual = u32::try_from(longest).unwrap_or(u32::MAX);
        let response = Response::answer(response, 0, residual, &[]);
        self.finish(&response, 0, ending)
    }

    #[inline]
    fn finish(&self, response: &[u8; Response::LEN], data: usize, ending: Ending) -> Finished {
        self.response.write_at(0, response);
        let tags = match &self.tags {
            Some(tags) if data > 0 => tags.back.len(),
            _ => 0,
        };
        let chain = Used {
            head: self.head,
            written: u32::try_from(Response::LEN + tags + data).unwrap_or(u32::MAX),
        };
        Finished { chain, ending }
    }
}

impl Task {
    /// Whether it is answered with how it ends.
    pub fn is_live(&self) -> bool {
        self.fate == Fate::Live
    }

    /// What a disk has to do next for it, now that one ended with `result`; `None` if it is over.
    pub fn go_on(&mut self, result: &Result<Reply, DiskError>) -> Option<(Arc<dyn Disk>, Op)> {
        self.is_live().then(|| self.pending.go_on(result)).flatten()
    }

    /// The answer, now that the disk ended with `result`; `None` if nobody wants it. It is no task
    /// any more then; as it is large, it is answered where it is.
    pub fn finish(&mut self, result: Result<Reply, DiskError>) -> Option<Finished> {
        let Self {
            command, pending, ..
        } = self;
        Some(match self.fate {
            Fate::Expired { .. } if result == Err(DiskError::Cancelled) => {
                command.answer(&pending.expired(), 0)
            }
            Fate::Live | Fate::Expired { .. } => {
                let read = if result.is_ok() { self.data_in } else { 0 };
                command.answer(&pending.end(result), read)
            }
            Fate::Fenced => command.answer(&pending.reserved(), 0),
            Fate::Gone => command.answer(&pending.gone(), 0),
            Fate::Failed(response) => command.fail(response),
            Fate::Abandoned => return None,
        })
    }
}

/// Checks that a chain has `need` bytes of a kind.
#[inline]
pub(crate) fn enough(kind: &'static str, buffer: &Segments, need: usize) -> Result<(), Violation> {
    if buffer.len() >= need {
        Ok(())
    } else {
        Err(Violation::TooShort {
            kind,
            have: buffer.len(),
            need,
        })
    }
}

/// The tasks of one HBA, each named by its place here.
#[derive(Debug)]
pub(crate) struct Tasks {
    slots: Vec<Option<Task>>,
    free: Vec<usize>,
    /// Pieces of memory of all of them.
    pieces: usize,
    limit: usize,
    most_pieces: usize,
}

impl Tasks {
    /// Room for `limit` tasks, and none for more once their buffers are in `most_pieces` pieces of
    /// memory.
    pub fn new(limit: usize, most_pieces: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            pieces: 0,
            limit,
            most_pieces,
        }
    }

    /// How many more tasks there is room for.
    pub fn room(&self) -> usize {
        if self.pieces >= self.most_pieces {
            return 0;
        }
        (self.limit + self.free.len()).saturating_sub(self.slots.len())
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no task.
    pub fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// Keeps a task; returns its name. There must be room for it, or have been when it was fetched.
    pub fn insert(&mut self, task: Task) -> u64 {
        self.pieces += task.command.pieces();
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(task);
        index as u64
    }

    /// Forgets the task of that name.
    pub fn forget(&mut self, name: u64) {
        let Ok(index) = usize::try_from(name) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(index)
            && let Some(task) = slot
        {
            self.pieces -= task.command.pieces();
            *slot = None;
            self.free.push(index);
        }
    }

    /// The task of that name.
    pub fn get(&self, name: u64) -> Option<&Task> {
        let index = usize::try_from(name).ok()?;
        self.slots.get(index)?.as_ref()
    }

    /// The task of that name.
    pub fn get_mut(&mut self, name: u64) -> Option<&mut Task> {
        let index = usize::try_from(name).ok()?;
        self.slots.get_mut(index)?.as_mut()
    }

    /// Every task with its name.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Task)> {
        (0..)
            .zip(&mut self.slots)
            .filter_map(|(name, slot)| slot.as_mut().map(|task| (name, task)))
    }

    /// Every task.
    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::shared_memory;

    /// A buffer of pieces that do not touch.
    fn scattered(lens: &[usize]) -> Segments {
        let mut segments = Segments::new(shared_memory(0x10000));
        for (at, &len) in (0..).step_by(0x1000).zip(lens) {
            segments.push(at, len).unwrap();
        }
        segments
    }

    #[test]
    fn pieces_with_protection_information_count_as_those_with_data() {
        // Three tags of 8 bytes each way, then the data.
        let readable = scattered(&[RequestHeader::TAGGED_LEN, 8, 8, 8, 512]);
        let writable = scattered(&[Response::LEN, 8, 16, 512]);
        // PI_BYTESOUT and PI_BYTESIN (virtio 1.3 §5.6.6.1).
        readable.write_at(19, &[24, 0, 0, 0, 24, 0, 0, 0]);
        let mut chain = Chain {
            head: 0,
            readable,
            writable,
        };
        assert_eq!(Command::check(&chain, feature::T10_PI), Ok(()));
        let command = Command::of(&mut chain, feature::T10_PI, Instant::now());
        assert!(!command.is_overrun());
        assert_eq!(command.pieces(), (3 + 1) + (1 + 2 + 1));
    }
}
