//! Wire structures and constants of the vhost-pci storage protocol.
//!
//! Everything that crosses between the host shim and the appliance is described here once, and
//! both sides use these definitions; `vhost-pci.md` beside this crate is the text they implement.
//! There is no I/O in this crate and no unsafe code: it turns bytes into values and back.
//!
//! * [`version`]: which versions of the two programs work together
//! * [`device`]: the PCI function, its BARs and the registers of BAR0
//! * [`session`]: the layout of BAR4, memory that the shim and the appliance share
//! * [`inflight`]: the layout of BAR1, where requests under way are recorded
//! * [`doorbell`]: how a call wakes a shim that sleeps, and only then
//! * [`mailbox`]: the messages that set a session up and take it down
//! * [`ring`]: virtio's feature bits about rings
//! * [`virtio_scsi`]: the virtio-scsi structures found in the tenant's rings
//! * [`scsi`]: SCSI opcodes, statuses and sense codes
#![forbid(unsafe_code)]

pub mod device;
pub mod doorbell;
pub mod inflight;
pub mod mailbox;
pub mod ring;
pub mod scsi;
pub mod session;
pub mod version;
pub mod virtio_scsi;
mod wire;

pub use wire::Truncated;
