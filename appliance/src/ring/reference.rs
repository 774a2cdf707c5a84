//! The same ring on virtio-queue and vm-memory, slow and by others, to compare ours with.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spec::mailbox::RingSetup;
use spec::ring::{EVENT_IDX, INDIRECT_DESC};
use spec::session::MemoryEntry;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::guest_memory::Result as AccessResult;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::Violation;
use crate::memory::Mapping;

/// One entry of a memory table as a vm-memory region.
#[derive(Debug)]
pub(super) struct Region {
    mapping: Arc<Mapping>,
    entry: MemoryEntry,
}

/// The tenant's memory as vm-memory sees it.
pub(super) type Regions = GuestRegionCollection<Region>;

/// The memory of the table `entries`, in order, over `mapping`.
pub(super) fn regions(mapping: &Arc<Mapping>, entries: &[MemoryEntry]) -> Regions {
    let region = |entry: &MemoryEntry| Region {
        mapping: Arc::clone(mapping),
        entry: *entry,
    };
    GuestRegionCollection::from_regions(entries.iter().map(region).collect()).unwrap()
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.entry.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.entry.guest_address)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> AccessResult<VolatileSlice<'_>> {
        let invalid = GuestMemoryError::InvalidBackendAddress;
        if offset.0 + count as u64 > self.entry.len {
            return Err(invalid);
        }
        self.mapping
            .slice(self.entry.bar_offset + offset.0, count)
            .ok_or(invalid)
    }
}

impl GuestMemoryRegionBytes for Region {}

/// Guest address and length of a buffer.
pub(super) type Buffer = (u64, u32);

/// A chain, its buffers as the driver described them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub head: u16,
    pub readable: Vec<Buffer>,
    pub writable: Vec<Buffer>,
}

/// A ring on virtio-queue.
pub(super) struct Reference {
    queue: Queue,
    indirect: bool,
}

