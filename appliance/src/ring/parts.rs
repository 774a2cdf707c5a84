//! The three parts of a split ring, found once for each snapshot of the tenant's memory.

use std::sync::atomic::Ordering;

use spec::mailbox::RingSetup;

use super::descriptor::Descriptor;
use crate::memory::{Held, Hint, TenantMemory};

/// Largest ring (virtio 1.3 §2.7: the maximum queue size value is 32768).
pub(super) const MAX_SIZE: u16 = 32768;

/// Bytes of an entry of the avail ring (virtio 1.3 §2.7.6).
const HEAD_LEN: usize = 2;
/// Bytes of an element of the used ring (virtio 1.3 §2.7.8).
const ELEMENT_LEN: usize = 8;
/// Offset of the index in the avail and the used ring, after the flags.
const INDEX: usize = 2;
/// Offset of the entries in the avail and the used ring, after the index.
const ENTRIES: usize = 4;
/// Bytes of the avail and of the used ring besides their entries: flags, index, and the event
/// index at the end, for which there is room whether it is negotiated or not.
const FIXED_LEN: usize = 6;
/// Heads read at once.
const RUN: u16 = 64;

/// An element of the used ring, as it lies there.
pub(super) type UsedElement = [u8; ELEMENT_LEN];

/// The descriptor table, the avail and the used ring, each in one piece of a mapping that is kept
/// in place. The tenant may rewrite all three at any time; each method reads what it returns once.
#[derive(Debug)]
pub(super) struct Parts {
    mapping: Held,
    /// The snapshot that they were found in.
    snapshot: u64,
    size: u16,
    // Offsets in the mapping.
    descriptors: usize,
    avail: usize,
    used: usize,
}

impl Parts {
    /// The parts of the ring of `setup` in `memory`. `None` if they are not aligned or not all
    /// in memory, or one is not in one piece: a ring has no other memory than its driver's QEMU
    /// can map as a whole.
    pub fn find(setup: &RingSetup, memory: &TenantMemory) -> Option<Self> {
        let size = usize::from(setup.size);
        let aligned = |address: u64, to: u64| address.is_multiple_of(to).then_some(address);
        let mut hint = Hint::default();
        let mut run = |address: u64, len: usize| memory.run(&mut hint, address, len as u64);
        let parts = Self {
            mapping: Held::new(memory.mapping().clone()),
            snapshot: memory.snapshot(),
            size: Some(setup.size).filter(|n| n.is_power_of_two() && *n <= MAX_SIZE)?,
            // virtio 1.3 §2.7: alignments and lengths.
            descriptors: run(aligned(setup.descriptor_table, 16)?, Descriptor::LEN * size)?,
            avail: run(aligned(setup.avail_ring, 2)?, FIXED_LEN + HEAD_LEN * size)?,
            used: run(aligned(setup.used_ring, 4)?, FIXED_LEN + ELEMENT_LEN * size)?,
        };
        // Indexes are read and written in one access, so they must be aligned here as well.
        let whole = parts.avail.is_multiple_of(2) && parts.used.is_multiple_of(2);
        // An avail ring at address 0 is none, as QEMU has it.
        (whole && setup.avail_ring != 0).then_some(parts)
    }

    /// The snapshot that they were found in.
    #[inline]
    pub fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// The mapping that they are in.
    #[inline]
    pub fn mapping(&self) -> &Held {
        &self.mapping
    }

    /// Entries of each part.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the descriptor at `index` of a table is that is at `start` of the mapping.
    #[inline]
    pub fn place(&self, start: usize, index: u16) -> usize {
        start + Descriptor::LEN * usize::from(index)
    }

    /// The descriptor at `index` of a table, the ring's own or another, at `start` of the mapping.
    ///
    /// # Panics
    /// If the mapping does not have it: the caller has checked where the table is.
    #[inline]
    pub fn descriptor(&self, start: usize, index: u16) -> Descriptor {
        let mut bytes = [0; Descriptor::LEN];
        self.mapping.read(self.place(start, index), &mut bytes);
        Descriptor::from_bytes(bytes)
    }

