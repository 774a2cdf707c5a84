//! Snapshots of a LUN on a file on XFS in the storage VM, while a Linux tenant writes it.

use std::time::{Duration, Instant};

use tests::vm::machine::Machine;
use tests::vm::storage_image::StorageImage;
use tests::vm::{ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, disk_at};

/// How long a step may take under TCG on a busy machine.
const STEP: Duration = Duration::from_secs(300);
/// How long something may take to be seen.
const SEEN: Duration = Duration::from_secs(60);
const POOL_MIB: u64 = 768;
const DATA_MIB: u64 = 128;

/// The sum of all of a tenant's disk, past its page cache.
fn sum(tenant: &mut Machine, disk: &str) -> Result<String> {
    let read = format!("dd if={disk} bs=1M iflag=direct status=none | sha256sum");
    let sum = tenant.start_sh(&read)?.succeed(STEP)?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Waits until the tenant has a LUN of this number.
fn wait_for_disk(tenant: &mut Machine, lun: u16) -> Result<String> {
    let deadline = Instant::now() + SEEN;
    loop {
        match disk_at(tenant, lun) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            found => return found,
        }
    }
}

#[test]
fn a_snapshot_under_verified_load_comes_back_and_a_clone_and_a_copy_share_blocks() -> Result<()> {
    let scenario = Scenario::begin("snapshot")?;
    let image = StorageImage::with_modules("xfs-storage-image", &["xfs"])?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let pool = Disk::blank(&scenario, "pool", POOL_MIB)?;
    let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root, &pool]);
    let storage = StorageVm::new(&config).image(&image).memory_mib(512);
    let mut storage = [&root, &pool]
        .into_iter()
        .fold(storage, StorageVm::disk)
        .start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;

    // The tenant has the programs: it makes the filesystem for the storage VM.
    let disk = disk_at(&mut tenant, 1)?;
    tenant.sh(&format!("mkfs.xfs -q -f {disk} && sync"))?;
    storage.sh("appliance console lun remove pool && mkdir -p /run/srv && \
         for disk in /sys/block/*; do grep -qsx pool $disk/serial && pool=/dev/${disk##*/}; done; \
         for try in $(seq 100); do mount -t xfs $pool /run/srv && break; sleep 0.1; done; \
         grep ' /run/srv xfs ' /proc/mounts")?;
    storage.sh(&format!(
        "truncate -s {DATA_MIB}M /run/srv/data.img && \
         appliance console lun add data path=/run/srv/data.img to=tenant1 at=2"
    ))?;
    let data = wait_for_disk(&mut tenant, 2)?;

    // Half of it is written once, the other half all the time.
    let half = DATA_MIB / 2;
    tenant.sh(&format!(
        "dd if=/dev/urandom of={data} bs=1M count={half} oflag=direct status=none"
    ))?;
    let load = tenant.start_sh(&format!(
        "fio --name=load --filename={data} --offset={half}M --size={half}M --direct=1 \
         --ioengine=libaio --iodepth=16 --rw=randwrite --bs=16k --loops=4 --verify=crc32c \
         --verify_fatal=1"
    ))?;
    for name in ["one", "two", "three"] {
        std::thread::sleep(Duration::from_millis(700));
        storage.sh(&format!(
            "appliance console lun snapshot data create {name}"
        ))?;
    }
    println!("{}", load.succeed(STEP)?);
    println!("{}", storage.sh("appliance console lun snapshot data")?);

    let taken = storage.sh("sha256sum /run/srv/data.img.snapshots/two")?;
    let before = sum(&mut tenant, &data)?;
    assert!(!taken.starts_with(&before), "nothing has changed since");
    tenant.sh(&format!(
        "dd if=/dev/zero of={data} bs=1M count={half} oflag=direct status=none"
    ))?;
    storage.sh("appliance console lun snapshot data rollback two")?;
    let after = sum(&mut tenant, &data)?;
    assert!(taken.starts_with(&after), "{taken} is not {after}");

    // A clone has the same, and is another disk.
    storage.sh("appliance console lun clone data copy path=/run/srv/copy.img to=tenant1 at=3")?;
    let copy = wait_for_disk(&mut tenant, 3)?;
    assert_eq!(sum(&mut tenant, &copy)?, after);
    tenant.sh(&format!(
        "dd if=/dev/zero of={copy} bs=1M oflag=direct status=none; true"
    ))?;
    assert_eq!(sum(&mut tenant, &data)?, after);

    // The tenant copies all of it, and the filesystem shares the blocks.
    let generic = |disk: &str| {
        let name = disk.trim_start_matches("/dev/");
        format!("/dev/$(ls /sys/block/{name}/device/scsi_generic)")
    };
    let (from, to) = (generic(&data), generic(&copy));
    let blocks = DATA_MIB * 2048;
    tenant
        .start_sh(&format!(
            "modprobe sg; sg_xcopy if={from} of={to} bs=512 count={blocks} bpt=65528 2>&1"
        ))?
        .succeed(STEP)?;
    assert_eq!(sum(&mut tenant, &copy)?, after);
    let shown = storage.sh("appliance console show copy")?;
    assert!(shown.contains("copied to 128 MiB by reflink\n"), "{shown}");
    Ok(())
}
