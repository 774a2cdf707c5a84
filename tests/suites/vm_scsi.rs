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
    let mut storage = storage.start(&scenario)?;
    assert_eq!(
        storage.sh("cat /sys/block/nvme0n1/queue/atomic_write_unit_max_bytes")?,
        format!("{}\n", u32::from(ATOMIC_BLOCKS) * 512)
    );
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

// 3. File systems, and what is given back.

const MIB: u64 = 1 << 20;

/// Waits until the shell command `condition` succeeds in `machine`.
fn eventually(machine: &mut Machine, condition: &str) -> Result<()> {
    let seconds = 30;
    machine
        .sh(&format!(
            "for try in $(seq {}); do if {condition}; then exit 0; fi; sleep 0.1; done; exit 1",
            10 * seconds
        ))
        .map(drop)
}

/// How to make and to check a file system.
const FILE_SYSTEMS: [(&str, &str, &str); 3] = [
    ("ext4", "mkfs.ext4 -q -F", "e2fsck -fn"),
    ("xfs", "mkfs.xfs -q -f", "xfs_repair -n"),
    ("btrfs", "mkfs.btrfs -q -f", "btrfs check"),
];

#[test]
fn file_systems_give_back_what_they_no_longer_use() -> Result<()> {
    let scenario = Scenario::begin("file_systems")?;
    let data = Disk::blank(&scenario, "t1data", 512)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    for (kind, make, check) in FILE_SYSTEMS {
        tenant.sh(&format!(
            "dd if=/dev/zero of={disk} bs=1M count=256 oflag=direct status=none"
        ))?;
        assert!(data.allocated()? >= 256 * MIB, "before {kind}");

        tenant.sh(&format!("{make} {disk}"))?;
        // Of xfs 64 MiB are its log.
        let empty = data.allocated()?;
        assert!(empty <= 100 * MIB, "mkfs of {kind} left {empty} bytes");

        tenant.sh(&format!(
            "mkdir -p /mnt && mount -t {kind} {disk} /mnt && \
             dd if=/dev/urandom of=/mnt/file bs=1M count=64 status=none && \
             sha256sum /mnt/file >/tmp/sum && umount /mnt && {check} {disk} && \
             mount {disk} /mnt && sha256sum -c /tmp/sum"
        ))?;
        let full = data.allocated()?;
        assert!(full >= empty + 64 * MIB, "{kind}: {empty}, then {full}");

        tenant.sh("rm /mnt/file && sync && fstrim /mnt")?;
        let trimmed = data.allocated()?;
        assert!(
            trimmed + 60 * MIB <= full,
            "fstrim of {kind}: {full}, then {trimmed}"
        );
        tenant.sh(&format!("umount /mnt && {check} {disk}"))?;
    }
    Ok(())
}

#[test]
fn blkdiscard_zeroes_and_gives_back() -> Result<()> {
    let scenario = Scenario::begin("blkdiscard")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    let fill = format!("dd if=/dev/urandom of={disk} bs=1M count=32 oflag=direct status=none");
    let is_zero = format!(
        "dd if={disk} bs=1M count=32 iflag=direct status=none | cmp -n {} - /dev/zero",
        32 * MIB
    );
    for options in ["-z", ""] {
        tenant.sh(&fill)?;
        assert!(data.allocated()? >= 32 * MIB);

        tenant.sh(&format!("blkdiscard {options} -l 32M {disk} && {is_zero}"))?;

        let left = data.allocated()?;
        assert!(left <= MIB, "blkdiscard {options} left {left} bytes");
    }
    Ok(())
}

// 4. LUNs that change.

/// Writes `device` at random places for a while, and reads it back with crc32c.
fn verified_fio(device: &str) -> String {
    format!(
        "fio --name=verify --filename={device} --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --end_fsync=1"
    )
}
/// How long verified I/O may take under TCG on a busy machine.
const FIO: Duration = Duration::from_secs(300);

#[test]
fn lun_grows_under_a_mounted_file_system() -> Result<()> {
    let scenario = Scenario::begin("resize")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    tenant.sh(&format!(
        "mkfs.ext4 -q -F {disk} && mkdir -p /mnt && mount {disk} /mnt && echo old >/mnt/old"
    ))?;

    bench.storage.resize(&data, 256 * MIB)?;

    // Nobody asks the tenant to look.
    eventually(
        tenant,
        &format!("test $(blockdev --getsize64 {disk}) = {}", 256 * MIB),
    )?;
    tenant.sh(&format!(
        "resize2fs {disk} && dd if=/dev/urandom of=/mnt/file bs=1M count=128 status=none && \
         sha256sum /mnt/file >/tmp/sum && umount /mnt && e2fsck -fn {disk} && \
         mount {disk} /mnt && sha256sum -c /tmp/sum && grep old /mnt/old"
    ))?;
    Ok(())
}

