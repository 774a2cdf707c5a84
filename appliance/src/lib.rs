//! The storage appliance: serves LUNs to tenants whose memory it sees in a PCI BAR.
//!
//! It runs in the storage VM. For each HBA of a tenant a host-shim plugs a vhost-pci function into
//! that VM; the appliance finds it, maps the tenant's memory, and works on the tenant's virtqueues
//! there. Nothing of that knows QEMU, vhost-user or the shim's insides: what crosses is in the crate
//! `spec`.
//!
//! Without a storage VM it runs on the tenant's host, and [`vhost_user`] stands in the place of the
//! functions: from the worker on, everything is the same.
//!
//! # One READ, end to end
//!
//! Open the files in this order and you have seen the product.
//!
//! 1. [`lifecycle`] looks at the PCI bus ([`device::discover`]) and opens a function that has
//!    come ([`device::VfioFunction`], one [`device::Device`]).
//! 2. [`Appliance::attach`] reads which HBA it is and knows the LUNs of that one; [`config`] said
//!    so. `attachment` starts one thread for it, which enables its interrupts and says BACKEND_UP.
//! 3. `worker` is that thread, or one of several over which the rings are spread: one loop over
//!    io_uring for the mailbox, the rings and the disks. What stands in front of it is a
//!    `front::Front`, here the `shim`, whose requests are acted on in `worker/mailbox.rs`; the first
//!    give it the tenant's memory (`tenant_bar`, [`memory::TenantMemory`]) and the rings (`rings`).
//! 4. The tenant kicks; its eventfd wakes the loop. `rings::fetch` takes what is new and marks it
//!    in flight (`in_flight`, `journal`); [`ring::Ring::fetch`] copies descriptor chains out and
//!    checks them. A ring that breaks the rules is retired here: reported once, while the others
//!    go on.
//! 5. `task` reads the request header once and splits the buffers: data-out, response, data-in.
//! 6. [`scsi::Host::start`] finds the logical unit, parses the CDB into a closed type and checks
//!    range and room. It hands back an answer, or an operation on a [`disk::Disk`]. Of a READ or
//!    WRITE with nothing in its way, which nearly all are, `scsi/transfer.rs` decides all that at
//!    once; and what its disk does at once takes the shortcut of `worker/shortcut.rs` to 9.
//! 7. [`disk::Io::submit`] takes the operation under the task's name; the task waits in a bounded
//!    table (`task::Tasks`). An abort or a reset from the control queue (`task_management`)
//!    cancels it there.
//! 8. [`disk::Event::Done`] brings the name back, when the data is in the tenant's memory.
//! 9. `task` writes status, sense and residual. `rings/completion.rs` puts the chain into the used
//!    ring ([`ring::Ring::put`]), which the tenant sees a few at a time ([`ring::Ring::publish`]),
//!    and `journal` clears its mark; where there is no journal, it is held until all fetched before it
//!    are done.
//! 10. [`ring::Ring::wants_call`] asks whether the tenant wants an interrupt, unless
//!     `rings/coalescing.rs` holds that back for a while; `shim` counts the call in the doorbell
//!     page, and rings the trapped doorbell only if the shim sleeps.
//!
//! # Beside commands
//!
//! * [`Appliance::apply`] puts another configuration into force. `roster` knows who sees what, and
//!   tells the workers through their `inbox`; `worker/changes.rs` shows and hides units, and
//!   `events` tells the driver.
//! * Task management is planned in `task_management` and carried out in `worker/control.rs`. What
//!   concerns every initiator of a unit goes to the neighbours' inboxes, and each drops a receipt
//!   when it is done. Before the answer, `worker/fences.rs` waits until no disk has anything left of
//!   what was ended.
//! * When the first ring starts, `tenant_bar` has [`memory::window`] find out whether the CPU reaches
//!   the tenant's memory through its caches, and says so.
//! * `scsi/copy` has units copy among themselves: one [`scsi::Pending`] goes on from operation to
//!   operation, and belongs to every unit that it copies from or to. Between files whose filesystem
//!   shares blocks, `disk/io/offload.rs` has that do it (`disk/reflink.rs`); `disk/sharing.rs`
//!   remembers which ways a pair of files does not go. Blocks with protection
//!   information go by way of our memory (`scsi/copy/relay.rs`).
//! * `scsi/erase` has FORMAT UNIT and SANITIZE erase a unit in the background; `scsi/upkeep` parses
//!   what is about a unit as a whole, and `scsi/log` answers LOG SENSE. What is to outlive the
//!   appliance is in a `scsi/state_file.rs` each.
//! * `scsi/persistent` keeps persistent reservations, and lets PREEMPT AND ABORT be repeated.
//! * `scsi/protection.rs` reads what a command wants of protection information; `disk/protected`
//!   keeps it beside the data.
//! * An HBA may have several workers, each with rings of its own (`spread`). `attachment/crew.rs` starts
//!   those beside the first; `worker/fellows.rs` has all of them do what concerns every ring, which
//!   they tell each other as in `fellow`; `worker/team.rs` is one's place among them. `pinning` keeps
//!   a thread on one CPU.
//! * `worker/deadlines.rs` gives commands up that take too long.
//! * `worker/limits.rs` holds commands that are over a limit of their LUN, their HBA or its group;
//!   `limit` counts, and has those that share one take turns.
//! * `worker/polling.rs` keeps a worker awake for a while, where its HBA is to poll, and has it serve
//!   what comes meanwhile without a whole turn of the loop; `ring/habit.rs` fetches such a request
//!   from where the last one was.
//! * `worker/pauses.rs` holds commands that a full or failing disk could not do, where the LUN is to
//!   pause; `worker/marks.rs` remembers which write-back LUNs a crash of the storage VM would rob, and
//!   `worker/parting.rs` spares them that when it is switched off.
//! * [`control`] is the operator's way in, by a protocol of its own; [`console`] is its client.
//!   Workers count in [`statistics`] for themselves, and are asked through their inboxes
//!   (`worker/snapshot.rs`).
//! * [`metrics`] tells monitoring systems what workers count; `roster/ledger.rs` keeps the counts of
//!   an HBA from one attachment to the next. `clients` takes those of both, a bounded number.
//! * `disk/snapshot` takes snapshots of a file's disk and rolls back to them, while nothing is under
//!   way on it.
//! * `disk/io/files.rs` has the kernel know cached files by slots of the loop's ring, and
//!   `disk/io/held.rs` holds a file once for all operations of a loop; `disk/known.rs` tells loops of
//!   a file that is gone.
//! * `disk/io/through.rs` has one write do what would be a write and a sync.
//! * `appliance/monitor.rs` looks at every unit once a second.
//! * `dirty` marks what was written in the tenant's memory, while a frontend migrates it
//!   (`memory/dirty_log.rs`, `vhost_user/log.rs`).
//! * [`sockets`] has an HBA served again at its vhost-user socket when it has ended; `quick_start`
//!   makes a configuration of `--lun`s, and [`descriptors`] raises the limit on open files.
//!   `vhost_user/inflight.rs` has the in-flight memory of such a socket.
//! * `locate` finds the disk with a serial number, `log_limit` keeps a tenant from flooding the log,
//!   `ring_set` is a set of rings.
//! * `measure`, with the feature of that name, turns workers by hand, for what a request costs to
//!   be counted (`cargo instructions`).
//!
//! # What holds everywhere
//!
//! Memory of the tenant and of the session is read once, into a copy that is checked and used.
//! Mappings keep open what they map, and are gone before the function is let go, since an unplug
//! waits for that. Everything of a ring happens on one thread, and most HBAs have only one. A unit
//! that is being erased, a disk with protection information and copies that a filesystem does have
//! threads of their own, which touch no tenant's memory.

mod appliance;
mod attachment;
mod clients;
pub mod config;
pub mod console;
pub mod control;
pub mod descriptors;
pub mod device;
mod dirty;
pub mod disk;
mod events;
mod fellow;
mod front;
mod in_flight;
mod inbox;
mod journal;
pub mod lifecycle;
mod limit;
mod locate;
mod log_limit;
#[cfg(feature = "measure")]
pub mod measure;
pub mod memory;
pub mod metrics;
mod pinning;
mod quick_start;
pub mod ring;
mod ring_set;
mod rings;
mod roster;
pub mod scsi;
mod shim;
pub mod sockets;
mod spread;
pub mod statistics;
mod task;
mod task_management;
mod tenant_bar;
pub mod vhost_user;
mod worker;

pub use appliance::{
    Appliance, Applied, ApplyError, BadPin, BadView, LunError, LunProblem, StartError, open_disk,
    open_disk_with,
};
pub use attachment::{AttachError, Attachment, Ended};
pub use config::Config;
pub use locate::LocateError;
pub use quick_start::OnlyHba;
