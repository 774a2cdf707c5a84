//! Real machines that are reset and killed while they work: every kind of reboot, drivers that
//! leave, tenants, shims, appliances and storage VMs that are killed.

use std::{thread, time::Duration};

use tests::vm::machine::Machine;
use tests::vm::shim::RunningShim;
use tests::vm::storage_vm::RunningStorageVm;
use tests::vm::verified::{FIO, verified_fio, works};
use tests::vm::{
    ApplianceConfig, Disk, OneHba, Result, Scenario, Shim, StorageVm, TenantVm, Witness, data_disk,
    disk_on, programs,
};
use uuid::Uuid;

/// How long unplugging may take: the guest is asked, and has to agree.
const UNPLUG: Duration = Duration::from_secs(30);
const DATA_MIB: u64 = 256;

/// How many functions the storage VM's appliance has: those bound to vfio-pci.
fn functions(storage: &mut RunningStorageVm) -> Result<usize> {
    let functions = storage.sh("ls /sys/bus/pci/drivers/vfio-pci | grep -c ^0000: || true")?;
    Ok(functions.trim().parse().unwrap_or(0))
}

/// Waits until the storage VM has `count` vhost-pci functions.
fn wait_functions(storage: &mut RunningStorageVm, count: usize) -> Result<()> {
    let deadline = std::time::Instant::now() + UNPLUG;
    while functions(storage)? != count {
        assert!(
            deadline > std::time::Instant::now(),
            "the storage VM never had {count} functions"
        );
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// What the appliance holds of tenants: descriptors (the fewest of five looks, for it opens others
/// when it looks for functions), mappings of functions, and threads (without those that the kernel
/// lends to io_uring, which come and go).
fn resources(storage: &mut RunningStorageVm) -> Result<String> {
    storage.sh("cd /proc/$(pidof appliance); \
         for look in 1 2 3 4 5; do ls fd 2>/dev/null | wc -l; sleep 0.1; done | sort -n | head -n 1; \
         grep -c vfio-device maps; \
         cat task/*/comm | grep -vc ^iou-")
}

/// Waits until the appliance holds just `expected`; its threads end after the function is gone.
fn wait_resources(storage: &mut RunningStorageVm, expected: &str) -> Result<()> {
    let deadline = std::time::Instant::now() + UNPLUG;
    loop {
        let held = resources(storage)?;
        if held == expected {
            return Ok(());
        }
        assert!(
            deadline > std::time::Instant::now(),
            "the appliance holds {held:?}, not {expected:?}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

// 1. Reboots.

#[test]
fn tenant_comes_back_from_reset_reboot_kexec_and_power_cycle() -> Result<()> {
    let scenario = Scenario::begin("reboots")?;
    let bench = OneHba::start(&scenario)?;
    let shim = bench.shim(&scenario)?;
    let vm = TenantVm::new("tenant1").hba(&shim);
    let mut tenant = vm.start(&scenario)?;

    works_after_each_reboot(&mut tenant)?;
    drop(tenant);
    works(&mut vm.start(&scenario)?)
}

#[test]
#[ignore = "long"]
fn tenant_comes_back_ten_times_from_each_of_them() -> Result<()> {
    let scenario = Scenario::begin("reboots_long")?;
    let bench = OneHba::start(&scenario)?;
    let shim = bench.shim(&scenario)?;
    let vm = TenantVm::new("tenant1").hba(&shim);
    for _ in 0..10 {
        works_after_each_reboot(&mut vm.start(&scenario)?)?;
    }
    Ok(())
}

/// A reset by QEMU, a reboot by the guest, and a kexec, each in the middle of I/O, and I/O after
/// it.
fn works_after_each_reboot(tenant: &mut Machine) -> Result<()> {
    keep_writing(tenant)?;
    tenant.reset()?;
    works(tenant)?;
    keep_writing(tenant)?;
    tenant.reboot_with("busybox reboot -f")?;
    works(tenant)?;
    tenant.sh("kexec -l /boot/vmlinuz --initrd=/boot/initramfs --reuse-cmdline && sync")?;
    keep_writing(tenant)?;
    tenant.reboot_with("kexec -e")?;
    works(tenant)
}

/// Has writes to the data disk under way, until something ends them.
fn keep_writing(tenant: &mut Machine) -> Result<()> {
    let disk = data_disk(tenant)?;
    let _lost = tenant.start_sh(&writes(&disk))?;
    wait_written(tenant, &disk)
}

/// Writes to `disk` without an end.
fn writes(disk: &str) -> String {
    format!(
        "fio --name=load --filename={disk} --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=4k --time_based --runtime=600"
    )
}

/// Waits until `disk` is busy.
fn wait_written(tenant: &mut Machine, disk: &str) -> Result<()> {
    let name = disk.replace("/dev/", "");
    // The ninth number is the requests under way.
    tenant
        .sh(&format!(
            "until read -r _ _ _ _ _ _ _ _ busy _ </sys/block/{name}/stat && test $busy -gt 0; \
             do sleep 0.05; done"
        ))
        .map(drop)
}

// 2. Drivers that leave.

#[test]
fn driver_can_be_unbound_in_the_middle_of_io_and_bound_again() -> Result<()> {
    driver_leaves("unbind", 3)
}

#[test]
#[ignore = "long"]
fn driver_can_be_unbound_fifty_times() -> Result<()> {
    driver_leaves("unbind_long", 50)
}

fn driver_leaves(name: &str, rounds: usize) -> Result<()> {
    let scenario = Scenario::begin(name)?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", DATA_MIB)?;
    let config = ApplianceConfig::new("storage-1")
        .hba("boot", &[&root])
        .hba("work", &[&data]);
    let storage = StorageVm::new(&config)
        .disk(&root)
        .disk(&data)
        .start(&scenario)?;
    let boot = Shim::new("boot", &config).start(&scenario, &storage)?;
    let work = Shim::new("work", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&boot)
        .hba(&work)
        .start(&scenario)?;
    let count = "lsblk -dno NAME | grep -c ^sd";
    let disk = data_disk(&mut tenant)?.replace("/dev/", "");
    let hba = tenant.sh(&format!(
        "basename $(readlink -f /sys/block/{disk}/device/../../..)"
    ))?;
    let driver = "/sys/bus/virtio/drivers/virtio_scsi";

    for _ in 0..rounds {
        works(&mut tenant)?;
        let disk = data_disk(&mut tenant)?;
        let load = tenant.start_sh(&writes(&disk))?;
        wait_written(&mut tenant, &disk)?;
        tenant.sh(&format!(
            "echo {} >{driver}/unbind; test $({count}) = 1",
            hba.trim()
        ))?;
        let ended = load.output(FIO)?;
        assert_ne!(ended.status, 0, "it wrote on: {}", ended.text);
        tenant.sh(&format!(
            "echo {} >{driver}/bind; until test $({count}) = 2; do sleep 0.1; done",
            hba.trim()
        ))?;
    }
    works(&mut tenant)
}

// 3. Two tenants.

#[test]
fn killed_tenant_leaves_its_neighbour_alone_and_comes_back() -> Result<()> {
    let scenario = Scenario::begin("two_tenants")?;
    let roots = [
        Disk::tenant_root(&scenario, "t1root")?,
        Disk::tenant_root(&scenario, "t2root")?,
    ];
    let data = [
        Disk::blank(&scenario, "t1data", DATA_MIB)?,
        Disk::blank(&scenario, "t2data", DATA_MIB)?,
    ];
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &[&roots[0], &data[0]])
        .hba("tenant2", &[&roots[1], &data[1]]);
    let mut storage = roots
        .iter()
        .chain(&data)
        .fold(StorageVm::new(&config), StorageVm::disk)
        .start(&scenario)?;
    let shims = [
        Shim::new("tenant1", &config).start(&scenario, &storage)?,
        Shim::new("tenant2", &config).start(&scenario, &storage)?,
    ];
    let mut survivor = TenantVm::new("tenant1").hba(&shims[0]).start(&scenario)?;
    wait_functions(&mut storage, 1)?;
    let for_one = resources(&mut storage)?;
    let victim = TenantVm::new("tenant2").hba(&shims[1]);
    let mut killed = victim.start(&scenario)?;
    wait_functions(&mut storage, 2)?;
    assert_ne!(resources(&mut storage)?, for_one);

    let disks = [data_disk(&mut survivor)?, data_disk(&mut killed)?];
    let survivors_fio = survivor.start_sh(&verified_fio(&disks[0]))?;
    let _victims_fio = killed.start_sh(&verified_fio(&disks[1]))?;
    thread::sleep(Duration::from_secs(3));
    assert!(!survivors_fio.is_done(), "too quick to show anything");
    killed.kill();

    wait_functions(&mut storage, 1)?;
    wait_resources(&mut storage, &for_one)?;
    survivors_fio.succeed(FIO)?;
    let mut back = victim.start(&scenario)?;
    wait_functions(&mut storage, 2)?;
    works(&mut back)?;
    works(&mut survivor)
}

// 4. Parts that are killed, again and again.

/// A part that may be killed.
#[derive(Debug, Clone, Copy)]
enum Part {
    Supervisor,
    Relay,
    Appliance,
    StorageVm,
}

impl Part {
    const ALL: [Self; 4] = [
        Self::Supervisor,
        Self::Relay,
        Self::Appliance,
        Self::StorageVm,
    ];

    /// Kills it with SIGKILL; returns when there is another, or will be without any help.
    fn kill(self, scenario: &Scenario, bench: &mut OneHba, shim: &mut RunningShim) -> Result<()> {
        match self {
            Self::Supervisor => shim.kill_supervisor(),
            Self::Relay => shim.kill_relay(),
            Self::Appliance => bench.storage.sh("kill -9 $(pidof appliance)").map(drop),
            Self::StorageVm => {
                bench.storage.kill();
                bench.storage = bench.made.clone().start(scenario)?;
                Ok(())
            }
        }
    }
}

/// Half a second to two and a half.
fn a_moment() -> Duration {
    let random = Uuid::new_v4().as_bytes()[0];
    Duration::from_millis(500 + 8 * u64::from(random))
}

/// Kills each part `rounds` times under verified I/O, and prints a table of the pauses.
fn verified_io_outlasts_kills(name: &str, rounds: usize) -> Result<()> {
    let scenario = Scenario::begin(name)?;
    let mut bench = OneHba::start(&scenario)?;
    let mut shim = bench.shim(&scenario)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .cpus(4)
        .start(&scenario)?;
    wait_functions(&mut bench.storage, 1)?;
    let held = resources(&mut bench.storage)?;
    // VFIO's offset of BAR1: QEMU has asked for in-flight memory, and its rings are tracked.
    let mapped = "grep vfio-device /proc/$(pidof appliance)/maps | grep -c ' 10000000000 '";
    assert_eq!(bench.storage.sh(mapped)?.trim(), "1");
    let data = data_disk(&mut tenant)?;
    // The boot's own messages are among them.
    let troubles = "dmesg | grep -ciE 'i/o error|offline|abort' || true";
    let before = tenant.sh(troubles)?;
    let fio = tenant.start_sh(&format!(
        "while [ ! -e /tmp/enough ]; do {} || exit; done",
        verified_fio(&data)
    ))?;

    // A supervisor has nothing to do with either VM's connection: nobody else hears of it.
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(500));
        shim.kill_supervisor()?;
    }
    tenant.sh(&look_at(&data))?;
    assert_eq!(shim.log().count("goes on"), 5);
    assert_eq!(shim.log().count("tenant disconnected"), 0);
    assert_eq!(shim.log().count("appliance detached"), 0);
    wait_resources(&mut bench.storage, &held)?;

    println!("seconds until the tenant's disk answers again, after SIGKILL of");
    for part in Part::ALL {
        let mut pauses = Vec::new();
        for _ in 0..rounds {
            thread::sleep(a_moment());
            assert!(
                !fio.is_done(),
                "verified I/O has ended: {part:?}, {pauses:?}"
            );
            let killed = std::time::Instant::now();
            part.kill(&scenario, &mut bench, &mut shim)?;
            tenant.sh(&look_at(&data))?;
            pauses.push(killed.elapsed().as_secs_f64());
        }
        pauses.sort_by(f64::total_cmp);
        let (least, most) = (pauses[0], pauses[rounds - 1]);
        println!("  {:<12} {least:5.1} to {most:5.1}", format!("{part:?}"));
        if most > 30.0 {
            println!("warning: more than the 30 s that it should need");
        }
    }

    tenant.sh("touch /tmp/enough")?;
    fio.succeed(FIO)?;
    works(&mut tenant)?;
    assert_eq!(tenant.sh(troubles)?, before);
    let sum = tenant
        .start_sh(&format!("sha256sum {data}"))?
        .succeed(FIO)?;
    assert_eq!(
        sum.split_whitespace().next(),
        Some(bench.data.sha256()?.as_str())
    );
    Ok(())
}

/// Reads a block of `disk`, from the disk itself.
fn look_at(disk: &str) -> String {
    format!("dd if={disk} of=/dev/null bs=4k count=1 iflag=direct status=none")
}

#[test]
fn verified_io_outlasts_whatever_is_killed() -> Result<()> {
    verified_io_outlasts_kills("killed", 2)
}

#[test]
#[ignore = "long"]
fn verified_io_outlasts_twenty_kills_of_each_part() -> Result<()> {
    verified_io_outlasts_kills("killed_long", 20)
}

// 5. What was acknowledged.

/// Kills the storage VM so many times while a tenant writes, and holds what the tenant was promised
/// against the disk: while the storage VM is dead, and at the end.
fn promises_are_kept(name: &str, kills: usize) -> Result<()> {
    let scenario = Scenario::begin(name)?;
    let root = Disk::tenant_root(&scenario, "root")?;
    let data = Disk::blank(&scenario, "t1data", 16)?;
    let program = Disk::holding(&scenario, "t1prog", &programs::for_tenant("witness")?)?;
    let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&data, &program]);
    let made = StorageVm::new(&config).disk(&data).disk(&program);
    let mut storage = made.clone().start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    // The tenant itself has to run on while the storage VM does not.
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .own_disk(&root)
        .cpus(4)
        .start(&scenario)?;
    let (device, program) = (disk_on(&mut tenant, 0, 0)?, disk_on(&mut tenant, 0, 1)?);
    let witness = Witness::start(&mut tenant, &program, &device)?;

    let mut promised = 0;
    for kill in 0..kills {
        thread::sleep(a_moment());
        storage.kill();
        assert!(!witness.is_done(), "a write failed");
        let now = Witness::check(&mut tenant, &data)?;
        println!(
            "kill {kill}: {} writes were acknowledged since the last",
            now - promised
        );
        assert!(now > promised, "nothing was written, and so nothing shown");
        promised = now;
        storage = made.clone().start(&scenario)?;
        tenant.sh(&look_at(&device))?;
    }

    thread::sleep(a_moment());
    println!("{}", witness.stop(&mut tenant)?.trim());
    let all = Witness::check(&mut tenant, &data)?;
    assert!(all > promised);
    Ok(())
}

#[test]
fn acknowledged_writes_are_on_the_disk_when_the_storage_vm_was_killed() -> Result<()> {
    promises_are_kept("promises", 1)
}

#[test]
#[ignore = "long"]
fn acknowledged_writes_outlive_ten_kills_of_the_storage_vm() -> Result<()> {
    promises_are_kept("promises_long", 10)
}
