//! The host shim: gives a tenant's virtio-scsi HBA to a storage VM, as a vhost-pci device.
//!
//! Three processes for each HBA. The [`relay`] speaks vhost-user with the tenant's QEMU. The
//! [`keeper`] holds what must outlive a supervisor. The [`supervisor`] is everything else, and
//! believes neither the relay nor the storage VM:
//!
//! * [`session`]: what the tenant asked for, and the next message that brings the appliance there
//! * [`device`]: the PCI function, [`vfio_user`]: how the storage VM's QEMU reaches it
//! * [`plug`], [`qmp`], [`ports`]: how it gets into the storage VM, and out
//! * [`link`]: what relay and supervisor say to each other, [`kept`]: what supervisor and keeper do
//! * `journal.rs`: where the next supervisor goes on, `supervisor/handover.rs`: how
//! * [`cli`]: flags and their defaults, [`listener`]: the two sockets, [`privileges`]: never root,
//!   [`sandbox`]: what a process takes from itself, [`signals`]: orderly end and counters,
//!   [`log`]: lines that nobody is waited for to read
//! * [`status`]: what shims tell to those who look
//!
//! # One kick, end to end
//!
//! 1. The tenant's driver kicks; its eventfd wakes the loop of `supervisor/mod.rs`, and
//!    `supervisor/tenant.rs` (`kicked`) asks the session whether the appliance runs that ring.
//! 2. [`device::VhostPci::kick`] finds the MSI vector that carries it.
//! 3. `device/interrupts.rs` fires it, or keeps it until MSI is enabled. The call that comes back
//!    is a counter in session memory: `supervisor/appliance.rs` (`collect_calls`, `doorbell`);
//!    `supervisor/vigil.rs` says for how long it is looked at without being rung.
//!
//! # One message of the tenant's QEMU, end to end
//!
//! 1. [`relay`] has it parsed by the crate `vhost`, and passes it on over the [`link`].
//! 2. `supervisor/tenant.rs` (`take_call`) checks it and the descriptors that came along.
//! 3. [`session::Session::handle`] records it: the desired state.
//! 4. `session/delivery.rs` finds the next request that brings the appliance there.
//! 5. `supervisor/appliance.rs` (`post`) puts that into the mailbox. The appliance's reply comes
//!    back the same way, and with it, where one was waited for, the answer to the tenant's QEMU
//!    (`session/waiting.rs`).

pub mod cli;
mod complaints;
pub mod device;
mod journal;
pub mod keeper;
pub mod kept;
pub mod link;
pub mod listener;
mod lock_file;
pub mod log;
mod log_budget;
mod moment;
pub mod plug;
pub mod ports;
pub mod privileges;
pub mod qmp;
pub mod relay;
pub mod sandbox;
pub mod session;
pub mod signals;
pub mod status;
pub mod supervisor;
pub mod vfio_user;