#[test]
fn lun_comes_and_goes_while_anothers_verified_io_runs() -> Result<()> {
    let scenario = Scenario::begin("lun_comes_and_goes")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", 256)?;
    let spare = Disk::blank(&scenario, "t1spare", 64)?;
    let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root, &data]);
    let disks = [&root, &data, &spare].into_iter();
    let vm = disks.fold(StorageVm::new(&config), StorageVm::disk);
    let mut storage = vm.start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;
    let disk = disk_at(&mut tenant, 1)?;
    let appliance = storage.sh("pidof appliance")?;
    let fio = tenant.start_sh(&verified_fio(&disk))?;
    let is_there = "lsblk -dno HCTL | grep -q ':0:9$'";

    for _ in 0..2 {
        storage.reconfigure(&config.clone().with_lun("tenant1", 9, &spare))?;
        eventually(&mut tenant, is_there)?;
        let came = disk_at(&mut tenant, 9)?;
        tenant.sh(&format!(
            "dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none && \
             dd if=/tmp/data of={came} bs=1M oflag=direct status=none && \
             dd if={came} bs=1M count=4 iflag=direct status=none | cmp - /tmp/data"
        ))?;
        storage.reconfigure(&config)?;
        eventually(&mut tenant, &format!("! {is_there}"))?;
    }

    assert!(!fio.is_done(), "too quick to show anything");
    fio.succeed(FIO)?;
    assert_eq!(storage.sh("pidof appliance")?, appliance);
    Ok(())
}

// 5. A disk that holds a command.

/// How long a held command may take to end after a reset; the disk would hold it for half a minute.
const AFTER_RESET: Duration = Duration::from_secs(10);

#[test]
fn lun_reset_ends_what_a_slow_disk_holds() -> Result<()> {
    let scenario = Scenario::begin("slow_disk")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    tenant.sh(&format!(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=2 status=none && \
         dd if=/tmp/data of={disk} bs=1M oflag=direct status=none"
    ))?;
    bench.storage.throttle(&data, 64 << 10)?;
    let repeated = tenant.start_sh(&format!(
        "dd if={disk} bs=1M count=2 iflag=direct status=none | cmp - /tmp/data"
    ))?;
    eventually(
        tenant,
        &format!("grep -q ' [1-9][0-9]* ' /sys/block/{}/inflight", &disk[5..]),
    )?;
    // READ(10) of 1024 blocks; a command of SG_IO is not repeated.
    let given_back = tenant.start_sh(&format!(
        "sg_raw --timeout=60 -r 524288 -o /dev/null {disk} 28 00 00 00 00 00 00 04 00 00"
    ))?;
    thread::sleep(Duration::from_secs(2));
    assert!(
        !repeated.is_done() && !given_back.is_done(),
        "nothing is held"
    );

    tenant
        .start_sh(&format!("sg_reset -d {disk}"))?
        .succeed(AFTER_RESET)?;

    let given_back = given_back.output(AFTER_RESET)?;
    assert_ne!(given_back.status, 0, "{}", given_back.text);
    assert!(!repeated.is_done());
    eventually(
        tenant,
        "dmesg | sed '1,/: device reset$/d' | grep 'Power-on or device reset occurred'",
    )?;
    // Linux's driver has no reset of a target, and asks the device nothing.
    let target = tenant
        .start_sh(&format!("sg_reset -N -t {disk}"))?
        .output(AFTER_RESET)?;
    assert!(target.text.contains("may not be available"), "{target:?}");
    bench.storage.throttle(&data, 0)?;
    repeated.succeed(FIO).map(drop)
}

// 6. A disk without room.

#[test]
fn full_disk_refuses_writes_until_something_is_given_back() -> Result<()> {
    let scenario = Scenario::begin("full_disk")?;
    let mut bench = Bench::start(&scenario, &[])?;
    let (storage, tenant) = (&mut bench.storage, &mut bench.tenant);
    storage.sh(
        "mkdir /small && mount -t tmpfs -o size=16m small /small && truncate -s 64M /small/lun",
    )?;
    let config = bench.config.clone();
    storage.reconfigure(&config.with_file_lun("tenant1", 1, "small", "/small/lun"))?;
    eventually(tenant, "lsblk -dno HCTL | grep -q ':0:1$'")?;
    let disk = disk_at(tenant, 1)?;
    let write = |mebibytes: u32| {
        format!("dd if=/tmp/data of={disk} bs=1M count={mebibytes} oflag=direct status=none")
    };
    tenant.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=32 status=none")?;
    tenant.sh(&write(8))?;

    let refused = tenant.start_sh(&write(32))?.output(FIO)?;
    assert!(
        refused.text.contains("No space left on device"),
        "{refused:?}"
    );
    let sense = tenant
        .start_sh(&format!(
            "sg_raw -s 512 -i /tmp/data {disk} 2a 00 00 01 f0 00 00 00 01 00"
        ))?
        .output(FIO)?;
    assert!(
        sense.text.contains("Data Protect")
            && sense.text.contains("Space allocation failed write protect"),
        "{sense:?}"
    );
    let head = "iflag=direct status=none | cmp -n 8388608 - /tmp/data";
    tenant.sh(&format!("dd if={disk} bs=1M count=8 {head}"))?;

    tenant.sh(&format!("blkdiscard {disk}"))?;
    tenant.sh(&write(8))?;
    tenant.sh(&format!("dd if={disk} bs=1M count=8 {head}"))?;
    Ok(())
}
