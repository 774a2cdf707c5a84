//! The smallest installation: one storage VM for one HBA.

use super::appliance_config::ApplianceConfig;
use super::disk::Disk;
use super::error::Result;
use super::scenario::Scenario;
use super::shim::{RunningShim, Shim};
use super::storage_vm::{RunningStorageVm, StorageVm};

/// Size of [`OneHba::data`].
pub const DATA_MIB: u64 = 256;

/// A storage VM with one HBA, "tenant1", whose LUN 0 boots and whose LUN 1 is blank.
#[derive(Debug)]
pub struct OneHba {
    /// LUN 1.
    pub data: Disk,
    /// What the appliance is told.
    pub config: ApplianceConfig,
    /// How the storage VM is made.
    pub made: StorageVm,
    /// It, running.
    pub storage: RunningStorageVm,
}

impl OneHba {
    /// Starts the storage VM.
    pub fn start(scenario: &Scenario) -> Result<Self> {
        let root = Disk::tenant_root(scenario, "t1root")?;
        let data = Disk::blank(scenario, "t1data", DATA_MIB)?;
        let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root, &data]);
        let made = StorageVm::new(&config).disk(&root).disk(&data);
        let storage = made.clone().start(scenario)?;
        Ok(Self {
            data,
            config,
            made,
            storage,
        })
    }

    /// Starts the HBA's shim.
    pub fn shim(&self, scenario: &Scenario) -> Result<RunningShim> {
        Shim::new("tenant1", &self.config).start(scenario, &self.storage)
    }
}
