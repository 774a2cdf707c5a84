//! Session memory (BAR4) as the shim reads and writes it.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use spec::doorbell;
use spec::mailbox::{HEADER_LEN, Header, MAX_PAYLOAD, Reply, Request};
use spec::session::{self, MEMORY_SLOTS, MemoryEntry};

use super::shared_memory::{SharedMemory, WORD};
use crate::kept::{Kept, KeptFd};

/// Longest payload of a reply that any request has: the base of a stopped ring.
const MAX_REPLY_PAYLOAD: usize = WORD;

/// A reply slot that does not answer the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// No request is outstanding.
    #[error("the appliance answered although nothing was asked")]
    NothingAsked,
    /// Another sequence number than the request's, in the register or in the slot.
    #[error("the appliance answered request {found}, but request {expected} was asked")]
    Sequence {
        /// Of the outstanding request.
        expected: u32,
        /// What the appliance wrote.
        found: u32,
    },
    /// Operation, length or content do not belong to the request.
    #[error(
        "the appliance's reply does not fit the request (operation {operation:#x}, {len} bytes, \
         status {status})"
    )]
    Shape {
        /// Operation in the reply's header.
        operation: u32,
        /// Payload length in the reply's header, in bytes.
        len: u32,
        /// Status in the reply's header.
        status: u32,
    },
}

/// The memory that the shim shares with the appliance, and what the shim last saw in it.
#[derive(Debug)]
pub(super) struct SessionMemory {
    memory: SharedMemory,
    /// Last seen call counter of each ring.
    calls: Vec<u32>,
}

impl SessionMemory {
    /// Fresh session memory for `rings` vrings; the shim is asleep (need-wakeup is 1).
    ///
    /// # Errors
    /// What the kernel says when memory cannot be had.
    pub(super) fn new(rings: u16) -> io::Result<Self> {
        let memory = SharedMemory::new(c"vhost-pci-session", session::LEN)?;
        memory.store(session::NEED_WAKEUP, 1, Ordering::Relaxed);
        Ok(Self {
            memory,
            calls: vec![0; usize::from(rings)],
        })
    }

    /// The session memory of a supervisor that is gone, kept as `fd`. Each counter counts as
    /// seen: the rings that it may not have looked at are called anyway.
    ///
    /// # Errors
    /// What the kernel says when it cannot be mapped.
    pub(super) fn reopen(fd: KeptFd, rings: u16) -> io::Result<Self> {
        let memory = SharedMemory::open(fd, session::LEN)?;
        let mut this = Self {
            memory,
            calls: vec![0; usize::from(rings)],
        };
        this.collect_calls(|_| {});
        Ok(this)
    }