    /// The first descriptors of a table at `start` of the mapping.
    ///
    /// # Panics
    /// As [`Self::descriptor`].
    #[inline]
    pub fn descriptors_at<const N: usize>(&self, start: usize) -> [Descriptor; N] {
        let mut bytes = [[0; Descriptor::LEN]; N];
        self.mapping.read(start, bytes.as_flattened_mut());
        bytes.map(Descriptor::from_bytes)
    }

    /// Offset of the descriptor table in the mapping.
    #[inline]
    pub fn descriptors(&self) -> usize {
        self.descriptors
    }

    /// Flags of the avail ring.
    pub fn avail_flags(&self) -> u16 {
        self.load(self.avail, Ordering::Relaxed)
    }

    /// Index of the avail ring; what the driver wrote before it is seen by what is read after.
    #[inline]
    pub fn avail_index(&self) -> u16 {
        self.load(self.avail + INDEX, Ordering::Acquire)
    }

    /// The used index that the driver wants to be interrupted after.
    pub fn used_event(&self) -> u16 {
        let at = self.avail + ENTRIES + HEAD_LEN * usize::from(self.size);
        self.load(at, Ordering::Relaxed)
    }

    /// Calls `take` with the `count` heads from index `from` of the avail ring, some at a time.
    #[inline]
    pub fn heads(&self, from: u16, count: u16, mut take: impl FnMut(&[[u8; HEAD_LEN]])) {
        let mut from = from;
        let mut left = count;
        while left > 0 {
            let place = from % self.size;
            let run = left.min(RUN).min(self.size - place);
            let at = self.avail + ENTRIES + HEAD_LEN * usize::from(place);
            if run == 1 {
                take(&[self.load(at, Ordering::Relaxed).to_le_bytes()]);
            } else {
                let mut heads = [[0; HEAD_LEN]; RUN as usize];
                let heads = &mut heads[..usize::from(run)];
                self.mapping.read(at, heads.as_flattened_mut());
                take(heads);
            }
            from = from.wrapping_add(run);
            left -= run;
        }
    }

    /// Index of the used ring.
    pub fn used_index(&self) -> u16 {
        self.load(self.used + INDEX, Ordering::Acquire)
    }

    /// Writes elements from index `from` of the used ring, at most as many as it has.
    #[inline]
    pub fn write_used(&self, from: u16, elements: &[UsedElement]) {
        let place = usize::from(from % self.size);
        let (to_end, from_start) =
            elements.split_at(elements.len().min(usize::from(self.size) - place));
        let start = self.used + ENTRIES;
        self.mapping
            .write(start + ELEMENT_LEN * place, to_end.as_flattened());
        self.mapping.write(start, from_start.as_flattened());
    }

    /// Has the CPU fetch the place of the element at index `at` of the used ring.
    #[inline]
    pub fn prefetch_used(&self, at: u16) {
        let place = usize::from(at % self.size);
        self.mapping
            .prefetch_to_write(self.used + ENTRIES + ELEMENT_LEN * place);
    }

    /// Sets the index of the used ring; what was written before is seen by who sees it.
    #[inline]
    pub fn set_used_index(&self, index: u16) {
        self.store(self.used + INDEX, index, Ordering::Release);
    }

    /// Sets the flags of the used ring.
    pub fn set_used_flags(&self, flags: u16) {
        self.store(self.used, flags, Ordering::Relaxed);
    }

    /// Sets the avail index after which the driver kicks.
    pub fn set_avail_event(&self, index: u16) {
        let at = self.used + ENTRIES + ELEMENT_LEN * usize::from(self.size);
        self.store(at, index, Ordering::Relaxed);
    }

    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u16 {
        u16::from_le(self.mapping.atomic_u16(at).load(order))
    }

    #[inline]
    fn store(&self, at: usize, value: u16, order: Ordering) {
        self.mapping.atomic_u16(at).store(value.to_le(), order);
    }
}
