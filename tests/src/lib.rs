//! The test harness.
//!
//! * [`world`]: the real shim and the real appliance in one process, between a vfio-user client
//!   that plays the storage VM's QEMU and a vhost-user frontend that plays the tenant's; or the
//!   appliance alone, joined to the frontend
//! * [`fuzz`]: what the fuzz targets of `tests/fuzz/` do with their bytes
//! * [`vm`]: real QEMUs with a real storage VM and real tenants
//! * [`versions`]: bytes that say which version of a block they are
//!
//! The tests themselves are in `suites/`, next to `src/`:
//!
//! * `world_io`: reads, writes and everything around them, from the tenant's driver to the disk
//! * `world_session`: sides that come late, leave, come back or do not fit
//! * `world_target`: task management, events, deadlines, LUNs that come and go
//! * `world_conformance`: what a conformance test cannot ask for through a tenant's kernel
//! * `world_corrected`: what a conformance test gets wrong, done right
//! * `world_hostile`: rings that break the rules
//! * `world_protection`: protection information, from the driver to the disk and back
//! * `world_durability`: what was acknowledged, and what is left of it after a crash
//! * `world_faults`: disks that fail, what tenants are told and what they are spared
//! * `world_inflight`: what is under way when somebody dies comes back once
//! * `world_cluster`: LUNs that HBAs share, with persistent reservations and multipath
//! * `world_copy`: units that copy among themselves
//! * `world_pages`: FORMAT UNIT, SANITIZE, identifying information, logs
//! * `world_control`: an operator watches and changes the appliance while tenants work
//! * `world_io_local`, `world_hostile_local`, `world_inflight_local`: the same as those without
//!   "local", over a vhost-user socket of the appliance
//! * `world_local`: what only such a socket has
//! * `world_log_local`: what a migrating QEMU is told there of writes to the tenant's memory
//! * `world_limits`: what LUNs, tenants and groups of them may do in a second
//! * `world_workers`: HBAs with several workers, with the suites that hold for one
//! * `world_polling`: workers that look for requests without being kicked
//! * `world_function`: what only a vhost-pci function has
//! * `world_metrics`: a monitoring system watches the appliance, and what is made of its metrics
//! * `world_leaks`: nothing stays behind
//! * `world_worst`: how much memory the worst tenant takes
//! * `fuzz_seeds`: the fuzz targets' seeds, and all that ever failed there
//! * `bench_scsi`, `bench_vm`: that the bench programs work, and say what is wrong
//! * `harness`: that the machines of [`vm`] boot and run commands, without the product
//! * `vm`: the main job on real machines
//! * `vm_resilience`: real machines that are reset and killed while they work
//! * `vm_scsi`: the SCSI target on real machines, with libiscsi's conformance tests
//! * `vm_console`: an operator at the storage VM's consoles
//! * `vm_features`, one in each file:
//!   * `local`: the main job without a storage VM
//!   * `cluster`: a LUN that HBAs share, with persistent reservations and multipath
//!   * `protection`: protection information as Linux makes and checks it
//!   * `snapshot`: snapshots, clones and copies on a file system that shares blocks
//!   * `copy`: a gibibyte is copied, and the tenant moves no byte of it
//!   * `limits`: two tenants that are held to what is set, as fio measures it
//!   * `control`: task management and device resets that Linux's driver never makes happen
//!
//! Tests that are ignored as "long" repeat what others do, many times; `cargo full` runs them.
//! `src/bin/demo.rs` is the demo, `cargo demo`: the main job shown to a person.
//! `src/bin/instructions` is `cargo instructions`, `src/bin/console.rs` the console alone, for
//! tests of it.
//! `src/bin/hba-probe` runs in a tenant for `vm_features/control.rs`, and drives an HBA itself;
//! `src/bin/witness.rs` does for `vm_resilience`, and keeps account of what it was promised.

pub mod fuzz;
pub mod openmetrics;
pub mod versions;
pub mod vm;
pub mod world;