    /// Has its memfd kept.
    ///
    /// # Errors
    /// What duplicating the descriptor gave.
    pub(super) fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        let fd = self.memory.fd().as_fd().try_clone_to_owned()?;
        self.memory.set_fd(kept.keep(fd));
        Ok(())
    }

    /// The memfd behind BAR4.
    pub(super) fn fd(&self) -> &KeptFd {
        self.memory.fd()
    }

    /// Writes the memory table under its seqlock. At most [`MEMORY_SLOTS`] entries (the caller
    /// checks).
    pub(super) fn publish_table(&self, entries: &[MemoryEntry], generation: u32) {
        debug_assert!(entries.len() <= MEMORY_SLOTS);
        // The appliance may have overwritten the sequence; what counts is that it becomes odd,
        // then even and another.
        let even = self
            .memory
            .load(session::MEMORY_SEQUENCE, Ordering::Relaxed)
            & !1;
        let odd = even | 1;
        self.memory
            .store(session::MEMORY_SEQUENCE, odd, Ordering::Relaxed);
        // No store below becomes visible before the sequence is odd.
        fence(Ordering::Release);
        let mut count = 0;
        for (index, entry) in entries.iter().enumerate() {
            self.memory
                .write(session::memory_entry(index), &entry.to_bytes());
            count += 1;
        }
        self.memory
            .store(session::MEMORY_COUNT, count, Ordering::Relaxed);
        self.memory
            .store(session::MEMORY_GENERATION, generation, Ordering::Relaxed);
        self.memory.store(
            session::MEMORY_SEQUENCE,
            odd.wrapping_add(1),
            Ordering::Release,
        );
    }

    /// Writes a request into its slot.
    pub(super) fn write_request(&self, sequence: u32, request: &Request) {
        let payload = request.payload();
        debug_assert!(payload.len() <= MAX_PAYLOAD);
        let mut slot = Vec::with_capacity(HEADER_LEN + payload.len());
        let header = Header {
            sequence,
            operation: request.operation(),
            len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            status: 0,
        };
        slot.extend(header.to_bytes());
        slot.extend(payload);
        self.memory.write(session::MAILBOX_REQUEST, &slot);
        // The register and the interrupt that follow reach the appliance through the kernel;
        // this makes sure the slot does before them.
        fence(Ordering::SeqCst);
    }

    /// Reads the reply slot once, as the answer to `request`.
    ///
    /// # Errors
    /// [`BadReply`] if it is not its answer.
    pub(super) fn read_reply(&self, sequence: u32, request: &Request) -> Result<Reply, BadReply> {
        fence(Ordering::SeqCst);
        let mut slot = [0; HEADER_LEN + MAX_REPLY_PAYLOAD];
        self.memory.read(session::MAILBOX_REPLY, &mut slot);
        let (bytes, payload) = slot.split_at(HEADER_LEN);
        let Ok(header) = Header::from_bytes(bytes) else {
            unreachable!("HEADER_LEN bytes hold a header")
        };
        if header.sequence != sequence {
            return Err(BadReply::Sequence {
                expected: sequence,
                found: header.sequence,
            });
        }
        usize::try_from(header.len)
            .ok()
            .and_then(|len| payload.get(..len))
            .and_then(|payload| Reply::parse(request, &header, payload))
            .ok_or(BadReply::Shape {
                operation: header.operation,
                len: header.len,
                status: header.status,
            })
    }

    /// Says that a call must ring the trapped doorbell from now on; returns whether one was
    /// counted that [`Self::collect_calls`] has not seen.
    pub(super) fn arm(&self) -> bool {
        doorbell::arm(&self.memory, &self.calls)
    }

    /// Says that the shim polls the call counters, so that no doorbell is needed.
    pub(super) fn disarm(&self) {
        doorbell::disarm(&self.memory);
    }

    /// Calls `call` with each ring whose counter moved since the last time.
    pub(super) fn collect_calls(&mut self, call: impl FnMut(u16)) {
        doorbell::collect(&self.memory, &mut self.calls, call);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn session() -> (SessionMemory, File) {
        let session = SessionMemory::new(4).unwrap();
        let appliance = File::from(session.fd().as_fd().try_clone_to_owned().unwrap());
        (session, appliance)
    }

    fn read<const N: usize>(file: &File, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn write_words(file: &File, offset: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        file.write_all_at(&bytes, offset).unwrap();
    }

    // covers: VPCI-MEM-1
    #[test]
    fn a_table_is_found_with_its_generation_and_an_even_sequence() {
        let (session, appliance) = session();
        let entries = [
            MemoryEntry {
                guest_address: 0,
                len: 0x8000_0000,
                bar_offset: 0,
            },
            MemoryEntry {
                guest_address: 1 << 32,
                len: 1 << 32,
                bar_offset: 0x8000_0000,
            },
        ];
        session.publish_table(&entries, 7);
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x8000)), 2);
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x8004)), 2);
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x8008)), 7);
        let second: [u8; 32] = read(&appliance, 0x8000 + 64 + 32);
        assert_eq!(MemoryEntry::from_bytes(&second), Ok(entries[1]));
        // An appliance that left the sequence odd does not make the next table unreadable.
        write_words(&appliance, 0x8000, &[u32::MAX]);
        session.publish_table(&entries[..1], 8);
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x8000)), 0);
    }

    #[test]
    fn a_request_stands_in_its_slot_with_its_header() {
        let (session, appliance) = session();
        session.write_request(5, &Request::StopRing { ring: 3 });
        let slot: [u8; 20] = read(&appliance, 0x1000);
        assert_eq!(
            slot,
            [5, 0, 0, 0, 1, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]
        );
    }

    // covers: VPCI-MBX-8
    #[test]
    fn a_reply_is_read_as_the_answer_to_its_request_only() {
        let (session, appliance) = session();
        let stop = Request::StopRing { ring: 3 };
        write_words(&appliance, 0x2000, &[5, 0x101, 4, 0, 77]);
        assert_eq!(session.read_reply(5, &stop), Ok(Reply::Base(77)));
        assert_eq!(
            session.read_reply(6, &stop),
            Err(BadReply::Sequence {
                expected: 6,
                found: 5
            })
        );
        write_words(&appliance, 0x2000, &[5, 0x101, u32::MAX, 0, 77]);
        assert_eq!(
            session.read_reply(5, &stop),
            Err(BadReply::Shape {
                operation: 0x101,
                len: u32::MAX,
                status: 0
            })
        );
        write_words(&appliance, 0x2000, &[5, 34, 0, 5]);
        assert_eq!(session.read_reply(5, &Request::Reset), Ok(Reply::Failed(5)));
    }

    // covers: VPCI-BEL-2
    #[test]
    fn a_call_counted_while_the_shim_polled_is_not_slept_over() {
        let (mut session, appliance) = session();
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x4000)), 1);
        session.disarm();
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x4000)), 0);
        write_words(&appliance, 0x4000 + 64 * 3, &[1]);
        assert!(session.arm());
        assert_eq!(u32::from_le_bytes(read(&appliance, 0x4000)), 1);
        let mut called = Vec::new();
        session.collect_calls(|ring| called.push(ring));
        assert_eq!(called, [2]);
        assert!(!session.arm());
        session.collect_calls(|ring| panic!("ring {ring} was called twice"));
    }

    #[test]
    fn counters_beyond_the_rings_of_the_function_are_not_looked_at() {
        let (mut session, appliance) = session();
        write_words(&appliance, 0x4000 + 64 * 5, &[1]);
        session.collect_calls(|ring| panic!("ring {ring} does not exist"));
    }
}
