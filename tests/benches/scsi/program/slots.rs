//! The requests of a queue, laid out in memory once and used again and again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::{Error, Result};
use super::memory::{Memory, Pages};
use super::ring::{DESCRIPTOR, INDIRECT, NEXT, Place, WRITE, descriptor};

/// Bytes that a block number of a request counts in, on both kinds of disk.
pub const SECTOR: u64 = 512;
/// Bytes kept for header and response of a request; the response has cache lines of its own.
const HEAD: u64 = 256;
const RESPONSE: u64 = 64;
/// Bytes kept for the two indirect tables of a request, one for each direction.
const TABLES: u64 = 128;
const TABLE: u64 = 64;
/// Descriptors of a request.
const PARTS: u16 = 3;

/// virtio 1.3 §5.6.6.1, struct virtio_scsi_req_cmd: `cdb` after `lun`, `tag` and three bytes.
const SCSI_HEADER: u32 = 51;
const TAG: u64 = 8;
const CDB: u64 = 19;
/// The same place: the device-writable part up to the data. Status and response are its
/// offsets 10 and 11, after `sense_len`, `residual` and `status_qualifier`.
const SCSI_RESPONSE: u32 = 108;
const RESIDUAL: u64 = 4;
const STATUS_AND_RESPONSE: u64 = 10;
const SENSE: u64 = 12;
/// virtio 1.3 §5.2.6, struct virtio_blk_req: type, reserved, sector; later one status byte.
const BLK_HEADER: u32 = 16;
/// What no server answers, so that an answer that never came is seen.
const UNANSWERED: u16 = 0xffff;

/// What kind of device is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// virtio-scsi.
    Scsi,
    /// virtio-blk.
    Blk,
}

impl Kind {
    /// The number of its first queue for requests: virtio-scsi's control and event queues come
    /// before.
    pub fn first_queue(self) -> u16 {
        match self {
            Self::Scsi => 2,
            Self::Blk => 0,
        }
    }
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "a read",
            Self::Write => "a write",
        })
    }
}

/// Where the requests of a queue are.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub kind: Kind,
    pub ring: Place,
    pub depth: u16,
    pub block_bytes: u32,
    /// Whether each request is one descriptor of the ring with a table of its own, as Linux's
    /// drivers do it.
    pub indirect: bool,
    heads: u64,
    tables: u64,
    data: u64,
}

impl Layout {
    /// Takes the pages of `depth` requests of `block_bytes` each, on the ring at `ring`.
    ///
    /// # Errors
    /// The ring is too small.
    pub fn take(
        pages: &mut Pages,
        kind: Kind,
        ring: Place,
        depth: u16,
        block_bytes: u32,
        indirect: bool,
    ) -> Result<Self> {
        let parts = if indirect { 1 } else { PARTS };
        if u32::from(depth) * u32::from(parts) > u32::from(ring.size) {
            return Err(Error::RingTooSmall {
                depth,
                size: ring.size,
                mend: if indirect {
                    "; raise --ring-size"
                } else {
                    ", three for each; raise --ring-size, or leave out --direct"
                },
            });
        }
        let requests = u64::from(depth);
        Ok(Self {
            kind,
            ring,
            depth,
            block_bytes,
            indirect,
            heads: pages.take(HEAD * requests),
            tables: pages.take(TABLES * requests),
            data: pages.take(u64::from(block_bytes).next_multiple_of(4096) * requests),
        })
    }

    fn header(&self, slot: u16) -> u64 {
        self.heads + HEAD * u64::from(slot)
    }

    fn response(&self, slot: u16) -> u64 {
        self.header(slot) + RESPONSE
    }

    /// Where the two bytes are that a server answers with; of virtio-blk's only the first is one.
    fn answer(&self, slot: u16) -> u64 {
        match self.kind {
            Kind::Scsi => self.response(slot) + STATUS_AND_RESPONSE,
            Kind::Blk => self.response(slot),
        }
    }

    /// Where the data of a request is.
    pub fn data(&self, slot: u16) -> u64 {
        self.data + u64::from(self.block_bytes).next_multiple_of(4096) * u64::from(slot)
    }

