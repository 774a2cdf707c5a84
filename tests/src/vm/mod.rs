//! Real QEMUs, real guests: what the VM suite and the demo are made of.
//!
//! ```no_run
//! use tests::vm::{ApplianceConfig, Disk, Scenario, Shim, StorageVm, TenantVm};
//!
//! # fn main() -> tests::vm::Result<()> {
//! let scenario = Scenario::begin("first_light")?;
//! let root = Disk::tenant_root(&scenario, "t1root")?;
//! let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root]);
//! let storage = StorageVm::new(&config).disk(&root).start(&scenario)?;
//! let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
//! let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;
//! println!("{}", tenant.sh("lsblk")?);
//! # Ok(())
//! # }
//! ```
//!
//! What a fresh Debian machine lacks is fetched and built by the harness itself, once, under
//! `target/vm` ([`store`]): QEMU ([`qemu`]), the tenant's disk ([`tenant_image`]), the storage
//! VM's kernel and initramfs ([`storage_image`]).

pub mod accelerator;
pub mod agent;
pub mod appliance_config;
mod base64;
pub mod config_disk;
pub mod conformance;
pub mod console;
pub mod debian;
pub mod disk;
pub mod error;
pub mod fio;
pub mod link;
pub mod local;
pub mod log;
pub mod machine;
pub mod one_hba;
pub mod process;
pub mod programs;
pub mod progress;
pub mod qemu;
pub mod qmp;
pub mod scenario;
pub mod shim;
pub mod storage_image;
pub mod storage_vm;
pub mod store;
pub mod tenant_image;
pub mod tenant_vm;
pub mod turns;
pub mod verified;
pub mod witness;

pub use accelerator::Accelerator;
pub use agent::{Job, Output};
pub use appliance_config::ApplianceConfig;
pub use disk::Disk;
pub use error::{Error, Result};
pub use link::Link;
pub use machine::Machine;
pub use one_hba::OneHba;
pub use progress::Progress;
pub use scenario::Scenario;
pub use shim::Shim;
pub use storage_vm::StorageVm;
pub use tenant_vm::{Firmware, TenantMemory, TenantVm, data_disk, disk_at, disk_on, root_disk};
pub use witness::Witness;