impl Reference {
    pub fn new(setup: &RingSetup, features: u64, memory: &Regions) -> Result<Self, Violation> {
        let configuration = |_| Violation::Configuration;
        let mut queue = Queue::new(32768).map_err(configuration)?;
        queue.try_set_size(setup.size).map_err(configuration)?;
        queue
            .try_set_desc_table_address(GuestAddress(setup.descriptor_table))
            .map_err(configuration)?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.avail_ring))
            .map_err(configuration)?;
        queue
            .try_set_used_ring_address(GuestAddress(setup.used_ring))
            .map_err(configuration)?;
        queue.set_event_idx(features & EVENT_IDX != 0);
        queue.set_ready(true);
        let mut ring = Self {
            queue,
            indirect: features & INDIRECT_DESC != 0,
        };
        ring.check(memory)?;
        let used = ring.queue.used_idx(memory, Ordering::Acquire);
        let used = used.map_err(configuration)?.0;
        ring.queue.set_next_used(used);
        ring.queue.set_next_avail(setup.base.unwrap_or(used));
        Ok(ring)
    }

    pub fn check(&self, memory: &Regions) -> Result<(), Violation> {
        if self.queue.avail_ring() != 0 && self.queue.is_valid(memory) {
            Ok(())
        } else {
            Err(Violation::Configuration)
        }
    }

    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    pub fn waiting(&self, memory: &Regions, in_flight: usize) -> Result<u16, Violation> {
        let avail = self.queue.avail_idx(memory, Ordering::Acquire).unwrap();
        let waiting = avail.0.wrapping_sub(self.next_avail());
        if usize::from(waiting) + in_flight > usize::from(self.queue.size()) {
            return Err(Violation::AvailIndex);
        }
        Ok(waiting)
    }

    pub fn pop(
        &mut self,
        memory: &Regions,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> Result<(), Violation> {
        let available = self.queue.iter(memory).map_err(|error| match error {
            virtio_queue::Error::InvalidAvailRingIndex => Violation::AvailIndex,
            _ => Violation::Configuration,
        })?;
        let available: Vec<_> = available.take(limit).collect();
        for descriptors in available {
            let chain = self.walk(memory, descriptors.head_index())?;
            // virtio-queue has no word for what is wrong with a chain, but must agree on a good
            // one; it stops one byte before the most that a chain may have.
            let by_virtio_queue: Vec<_> = descriptors.map(buffer).collect();
            let buffers = chain.readable.iter().map(|buffer| (*buffer, false));
            let buffers = buffers.chain(chain.writable.iter().map(|buffer| (*buffer, true)));
            let buffers: Vec<_> = buffers.collect();
            let bytes: u64 = buffers.iter().map(|((_, len), _)| u64::from(*len)).sum();
            assert!(bytes == 1 << 32 || by_virtio_queue == buffers);
            chains.push(chain);
        }
        Ok(())
    }

    fn walk(&self, memory: &Regions, head: u16) -> Result<Chain, Violation> {
        let mut chain = Chain {
            head,
            ..Chain::default()
        };
        let (mut table, mut len) = (self.queue.desc_table(), u32::from(self.queue.size()));
        let (mut index, mut visited, mut bytes) = (head, 0, 0);
        let mut indirect = false;
        loop {
            if visited == len.min(1024) {
                return Err(Violation::ChainLength(len.min(1024)));
            }
            visited += 1;
            if u32::from(index) >= len {
                return Err(Violation::DescriptorIndex { index, len });
            }
            let at = table
                .checked_add(16 * u64::from(index))
                .ok_or(Violation::Unmapped(table))?;
            let descriptor: Descriptor = memory
                .read_obj::<RawDescriptor>(GuestAddress(at))
                .map_err(|_| Violation::Unmapped(at))?
                .into();
            if descriptor.refers_to_indirect_table() {
                if !self.indirect || indirect || descriptor.has_next() {
                    return Err(Violation::Indirect);
                }
                (table, len) = (descriptor.addr().0, descriptor.len() / 16);
                if !descriptor.len().is_multiple_of(16) || len == 0 || len > 1024 {
                    return Err(Violation::Indirect);
                }
                (index, visited, indirect) = (0, 0, true);
                continue;
            }
            bytes += u64::from(descriptor.len());
            if bytes > 1 << 32 {
                return Err(Violation::TooManyBytes);
            }
            append(&mut chain, memory, descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
    }

    pub fn push(&mut self, memory: &Regions, head: u16, written: u32) -> bool {
        self.queue.add_used(memory, head, written).is_ok()
    }

    pub fn wants_call(&mut self, memory: &Regions) -> bool {
        let wanted = self.queue.needs_notification(memory).unwrap();
        if self.queue.event_idx_enabled() {
            return wanted;
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = memory.load(flags, Ordering::Relaxed).unwrap();
        u16::from_le(flags) & 1 == 0
    }

    pub fn enable_kicks(&mut self, memory: &Regions) -> bool {
        self.queue.enable_notification(memory).unwrap()
    }

    pub fn disable_kicks(&mut self, memory: &Regions) {
        self.queue.disable_notification(memory).unwrap();
    }
}

fn buffer(descriptor: Descriptor) -> (Buffer, bool) {
    let buffer = (descriptor.addr().0, descriptor.len());
    (buffer, descriptor.is_write_only())
}

fn append(chain: &mut Chain, memory: &Regions, descriptor: Descriptor) -> Result<(), Violation> {
    let (buffer, writable) = buffer(descriptor);
    let (address, len) = buffer;
    if len == 0 {
        return Err(Violation::ZeroLength);
    }
    if !writable && !chain.writable.is_empty() {
        return Err(Violation::Order);
    }
    unmapped_from(memory, address, len).map_or(Ok(()), |at| Err(Violation::Unmapped(at)))?;
    if writable {
        chain.writable.push(buffer);
    } else {
        chain.readable.push(buffer);
    }
    Ok(())
}

/// First address of a buffer that is not in memory.
fn unmapped_from(memory: &Regions, address: u64, len: u32) -> Option<u64> {
    use vm_memory::GuestMemoryBackend;
    let mut at = address;
    let mut rest = u64::from(len);
    while rest > 0 {
        let Some(region) = memory.find_region(GuestAddress(at)) else {
            return Some(at);
        };
        let now = rest.min(region.start_addr().0 + region.len() - at);
        rest -= now;
        at += now;
    }
    None
}