    fn head(&self, slot: u16) -> u16 {
        if self.indirect { slot } else { PARTS * slot }
    }

    /// The request whose chain starts at `head`.
    pub fn slot(&self, head: u32) -> Option<u16> {
        let parts = if self.indirect { 1 } else { PARTS };
        let head = u16::try_from(head).ok()?;
        let slot = head / parts;
        (head.is_multiple_of(parts) && slot < self.depth).then_some(slot)
    }

    /// Answers as a server does whose disk did all that it was asked.
    pub fn answer_good(&self, memory: &Memory, slot: u16) {
        memory.store(self.answer(slot), 0u16, Ordering::Relaxed);
        if self.kind == Kind::Scsi {
            memory.store(self.response(slot) + RESIDUAL, 0u32, Ordering::Relaxed);
        }
    }

    /// The three parts of a request: address, length, whether the device writes it.
    fn parts(&self, slot: u16, operation: Operation, data_bytes: u32) -> [(u64, u32, bool); 3] {
        let data = (self.data(slot), data_bytes, operation == Operation::Read);
        let (header, response) = match self.kind {
            Kind::Scsi => (SCSI_HEADER, SCSI_RESPONSE),
            Kind::Blk => (BLK_HEADER, 1),
        };
        let header = (self.header(slot), header, false);
        let response = (self.response(slot), response, true);
        match (self.kind, operation) {
            // virtio 1.3 §5.6.6.1: the response comes before data to be written.
            (Kind::Scsi, Operation::Read) => [header, response, data],
            (Kind::Scsi, Operation::Write) | (Kind::Blk, _) => [header, data, response],
        }
    }
}

/// The requests of a queue.
pub struct Slots {
    memory: Arc<Memory>,
    layout: Layout,
    /// Which way the descriptors of each request go that stand in the ring now.
    directions: Vec<Option<Operation>>,
}

