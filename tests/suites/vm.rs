//! The main job on real parts: stock QEMUs, a real storage VM, Linux tenants with their stock
//! `virtio_scsi` driver: boot from a LUN, verified I/O with four queues, tenants of 768 MiB to
//! 6 GiB, every kind of reboot, two tenants of which one is killed, and mistakes.

use std::{thread, time::Duration};

use tests::vm::machine::Machine;
use tests::vm::shim::RunningShim;
use tests::vm::storage_vm::RunningStorageVm;
use tests::vm::{
    ApplianceConfig, Disk, Firmware, Result, Scenario, Shim, StorageVm, TenantMemory, TenantVm,
    data_disk, disk_at, root_disk,
};
use uuid::Uuid;

/// How long verified I/O may take under TCG on a busy machine.
const FIO: Duration = Duration::from_secs(300);
/// How long unplugging may take: the guest is asked, and has to agree.
const UNPLUG: Duration = Duration::from_secs(30);
const DATA_MIB: u64 = 256;

/// A storage VM with one HBA, "tenant1", whose LUN 0 boots and whose LUN 1 is blank.
struct OneHba {
    data: Disk,
    config: ApplianceConfig,
    /// How the storage VM is made.
    made: StorageVm,
    storage: RunningStorageVm,
}

impl OneHba {
    fn start(scenario: &Scenario) -> Result<Self> {
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

    fn shim(&self, scenario: &Scenario) -> Result<RunningShim> {
        Shim::new("tenant1", &self.config).start(scenario, &self.storage)
    }
}

/// Writes all of `device` at random places, and reads it back with crc32c.
fn verified_fio(device: &str) -> String {
    format!(
        "fio --name=verify --filename={device} --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --end_fsync=1"
    )
}

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
         for look in 1 2 3 4 5; do ls fd | wc -l; sleep 0.1; done | sort -n | head -n 1; \
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

/// Whether the tenant reads and writes its data LUN.
fn works(tenant: &mut Machine) -> Result<()> {
    let disk = data_disk(tenant)?;
    works_on(tenant, &disk)
}

/// Whether the tenant reads and writes `disk`.
fn works_on(tenant: &mut Machine, disk: &str) -> Result<()> {
    tenant.sh(&format!(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none && \
         dd if=/tmp/data of={disk} bs=1M oflag=direct status=none && \
         dd if={disk} bs=1M count=4 iflag=direct status=none | cmp - /tmp/data"
    ))?;
    Ok(())
}

// 1. Boot from the LUN.

fn boots_from_the_lun(firmware: Firmware, name: &str) -> Result<()> {
    let scenario = Scenario::begin(name)?;
    let bench = OneHba::start(&scenario)?;
    let shim = bench.shim(&scenario)?;

    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .firmware(firmware)
        .start(&scenario)?;

    let root = root_disk(&mut tenant)?;
    assert!(
        tenant
            .sh(&format!("lsblk -dno HCTL {root}"))?
            .trim()
            .ends_with(":0:0:0")
    );
    let data = data_disk(&mut tenant)?;
    assert_eq!(
        tenant.sh(&format!("blockdev --getsize64 {data}"))?.trim(),
        (DATA_MIB << 20).to_string()
    );
    works(&mut tenant)
}

#[test]
fn tenant_boots_from_the_lun_with_seabios() -> Result<()> {
    boots_from_the_lun(Firmware::SeaBios, "boot_seabios")
}

#[test]
fn tenant_boots_from_the_lun_with_ovmf() -> Result<()> {
    boots_from_the_lun(Firmware::Ovmf, "boot_ovmf")
}

// 2. Verified I/O.

#[test]
fn fio_verifies_and_both_sides_agree_on_the_checksum() -> Result<()> {
    let scenario = Scenario::begin("fio")?;
    let bench = OneHba::start(&scenario)?;
    let shim = bench.shim(&scenario)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .cpus(4)
        .start(&scenario)?;
    let data = data_disk(&mut tenant)?;
    assert_eq!(
        tenant
            .sh(&format!("ls -d /sys/block/{}/mq/* | wc -l", &data[5..]))?
            .trim(),
        "4"
    );

    tenant.start_sh(&verified_fio(&data))?.succeed(FIO)?;

    let seen_by_tenant = tenant
        .start_sh(&format!("sha256sum {data}"))?
        .succeed(FIO)?;
    assert_eq!(
        seen_by_tenant.split_whitespace().next(),
        Some(bench.data.sha256()?.as_str())
    );
    Ok(())
}

#[test]
fn write_back_and_read_only_luns_are_what_they_say() -> Result<()> {
    let scenario = Scenario::begin("lun_kinds")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let buffered = Disk::blank(&scenario, "t1data", DATA_MIB)?;
    let protected = Disk::blank(&scenario, "t1fixed", 16)?;
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &[&root, &buffered, &protected])
        .with_write_back("t1data")
        .with_read_only("t1fixed");
    let storage = [&root, &buffered, &protected]
        .into_iter()
        .fold(StorageVm::new(&config), StorageVm::disk)
        .start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;

