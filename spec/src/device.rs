//! The vhost-pci PCI function: identity, BARs, and the registers of BAR0.
//!
//! Registers are 32 bits wide, little-endian and aligned; 64-bit and 128-bit values stand in
//! consecutive registers, lowest first. Every access is trapped (tens of microseconds), so none
//! of them is on the data path except a doorbell rung while the shim sleeps.

/// PCI vendor id (Red Hat's, whose range 10f0-10ff QEMU leaves to experiments).
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device id.
pub const DEVICE_ID: u16 = 0x10f5;
/// PCI class code ff.00.00: a device that fits no defined class.
pub const CLASS_CODE: u32 = 0xff_0000;

/// BAR of the registers: 32-bit, trapped.
pub const BAR_REGISTERS: usize = 0;
/// BAR of in-flight memory: 32-bit, mapped; laid out by [`crate::inflight`].
pub const BAR_INFLIGHT: usize = 1;
/// BAR of the tenant's RAM: 64-bit, prefetchable, mapped; BAR offset = file offset.
pub const BAR_TENANT: usize = 2;
/// BAR of the session memory: 64-bit, prefetchable, mapped; laid out by [`crate::session`].
pub const BAR_SESSION: usize = 4;
/// Length of BAR0 in bytes.
pub const REGISTERS_LEN: u64 = 0x1_0000;

/// Most vrings of one device: control, event and 126 request queues.
pub const MAX_RINGS: usize = 128;
/// Most MSI vectors of the function (PCI 3.0: Multiple Message Capable, 2^5).
pub const MAX_VECTORS: usize = 32;
/// MSI vectors the function offers unless told otherwise.
pub const DEFAULT_VECTORS: usize = 16;

/// RO: [`MAGIC_VALUE`].
pub const MAGIC: u64 = 0x00;
/// RO: the shim's [`crate::version::Version`].
pub const VERSION: u64 = 0x04;
/// RW: the appliance's version, written before BACKEND_UP.
pub const DRIVER_VERSION: u64 = 0x08;
/// RW: see [`status`].
pub const STATUS: u64 = 0x0c;
/// RO: why STATUS has REFUSED or NEEDS_RESET, see [`error`].
pub const ERROR: u64 = 0x10;
/// RO: virtio device id of the tenant's device (8: SCSI host).
pub const DEVICE_TYPE: u64 = 0x14;
/// RO: number of vrings that the tenant may use, control and event included.
pub const RINGS: u64 = 0x18;
/// RO: MSI vectors enabled now, 0 if none.
pub const VECTORS: u64 = 0x1c;
/// RO, 16 bytes: UUID of this HBA, the I_T nexus.
pub const HBA_UUID: u64 = 0x20;
/// RO, 16 bytes: UUID of the tenant, zero if unknown.
pub const TENANT_UUID: u64 = 0x30;
/// RO: counts the vhost-user connections of the tenant.
pub const CONNECTION: u64 = 0x40;
/// RO: generation of the memory table in session memory.
pub const MEMORY_GENERATION: u64 = 0x44;
/// RO: sequence number of the request in the mailbox, 0 before the first.
pub const MAILBOX_REQUEST: u64 = 0x48;
/// WO: sequence number of the request that the reply slot now answers.
pub const MAILBOX_REPLY: u64 = 0x4c;
/// WO: a retired ring: its index in the low 16 bits, a [`ring_error`] in the high.
pub const RING_ERROR: u64 = 0x50;
/// WO: 1 resets the device as seen by the appliance: BACKEND_UP, mailbox and DRIVER_VERSION.
pub const RESET: u64 = 0x54;
/// WO: the doorbell of ring `i` is at `DOORBELLS + 4 * i`; any write interrupts the tenant.
pub const DOORBELLS: u64 = 0x1000;

/// Value of [`MAGIC`]: "VPCI".
pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"VPCI");
/// Value of [`DEVICE_TYPE`] for a SCSI host (virtio 1.3 §5).
pub const DEVICE_TYPE_SCSI: u32 = 8;

/// Bits of the [`STATUS`] register.
pub mod status {
    /// RW: the appliance is attached and answers the mailbox. Writing 0 detaches it.
    pub const BACKEND_UP: u32 = 1 << 0;
    /// RO: the tenant's QEMU is connected.
    pub const FRONTEND_UP: u32 = 1 << 1;
    /// RO: the memory table is valid.
    pub const MEM_VALID: u32 = 1 << 2;
    /// RO: the shim does not work with this appliance; ERROR says why.
    pub const REFUSED: u32 = 1 << 6;
    /// RO: a ring was retired; it stays so until the tenant resets or leaves its HBA.
    pub const NEEDS_RESET: u32 = 1 << 7;
}

/// Values of the [`ERROR`] register.
pub mod error {
    /// Nothing is wrong.
    pub const NONE: u32 = 0;
    /// The version in DRIVER_VERSION does not work with the shim's.
    pub const VERSION: u32 = 1;
    /// BACKEND_UP was set before MSI was enabled.
    pub const NO_VECTORS: u32 = 2;
    /// The appliance answered a request with an error.
    pub const REQUEST_FAILED: u32 = 3;
    /// The appliance did not answer in time.
    pub const TIMEOUT: u32 = 4;
    /// The appliance's reply was not one (wrong sequence number, operation or length).
    pub const BAD_REPLY: u32 = 5;
    /// The tenant's ring broke the rules; RING_ERROR said which.
    pub const RING: u32 = 6;
}

/// Reasons in the [`RING_ERROR`] register.
pub mod ring_error {
    /// An avail index further ahead than the ring is long.
    pub const AVAIL_INDEX: u32 = 1;
    /// A descriptor index outside the table.
    pub const DESCRIPTOR_INDEX: u32 = 2;
    /// A chain longer than the ring, or a loop.
    pub const CHAIN_LENGTH: u32 = 3;
    /// A buffer outside the tenant's memory table.
    pub const UNMAPPED: u32 = 4;
    /// A device-readable buffer after a device-writable one.
    pub const ORDER: u32 = 5;
    /// An indirect table that is empty, misshapen, nested or not alone.
    pub const INDIRECT: u32 = 6;
    /// Too few readable or writable bytes for the header or response.
    pub const TOO_SHORT: u32 = 7;
    /// A zero-length buffer where none may be.
    pub const ZERO_LENGTH: u32 = 8;
    /// Addresses or size of the ring itself are unusable.
    pub const CONFIGURATION: u32 = 9;
    /// A chain that is in flight already.
    pub const IN_FLIGHT: u32 = 10;
}

/// The doorbell register of `ring`.
pub const fn doorbell(ring: u16) -> u64 {
    DOORBELLS + 4 * ring as u64
}

/// The MSI vector that carries the kicks of `ring` when `vectors` are enabled: vector 0 is the
/// mailbox's; with only one vector everything comes on it.
pub const fn kick_vector(ring: usize, vectors: usize) -> usize {
    if vectors < 2 {
        0
    } else {
        1 + ring % (vectors - 1)
    }
}

const _: () = assert!(DOORBELLS + 4 * (MAX_RINGS as u64) <= REGISTERS_LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_spread_over_all_vectors_but_the_mailbox() {
        assert_eq!([0, 1, 2, 3].map(|ring| kick_vector(ring, 4)), [1, 2, 3, 1]);
        assert_eq!([0, 5].map(|ring| kick_vector(ring, 1)), [0, 0]);
        assert_eq!(kick_vector(7, 0), 0);
        assert_eq!(kick_vector(9, 2), 1);
    }
}
