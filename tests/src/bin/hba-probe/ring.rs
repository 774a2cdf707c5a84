//! The driver's side of a split ring (virtio 1.3 §2.7), polled.

use std::{
    rc::Rc,
    sync::atomic::{Ordering, fence},
};

use tests::world::{Buffer, Used, descriptor_bytes, flag};

use crate::dma::{Dma, Span};
use crate::transport::RingAddresses;

/// Entries of every ring.
pub const SIZE: u16 = 128;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: usize = 16;
/// Flag of the avail ring: no interrupts, please (virtio 1.3 §2.7.7).
const NO_INTERRUPT: u16 = 1;
/// Where the index stands in the avail and used rings, and where their entries begin.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// A ring of [`SIZE`] entries.
#[derive(Debug)]
pub struct Ring {
    memory: Rc<Dma>,
    descriptors: Span,
    avail: Span,
    used: Span,
    free: Vec<u16>,
    /// The descriptors of each chain in flight, by its head.
    chains: Vec<Vec<u16>>,
    next_avail: u16,
    next_used: u16,
}

impl Ring {
    /// An empty ring.
    pub fn new(memory: &Rc<Dma>) -> Self {
        let n = usize::from(SIZE);
        let ring = Self {
            memory: Rc::clone(memory),
            descriptors: memory.take(DESCRIPTOR_LEN * n),
            avail: memory.take(6 + 2 * n),
            used: memory.take(6 + 8 * n),
            free: (0..SIZE).rev().collect(),
            chains: vec![Vec::new(); n],
            next_avail: 0,
            next_used: 0,
        };
        memory.store(ring.avail, 0, NO_INTERRUPT);
        ring
    }

    /// Where it is.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: self.memory.address(self.descriptors),
            avail: self.memory.address(self.avail),
            used: self.memory.address(self.used),
        }
    }

    /// Makes a chain available; returns its head.
    ///
    /// # Panics
    /// If the ring is full.
    pub fn add(&mut self, chain: &[Buffer]) -> u16 {
        assert!(chain.len() <= self.free.len(), "the ring is full");
        let taken = self.free.split_off(self.free.len() - chain.len());
        for (position, (buffer, index)) in chain.iter().zip(&taken).enumerate() {
            let mut flags = if buffer.writable { flag::WRITE } else { 0 };
            let next = taken.get(position + 1).copied();
            if next.is_some() {
                flags |= flag::NEXT;
            }
            let bytes = descriptor_bytes(buffer.gpa, buffer.len, flags, next.unwrap_or(0));
            let at = Span {
                offset: self.descriptors.offset + DESCRIPTOR_LEN * usize::from(*index),
                len: DESCRIPTOR_LEN,
            };
            self.memory.write(at, &bytes);
        }
        let head = taken[0];
        self.chains[usize::from(head)] = taken;
        let slot = ENTRIES + 2 * usize::from(self.next_avail % SIZE);
        self.memory.store(self.avail, slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.memory.store(self.avail, INDEX, self.next_avail);
        // The device must see the index before it is told of it.
        fence(Ordering::SeqCst);
        head
    }

    /// Takes the next used chain, if there is one.
    ///
    /// # Panics
    /// If it is none that the device was given.
    pub fn take_used(&mut self) -> Option<Used> {
        let index: u16 = self.memory.load(self.used, INDEX);
        if index == self.next_used {
            return None;
        }
        let slot = ENTRIES + 8 * usize::from(self.next_used % SIZE);
        let id: u32 = self.memory.load(self.used, slot);
        let len: u32 = self.memory.load(self.used, slot + 4);
        self.next_used = self.next_used.wrapping_add(1);
        let head = u16::try_from(id).unwrap_or(u16::MAX);
        let chain = self.chains.get_mut(usize::from(head));
        let chain = chain.map(std::mem::take).unwrap_or_default();
        assert!(
            !chain.is_empty(),
            "the device used chain {id}, which it was not given"
        );
        self.free.extend(chain);
        Some(Used { head, len })
    }
}
