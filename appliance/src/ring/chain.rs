//! One descriptor chain, copied out of the tenant's memory and checked.

use super::Violation;
use super::descriptor::Descriptor;
use super::parts::Parts;
use crate::memory::{Hint, Segments, TenantMemory};

/// Most descriptors of one table in a chain (QEMU's own limit for a chain).
const MAX_DESCRIPTORS: u16 = 1024;
/// Most pieces of memory of a chain: what we keep of it, for as long as its request takes. The
/// descriptors of two tables have room, and buffers that cross from one range of memory to the
/// next, which a tenant of a few large ranges hardly has.
pub(crate) const MAX_PIECES: usize = 4096;
/// Most bytes of all buffers of a chain (virtio 1.3 §2.7.5).
const MAX_BYTES: u64 = 1 << 32;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u32 = 16;
const _: () = assert!(DESCRIPTOR_LEN as usize == Descriptor::LEN);
/// Bytes of the table of the usual request.
const USUAL_LEN: u32 = 3 * DESCRIPTOR_LEN;

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
    /// Offset in the mapping, if it is one run of memory; an indirect one need not be.
    start: Option<usize>,
    /// Guest address of an indirect one.
    address: u64,
    len: u16,
    /// Most descriptors of it in a chain: one that visits more than there are goes round in
    /// circles.
    limit: u16,
    indirect: bool,
}

impl Chain {
    /// The chain that starts at `head`, not looked at yet.
    #[inline]
    pub(super) fn empty(head: u16, parts: &Parts) -> Self {
        Self {
            head,
            readable: Segments::within(parts.mapping().clone()),
            writable: Segments::within(parts.mapping().clone()),
        }
    }

    /// Has the CPU fetch the table, if there is one.
    #[inline]
    pub(super) fn prefetch_table(&self, parts: &Parts, memory: &TenantMemory, hint: &mut Hint) {
        if self.head >= parts.size() {
            return;
        }
        let first = parts.descriptor(parts.descriptors(), self.head);
        // Of a length that nobody has checked, no more than is fetched.
        if first.is_indirect()
            && let Some(table) = memory.run(hint, first.address, DESCRIPTOR_LEN.into())
        {
            parts.mapping().prefetch(table);
        }
    }

    /// Copies the chain out of the ring's descriptor table. Returns where the table of its own is in
    /// the mapping, if it is of the usual kind.
    #[inline]
    pub(super) fn read(
        &mut self,
        parts: &Parts,
        memory: &TenantMemory,
        hint: &mut Hint,
        indirect_allowed: bool,
    ) -> Result<Option<usize>, Violation> {
        if indirect_allowed && let Some((start, table)) = self.usual_table(parts, memory, hint) {
            let mut pieces = 0;
            for descriptor in table {
                pieces += self.append(memory, hint, descriptor)?;
            }
            return check_pieces(pieces).map(|()| Some(start));
        }
        self.walk(parts, memory, hint, indirect_allowed)
            .map(|()| None)
    }

    /// The descriptors of a chain that is as Linux's driver makes those of most requests: one
    /// descriptor with a table of three, in order.
    #[inline]
    fn usual_table(
        &self,
        parts: &Parts,
        memory: &TenantMemory,
        hint: &mut Hint,
    ) -> Option<(usize, [Descriptor; 3])> {
        if self.head >= parts.size() {
            return None;
        }
        let first = parts.descriptor(parts.descriptors(), self.head);
        if !first.is_indirect() || first.next().is_some() || first.len != USUAL_LEN {
            return None;
        }
        let start = memory.run(hint, first.address, first.len.into())?;
        let table = parts.descriptors_at(start);
        let bytes: u64 = table.iter().map(|one| u64::from(one.len)).sum();
        (Descriptor::are_in_order(&table) && bytes <= MAX_BYTES).then_some((start, table))
    }

