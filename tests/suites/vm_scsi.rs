//! The SCSI target as a stock Linux tenant sees it: libiscsi's conformance tests, sg3_utils' reading
//! of its pages, file systems with discard, and LUNs that grow, come, go, or hold a command.

use std::{fs, thread, time::Duration};

use tests::vm::conformance::{Expected, Profile, expected::totals};
use tests::vm::error::FileContext;
use tests::vm::machine::Machine;
use tests::vm::shim::RunningShim;
use tests::vm::storage_vm::RunningStorageVm;
use tests::vm::{
    ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, disk_at, disk_on,
};

/// A storage VM with `disks` as LUN 1, 2, … of the HBA "tenant1", and a tenant booted from LUN 0.
struct Bench {
    config: ApplianceConfig,
    // Dropped in this order: the tenant goes first.
    tenant: Machine,
    _shim: RunningShim,
    storage: RunningStorageVm,
}

impl Bench {
    fn start(scenario: &Scenario, disks: &[&Disk]) -> Result<Self> {
        let root = Disk::tenant_root(scenario, "t1root")?;
        let all: Vec<_> = std::iter::once(&root).chain(disks.iter().copied()).collect();
        let config = ApplianceConfig::new("storage-1").hba("tenant1", &all);
        let vm = all.into_iter().fold(StorageVm::new(&config), StorageVm::disk);
        let storage = vm.start(scenario)?;
        let shim = Shim::new("tenant1", &config).start(scenario, &storage)?;
        let tenant = TenantVm::new("tenant1").hba(&shim).start(scenario)?;
        Ok(Self {
            config,
            tenant,
            _shim: shim,
            storage,
        })
    }
}

// 1. Conformance.

/// Logical blocks that the NVMe disk writes whole or not at all.
const ATOMIC_BLOCKS: u16 = 64;

#[test]
fn conformance_is_as_listed_on_every_kind_of_lun() -> Result<()> {
    let scenario = Scenario::begin("conformance")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let thin = Disk::blank(&scenario, "thin", 256)?;
    let protected = Disk::blank(&scenario, "protected", 64)?;
    let physical_4k = Disk::blank(&scenario, "physical4k", 256)?.with_physical_block(4096);
    let huge = Disk::blank(&scenario, "huge", 3 << 20)?;
    let shared = Disk::blank(&scenario, "shared", 256)?;
    let atomic = Disk::blank(&scenario, "atomic", 256)?.with_atomic_writes(ATOMIC_BLOCKS);
    let disks = [&root, &thin, &protected, &physical_4k, &huge, &shared, &atomic];
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &disks)
        .hba("second", &[&shared])
        .with_read_only("protected");
    let storage = disks.into_iter().fold(StorageVm::new(&config), StorageVm::disk);
    let storage = storage.start(&scenario)?;
    let first = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let second = Shim::new("second", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&first)
        .hba(&second)
        .start(&scenario)?;
    let lun = |tenant: &mut Machine, number| disk_at(tenant, number);
    let both = [disk_on(&mut tenant, 0, 5)?, disk_on(&mut tenant, 1, 0)?];
    let profiles = [
        Profile::new("thin", &[&lun(&mut tenant, 1)?]),
        Profile::new("protected", &[&lun(&mut tenant, 2)?]),
        Profile::new("512e", &[&lun(&mut tenant, 3)?]),
        Profile::new("huge", &[&lun(&mut tenant, 4)?]),
        Profile::new("two-hbas", &[&both[0], &both[1]]),
        Profile::new("atomic", &[&lun(&mut tenant, 6)?]),
    ];

    let mut results = Vec::new();
    for profile in profiles {
        let start = std::time::Instant::now();
        results.push(profile.start(&mut tenant)?.finish(scenario.logs())?);
        println!("{:?}", start.elapsed());
    }

    println!("{}", totals(&results));
    let expected = Expected::list();
    let lines = scenario.log("conformance-lines");
    fs::write(&lines, expected.lines_for(&results)).file("write", &lines)?;
    let differences = expected.differences(&results);
    assert!(
        differences.is_empty(),
        "{} differences from tests/conformance/expected.toml; its lines would be those in {}:\n{}",
        differences.len(),
        lines.display(),
        differences.join("\n")
    );
    Ok(())
}