impl Slots {
    /// Lays them out; those of SCSI address LUN `lun` of target 0.
    pub fn new(memory: Arc<Memory>, layout: Layout, lun: u8) -> Self {
        let slots = Self {
            memory,
            layout,
            directions: vec![None; usize::from(layout.depth)],
        };
        for slot in 0..layout.depth {
            if layout.kind == Kind::Scsi {
                // virtio 1.3 §5.6.6.1: 1, the target, then the LUN in flat space.
                let address = [1, 0, 0x40, lun, 0, 0, 0, 0];
                slots.memory.write(layout.header(slot), &address);
                let tag = u64::from(slot) + 1;
                let at = layout.header(slot) + TAG;
                slots.memory.write(at, &tag.to_le_bytes());
            }
            for operation in [Operation::Read, Operation::Write] {
                let table = slots.table(slot, operation);
                slots.write_chain(table, 0, slot, operation, layout.block_bytes);
            }
        }
        slots
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes request `slot` one that reads or writes the block at `sector`, and gives its head.
    #[inline]
    pub fn prepare(&mut self, slot: u16, operation: Operation, sector: u64) -> u16 {
        let header = self.layout.header(slot);
        let write = operation == Operation::Write;
        match self.layout.kind {
            Kind::Scsi => {
                let mut cdb = [0; 10];
                // SBC-4, READ (10) and WRITE (10): opcode, LBA from byte 2, blocks from byte 7.
                cdb[0] = if write { 0x2a } else { 0x28 };
                cdb[2..6].copy_from_slice(&be32(sector));
                let blocks = u64::from(self.layout.block_bytes) / SECTOR;
                cdb[7..9].copy_from_slice(&be32(blocks)[2..]);
                self.memory.write(header + CDB, &cdb);
            }
            Kind::Blk => {
                // virtio 1.3 §5.2.6: VIRTIO_BLK_T_IN is 0, VIRTIO_BLK_T_OUT is 1.
                let mut bytes = [0; 16];
                bytes[0] = u8::from(write);
                bytes[8..16].copy_from_slice(&sector.to_le_bytes());
                self.memory.write(header, &bytes);
            }
        }
        if self.directions[usize::from(slot)] != Some(operation) {
            self.turn(slot, operation);
        }
        self.expect_answer(slot);
        self.layout.head(slot)
    }

    /// Makes request 0 a SCSI command that brings at most `len` bytes, and gives its head.
    pub fn prepare_command(&mut self, cdb: &[u8], len: u32) -> u16 {
        let mut padded = [0; 32];
        padded[..cdb.len()].copy_from_slice(cdb);
        self.memory.write(self.layout.header(0) + CDB, &padded);
        let ring = self.layout.ring.descriptors;
        self.write_chain(ring, 0, 0, Operation::Read, len);
        self.directions[0] = None;
        self.expect_answer(0);
        0
    }

    /// Checks that request `slot` did what it was asked.
    ///
    /// # Errors
    /// What the server answered instead.
    #[inline]
    pub fn check(&self, slot: u16) -> Result<(), String> {
        let answer: u16 = self
            .memory
            .load(self.layout.answer(slot), Ordering::Relaxed);
        match self.layout.kind {
            Kind::Scsi => {
                let at = self.layout.response(slot) + RESIDUAL;
                let residual: u32 = self.memory.load(at, Ordering::Relaxed);
                if answer == 0 && residual == 0 {
                    return Ok(());
                }
                Err(self.describe_scsi(slot, answer, residual))
            }
            Kind::Blk if answer & 0xff == 0 => Ok(()),
            Kind::Blk => Err(format!("virtio-blk status {}", answer & 0xff)),
        }
    }

    #[cold]
    fn describe_scsi(&self, slot: u16, answer: u16, residual: u32) -> String {
        if answer == UNANSWERED {
            return "the response was not written".to_owned();
        }
        let [status, response] = answer.to_le_bytes();
        let mut sense = [0; 18];
        self.memory
            .read(self.layout.response(slot) + SENSE, &mut sense);
        format!(
            "virtio-scsi response {response}, status {status:#04x}, residual {residual}, \
             sense key {:#x}, additional sense {:02x}h/{:02x}h",
            sense[2] & 0xf,
            sense[12],
            sense[13]
        )
    }

    /// The first bytes of request `slot`'s data.
    pub fn data(&self, slot: u16, to: &mut [u8]) {
        self.memory.read(self.layout.data(slot), to);
    }

    /// Fills request `slot`'s data.
    pub fn set_data(&self, slot: u16, from: &[u8]) {
        self.memory.write(self.layout.data(slot), from);
    }

    fn expect_answer(&self, slot: u16) {
        let at = self.layout.answer(slot);
        self.memory.store(at, UNANSWERED, Ordering::Relaxed);
    }

    fn table(&self, slot: u16, operation: Operation) -> u64 {
        let second = u64::from(operation == Operation::Write);
        self.layout.tables + TABLES * u64::from(slot) + TABLE * second
    }

    /// Makes the ring's descriptors of request `slot` go the way of `operation`.
    #[cold]
    fn turn(&mut self, slot: u16, operation: Operation) {
        let ring = self.layout.ring.descriptors;
        let head = self.layout.head(slot);
        if self.layout.indirect {
            let len = DESCRIPTOR * u64::from(PARTS);
            let len = u32::try_from(len).expect("48");
            let bytes = descriptor(self.table(slot, operation), len, INDIRECT, 0);
            self.memory
                .write(ring + DESCRIPTOR * u64::from(head), &bytes);
        } else {
            self.write_chain(ring, head, slot, operation, self.layout.block_bytes);
        }
        self.directions[usize::from(slot)] = Some(operation);
    }

    /// Writes the descriptors of request `slot` into `table` from entry `first`; without data
    /// there are two.
    fn write_chain(&self, table: u64, first: u16, slot: u16, operation: Operation, data: u32) {
        let parts = self.layout.parts(slot, operation, data);
        let parts = if data == 0 { &parts[..2] } else { &parts[..] };
        let last = parts.len() - 1;
        for (place, &(address, len, writable)) in parts.iter().enumerate() {
            let index = first + u16::try_from(place).expect("three at most");
            let mut flags = if writable { WRITE } else { 0 };
            let mut next = 0;
            if place < last {
                flags |= NEXT;
                next = index + 1;
            }
            let bytes = descriptor(address, len, flags, next);
            self.memory
                .write(table + DESCRIPTOR * u64::from(index), &bytes);
        }
    }
}

/// The low 32 bits, big-endian; disks here are checked to be smaller than 2 TiB.
fn be32(value: u64) -> [u8; 4] {
    let [.., a, b, c, d] = value.to_be_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(kind: Kind, indirect: bool) -> (Arc<Memory>, Slots) {
        let mut pages = Pages::new();
        let ring = Place::take(&mut pages, 8);
        let layout = Layout::take(&mut pages, kind, ring, 2, 4096, indirect).unwrap();
        let memory = Arc::new(Memory::new(pages.total()).unwrap());
        let slots = Slots::new(Arc::clone(&memory), layout, 3);
        (memory, slots)
    }

    fn bytes(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read(at, &mut bytes);
        bytes
    }

    #[test]
    fn a_scsi_read_is_header_response_data() {
        let (memory, mut slots) = slots(Kind::Scsi, false);
        assert_eq!(slots.prepare(1, Operation::Read, 0x0102_0308), 3);
        let layout = *slots.layout();
        let header = bytes(&memory, layout.header(1), 51);
        assert_eq!(header[..8], [1, 0, 0x40, 3, 0, 0, 0, 0]);
        assert_eq!(header[8..16], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[19..29], [0x28, 0, 1, 2, 3, 8, 0, 0, 8, 0]);
        let table = bytes(&memory, layout.ring.descriptors + 3 * 16, 48);
        assert_eq!(table[8..16], [51, 0, 0, 0, 1, 0, 4, 0]);
        assert_eq!(table[24..32], [108, 0, 0, 0, 3, 0, 5, 0]);
        assert_eq!(table[40..48], [0, 16, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn a_scsi_write_is_header_data_response() {
        let (memory, mut slots) = slots(Kind::Scsi, false);
        slots.prepare(0, Operation::Write, 0);
        let layout = *slots.layout();
        assert_eq!(bytes(&memory, layout.header(0) + 19, 1), [0x2a]);
        let table = bytes(&memory, layout.ring.descriptors, 48);
        assert_eq!(table[24..32], [0, 16, 0, 0, 1, 0, 2, 0]);
        assert_eq!(table[40..48], [108, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn an_indirect_request_is_one_descriptor_and_turns_with_its_direction() {
        let (memory, mut slots) = slots(Kind::Blk, true);
        assert_eq!(slots.prepare(1, Operation::Read, 5), 1);
        let layout = *slots.layout();
        let read = bytes(&memory, layout.ring.descriptors + 16, 16);
        assert_eq!(read[8..16], [48, 0, 0, 0, 4, 0, 0, 0]);
        slots.prepare(1, Operation::Write, 5);
        let write = bytes(&memory, layout.ring.descriptors + 16, 16);
        assert_ne!(read[..8], write[..8]);
        let header = bytes(&memory, layout.header(1), 16);
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_answer_that_never_came_is_an_error() {
        for kind in [Kind::Scsi, Kind::Blk] {
            let (memory, mut slots) = slots(kind, false);
            slots.prepare(0, Operation::Read, 0);
            assert!(slots.check(0).is_err());
            slots.layout().answer_good(&memory, 0);
            assert!(slots.check(0).is_ok());
        }
    }

    #[test]
    fn a_check_condition_and_a_residual_are_errors() {
        let (memory, mut slots) = slots(Kind::Scsi, false);
        slots.prepare(0, Operation::Read, 0);
        let at = slots.layout().response(0);
        memory.write(at, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert!(slots.check(0).unwrap_err().contains("status 0x02"));
        memory.write(at, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(slots.check(0).unwrap_err().contains("residual 1"));
    }

    #[test]
    fn direct_requests_need_three_entries_each() {
        let mut pages = Pages::new();
        let ring = Place::take(&mut pages, 8);
        let mut take = |depth, indirect| {
            Layout::take(&mut pages, Kind::Scsi, ring, depth, 4096, indirect).is_ok()
        };
        assert!(take(2, false));
        assert!(!take(3, false));
        assert!(take(8, true));
        assert!(!take(9, true));
    }
}