    let disk = disk_at(&mut tenant, 1)?;
    tenant.start_sh(&verified_fio(&disk))?.succeed(FIO)?;
    let seen_by_tenant = tenant
        .start_sh(&format!("sha256sum {disk}"))?
        .succeed(FIO)?;
    assert_eq!(
        seen_by_tenant.split_whitespace().next(),
        Some(buffered.sha256()?.as_str())
    );
    let disk = disk_at(&mut tenant, 2)?;
    assert_eq!(tenant.sh(&format!("blockdev --getro {disk}"))?.trim(), "1");
    // The kernel's own word would stop a write; this one goes to the target, past the kernel.
    // sg_raw ends with 7 for the sense key DATA PROTECT.
    tenant.sh(&format!(
        "dd if={disk} of=/dev/null bs=1M iflag=direct status=none && \
         {{ sg_raw -R -s 512 -i /dev/zero {disk} 2a 00 00 00 00 00 00 00 01 00; test $? = 7; }}"
    ))?;
    Ok(())
}

// 3. Sizes of RAM.

#[test]
fn tenants_of_any_size_work() -> Result<()> {
    let scenario = Scenario::begin("memory_sizes")?;
    let bench = OneHba::start(&scenario)?;
    let shim = bench.shim(&scenario)?;
    for mebibytes in [768, 1024, 3072, 6144] {
        let tenant = TenantVm::new("tenant1").hba(&shim).memory_mib(mebibytes);
        let mut tenant = tenant.start(&scenario)?;

        // Linux takes buffers from the highest memory first: of the larger two, above 4 GiB.
        works(&mut tenant)?;
    }
    Ok(())
}

// 4. Reboots.

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

/// A reset by QEMU, a reboot by the guest, and a kexec, with I/O after each.
fn works_after_each_reboot(tenant: &mut Machine) -> Result<()> {
    tenant.reset()?;
    works(tenant)?;
    tenant.reboot_with("busybox reboot -f")?;
    works(tenant)?;
    tenant.sh("kexec -l /boot/vmlinuz --initrd=/boot/initramfs --reuse-cmdline")?;
    tenant.reboot_with("sync; kexec -e")?;
    works(tenant)
}

#[test]
fn driver_can_be_unbound_and_bound_again() -> Result<()> {
    let scenario = Scenario::begin("unbind")?;
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

    for _ in 0..3 {
        works(&mut tenant)?;
        tenant.sh(&format!(
            "echo {} >{driver}/unbind; test $({count}) = 1",
            hba.trim()
        ))?;
        tenant.sh(&format!(
            "echo {} >{driver}/bind; until test $({count}) = 2; do sleep 0.1; done",
            hba.trim()
        ))?;
    }
    works(&mut tenant)
}

// 5. Two tenants.

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

// A device that is plugged from the start, because the tenant's RAM is a file known beforehand.

#[test]
fn tenant_with_a_trusted_memory_file_is_served_by_a_cold_plugged_function() -> Result<()> {
    const MEMORY_MIB: u32 = 768;
    let scenario = Scenario::begin("cold_plug")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", DATA_MIB)?;
    let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root, &data]);
    let memory = scenario.memory_file("tenant1.ram", MEMORY_MIB)?;
    let shim = Shim::new("tenant1", &config).start_cold(&scenario, &memory)?;
    let _storage = StorageVm::new(&config)
        .function(&shim)
        .disk(&root)
        .disk(&data)
        .start(&scenario)?;
    let vm = TenantVm::new("tenant1")
        .hba(&shim)
        .memory_mib(MEMORY_MIB)
        .memory(TenantMemory::File(memory));

    works(&mut vm.start(&scenario)?)?;
    // A power cycle: another process, the same file.
    works(&mut vm.start(&scenario)?)
}

// A shim whose supervisor is killed, again and again.

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

// What a shim costs.

