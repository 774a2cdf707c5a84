//! The driver's side of a split vring (virtio 1.3 §2.7) in the tenant's memory.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

pub use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::readiness::readable;
use super::tenant_memory::TenantMemory;

/// Descriptor flags (virtio 1.3 §2.7.5).
pub mod flag {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: u64 = 16;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            writable: true,
        }
    }
}

/// A used element: the chain that was used, and the bytes the device says it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes written.
    pub len: u32,
}

/// A vring of the tenant's driver.
pub struct DriverRing {
    memory: Arc<TenantMemory>,
    size: u16,
    descriptors: u64,
    avail: u64,
    used: u64,
    free: Vec<u16>,
    /// Descriptors of each chain in flight, and its indirect table, by head.
    chains: Vec<Option<Chain>>,
    next_avail: u16,
    /// The avail index when the device was last considered for a kick.
    kicked: u16,
    next_used: u16,
    event_idx: bool,
    kick: EventFd,
    call: EventFd,
    /// Kicks sent.
    pub kicks: u64,
    /// Interrupts received.
    pub calls: u64,
}

struct Chain {
    descriptors: Vec<u16>,
    table: Option<(u64, u64)>,
}

impl DriverRing {
    /// A ring of `size` entries in region `region` of `memory`.
    ///
    /// # Panics
    /// If there is no room, or no eventfd.
    pub fn new(memory: &Arc<TenantMemory>, region: usize, size: u16) -> Self {
        let n = u64::from(size);
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let mut ring = Self {
            memory: memory.clone(),
            size,
            descriptors: memory.allocate(region, DESCRIPTOR_LEN * n),
            avail: memory.allocate(region, 6 + 2 * n),
            used: memory.allocate(region, 6 + 8 * n),
            free: Vec::new(),
            chains: Vec::new(),
            next_avail: 0,
            kicked: 0,
            next_used: 0,
            event_idx: false,
            kick: eventfd(),
            call: eventfd(),
            kicks: 0,
            calls: 0,
        };
        ring.reset();
        ring
    }

    /// Takes note of the virtio features in force.
    pub fn negotiated(&mut self, features: u64) {
        self.event_idx = features & EVENT_IDX != 0;
    }

    /// Starts over, as a driver does after a device reset.
    pub fn reset(&mut self) {
        let n = usize::from(self.size);
        self.memory.write(self.descriptors, &vec![0; 16 * n]);
        self.memory.write(self.avail, &vec![0; 6 + 2 * n]);
        self.memory.write(self.used, &vec![0; 6 + 8 * n]);
        self.free = (0..self.size).rev().collect();
        self.chains = (0..self.size).map(|_| None).collect();
        (self.next_avail, self.kicked, self.next_used) = (0, 0, 0);
        // Nobody may hear a call of the time before.
        let _ = self.call.read();
        let _ = self.kick.read();
    }

    /// Makes the next request the one with avail index `index`; only before the ring is used.
    pub fn begin_at(&mut self, index: u16) {
        (self.next_avail, self.kicked, self.next_used) = (index, index, index);
        self.memory.store(self.avail + 2, index);
        self.memory.store(self.used + 2, index);
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical address of the descriptor table.
    pub fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Guest-physical address of the avail ring.
    pub fn avail(&self) -> u64 {
        self.avail
    }

    /// Guest-physical address of the used ring.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The eventfd that tells the device of requests.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The eventfd by which the device tells of completions.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// Takes a fresh eventfd for completions; the device has to be told.
    ///
    /// # Panics
    /// If there is none to be had.
    pub fn new_call_fd(&mut self) {
        self.call = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    }

    /// The device's used index, as it stands in memory.
    pub fn used_index(&self) -> u16 {
        self.memory.load(self.used + 2)
    }

    /// The driver's avail index.
    pub fn avail_index(&self) -> u16 {
        self.next_avail
    }

    /// Free descriptors.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of `buffers` available, by an indirect table in `region` if given; returns
    /// its head.
    ///
    /// # Panics
    /// If there are too few free descriptors.
    pub fn add(&mut self, buffers: &[Buffer], indirect: Option<usize>) -> u16 {
        let chain = if let Some(region) = indirect {
            let len = DESCRIPTOR_LEN * buffers.len() as u64;
            let table = self.memory.allocate(region, len);
            for (i, buffer) in (0u16..).zip(buffers) {
                let next = (usize::from(i) + 1 < buffers.len()).then_some(i + 1);
                self.descriptor_at(table + DESCRIPTOR_LEN * u64::from(i), buffer, next);
            }
            let head = self.take_free(1)[0];
            let len32 = u32::try_from(len).expect("a small table");
            self.write_descriptor(head, table, len32, flag::INDIRECT, 0);
            Chain {
                descriptors: vec![head],
                table: Some((table, len)),
            }
        } else {
            let descriptors = self.take_free(buffers.len());
            for (i, buffer) in buffers.iter().enumerate() {
                let at = self.descriptors + DESCRIPTOR_LEN * u64::from(descriptors[i]);
                self.descriptor_at(at, buffer, descriptors.get(i + 1).copied());
            }
            Chain {
                descriptors,
                table: None,
            }
        };
        let head = chain.descriptors[0];
        self.chains[usize::from(head)] = Some(chain);
        self.publish(head);
        head
    }

    /// Writes descriptor `index` as it is given, right or wrong.
    pub fn write_descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let at = self.descriptors + DESCRIPTOR_LEN * u64::from(index);
        self.memory
            .write(at, &descriptor_bytes(gpa, len, flags, next));
    }

