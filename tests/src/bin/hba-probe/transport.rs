//! The registers of a virtio device on PCI (virtio 1.3 §4.1.4).

use std::{
    thread,
    time::{Duration, Instant},
};

use vm_memory::{ByteValued, MmapRegion, VolatileMemory};

use crate::error::{Error, Result};
use crate::pci::Function;

const VENDOR: u16 = 0x1af4;
/// A SCSI host's device ids, transitional and modern (virtio 1.3 §4.1.2.1).
const SCSI_HOST: [u16; 2] = [0x1004, 0x1048];

/// Id of a vendor-specific PCI capability, which virtio's are.
const VENDOR_SPECIFIC: u8 = 0x09;
/// Kinds of virtio's capabilities.
mod kind {
    pub const COMMON: u8 = 1;
    pub const NOTIFICATIONS: u8 = 2;
}

/// Offsets in the common configuration (virtio 1.3 §4.1.4.3).
mod offset {
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const DEVICE_STATUS: usize = 20;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
    pub const QUEUE_DRIVER: usize = 40;
    pub const QUEUE_DEVICE: usize = 48;
    pub const END: usize = 56;
}

/// Bits of the device status (virtio 1.3 §2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
}

/// How long a reset may take: all that is in flight has to come back from a slow disk.
const RESET: Duration = Duration::from_secs(60);

/// Where the three parts of a ring are, in guest-physical addresses.
#[derive(Debug, Clone, Copy)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Driver area: the avail ring.
    pub avail: u64,
    /// Device area: the used ring.
    pub used: u64,
}

/// A virtio device's registers.
#[derive(Debug)]
pub struct Transport {
    common: Structure,
    notifications: Structure,
    /// Bytes between the doorbells of two rings.
    multiplier: u32,
    function: Function,
}

/// Rings a ring's doorbell.
#[derive(Debug, Clone, Copy)]
pub struct Doorbell {
    ring: u16,
    offset: usize,
}

impl Transport {
    /// The virtio-scsi device that `function` is, reset.
    ///
    /// # Errors
    /// It is none, or lacks registers.
    pub fn new(function: Function) -> Result<Self> {
        let (vendor, device) = function.ids()?;
        if vendor != VENDOR || !SCSI_HOST.contains(&device) {
            return Err(function.unfit("is no virtio-scsi HBA"));
        }
        let common = Structure::find(&function, kind::COMMON)?;
        let notifications = Structure::find(&function, kind::NOTIFICATIONS)?;
        if common.length < offset::END {
            return Err(function.unfit("has too short a common configuration"));
        }
        // The multiplier follows the capability that every structure has.
        let multiplier = function.read(notifications.capability + CAPABILITY_LEN as u64)?;
        function.enable()?;
        let transport = Self {
            multiplier: u32::from_le_bytes(multiplier),
            common,
            notifications,
            function,
        };
        transport.reset()?;
        Ok(transport)
    }

