//! A descriptor of a split ring, as virtio 1.3 §2.7.5 lays it out.

/// The buffer goes on with the descriptor `next`.
const NEXT: u16 = 1;
/// The device writes the buffer, instead of reading it.
const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// A copy of a descriptor, which the driver cannot rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Bytes of the buffer.
    pub len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Bytes of a descriptor.
    pub const LEN: usize = 16;

    /// The descriptor that these bytes are.
    #[inline]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Whether the three descriptors of a table are a chain in their order.
    #[inline]
    pub fn are_in_order([one, two, three]: &[Self; 3]) -> bool {
        let goes_on = |this: &Self, next| this.flags & !WRITE == NEXT && this.next == next;
        goes_on(one, 1) && goes_on(two, 2) && three.flags & !WRITE == 0
    }

    /// Index of the descriptor that follows in the chain, if there is one.
    pub fn next(self) -> Option<u16> {
        (self.flags & NEXT != 0).then_some(self.next)
    }

    /// Whether the device writes the buffer.
    pub fn is_writable(self) -> bool {
        self.flags & WRITE != 0
    }

    /// Whether the buffer is a table of descriptors.
    pub fn is_indirect(self) -> bool {
        self.flags & INDIRECT != 0
    }
}
