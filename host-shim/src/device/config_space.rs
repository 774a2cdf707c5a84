//! PCI configuration space of the function.
//!
//! QEMU keeps BARs and MSI registers to itself and only asks us for their fixed bits, so what is
//! written there goes nowhere; the rest behaves as PCI says.

use spec::device::{
    BAR_INFLIGHT, BAR_REGISTERS, BAR_SESSION, BAR_TENANT, CLASS_CODE, DEVICE_ID, VENDOR_ID,
};

/// Length of configuration space in bytes: with the extended part, for a PCI Express function.
pub(super) const LEN: u64 = 4096;
/// Length of the part that is not all zero.
const CONVENTIONAL_LEN: usize = 256;

// PCI 3.0 §6.1: the type 0 header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_AND_CLASS: usize = 0x08;
const CACHE_LINE_SIZE: usize = 0x0c;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// I/O, memory, bus master, parity error response, SERR and INTx disable (PCI 3.0 §6.2.2).
const COMMAND_WRITABLE: u16 = 0x0547;
/// Capabilities list (PCI 3.0 §6.2.3).
const STATUS_CAPABILITIES: u16 = 0x0010;
/// Memory BAR, 32-bit, not prefetchable (PCI 3.0 §6.2.5.1).
const BAR_MEMORY_32: u32 = 0x0;
/// Memory BAR, 64-bit, prefetchable (PCI 3.0 §6.2.5.1).
const BAR_MEMORY_64_PREFETCHABLE: u32 = 0xc;

// PCI 3.0 §6.8.1: MSI with a 64-bit address, without per-vector masking.
const MSI: usize = 0x40;
const MSI_ID: u8 = 0x05;
const MSI_CONTROL: usize = MSI + 2;
const MSI_64_BIT: u16 = 1 << 7;

// PCI Express 2.0 §7.8: an endpoint that can be reset by itself.
const EXPRESS: usize = 0x60;
const EXPRESS_ID: u8 = 0x10;
const EXPRESS_FLAGS: usize = EXPRESS + 0x02;
const DEVICE_CAPABILITIES: usize = EXPRESS + 0x04;
const DEVICE_CONTROL: usize = EXPRESS + 0x08;
const LINK_CAPABILITIES: usize = EXPRESS + 0x0c;
const LINK_CONTROL: usize = EXPRESS + 0x10;
const LINK_STATUS: usize = EXPRESS + 0x12;
const LINK_CAPABILITIES_2: usize = EXPRESS + 0x2c;
/// Version 2, type 0: PCI Express endpoint.
const EXPRESS_V2_ENDPOINT: u16 = 0x0002;
/// Role-based error reporting, and function level reset.
const DEVICE_CAPABILITIES_VALUE: u32 = 1 << 15 | 1 << 28;
/// Initiate function level reset; reads as 0.
const DEVICE_CONTROL_FLR: u8 = 0x80;
/// One lane at 2.5 GT/s, as capability and as status.
const LINK_X1_GEN1: u16 = 0x0011;
/// Supported speeds: 2.5 GT/s.
const LINK_SPEEDS: u32 = 0x2;

/// PCI configuration space of the function.
#[derive(Debug)]
pub(super) struct ConfigSpace {
    bytes: [u8; CONVENTIONAL_LEN],
    /// Bits that a write changes.
    writable: [u8; CONVENTIONAL_LEN],
}

impl ConfigSpace {
    /// For a function with this many MSI vectors (a power of two) and no tenant memory.
    pub(super) fn new(vectors: usize) -> Self {
        let mut space = Self {
            bytes: [0; CONVENTIONAL_LEN],
            writable: [0; CONVENTIONAL_LEN],
        };
        space.set16(0x00, VENDOR_ID);
        space.set16(0x02, DEVICE_ID);
        space.set16(STATUS, STATUS_CAPABILITIES);
        space.set32(REVISION_AND_CLASS, CLASS_CODE << 8);
        space.set32(bar(BAR_REGISTERS), BAR_MEMORY_32);
        space.set32(bar(BAR_INFLIGHT), BAR_MEMORY_32);
        space.set32(bar(BAR_SESSION), BAR_MEMORY_64_PREFETCHABLE);
        space.set16(SUBSYSTEM_VENDOR, VENDOR_ID);
        space.set16(SUBSYSTEM, DEVICE_ID);
        space.bytes[CAPABILITIES] = 0x40;
        space.allow16(COMMAND, COMMAND_WRITABLE);
        space.writable[CACHE_LINE_SIZE] = 0xff;
        // INTERRUPT_PIN, the byte after, stays 0: INTx would make QEMU unmap the BARs.
        space.writable[INTERRUPT_LINE] = 0xff;

        space.bytes[MSI] = MSI_ID;
        space.bytes[MSI + 1] = 0x60;
        // Multiple Message Capable is the logarithm of the number of vectors.
        let capable = u16::try_from(vectors.trailing_zeros()).unwrap_or(0);
        space.set16(MSI_CONTROL, MSI_64_BIT | capable << 1);

        space.bytes[EXPRESS] = EXPRESS_ID;
        space.set16(EXPRESS_FLAGS, EXPRESS_V2_ENDPOINT);
        space.set32(DEVICE_CAPABILITIES, DEVICE_CAPABILITIES_VALUE);
        space.set32(LINK_CAPABILITIES, u32::from(LINK_X1_GEN1));
        space.set16(LINK_STATUS, LINK_X1_GEN1);
        space.set32(LINK_CAPABILITIES_2, LINK_SPEEDS);
        // Error reporting enables, relaxed ordering, payload and read request sizes.
        space.allow16(DEVICE_CONTROL, 0x7fff);
        // Common clock and extended synch.
        space.allow16(LINK_CONTROL, 0x00c0);
        space
    }

