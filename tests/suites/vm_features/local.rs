//! The main job without a storage VM: a stock QEMU and a Linux tenant, served by an appliance on
//! the same host.

use std::time::Duration;

use tests::vm::local::LocalAppliance;
use tests::vm::{Disk, Result, Scenario, TenantVm, data_disk, root_disk};

/// How long verified I/O may take under TCG on a busy machine.
const FIO: Duration = Duration::from_secs(300);
const DATA_MIB: u64 = 128;
/// Request queues of the HBA.
const QUEUES: u16 = 2;

/// Boots from the LUN, writes all of another and reads it back, and goes on with the same rings
/// when its appliance was killed and another took the socket.
#[test]
fn tenant_boots_from_a_socket_verifies_its_data_and_outlives_the_appliance() -> Result<()> {
    let scenario = Scenario::begin("local")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", DATA_MIB)?;
    let disks = [&root, &data];
    let appliance = LocalAppliance::start(&scenario, "appliance-1", &disks)?;
    let socket = appliance.socket().to_owned();
    let mut tenant = TenantVm::new("tenant1")
        .hba_at(&socket, QUEUES)
        .start(&scenario)?;

    let root_name = root_disk(&mut tenant)?;
    let address = tenant.sh(&format!("lsblk -dno HCTL {root_name}"))?;
    assert!(address.trim().ends_with(":0:0:0"), "{address}");
    let disk = data_disk(&mut tenant)?;
    let verify = format!(
        "fio --name=verify --filename={disk} --direct=1 --ioengine=libaio --iodepth=16 \
         --numjobs=1 --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --end_fsync=1"
    );
    tenant.start_sh(&verify)?.succeed(FIO)?;
    let sum = tenant
        .start_sh(&format!("sha256sum < {disk}"))?
        .succeed(FIO)?;
    let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(sum, data.sha256()?);

    appliance.kill();
    let appliance = LocalAppliance::start_at(&scenario, "appliance-2", &socket, &disks)?;
    let read = format!("dd if={disk} bs=1M iflag=direct status=none | sha256sum");
    let again = tenant.start_sh(&read)?.succeed(FIO)?;
    assert!(again.starts_with(&sum), "{again}");
    appliance.stop();
    Ok(())
}
