//! A driver's side of one ring, with requests of one kind.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use appliance::measure::DriverRing;
use appliance::memory::Mapping;
use spec::mailbox::RingSetup;
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{BLOCK, DISK};

/// Entries of the ring.
const SIZE: u16 = 256;
/// Bytes of a request's data.
const DATA: u32 = 4096;

// Where things are in the ring's part of the driver's memory, which starts at guest address 0.
const DESCRIPTORS: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
/// A request's header, and its response in a cache line of its own.
const HEADERS: usize = 0x4000;
const HEADER: usize = 256;
const RESPONSE: usize = 64;
/// A request's table of descriptors.
const TABLES: usize = 0x1_0000;
const TABLE: usize = 64;
const BUFFERS: usize = 0x2_0000;
/// Bytes of the part.
pub const MEMORY: usize = BUFFERS + DATA as usize * MAX_DEPTH as usize;
/// Most requests at once.
pub const MAX_DEPTH: u16 = 64;

/// Descriptor flags (virtio 1.3 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of header and response without the data (virtio 1.3 §5.6.6.1).
const HEADER_LEN: u32 = 51;
const RESPONSE_LEN: u32 = 108;

/// See the module's text.
pub struct Rig {
    memory: Arc<Mapping>,
    /// Which of the request rings it is.
    nth: u16,
    /// Where its part begins.
    start: usize,
    kick: EventFd,
    next: u16,
    /// Block of the next request.
    lba: u32,
}

impl Rig {
    /// That of the `nth` request ring, for up to `depth` requests at once.
    ///
    /// # Errors
    /// What making an eventfd reports.
    pub fn new(memory: &Arc<Mapping>, nth: u16, depth: u16) -> Result<Self, Box<dyn Error>> {
        let rig = Self {
            memory: Arc::clone(memory),
            nth,
            start: MEMORY * usize::from(nth),
            kick: EventFd::new(EFD_NONBLOCK)?,
            next: 0,
            lba: 0,
        };
        for slot in 0..depth {
            rig.lay_out(slot);
        }
        Ok(rig)
    }

    /// What the HBA is told of the ring; it is tracked in `inflight`, if that is there.
    ///
    /// # Errors
    /// What duplicating an eventfd reports.
    pub fn ring(&self, inflight: Option<Arc<Mapping>>) -> Result<DriverRing, Box<dyn Error>> {
        let region = u32::try_from(spec::inflight::REGIONS)?;
        let at = |offset: usize| (self.start + offset) as u64;
        let setup = RingSetup {
            ring: FIRST_REQUEST_QUEUE + self.nth,
            size: SIZE,
            base: Some(0),
            inflight: inflight.as_ref().map(|_| region),
            descriptor_table: at(DESCRIPTORS),
            avail_ring: at(AVAIL),
            used_ring: at(USED),
        };
        let kick = self.kick.try_clone()?;
        Ok(DriverRing {
            setup,
            inflight,
            kick,
        })
    }

    /// Makes request `slot` a read of one block, as Linux's driver does: one descriptor of the
    /// ring, with a table of three.
    fn lay_out(&self, slot: u16) {
        let at = usize::from(slot);
        let start = self.start;
        let (header, table) = (start + HEADERS + HEADER * at, start + TABLES + TABLE * at);
        // virtio 1.3 §5.6.6.1: 1, target 0, LUN 0 in flat space; then the tag.
        self.memory.write(header, &[1, 0, 0x40, 0, 0, 0, 0, 0]);
        self.memory
            .write(header + 8, &u64::from(slot).to_le_bytes());
        let buffer = start + BUFFERS + DATA as usize * at;
        self.descriptor(table, header, HEADER_LEN, NEXT, 1);
        self.descriptor(table + 16, header + RESPONSE, RESPONSE_LEN, NEXT | WRITE, 2);
        self.descriptor(table + 32, buffer, DATA, WRITE, 0);
        self.descriptor(start + DESCRIPTORS + 16 * at, table, 48, INDIRECT, 0);
    }

    fn descriptor(&self, at: usize, address: usize, len: u32, flags: u16, next: u16) {
        self.memory.write(at, &(address as u64).to_le_bytes());
        self.memory.write(at + 8, &len.to_le_bytes());
        self.memory.write(at + 12, &flags.to_le_bytes());
        self.memory.write(at + 14, &next.to_le_bytes());
    }

    /// One round of requests, each checked, for which `turn` turns the worker; how long that took.
    ///
    /// # Errors
    /// It wants no kick, or answers otherwise than it must.
    pub fn round(
        &mut self,
        depth: u16,
        mut turn: impl FnMut(),
    ) -> Result<Duration, Box<dyn Error>> {
        let old = self.next;
        for slot in 0..depth {
            self.prepare(slot);
        }
        // One call, when the last is done.
        let last = self.next.wrapping_sub(1);
        self.store(AVAIL + 4 + 2 * usize::from(SIZE), last);
        self.store(AVAIL + 2, self.next);
        fence(Ordering::SeqCst);
        let event = self.load(USED + 4 + 8 * usize::from(SIZE));
        // virtio 1.3 §2.7.10.1.
        if self.next.wrapping_sub(event).wrapping_sub(1) >= self.next.wrapping_sub(old) {
            return Err("the worker wants no kick, though nothing is under way".into());
        }
        self.kick.write(1)?;
        let begin = Instant::now();
        while self.load(USED + 2) != self.next {
            turn();
        }
        let taken = begin.elapsed();
        (0..depth).try_for_each(|slot| self.check(slot))?;
        Ok(taken)
    }

    /// Makes request `slot` available, with an answer that no target gives.
    fn prepare(&mut self, slot: u16) {
        let header = self.start + HEADERS + HEADER * usize::from(slot);
        let [a, b, c, d] = self.lba.to_be_bytes();
        let blocks = u16::try_from(DATA / BLOCK).unwrap_or(u16::MAX);
        let [high, low] = blocks.to_be_bytes();
        // SBC-4, READ (10).
        let cdb = [0x28, 0, a, b, c, d, 0, high, low, 0];
        self.memory.write(header + 19, &cdb);
        self.memory.write(header + RESPONSE + 10, &[0xff; 2]);
        let place = usize::from(self.next % SIZE);
        self.store(AVAIL + 4 + 2 * place, slot);
        self.next = self.next.wrapping_add(1);
        // Any order that is no sequence.
        let all = u32::try_from(DISK / u64::from(BLOCK)).unwrap_or(u32::MAX);
        self.lba = (self.lba + 8 * 1021) % (all - all % 8);
    }

    /// Whether request `slot` was answered GOOD, without a residual.
    fn check(&self, slot: u16) -> Result<(), Box<dyn Error>> {
        let response = self.start + HEADERS + HEADER * usize::from(slot) + RESPONSE;
        let mut bytes = [0; 12];
        self.memory.read(response, &mut bytes);
        if bytes != [0; 12] {
            return Err(format!("a request was answered {bytes:x?}").into());
        }
        Ok(())
    }

    fn load(&self, at: usize) -> u16 {
        self.memory
            .atomic_u16(self.start + at)
            .load(Ordering::Acquire)
    }

    fn store(&self, at: usize, value: u16) {
        self.memory
            .atomic_u16(self.start + at)
            .store(value, Ordering::Release);
    }
}