    /// Says whether BAR2 exists.
    pub(super) fn set_tenant_bar(&mut self, exists: bool) {
        let value = if exists {
            BAR_MEMORY_64_PREFETCHABLE
        } else {
            0
        };
        self.set32(bar(BAR_TENANT), value);
    }

    /// Reads from `offset` on; what lies beyond is 0.
    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(start..).unwrap_or_default();
        let len = bytes.len().min(to.len());
        let (there, beyond) = to.split_at_mut(len);
        there.copy_from_slice(&bytes[..len]);
        beyond.fill(0);
    }

    /// Writes what is writable from `offset` on; returns whether a function level reset was
    /// asked for.
    pub(super) fn write(&mut self, offset: u64, from: &[u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes.iter_mut().zip(self.writable).enumerate();
        let mut reset = false;
        for ((at, (byte, mask)), new) in bytes.skip(start).zip(from) {
            *byte = *byte & !mask | new & mask;
            reset |= at == DEVICE_CONTROL + 1 && new & DEVICE_CONTROL_FLR != 0;
        }
        reset
    }

    /// The part that is not all zero.
    pub(super) fn record(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Goes on from what [`Self::record`] gave.
    pub(super) fn restore(&mut self, record: &[u8]) {
        for (byte, recorded) in self.bytes.iter_mut().zip(record) {
            *byte = *recorded;
        }
    }

    /// Every writable bit is 0 again.
    pub(super) fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(self.writable) {
            *byte &= !mask;
        }
    }

    fn set16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn allow16(&mut self, at: usize, bits: u16) {
        self.writable[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }
}

const fn bar(index: usize) -> usize {
    BARS + 4 * index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(space: &ConfigSpace, offset: u64) -> [u8; N] {
        let mut bytes = [0xaa; N];
        space.read(offset, &mut bytes);
        bytes
    }

    // covers: VPCI-ID-1
    #[test]
    fn the_header_says_what_the_function_is() {
        let mut space = ConfigSpace::new(16);
        assert_eq!(read(&space, 0x00), [0xf4, 0x1a, 0xf5, 0x10]);
        assert_eq!(read(&space, 0x08), [0, 0, 0, 0xff]);
        assert_eq!(read(&space, 0x10), [0; 4]);
        assert_eq!(read(&space, 0x14), [0; 4]);
        assert_eq!(read(&space, 0x18), [0; 4]);
        assert_eq!(read(&space, 0x20), [0xc, 0, 0, 0]);
        assert_eq!(read(&space, 0x3d), [0]);
        space.set_tenant_bar(true);
        assert_eq!(read(&space, 0x18), [0xc, 0, 0, 0]);
    }

    // covers: VPCI-ID-2
    #[test]
    fn capabilities_are_msi_then_pci_express() {
        let space = ConfigSpace::new(16);
        assert_eq!(read(&space, 0x06), [0x10, 0x00]);
        assert_eq!(read(&space, 0x34), [0x40]);
        assert_eq!(read(&space, 0x40), [0x05, 0x60, 0x88, 0x00]);
        assert_eq!(read(&space, 0x60), [0x10, 0x00, 0x02, 0x00]);
        assert_eq!(read(&ConfigSpace::new(1), 0x42), [0x80, 0x00]);
        assert_eq!(read(&ConfigSpace::new(32), 0x42), [0x8a, 0x00]);
        // No extended capability.
        assert_eq!(read(&space, 0x100), [0; 4]);
    }

    #[test]
    fn bars_and_rom_cannot_be_sized_through_us() {
        let mut space = ConfigSpace::new(16);
        for offset in [0x10, 0x20, 0x30] {
            let before: [u8; 4] = read(&space, offset);
            assert!(!space.write(offset, &[0xff; 4]));
            assert_eq!(read(&space, offset), before);
        }
        assert_eq!(read(&space, 0x30), [0; 4]);
    }

    #[test]
    fn the_command_register_keeps_bus_master_until_reset() {
        let mut space = ConfigSpace::new(16);
        space.write(0x04, &[0xff, 0xff]);
        assert_eq!(read(&space, 0x04), [0x47, 0x05]);
        space.reset();
        assert_eq!(read(&space, 0x04), [0, 0, 0x10, 0]);
    }

    #[test]
    fn a_function_level_reset_is_noticed_and_reads_as_0() {
        let mut space = ConfigSpace::new(16);
        assert!(space.write(0x68, &[0x10, 0x80]));
        assert_eq!(read(&space, 0x68), [0x10, 0x00]);
        assert!(!space.write(0x68, &[0x10, 0x20]));
        assert!(!space.write(0x68, &[0x80]));
    }

    #[test]
    fn accesses_past_the_end_are_harmless() {
        let mut space = ConfigSpace::new(16);
        assert_eq!(read(&space, 0xfe), [0; 4]);
        assert_eq!(read(&space, u64::MAX), [0]);
        assert!(!space.write(u64::MAX, &[0xff]));
        assert!(!space.write(0xff, &[0xff, 0xff]));
    }
}
