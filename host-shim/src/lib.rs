//! The host shim: gives a tenant's virtio-scsi HBA to a storage VM, as a vhost-pci device.
//!
//! Two processes for each HBA. The [`relay`] speaks vhost-user with the tenant's QEMU; the
//! [`supervisor`] is everything else, and believes neither the relay nor the storage VM:
//!
//! * [`session`]: what the tenant asked for, and the next message that brings the appliance there
//! * [`device`]: the PCI function, [`vfio_user`]: how the storage VM's QEMU reaches it
//! * [`plug`], [`qmp`], [`ports`]: how it gets into the storage VM, and out
//! * [`link`]: what relay and supervisor say to each other

pub mod cli;
mod complaints;
pub mod device;
pub mod link;
pub mod listener;
mod lock_file;
pub mod log;
mod log_budget;
pub mod plug;
pub mod ports;
pub mod privileges;
pub mod qmp;
pub mod relay;
pub mod session;
pub mod signals;
pub mod supervisor;
pub mod vfio_user;
