//! The test harness.
//!
//! * [`world`]: the real shim and the real appliance in one process, between a vfio-user client
//!   that plays the storage VM's QEMU and a vhost-user frontend that plays the tenant's
//! * [`vm`]: real QEMUs with a real storage VM and real tenants

pub mod vm;
pub mod world;
