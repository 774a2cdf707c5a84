//! One descriptor chain, copied out of the tenant's memory and checked.

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use super::Violation;
use crate::memory::{Segments, TenantMemory};

/// Most descriptors of one table in a chain (QEMU's own limit for a chain).
const MAX_DESCRIPTORS: u32 = 1024;
/// Most pieces of memory of a chain: what we keep of it, for as long as its request takes. The
/// descriptors of two tables have room, and buffers that cross from one range of memory to the
/// next, which a tenant of a few large ranges hardly has.
const MAX_PIECES: usize = 4096;
/// Most bytes of all buffers of a chain (virtio 1.3 §2.7.5).
const MAX_BYTES: u64 = 1 << 32;
/// Bytes of a descriptor (virtio 1.3 §2.7.5).
const DESCRIPTOR_LEN: u32 = 16;

/// The buffers of one request, all of them in the tenant's memory.
#[derive(Debug)]
pub struct Chain {
    /// Index of the first descriptor, which names the chain in the used ring.
    pub head: u16,
    /// What the driver wrote.
    pub readable: Segments,
    /// Where the device may write.
    pub writable: Segments,
}

/// A descriptor table: the ring's own, or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    address: u64,
    len: u32,
    indirect: bool,
}

impl Table {
    fn descriptor(self, memory: &TenantMemory, index: u16) -> Result<Descriptor, Violation> {
        if u32::from(index) >= self.len {
            return Err(Violation::DescriptorIndex {
                index,
                len: self.len,
            });
        }
        let address = self
            .address
            .checked_add(u64::from(DESCRIPTOR_LEN) * u64::from(index))
            .ok_or(Violation::Unmapped(self.address))?;
        memory
            .regions()
            .read_obj::<RawDescriptor>(GuestAddress(address))
            .map(Descriptor::from)
            .map_err(|_| Violation::Unmapped(address))
    }
}

/// Copies out the chain that starts at `head` of the table at `descriptors` with `size` entries.
pub(super) fn walk(
    memory: &TenantMemory,
    descriptors: u64,
    size: u16,
    head: u16,
    indirect_allowed: bool,
) -> Result<Chain, Violation> {
    let mut chain = Chain {
        head,
        readable: memory.segments(),
        writable: memory.segments(),
    };
    let mut table = Table {
        address: descriptors,
        len: u32::from(size),
        indirect: false,
    };
    let mut index = head;
    let mut visited = 0;
    let mut bytes = 0;
    loop {
        // A chain that visits more descriptors than there are goes round in circles.
        let limit = table.len.min(MAX_DESCRIPTORS);
        if visited == limit {
            return Err(Violation::ChainLength(limit));
        }
        visited += 1;
        let descriptor = table.descriptor(memory, index)?;
        if descriptor.refers_to_indirect_table() {
            // virtio 1.3 §2.7.5.3: negotiated, not nested, and the last of its chain.
            if !indirect_allowed || table.indirect || descriptor.has_next() {
                return Err(Violation::Indirect);
            }
            table = indirect_table(descriptor)?;
            index = 0;
            visited = 0;
            continue;
        }
        bytes += u64::from(descriptor.len());
        if bytes > MAX_BYTES {
            return Err(Violation::TooManyBytes);
        }
        append(&mut chain, memory, descriptor)?;
        if chain.readable.pieces() + chain.writable.pieces() > MAX_PIECES {
            return Err(Violation::TooManyPieces(MAX_PIECES));
        }
        if !descriptor.has_next() {
            return Ok(chain);
        }
        index = descriptor.next();
    }
}

fn indirect_table(descriptor: Descriptor) -> Result<Table, Violation> {
    let len = descriptor.len() / DESCRIPTOR_LEN;
    if !descriptor.len().is_multiple_of(DESCRIPTOR_LEN) || len == 0 || len > MAX_DESCRIPTORS {
        return Err(Violation::Indirect);
    }
    Ok(Table {
        address: descriptor.addr().0,
        len,
        indirect: true,
    })
}

fn append(
    chain: &mut Chain,
    memory: &TenantMemory,
    descriptor: Descriptor,
) -> Result<(), Violation> {
    if descriptor.len() == 0 {
        return Err(Violation::ZeroLength);
    }
    let buffers = if descriptor.is_write_only() {
        &mut chain.writable
    } else if chain.writable.is_empty() {
        &mut chain.readable
    } else {
        // virtio 1.3 §2.7.4.2: writable elements follow all readable ones.
        return Err(Violation::Order);
    };
    memory
        .append(buffers, descriptor.addr().0, descriptor.len())
        .map_err(|unmapped| Violation::Unmapped(unmapped.0))
}
