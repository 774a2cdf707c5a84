//! The main job on real parts: stock QEMUs, a real storage VM, Linux tenants with their stock
//! `virtio_scsi` driver: boot from a LUN, verified I/O with four queues, tenants of 768 MiB to
//! 6 GiB, and mistakes.

use std::{thread, time::Duration};

use tests::vm::one_hba::DATA_MIB;
use tests::vm::shim::RunningShim;
use tests::vm::verified::{FIO, verified_fio, works};
use tests::vm::{
    ApplianceConfig, Disk, Firmware, OneHba, Result, Scenario, Shim, StorageVm, TenantMemory,
    TenantVm, data_disk, disk_at, root_disk,
};
use uuid::Uuid;

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

// What a shim costs.

/// At most 8 MiB of resident memory for each of its three processes (release build), and no CPU
/// while nothing happens.
#[test]
fn shim_is_small_and_sleeps_while_nothing_happens() -> Result<()> {
    let scenario = Scenario::begin_alone("footprint")?;
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

// 4. Mistakes, each answered with the thing and the mend, and nobody else harmed.

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
