//! What a supervisor writes down so that the next one goes on where it was killed.
//!
//! A memory file, kept by the keeper. One word in it says which of two copies of everything
//! counts, so that writing down is one store. For the vfio-user connection it says more: which
//! message is being received, what the answer is and how much of it was sent. The kernel itself
//! writes how many bytes it moved, within the call that moves them (`recvmmsg`, `sendmmsg`), so
//! there is no moment in which a message was read or answered and the journal does not say so.

use std::io;
use std::sync::atomic::{Ordering, fence};

use crate::device::shared_memory::SharedMemory;
use crate::kept::{Kept, KeptFd};

/// Most bytes of a message of the storage VM's QEMU that are kept.
pub(crate) const MAX_INPUT: usize = 0x5000;
/// Most bytes of an answer.
const MAX_OUTPUT: usize = 0x5000;
/// Most descriptors of a message.
const MAX_FDS: usize = 16;
/// Most bytes of the function's record.
const MAX_DEVICE: usize = 0x8000;
/// Most bytes of the record of everything else: 512 regions and 128 rings take half of it.
const MAX_REST: usize = 0x6_0000;

// Where things are. The word: see `bit`; after it the lengths of the four records.
const WORD: u64 = 0;
const LENGTHS: u64 = 0x10;
/// Two descriptions of what is being received, `IN_LEN` bytes each.
const IN: u64 = 0x100;
const IN_LEN: u64 = 0x100;
/// Two of what is being sent.
const OUT: u64 = 0x300;
const OUT_LEN: u64 = 0x80;
const ANSWER_LENGTH: u64 = 0x400;
const ANSWER_REGION: u64 = 0x404;
const INPUT: u64 = 0x1000;
const OUTPUT: u64 = 0x6000;
const DEVICE: u64 = 0x1_0000;
const REST: u64 = 0x2_0000;
const LEN: u64 = REST + 2 * MAX_REST as u64;

const _: () = assert!(
    INPUT + MAX_INPUT as u64 <= OUTPUT
        && OUTPUT + MAX_OUTPUT as u64 <= DEVICE
        && DEVICE + 2 * MAX_DEVICE as u64 <= REST
        && IN_CALL + CALL_LEN <= IN_LEN
        && OUT_CALL + CALL_LEN <= OUT_LEN
        && IN_NAMES + 8 * MAX_FDS as u64 <= IN_CALL
);

/// Fields of a description of what is being received.
const IN_BEFORE: u64 = 0x00;
const IN_FDS_BEFORE: u64 = 0x04;
const IN_FDS_AFTER: u64 = 0x08;
/// Bit 0: too many descriptors came before, bit 1: too many with this call.
const IN_TOO_MANY: u64 = 0x0c;
const IN_NAMES: u64 = 0x10;
const IN_CALL: u64 = 0xa0;
/// Fields of a description of what is being sent.
const OUT_BEFORE: u64 = 0x00;
const OUT_CALL: u64 = 0x10;
/// A `mmsghdr` of 64 bits, and where the kernel writes in it.
const CALL_LEN: u64 = 64;
const CALL_MOVED: u64 = 56;

/// Bits of the word.
mod bit {
    /// A message is being answered; otherwise one is being received.
    pub(super) const ANSWERING: u32 = 1 << 0;
    /// Which of two descriptions counts.
    pub(super) const IN: u32 = 1 << 1;
    pub(super) const OUT: u32 = 1 << 2;
    /// Which of two records counts.
    pub(super) const DEVICE: u32 = 1 << 3;
    pub(super) const REST: u32 = 1 << 4;
    /// There are records.
    pub(super) const WRITTEN: u32 = 1 << 5;
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Journal {
    memory: SharedMemory,
}

/// What has been received of a message.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Incoming {
    /// Bytes.
    pub received: usize,
    /// Names of its descriptors.
    pub fds: Vec<u64>,
    /// More descriptors came than a message may have.
    pub too_many_fds: bool,
}

