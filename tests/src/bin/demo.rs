//! The main job, shown to a person: a tenant VM boots from, and works on, LUNs that the storage
//! VM serves over vhost-pci.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tests::vm::fio::FioReport;
use tests::vm::machine::Machine;
use tests::vm::storage_vm::RunningStorageVm;
use tests::vm::{
    ApplianceConfig, Disk, Error, Progress, Result, Scenario, Shim, StorageVm, TenantVm, console,
    data_disk,
};

const DATA_MIB: u64 = 256;
const STEPS: u64 = 7;
const FIO: Duration = Duration::from_secs(600);

/// Boots a storage VM and a tenant whose disks it serves; shows that they work.
#[derive(Debug, Parser)]
struct Options {
    /// Gives you the tenant's console at the end.
    #[arg(long)]
    shell: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let scenario = Scenario::begin("demo")?;
    scenario.clean_up_on_ctrl_c()?;
    println!("Logs are kept in {}", scenario.logs().display());
    let mut progress = Progress::of(STEPS);

    let step = progress.step("disks");
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", DATA_MIB)?;
    drop(step);

    let step = progress.step("storage VM boots");
    let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root, &data]);
    let mut storage = StorageVm::new(&config)
        .disk(&root)
        .disk(&data)
        .start(&scenario)?;
    drop(step);

    let step = progress.step("host shim starts");
    let mut shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    drop(step);

    let step = progress.step("tenant boots from LUN 0");
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .cpus(4)
        .start(&scenario)?;
    drop(step);

    let step = progress.step("tenant makes a file system on LUN 1");
    let disk = data_disk(&mut tenant)?;
    tenant.sh(&format!(
        "mkfs.ext4 -q {disk} && mkdir -p /mnt && mount {disk} /mnt"
    ))?;
    drop(step);

    let step = progress.step("tenant runs fio with verification");
    let report = verified_fio(&mut tenant)?;
    drop(step);

    let step = progress.step("both sides take the checksum");
    tenant.sh(&format!("umount /mnt && blockdev --flushbufs {disk}"))?;
    let from_tenant = tenant
        .start_sh(&format!("sha256sum <{disk}"))?
        .succeed(FIO)?;
    let from_tenant = from_tenant
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    let from_host = data.sha256()?;
    drop(step);

    let counted = shim.counted()?;
    print_table(&[
        ("tenant's LUNs", attached(&mut tenant)?),
        (
            "tenant boots from",
            tenant.sh("findmnt -no SOURCE /")?.trim().to_owned(),
        ),
        (
            "fio, random writes of 16 KiB",
            format!("{:.0} IOPS", report.write_iops),
        ),
        (
            "fio, latency",
            format!(
                "{:.1?} mean, {:.1?} p99",
                report.write_mean, report.write_p99
            ),
        ),
        (
            "bytes verified (crc32c)",
            format!("{} MiB", report.read_bytes >> 20),
        ),
        ("interrupts in the storage VM", interrupts(&mut storage)?),
        ("interrupts in the tenant", counted.calls.to_string()),
        ("doorbells trapped", counted.trapped_doorbells.to_string()),
        ("SHA-256 seen by the tenant", from_tenant.clone()),
        ("SHA-256 of the image on the host", from_host.clone()),
        (
            "the image holds what was written",
            yes_or_no(from_tenant == from_host),
        ),
    ]);
    if options.shell {
        console::attach(&tenant)?;
    }
    if from_tenant != from_host {
        return Err(Error::Unexpected {
            what: data.path().display().to_string(),
            problem: "is not what the tenant wrote".to_owned(),
        });
    }
    Ok(())
}

fn verified_fio(tenant: &mut Machine) -> Result<FioReport> {
    let job = tenant.start_sh(
        "fio --name=demo --directory=/mnt --size=128M --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --output-format=json",
    )?;
    FioReport::parse(&job.succeed(FIO)?)
}

/// The tenant's SCSI disks, as it knows them.
fn attached(tenant: &mut Machine) -> Result<String> {
    let disks = tenant.sh("lsblk -dno NAME,HCTL,SIZE,VENDOR,MODEL")?;
    let lines = disks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(lines.collect::<Vec<_>>().join("; "))
}

/// How many interrupts the storage VM had from vhost-pci functions.
fn interrupts(storage: &mut RunningStorageVm) -> Result<String> {
    let sum = "awk '/vfio-msi/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }'";
    Ok(storage
        .sh(&format!("{sum} /proc/interrupts"))?
        .trim()
        .to_owned())
}

fn yes_or_no(fact: bool) -> String {
    if fact { "yes" } else { "NO" }.to_owned()
}

fn print_table(rows: &[(&str, String)]) {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    println!();
    for (name, value) in rows {
        println!("  {name:width$}  {value}");
    }
    println!();
}
