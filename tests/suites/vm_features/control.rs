//! What Linux's driver never does to an HBA, done by a program in the tenant that drives one
//! itself: aborts and queries of held commands, and resets in the middle of I/O.

use std::time::Duration;

use tests::vm::machine::Machine;
use tests::vm::{
    ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, disk_on, programs,
};

/// What the program's checks expect of the slow disk; they take about two minutes with it.
const SLOW: u32 = 4;
/// How long the program may take under TCG on a busy machine.
const PROBE: Duration = Duration::from_secs(600);

/// Linux's PCI driver for virtio, which takes the HBA from its SCSI driver, too, when it goes.
const DRIVER: &str = "/sys/bus/pci/drivers/virtio-pci";

#[test]
fn aborts_queries_and_resets_keep_to_the_standard_and_leave_memory_alone() -> Result<()> {
    let scenario = Scenario::begin("control")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let slow = Disk::blank(&scenario, "t1slow", 16)?.throttled(SLOW);
    let program = Disk::holding(&scenario, "t1probe", &programs::for_tenant("hba-probe")?)?;
    let config = ApplianceConfig::new("storage-1")
        .hba("boot", &[&root])
        .hba("work", &[&slow, &program]);
    let storage = [&root, &slow, &program]
        .into_iter()
        .fold(StorageVm::new(&config), StorageVm::disk)
        .start(&scenario)?;
    let boot = Shim::new("boot", &config).start(&scenario, &storage)?;
    let work = Shim::new("work", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&boot)
        .hba(&work)
        .start(&scenario)?;
    let disk = disk_on(&mut tenant, 1, 1)?;
    tenant.sh(&format!(
        "dd if={disk} of=/tmp/hba-probe bs=1M iflag=direct status=none && chmod +x /tmp/hba-probe"
    ))?;
    let function = function_of(&mut tenant, &disk)?;

    tenant.sh(&format!("echo {function} >{DRIVER}/unbind"))?;
    let checks = tenant
        .start_sh(&format!("/tmp/hba-probe {function}"))?
        .output(PROBE)?;
    println!("{}", checks.text);
    tenant.sh(&format!("echo {function} >{DRIVER}/bind"))?;
    linux_uses_the_slow_disk(&mut tenant, &function)?;

    assert_eq!(checks.status, 0, "a check failed, or there was none");
    Ok(())
}

/// The PCI function of the HBA that has `disk`, as sysfs names it.
fn function_of(tenant: &mut Machine, disk: &str) -> Result<String> {
    let name = disk.replace("/dev/", "");
    // The disk's device is below its target, host and virtio device.
    let path = tenant.sh(&format!(
        "basename $(readlink -f /sys/block/{name}/device/../../../..)"
    ))?;
    Ok(path.trim().to_owned())
}

/// Writes and reads the slow disk, LUN 0 of `function`, with Linux's own driver.
fn linux_uses_the_slow_disk(tenant: &mut Machine, function: &str) -> Result<()> {
    let devices =
        format!("/sys/bus/pci/devices/{function}/virtio*/host*/target*:0:0/*:0:0:0/block");
    let disk = tenant.sh(&format!(
        "for try in $(seq 300); do ls {devices} 2>/dev/null && break; sleep 0.1; done"
    ))?;
    let disk = format!("/dev/{}", disk.trim());
    tenant.sh(&format!(
        "dd if=/dev/urandom of=/tmp/data bs=64k count=4 status=none && \
         dd if=/tmp/data of={disk} bs=64k oflag=direct status=none && \
         dd if={disk} bs=64k count=4 iflag=direct status=none | cmp - /tmp/data"
    ))?;
    Ok(())
}