/// An answer that may not be sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub bytes: Vec<u8>,
    /// The region whose file goes along.
    pub region: Option<usize>,
    /// Bytes that are sent.
    pub sent: usize,
}

/// A call that the kernel is to record: where, and where its bytes are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub call: u64,
    pub bytes: u64,
}

impl Journal {
    /// An empty one.
    ///
    /// # Errors
    /// What the kernel says when memory cannot be had.
    pub fn new() -> io::Result<Self> {
        let memory = SharedMemory::new(c"vhost-pci-journal", LEN)?;
        Ok(Self { memory })
    }

    /// That of a supervisor that is gone.
    ///
    /// # Errors
    /// What the kernel says when it cannot be mapped.
    pub fn open(fd: KeptFd) -> io::Result<Self> {
        let memory = SharedMemory::open(fd, LEN)?;
        Ok(Self { memory })
    }

    /// Has it kept.
    ///
    /// # Errors
    /// What duplicating its descriptor gave.
    pub fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        use std::os::fd::AsFd;
        let fd = self.memory.fd().as_fd().try_clone_to_owned()?;
        self.memory
            .set_fd(kept.keep_as(crate::kept::name::JOURNAL, fd));
        Ok(())
    }

    /// The memory, for the kernel's own entries.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// The records of the function and of everything else, if there are any.
    pub fn records(&self) -> Option<[Vec<u8>; 2]> {
        let word = self.word();
        (word & bit::WRITTEN != 0).then(|| {
            let device = self.record(0, DEVICE, MAX_DEVICE, word & bit::DEVICE != 0);
            let rest = self.record(1, REST, MAX_REST, word & bit::REST != 0);
            [device, rest]
        })
    }

    /// Writes both records down, as one.
    ///
    /// # Errors
    /// `InvalidInput` if one is longer than there is room for, which its parts' limits exclude.
    pub fn commit(&self, device: &[u8], rest: &[u8]) -> io::Result<()> {
        let word = self.word() | bit::WRITTEN;
        let word = self.write_device(word, device)?;
        let other = word & bit::REST == 0;
        self.write_record(1, REST, MAX_REST, other, rest)?;
        self.set_word(word ^ bit::REST);
        Ok(())
    }

    /// Nothing was received or is to be sent: a connection begins.
    pub fn begin(&self) {
        self.message_done();
    }

    /// What has been received of the message that is being received.
    pub fn incoming(&self) -> Incoming {
        let at = self.incoming_at(self.word());
        let moved = self.load(at + IN_CALL + CALL_MOVED);
        let (count, mask) = if moved > 0 {
            (IN_FDS_AFTER, 3)
        } else {
            (IN_FDS_BEFORE, 1)
        };
        let count = to_usize(self.load(at + count)).min(MAX_FDS);
        let name = |index: usize| {
            let mut bytes = [0; 8];
            self.memory
                .read(at + IN_NAMES + 8 * index as u64, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        Incoming {
            received: to_usize(self.load(at + IN_BEFORE)) + to_usize(moved),
            fds: (0..count).map(name).collect(),
            too_many_fds: self.load(at + IN_TOO_MANY) & mask != 0,
        }
    }

    /// Before more of a message is received: with those bytes come the last `fresh` of the
    /// descriptors in `next`, if any, and then `next.too_many_fds` holds.
    pub fn receive(&self, next: &Incoming, fresh: usize) -> Place {
        let now = self.incoming();
        let word = self.word() ^ bit::IN;
        let at = self.incoming_at(word);
        let count = next.fds.len().min(MAX_FDS);
        self.store(at + IN_CALL + CALL_MOVED, 0);
        self.store(at + IN_BEFORE, to_u32(now.received));
        self.store(at + IN_FDS_BEFORE, to_u32(count.saturating_sub(fresh)));
        self.store(at + IN_FDS_AFTER, to_u32(count));
        let too_many = u32::from(now.too_many_fds) | u32::from(next.too_many_fds) << 1;
        self.store(at + IN_TOO_MANY, too_many);
        for (index, name) in (0..).zip(&next.fds[..count]) {
            self.memory
                .write(at + IN_NAMES + 8 * index, &name.to_le_bytes());
        }
        self.set_word(word);
        Place {
            call: at + IN_CALL,
            bytes: INPUT + u64::try_from(now.received).unwrap_or(u64::MAX),
        }
    }

    /// Where bytes go that are not kept: over the payload, which has no room for them.
    pub fn skipped(place: Place) -> Place {
        let bytes = INPUT + 0x10;
        Place { bytes, ..place }
    }

    /// The first bytes of the message that is being received.
    pub fn input(&self, len: usize) -> Vec<u8> {
        self.bytes(INPUT, len.min(MAX_INPUT))
    }

    /// The message is carried out, and this is the answer to it, with the file of `region`; if
    /// the function has changed, `device` is its record. One store makes all of it count.
    ///
    /// # Errors
    /// `InvalidInput` if there is no room for it.
    pub fn answer(
        &self,
        answer: &[u8],
        region: Option<usize>,
        device: Option<&[u8]>,
    ) -> io::Result<()> {
        let mut word = self.word() | bit::ANSWERING;
        if answer.len() > MAX_OUTPUT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.write_bytes(OUTPUT, answer);
        self.store(ANSWER_LENGTH, to_u32(answer.len()));
        self.store(ANSWER_REGION, region.map_or(0, |region| to_u32(region) + 1));
        if let Some(device) = device {
            word = self.write_device(word, device)?;
        }
        word ^= bit::OUT;
        let at = self.outgoing_at(word);
        self.store(at + OUT_CALL + CALL_MOVED, 0);
        self.store(at + OUT_BEFORE, 0);
        self.set_word(word);
        Ok(())
    }

    /// The answer that is being sent.
    pub fn unsent(&self) -> Option<Answer> {
        let word = self.word();
        if word & bit::ANSWERING == 0 {
            return None;
        }
        let len = to_usize(self.load(ANSWER_LENGTH)).min(MAX_OUTPUT);
        let region = self.load(ANSWER_REGION).checked_sub(1).map(to_usize);
        Some(Answer {
            bytes: self.bytes(OUTPUT, len),
            region,
            sent: self.sent(word),
        })
    }

    /// Before more of the answer is sent.
    pub fn send(&self) -> Place {
        let sent = self.sent(self.word());
        let word = self.word() ^ bit::OUT;
        let at = self.outgoing_at(word);
        self.store(at + OUT_CALL + CALL_MOVED, 0);
        self.store(at + OUT_BEFORE, to_u32(sent));
        self.set_word(word);
        Place {
            call: at + OUT_CALL,
            bytes: OUTPUT + u64::try_from(sent).unwrap_or(u64::MAX),
        }
    }

    /// The answer is sent; the next message may come.
    pub fn message_done(&self) {
        let word = (self.word() ^ bit::IN) & !bit::ANSWERING;
        let at = self.incoming_at(word);
        for field in [
            IN_CALL + CALL_MOVED,
            IN_BEFORE,
            IN_FDS_BEFORE,
            IN_FDS_AFTER,
            IN_TOO_MANY,
        ] {
            self.store(at + field, 0);
        }
        self.set_word(word);
    }

    fn sent(&self, word: u32) -> usize {
        let at = self.outgoing_at(word);
        to_usize(self.load(at + OUT_BEFORE)) + to_usize(self.load(at + OUT_CALL + CALL_MOVED))
    }

    fn incoming_at(&self, word: u32) -> u64 {
        if word & bit::IN == 0 { IN } else { IN + IN_LEN }
    }

    fn outgoing_at(&self, word: u32) -> u64 {
        if word & bit::OUT == 0 {
            OUT
        } else {
            OUT + OUT_LEN
        }
    }

    /// Writes the function's record to where it does not count; returns the word that makes it.
    fn write_device(&self, word: u32, device: &[u8]) -> io::Result<u32> {
        let other = word & bit::DEVICE == 0;
        self.write_record(0, DEVICE, MAX_DEVICE, other, device)?;
        Ok(word ^ bit::DEVICE)
    }

    fn write_record(
        &self,
        kind: u64,
        start: u64,
        room: usize,
        second: bool,
        bytes: &[u8],
    ) -> io::Result<()> {
        if bytes.len() > room {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let second = u64::from(second);
        self.write_bytes(start + second * room as u64, bytes);
        self.store(LENGTHS + 8 * kind + 4 * second, to_u32(bytes.len()));
        Ok(())
    }

    fn record(&self, kind: u64, start: u64, room: usize, second: bool) -> Vec<u8> {
        let second = u64::from(second);
        let len = to_usize(self.load(LENGTHS + 8 * kind + 4 * second)).min(room);
        self.bytes(start + second * room as u64, len)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.next_multiple_of(4)];
        self.memory.read(at, &mut bytes);
        bytes.truncate(len);
        bytes
    }

    fn write_bytes(&self, at: u64, bytes: &[u8]) {
        let whole = bytes.len() & !3;
        self.memory.write(at, &bytes[..whole]);
        let mut last = [0; 4];
        let rest = &bytes[whole..];
        last[..rest.len()].copy_from_slice(rest);
        if !rest.is_empty() {
            self.memory.write(at + whole as u64, &last);
        }
    }

    fn word(&self) -> u32 {
        self.memory.load(WORD, Ordering::SeqCst)
    }

    /// What was written before counts from here on, and what comes after is written after.
    fn set_word(&self, word: u32) {
        fence(Ordering::SeqCst);
        self.memory.store(WORD, word, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn load(&self, at: u64) -> u32 {
        self.memory.load(at, Ordering::Relaxed)
    }

    fn store(&self, at: u64, value: u32) {
        self.memory.store(at, value, Ordering::Relaxed);
    }
}

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_commit_is_what_a_next_supervisor_reads() {
        let journal = Journal::new().unwrap();
        assert_eq!(journal.records(), None);
        for round in 0..5u8 {
            let device = vec![round; usize::from(round)];
            let rest = vec![round + 1; 1001];
            journal.commit(&device, &rest).unwrap();
            let next = Journal::open(journal.memory.fd().clone()).unwrap();
            assert_eq!(next.records(), Some([device, rest]));
        }
        assert!(journal.commit(&[0; MAX_DEVICE + 1], &[]).is_err());
        assert!(journal.commit(&[], &[0; MAX_REST + 1]).is_err());
        assert_eq!(journal.records().unwrap()[0], [4; 4]);
    }

    #[test]
    fn an_answer_and_the_functions_record_count_from_the_same_store_on() {
        let journal = Journal::new().unwrap();
        journal.commit(b"before", b"rest").unwrap();
        journal.answer(b"yes", Some(4), Some(b"after")).unwrap();
        let [device, rest] = journal.records().unwrap();
        assert_eq!((&*device, &*rest), (&b"after"[..], &b"rest"[..]));
        let answer = Answer {
            bytes: b"yes".to_vec(),
            region: Some(4),
            sent: 0,
        };
        assert_eq!(journal.unsent(), Some(answer));
        journal.message_done();
        assert_eq!(journal.unsent(), None);
        assert_eq!(journal.incoming(), Incoming::default());
    }

    #[test]
    fn descriptors_count_only_when_the_bytes_that_carry_them_were_received() {
        let journal = Journal::new().unwrap();
        let next = Incoming {
            received: 0,
            fds: vec![7, 8],
            too_many_fds: false,
        };
        let place = journal.receive(&next, 1);
        let fds = |journal: &Journal| journal.incoming().fds;
        assert_eq!(fds(&journal), [7]);
        journal.store(place.call + CALL_MOVED, 16);
        assert_eq!(fds(&journal), [7, 8]);
        assert_eq!(journal.incoming().received, 16);
    }
}