    /// Resets the device, and waits until it says that this is done (virtio 1.3 §4.1.4.3.2).
    ///
    /// # Errors
    /// It never does.
    pub fn reset(&self) -> Result<()> {
        self.common.store(offset::DEVICE_STATUS, 0u8);
        let deadline = Instant::now() + RESET;
        while self.status() != 0 {
            if Instant::now() > deadline {
                return Err(Error::Missing {
                    what: "the end of the device's reset",
                    after: RESET,
                });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Begins with the device up to its rings (virtio 1.3 §3.1.1, steps 2 to 6).
    ///
    /// # Errors
    /// It does not offer `features`, or does not accept them.
    pub fn negotiate(&self, features: u64) -> Result<()> {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let offered = self.half_of_features(0) | self.half_of_features(1) << 32;
        if offered & features != features {
            return Err(Error::Device("does not offer VERSION_1"));
        }
        for (half, bits) in (0u32..).zip(halves(features)) {
            self.common.store(offset::DRIVER_FEATURE_SELECT, half);
            self.common.store(offset::DRIVER_FEATURE, bits);
        }
        self.add_status(status::FEATURES_OK);
        if self.status() & status::FEATURES_OK == 0 {
            return Err(Error::Device("does not accept VERSION_1"));
        }
        Ok(())
    }

    /// Gives the device a ring of `size` entries; it is not interrupted for it, and interrupts
    /// nobody (virtio 1.3 §4.1.5.1.3).
    ///
    /// # Errors
    /// It has no such ring, or none so large.
    pub fn enable_ring(&self, ring: u16, size: u16, at: RingAddresses) -> Result<Doorbell> {
        self.common.store(offset::QUEUE_SELECT, ring);
        if self.common.load::<u16>(offset::QUEUE_SIZE) < size {
            return Err(Error::Device("lacks a ring, or a large enough one"));
        }
        self.common.store(offset::QUEUE_SIZE, size);
        for (register, address) in [
            (offset::QUEUE_DESC, at.descriptors),
            (offset::QUEUE_DRIVER, at.avail),
            (offset::QUEUE_DEVICE, at.used),
        ] {
            let [low, high] = halves(address);
            self.common.store(register, low);
            self.common.store(register + 4, high);
        }
        let index: u16 = self.common.load(offset::QUEUE_NOTIFY_OFF);
        let offset = usize::from(index) * self.multiplier as usize;
        if offset + size_of::<u16>() > self.notifications.length {
            return Err(Error::Device("has a doorbell outside its registers"));
        }
        self.common.store(offset::QUEUE_ENABLE, 1u16);
        Ok(Doorbell { ring, offset })
    }

    /// Lets the device begin.
    pub fn driver_ok(&self) {
        self.add_status(status::DRIVER_OK);
    }

    /// Tells the device that a ring has news (virtio 1.3 §4.1.5.2).
    pub fn ring(&self, doorbell: Doorbell) {
        self.notifications.store(doorbell.offset, doorbell.ring);
    }

    fn status(&self) -> u8 {
        self.common.load(offset::DEVICE_STATUS)
    }

    fn add_status(&self, bit: u8) {
        self.common
            .store(offset::DEVICE_STATUS, self.status() | bit);
    }

    fn half_of_features(&self, half: u32) -> u64 {
        self.common.store(offset::DEVICE_FEATURE_SELECT, half);
        self.common.load::<u32>(offset::DEVICE_FEATURE).into()
    }
}

impl Drop for Transport {
    /// Leaves the device reset and without DMA: its memory goes back to the kernel.
    fn drop(&mut self) {
        if let Err(error) = self.reset().and_then(|()| self.function.disable()) {
            eprintln!("{error}");
        }
    }
}

/// The low and the high half of a number, for registers of 32 bits.
fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
}

/// Bytes of a capability that says where a structure is.
const CAPABILITY_LEN: usize = 16;

/// A structure in a BAR.
#[derive(Debug)]
struct Structure {
    bar: MmapRegion,
    offset: usize,
    length: usize,
    /// Where the capability is that says so.
    capability: u64,
}

impl Structure {
    /// The first structure of a kind (virtio 1.3 §4.1.4: the device's preference).
    fn find(function: &Function, kind: u8) -> Result<Self> {
        for (at, id) in function.capabilities()? {
            if id != VENDOR_SPECIFIC {
                continue;
            }
            let bytes: [u8; CAPABILITY_LEN] = function.read(at)?;
            let [_, _, _, its_kind, bar, ..] = bytes;
            // Other values of `bar` are reserved.
            if its_kind != kind || bar > 5 {
                continue;
            }
            let word = |at: usize| {
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            let (offset, length) = (word(8) as usize, word(12) as usize);
            let bar = function.map(bar)?;
            if offset + length > bar.size() {
                return Err(function.unfit("has a structure outside its BAR"));
            }
            return Ok(Self {
                bar,
                offset,
                length,
                capability: at,
            });
        }
        Err(function.unfit("lacks a structure of virtio 1.0 and later"))
    }

    fn load<T: ByteValued>(&self, at: usize) -> T {
        let register = self.bar.get_ref(self.offset + at);
        register.expect("a register of this structure").load()
    }

    fn store<T: ByteValued>(&self, at: usize, value: T) {
        let register = self.bar.get_ref(self.offset + at);
        register.expect("a register of this structure").store(value);
    }
}
