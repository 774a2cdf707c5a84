//! The machines: a storage VM, a tenant, and every way from one to the other.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tests::vm::qemu::Qemu;
use tests::vm::shim::RunningShim;
use tests::vm::storage_image::StorageImage;
use tests::vm::storage_vm::RunningStorageVm;
use tests::vm::{
    Accelerator, ApplianceConfig, Disk, Link, Machine, Scenario, Shim, StorageVm, TenantVm,
    disk_on, progress,
};

use super::error::{Context, Result};
use super::way::Way;
use super::{initiator, target};

/// Size of the disk that is compared on.
const DISK_MIB: u64 = 512;
/// The disk as the storage VM's appliance has it, and as its other servers have it.
const SERIALS: [&str; 2] = ["bench", "benchnet"];

/// All of it; the machines end with it.
pub struct Rig {
    // Dropped in this order: tenant, shim, storage VM, and then what they are made of.
    tenant: Machine,
    shim: RunningShim,
    storage: RunningStorageVm,
    disks: Vec<(Way, String)>,
    accelerator: Accelerator,
    _scenario: Scenario,
}

impl Rig {
    /// Makes it, with a shim that polls for so many microseconds after a call.
    ///
    /// # Errors
    /// Something could not be fetched, built or started, or a way leads to another disk.
    pub fn start(doorbell_poll_us: Option<u32>) -> Result<Self> {
        let archive = initiator::archive()?;
        let image = StorageImage::with_modules("bench-storage-image", target::MODULES)?;
        let accelerator = Accelerator::choose(&Qemu::find()?)?;
        let scenario = Scenario::begin_alone("bench_vm")?;
        scenario.clean_up_on_ctrl_c()?;
        let _step = progress::step("starting the machines");

        // All have one file, so none may lock it; none has pages of it in the host's cache.
        let served = Disk::blank(&scenario, SERIALS[0], DISK_MIB)?
            .drive_option("cache=none")
            .drive_option("aio=native")
            .drive_option("file.locking=off");
        fill(served.path())?;
        let exported = served.again(SERIALS[1]);
        let root = Disk::tenant_root(&scenario, "root")?;
        let tools = Disk::holding(&scenario, "tools", &archive)?;

        let link = Link::new(&scenario, "bench");
        let config = ApplianceConfig::new("storage").hba("tenant", &[&served]);
        let mut storage = StorageVm::new(&config)
            .image(&image)
            .disk(&served)
            .disk(&exported)
            .link(&link)
            .ports(1)
            .start(&scenario)?;
        target::serve(&mut storage, SERIALS[1])?;
        let mut shim = Shim::new("tenant", &config);
        if let Some(time) = doorbell_poll_us {
            shim = shim.arg(&format!("--doorbell-poll-us={time}"));
        }
        let shim = shim.start(&scenario, &storage)?;
        let mut tenant = TenantVm::new("tenant")
            .hba(&shim)
            // Quicker to boot from than what is measured, where the machine is busy.
            .own_disk(&root)
            .own_disk(&served)
            .own_disk(&tools)
            .link(&link)
            .start(&scenario)?;
        let tools = disk_on(&mut tenant, 1, 2)?;
        initiator::connect(&mut tenant, Path::new(&tools))?;
        let disks = vec![
            (Way::VhostPci, disk_on(&mut tenant, 0, 0)?),
            (Way::Iscsi, initiator::iscsi_disk(&mut tenant)?),
            (Way::NvmeTcp, initiator::NVME_DISK.to_owned()),
            (Way::Qemu, disk_on(&mut tenant, 1, 1)?),
        ];
        let named: Vec<_> = disks
            .iter()
            .map(|(way, disk)| (way.name(), disk.clone()))
            .collect();
        initiator::check_same(&mut tenant, &named)?;
        Ok(Self {
            tenant,
            shim,
            storage,
            disks,
            accelerator,
            _scenario: scenario,
        })
    }

    /// The tenant.
    pub fn tenant(&mut self) -> &mut Machine {
        &mut self.tenant
    }

    /// The tenant's disk by `way`, as `/dev/…`.
    pub fn disk(&self, way: Way) -> String {
        let found = self.disks.iter().find(|(known, _)| *known == way);
        found.expect("every way has a disk").1.clone()
    }

    /// Requests that have reached the disk by `way` since the start, as its QEMU counts them.
    ///
    /// # Errors
    /// QEMU does not say.
    pub fn requests(&mut self, way: Way) -> Result<u64> {
        let (drive, qmp) = match way {
            Way::VhostPci => ("disk0", self.storage.qmp()),
            Way::Iscsi | Way::NvmeTcp => ("disk1", self.storage.qmp()),
            Way::Qemu => ("own1", self.tenant.qmp()),
        };
        let all = qmp.execute("query-blockstats", json!({}))?;
        let drives = all.as_array().map_or(&[] as &[Value], Vec::as_slice);
        let stats = drives.iter().find(|found| found["device"] == drive);
        let count = |name: &str| stats.and_then(|found| found["stats"][name].as_u64());
        count("rd_operations")
            .zip(count("wr_operations"))
            .map(|(reads, writes)| reads + writes)
            .ok_or_else(|| {
                tests::vm::Error::Unexpected {
                    what: format!("QEMU's query-blockstats: {all}"),
                    problem: format!("should have a drive {drive}"),
                }
                .into()
            })
    }

    /// The processes whose CPU time is told: both QEMUs, and the shim's.
    ///
    /// # Errors
    /// One is gone.
    pub fn processes(&self) -> Result<[(&'static str, u32); 5]> {
        let [keeper, supervisor, relay] = self.shim.processes()?;
        Ok([
            ("tenant's QEMU", self.tenant.id()),
            ("storage VM's QEMU", self.storage.id()),
            ("shim's keeper", keeper),
            ("shim's supervisor", supervisor),
            ("shim's relay", relay),
        ])
    }

    /// How often the tenant was called by vhost-pci since the start, and how often the shim was
    /// woken for that.
    ///
    /// # Errors
    /// The shim does not say.
    pub fn calls(&mut self) -> Result<(u64, u64)> {
        let counted = self.shim.counted()?;
        Ok((counted.calls, counted.trapped_doorbells))
    }

    /// How the machines run.
    pub fn accelerator(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "KVM.",
            Accelerator::Tcg => {
                "Emulated (TCG): the ratios do not carry over to KVM, where guests' instructions \
                 cost less and exits more."
            }
        }
    }
}

/// Writes all of it: reading what was never written costs a file system nothing.
fn fill(path: &Path) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let chunk: Vec<u8> = (0..CHUNK).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let write = || {
        let mut file = File::create(path)?;
        for _ in 0..DISK_MIB {
            file.write_all(&chunk)?;
        }
        file.sync_all()
    };
    write().doing(format!("fill {}", path.display()))
}