/// At most 8 MiB of resident memory for each of its three processes (release build), and no CPU
/// while nothing happens.
#[test]
fn shim_is_small_and_sleeps_while_nothing_happens() -> Result<()> {
    let scenario = Scenario::begin("footprint")?;
    let bench = OneHba::start(&scenario)?;
    let mut shim = bench.shim(&scenario)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;
    works(&mut tenant)?;
    // The tenant's last writes.
    tenant.sh("sync")?;
    thread::sleep(Duration::from_secs(10));

    let before = shim.footprints()?;
    thread::sleep(Duration::from_secs(10));
    let after = shim.footprints()?;

    println!(
        "keeper, supervisor and relay: {after:?}; {:?}",
        shim.counted()?
    );
    for (before, after) in before.into_iter().zip(after) {
        assert!(after.resident_kib <= 8 << 10, "{after:?}");
        // 10 s are 1000 ticks; a tenant at rest still looks at its disk now and then.
        assert!(after.ticks - before.ticks <= 1, "{before:?} {after:?}");
    }
    Ok(())
}

// 6. Mistakes, each answered with the thing and the mend, and nobody else harmed.

/// Fails unless `text` has each of `words`, whatever their case.
fn assert_says(text: &str, words: &[&str]) {
    let lower = text.to_lowercase();
    for word in words {
        assert!(
            lower.contains(&word.to_lowercase()),
            "`{word}` is missing in:\n{text}"
        );
    }
}

#[test]
fn configuration_mistakes_are_named_on_the_console() -> Result<()> {
    let scenario = Scenario::begin("bad_configurations")?;
    let disk = Disk::blank(&scenario, "t1data", 16)?;
    let missing = Disk::blank(&scenario, "nowhere", 16)?;
    let good = ApplianceConfig::new("storage-1").hba("tenant1", &[&disk]);
    let cases: [(&str, ApplianceConfig, &[&str]); 3] = [
        (
            "unknown key",
            good.clone().with("colour = \"blue\""),
            &["appliance.toml", "1", "colour"],
        ),
        (
            "missing image",
            ApplianceConfig::new("storage-1").hba("tenant1", &[&missing]),
            &["nowhere", "serial"],
        ),
        (
            "LUN larger than its disk",
            good.with_lun_size("t1data", 32 << 20),
            &["t1data", "only has", "enlarge"],
        ),
    ];
    for (mistake, config, words) in cases {
        let mut storage = StorageVm::new(&config).disk(&disk).power_on(&scenario)?;
        storage.wait_booted()?;
        // The appliance is started again each second; once is enough to read what it says.
        thread::sleep(Duration::from_secs(2));
        println!("{mistake}:");
        assert_says(&storage.console().text(), words);
    }
    Ok(())
}

fn wrong_uuid_is_refused(scenario: &Scenario, bench: &mut OneHba) -> Result<()> {
    let stranger = Uuid::new_v4();
    let shim = Shim::new("stranger", &bench.config)
        .hba(stranger)
        .start(scenario, &bench.storage)?;

    let _tenant = TenantVm::new("stranger")
        .hba(&shim)
        .power_on(scenario)?
        .connect()?;

    // The last word of the message; a serial line comes a few bytes at a time.
    bench
        .storage
        .wait_console("--hba", Duration::from_secs(60))?;
    assert_says(
        &bench.storage.console().text(),
        &[&stranger.to_string(), "[[hba]]"],
    );
    Ok(())
}

fn busy_socket_is_named(scenario: &Scenario, bench: &OneHba, first: &RunningShim) -> Result<()> {
    let second = Shim::new("second", &bench.config).vhost_user(first.vhost_user());
    let words = second.launch(scenario, &bench.storage)?.refused()?;

    assert_says(
        &words,
        &[
            &first.vhost_user().display().to_string(),
            "another running host-shim",
        ],
    );
    Ok(())
}

fn memory_is_refused(
    scenario: &Scenario,
    bench: &OneHba,
    (memory, words): (TenantMemory, [&str; 2]),
) -> Result<()> {
    let mut shim = bench.shim(scenario)?;

    let _tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .memory(memory)
        .power_on(scenario)?;

    shim.expect_log(words[0])?;
    assert_says(&shim.log().text(), &words);
    Ok(())
}

#[test]
fn mistakes_are_named_and_harm_nobody_else() -> Result<()> {
    let scenario = Scenario::begin("mistakes")?;
    let mut bench = OneHba::start(&scenario)?;
    for mistake in [
        (TenantMemory::Private, ["memory-backend=mem", "share=on"]),
        (
            TenantMemory::TwoBackends,
            ["two memory backends", "memory-backend-memfd,share=on"],
        ),
        (
            TenantMemory::UnsealedMemfd,
            ["not sealed", "memory-backend-memfd"],
        ),
    ] {
        memory_is_refused(&scenario, &bench, mistake)?;
    }
    let shim = bench.shim(&scenario)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;

    wrong_uuid_is_refused(&scenario, &mut bench)?;
    busy_socket_is_named(&scenario, &bench, &shim)?;

    works(&mut tenant)
}
