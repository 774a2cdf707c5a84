//! T10 protection information as a stock Linux tenant uses it: its block layer makes and checks the
//! tags.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tests::vm::error::FileContext;
use tests::vm::{ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, disk_at};

#[test]
fn linux_finds_out_that_a_disk_has_changed_what_it_wrote() -> Result<()> {
    let scenario = Scenario::begin("protection")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "data", 64)?;
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &[&root, &data])
        .with_protection("data", "type1");
    let storage = [&root, &data]
        .into_iter()
        .fold(StorageVm::new(&config), StorageVm::disk)
        .start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .with_t10_pi()
        .start(&scenario)?;
    let disk = disk_at(&mut tenant, 1)?;
    let name = disk.trim_start_matches("/dev/").to_owned();

    let format = format!("cat /sys/block/{name}/integrity/format");
    assert_eq!(tenant.sh(&format)?, "T10-DIF-TYPE1-CRC\n");
    let capacity = tenant.sh(&format!("sg_readcap --16 {disk}"))?;
    assert!(capacity.contains("prot_en=1, p_type=0"), "{capacity}");
    // The tags come from the tenant: `read_verify` and `write_generate` are on.
    let integrity = format!("cd /sys/block/{name}/integrity; cat read_verify write_generate");
    assert_eq!(tenant.sh(&integrity)?, "1\n1\n");

    tenant.sh(&format!(
        "fio --name=verify --filename={disk} --direct=1 --ioengine=libaio --iodepth=8 \
         --rw=randwrite --bsrange=512-64k --size=16M --verify=crc32c --verify_fatal=1"
    ))?;
    // What is given back is zeros, with tags that the tenant does not check.
    tenant.sh(&format!("sg_unmap --lba=8192 --num=8 {disk}"))?;
    tenant.sh(&format!(
        "test -z \"$(dd if={disk} bs=4k skip=1024 count=1 iflag=direct status=none | tr -d '\\0')\""
    ))?;
    tenant.sh(&format!(
        "tr '\\0' x </dev/zero | dd of={disk} bs=64k count=4 iflag=fullblock oflag=direct"
    ))?;
    let read = format!("dd if={disk} of=/dev/null bs=4k count=1 iflag=direct skip=");
    tenant.sh(&format!("{read}2"))?;

    // LBA 16, behind the header and the tags of the first group.
    let at = 8192 + 16 * 512;
    let image = File::options()
        .read(true)
        .write(true)
        .open(data.path())
        .file("open", data.path())?;
    let mut byte = [0];
    image
        .read_exact_at(&mut byte, at)
        .file("read", data.path())?;
    assert_eq!(&byte, b"x");
    image.write_all_at(b"y", at).file("write", data.path())?;
    let said = tenant.sh(&format!("! {read}2 2>&1"))?;
    println!("{said}");
    tenant.sh(&format!("{read}1 && {read}3"))?;
    let log = tenant.sh("dmesg")?;
    assert!(log.contains("Logical block guard check failed"), "{log}");
    Ok(())
}