    /// Copies the chain out, whatever it is like.
    #[inline(never)]
    fn walk(
        &mut self,
        parts: &Parts,
        memory: &TenantMemory,
        hint: &mut Hint,
        indirect_allowed: bool,
    ) -> Result<(), Violation> {
        let mut table = Table {
            start: Some(parts.descriptors()),
            address: 0,
            len: parts.size(),
            limit: parts.size().min(MAX_DESCRIPTORS),
            indirect: false,
        };
        let mut index = self.head;
        let mut visited = 0;
        let mut bytes = 0;
        let mut pieces = 0;
        loop {
            if visited == table.limit {
                return Err(Violation::ChainLength(u32::from(table.limit)));
            }
            visited += 1;
            if index >= table.len {
                return Err(Violation::DescriptorIndex {
                    index,
                    len: u32::from(table.len),
                });
            }
            let descriptor = match table.start {
                Some(start) => parts.descriptor(start, index),
                None => scattered_descriptor(memory, hint, table.address, index)?,
            };
            if descriptor.is_indirect() {
                // virtio 1.3 §2.7.5.3: negotiated, not nested, and the last of its chain.
                if !indirect_allowed || table.indirect || descriptor.next().is_some() {
                    return Err(Violation::Indirect);
                }
                table = indirect_table(memory, hint, descriptor)?;
                index = 0;
                visited = 0;
                continue;
            }
            bytes += u64::from(descriptor.len);
            if bytes > MAX_BYTES {
                return Err(Violation::TooManyBytes);
            }
            pieces += self.append(memory, hint, descriptor)?;
            check_pieces(pieces)?;
            let Some(next) = descriptor.next() else {
                return Ok(());
            };
            index = next;
        }
    }

    /// Appends a descriptor's buffer; returns in how many pieces.
    #[inline]
    fn append(
        &mut self,
        memory: &TenantMemory,
        hint: &mut Hint,
        descriptor: Descriptor,
    ) -> Result<usize, Violation> {
        if descriptor.len == 0 {
            return Err(Violation::ZeroLength);
        }
        let buffers = if descriptor.is_writable() {
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            // virtio 1.3 §2.7.4.2: writable elements follow all readable ones.
            return Err(Violation::Order);
        };
        memory
            .append(hint, buffers, descriptor.address, descriptor.len)
            .map_err(|unmapped| Violation::Unmapped(unmapped.0))
    }
}

#[inline]
fn check_pieces(pieces: usize) -> Result<(), Violation> {
    if pieces > MAX_PIECES {
        return Err(Violation::TooManyPieces(MAX_PIECES));
    }
    Ok(())
}

#[inline]
fn indirect_table(
    memory: &TenantMemory,
    hint: &mut Hint,
    descriptor: Descriptor,
) -> Result<Table, Violation> {
    let len = u16::try_from(descriptor.len / DESCRIPTOR_LEN)
        .ok()
        .filter(|len| (1..=MAX_DESCRIPTORS).contains(len))
        .ok_or(Violation::Indirect)?;
    if !descriptor.len.is_multiple_of(DESCRIPTOR_LEN) {
        return Err(Violation::Indirect);
    }
    Ok(Table {
        start: memory.run(hint, descriptor.address, descriptor.len.into()),
        address: descriptor.address,
        len,
        limit: len,
        indirect: true,
    })
}

/// The descriptor at `index` of a table of which not all is in memory, or not in one run.
#[cold]
fn scattered_descriptor(
    memory: &TenantMemory,
    hint: &mut Hint,
    table: u64,
    index: u16,
) -> Result<Descriptor, Violation> {
    let address = table
        .checked_add(u64::from(DESCRIPTOR_LEN) * u64::from(index))
        .ok_or(Violation::Unmapped(table))?;
    let mut bytes = [0; Descriptor::LEN];
    memory
        .read(hint, address, &mut bytes)
        .map_err(|_| Violation::Unmapped(address))?;
    Ok(Descriptor::from_bytes(bytes))
}