    /// Makes the chain at `head` available, right or wrong.
    pub fn publish(&mut self, head: u16) {
        let slot = self.next_avail % self.size;
        self.memory
            .store(self.avail + 4 + 2 * u64::from(slot), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.memory.store(self.avail + 2, self.next_avail);
    }

    /// Writes the avail index as it is given, right or wrong.
    pub fn write_avail_index(&self, index: u16) {
        self.memory.store(self.avail + 2, index);
    }

    /// Kicks the device if it wants to know (virtio 1.3 §2.7.10, §2.7.13.4.1).
    pub fn kick_if_wanted(&mut self) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event: u16 = self.memory.load(self.used + 4 + 8 * u64::from(self.size));
            needs_event(event, self.next_avail, self.kicked)
        } else {
            self.memory.load::<u16>(self.used) & 1 == 0
        };
        self.kicked = self.next_avail;
        if wanted {
            self.kick();
        }
    }

    /// Kicks the device.
    pub fn kick(&mut self) {
        self.kicks += 1;
        self.kick.write(1).expect("a kick");
    }

    /// Takes the next used chain, waiting for the device's interrupt at most `timeout`. Whether
    /// the interrupt comes is part of what is tested, so memory alone is not polled.
    pub fn take_used(&mut self, timeout: Duration) -> Option<Used> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.poll_used() {
                return Some(used);
            }
            self.want_call();
            if let Some(used) = self.poll_used() {
                return Some(used);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(&self.call, left).expect("epoll") {
                return None;
            }
            if self.call.read().is_ok() {
                self.calls += 1;
            }
        }
    }

    /// Asks for an interrupt with the next used chain (virtio 1.3 §2.7.7.1).
    pub fn want_call(&self) {
        if self.event_idx {
            let at = self.avail + 4 + 2 * u64::from(self.size);
            self.memory.store(at, self.next_used);
            fence(Ordering::SeqCst);
        }
    }

    /// Takes the next used chain if there is one.
    ///
    /// # Panics
    /// If the device used a chain that it was not given, or claims more bytes than there are.
    pub fn poll_used(&mut self) -> Option<Used> {
        if self.used_index() == self.next_used {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = u64::from(self.next_used % self.size);
        let id: u32 = self.memory.load(self.used + 4 + 8 * slot);
        let len: u32 = self.memory.load(self.used + 8 + 8 * slot);
        self.next_used = self.next_used.wrapping_add(1);
        let chain = self
            .chains
            .get_mut(id as usize)
            .and_then(Option::take)
            .unwrap_or_else(|| panic!("the device used chain {id}, which it was not given"));
        if let Some((table, len)) = chain.table {
            self.memory.free(table, len);
        }
        let head = chain.descriptors[0];
        self.free.extend(chain.descriptors);
        Some(Used { head, len })
    }

    /// Tells the device whether interrupts are unwanted, where the event index does not
    /// (virtio 1.3 §2.7.7).
    pub fn suppress_calls(&self, suppress: bool) {
        self.memory.store(self.avail, u16::from(suppress));
    }

    /// How many calls came that nobody waited for.
    pub fn drain_calls(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    /// Puts the used ring elsewhere, where it may not fit.
    pub fn misplace_used(&mut self, gpa: u64) {
        self.used = gpa;
    }

    fn take_free(&mut self, n: usize) -> Vec<u16> {
        assert!(n <= self.free.len(), "the ring is full");
        self.free.split_off(self.free.len() - n)
    }

    fn descriptor_at(&self, at: u64, buffer: &Buffer, next: Option<u16>) {
        let mut flags = if buffer.writable { flag::WRITE } else { 0 };
        if next.is_some() {
            flags |= flag::NEXT;
        }
        let bytes = descriptor_bytes(buffer.gpa, buffer.len, flags, next.unwrap_or(0));
        self.memory.write(at, &bytes);
    }
}

/// A descriptor as it stands in a table (virtio 1.3 §2.7.5).
pub fn descriptor_bytes(gpa: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..8].copy_from_slice(&gpa.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..16].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Whether going from `old` to `new` passed `event` (virtio 1.3 §2.7.10.1).
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
