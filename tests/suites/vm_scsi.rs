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
        let all: Vec<_> = std::iter::once(&root)
            .chain(disks.iter().copied())
            .collect();
        let config = ApplianceConfig::new("storage-1").hba("tenant1", &all);
        let vm = all
            .into_iter()
            .fold(StorageVm::new(&config), StorageVm::disk);
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

/// What does not write, or expects to be refused.
const READING: &[&str] = &[
    "GetLBAStatus",
    "Inquiry",
    "Mandatory",
    "ModeSense6",
    "Prefetch10",
    "Prefetch16",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReadOnly",
    "ReportSupportedOpcodes",
    "TestUnitReady",
];
/// What a second path to the LUN may matter for.
const ON_TWO_HBAS: &[&str] = &["CompareAndWrite", "Inquiry", "MultipathIO", "OrWrite"];
/// What the kind of disk may matter for.
const ON_NVME: &[&str] = &["Inquiry", "Unmap", "WriteAtomic16", "WriteSame16"];

/// The tenant's LUN `lun` as `/dev/sgN`, which can be written to even if the LUN cannot.
fn generic(tenant: &mut Machine, lun: u16) -> Result<String> {
    let disk = disk_at(tenant, lun)?.replace("/dev/", "");
    let name = tenant.sh(&format!(
        "modprobe sg; ls /sys/block/{disk}/device/scsi_generic"
    ))?;
    Ok(format!("/dev/{}", name.trim()))
}

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
    let disks = [
        &root,
        &thin,
        &protected,
        &physical_4k,
        &huge,
        &shared,
        &atomic,
    ];
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &disks)
        .hba("second", &[&shared])
        .with_read_only("protected");
    let storage = disks
        .into_iter()
        .fold(StorageVm::new(&config), StorageVm::disk);
    let storage = storage.start(&scenario)?;
    let first = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let second = Shim::new("second", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&first)
        .hba(&second)
        .start(&scenario)?;
    let mut lun = |number| disk_at(&mut tenant, number);
    let (thin, physical_4k, huge, atomic) = (lun(1)?, lun(3)?, lun(4)?, lun(6)?);
    let protected = generic(&mut tenant, 2)?;
    let both = [disk_on(&mut tenant, 0, 5)?, disk_on(&mut tenant, 1, 0)?];
    let profiles = [
        Profile::new("thin", &[&thin]),
        Profile::new("protected", &[&protected]).only(READING),
        Profile::new("512e", &[&physical_4k]),
        Profile::new("huge", &[&huge]),
        Profile::new("two-hbas", &[&both[0], &both[1]]).only(ON_TWO_HBAS),
        Profile::new("atomic", &[&atomic]).only(ON_NVME),
    ];

    let mut results = Vec::new();
    for profile in profiles {
        results.push(profile.start(&mut tenant)?.finish(scenario.logs())?);
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

// 2. sg3_utils.

/// What `command` prints in `tenant`; fails unless each of `lines` is one of its lines.
///
/// Runs of blanks count as one, and `command` may end with any status.
fn says(tenant: &mut Machine, command: &str, lines: &[&str]) -> Result<()> {
    let printed = tenant.start_sh(command)?.output(Duration::from_secs(60))?;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let printed: Vec<_> = printed.text.lines().map(words).collect();
    let missing: Vec<_> = lines
        .iter()
        .filter(|line| !printed.contains(&words(line)))
        .collect();
    assert!(
        missing.is_empty(),
        "`{command}` does not say {missing:#?}, but:\n{}",
        printed.join("\n")
    );
    Ok(())
}

/// The status with which `command` ends in `tenant`.
fn status(tenant: &mut Machine, command: &str) -> Result<i32> {
    let output = tenant.start_sh(command)?.output(Duration::from_secs(60))?;
    println!("{command}: {}", output.text);
    Ok(output.status)
}

/// sg3_utils' status for the sense key MISCOMPARE.
const MISCOMPARE: i32 = 14;

#[test]
fn sg3_utils_read_what_the_target_is_and_can() -> Result<()> {
    let scenario = Scenario::begin("sg3_utils")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let bench = Bench::start(&scenario, &[&data])?;
    let mut tenant = bench.tenant;
    let disk = disk_at(&mut tenant, 1)?;
    for command in [
        "sg_inq",
        "sg_vpd -a",
        "sg_opcodes -u -r",
        "sg_opcodes -m",
        "sg_modes -a",
        "sg_luns -d",
        "sg_luns -s 1 -d",
        "sg_luns -s 2 -d",
        "sg_get_lba_status",
        "sg_get_lba_status -S",
    ] {
        let printed = tenant
            .start_sh(&format!("{command} {disk}"))?
            .output(Duration::from_secs(60))?;
        println!("== {command}: {}\n{}", printed.status, printed.text);
    }
    says(
        &mut tenant,
        &format!("sg_inq {disk}"),
        &["Product revision level: "],
    )?;
    assert_eq!(
        status(&mut tenant, &format!("sg_compare_and_write {disk}"))?,
        MISCOMPARE
    );
    Ok(())
}
