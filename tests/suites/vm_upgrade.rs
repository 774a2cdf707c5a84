//! A storage VM that is switched off by its power button and started from another image, while its
//! tenant works.

use std::thread;
use std::time::{Duration, Instant};

use tests::vm::machine::Machine;
use tests::vm::storage_image::StorageImage;
use tests::vm::verified::{FIO, verified_fio, works_on};
use tests::vm::{
    ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, config_disk, data_disk,
};

/// Whether the machine runs the image that has a module for XFS.
fn is_upgraded(storage: &mut Machine) -> Result<bool> {
    Ok(storage.sh("lsmod | grep -c '^xfs ' || true")? == "1\n")
}

#[test]
fn verified_io_outlasts_an_upgrade_of_the_storage_vm() -> Result<()> {
    let scenario = Scenario::begin("upgrade")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let settings = config_disk::blank(&scenario)?;
    // Written back: what is not flushed when the machine ends is lost.
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &[&root, &data])
        .with_write_back("t1data");
    let place = scenario.disk("image");
    let image = StorageImage::build()?.put_into(&place)?;
    let new = StorageImage::with_modules("xfs-storage-image", &["xfs"])?;
    let made = [&settings, &root, &data]
        .into_iter()
        .fold(StorageVm::new(&config).image(&image), StorageVm::disk);
    let mut storage = made.clone().start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .cpus(4)
        .start(&scenario)?;
    let disk = data_disk(&mut tenant)?;
    // The boot's own messages are among them.
    let troubles = "dmesg | grep -ciE 'i/o error|offline|abort' || true";
    let before = tenant.sh(troubles)?;
    let fio = tenant.start_sh(&format!(
        "while [ ! -e /tmp/enough ]; do {} || exit; done",
        verified_fio(&disk)
    ))?;
    thread::sleep(Duration::from_secs(3));
    assert!(!is_upgraded(&mut storage)?);
    assert!(!config_disk::is_clean(&settings)?, "it is mounted");

    // The guide's steps.
    let pressed = Instant::now();
    let ended = storage.power_off()?;
    assert!(ended.success(), "{ended}");
    assert!(config_disk::is_clean(&settings)?);
    assert!(!fio.is_done(), "verified I/O has ended");
    new.put_into(&place)?;
    storage = made.start(&scenario)?;

    tenant.sh(&format!(
        "dd if={disk} of=/dev/null bs=4k count=1 iflag=direct status=none"
    ))?;
    println!("a pause of {:.1} s", pressed.elapsed().as_secs_f64());
    assert!(is_upgraded(&mut storage)?);
    thread::sleep(Duration::from_secs(3));
    assert!(!fio.is_done(), "verified I/O has ended");
    tenant.sh("touch /tmp/enough")?;
    fio.succeed(FIO)?;
    works_on(&mut tenant, &disk)?;
    assert_eq!(tenant.sh(troubles)?, before);

    // And nothing stays behind in the storage VM.
    let sum = tenant
        .start_sh(&format!("sha256sum {disk}"))?
        .succeed(FIO)?;
    let ended = storage.power_off()?;
    assert!(ended.success(), "{ended}");
    assert_eq!(sum.split_whitespace().next(), Some(data.sha256()?.as_str()));
    Ok(())
}
