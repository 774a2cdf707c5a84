//! I/O by a tenant that finds wrong data.

use std::time::Duration;

use super::error::Result;
use super::machine::Machine;
use super::tenant_vm::data_disk;

/// How long [`verified_fio`] may take under TCG on a busy machine.
pub const FIO: Duration = Duration::from_secs(300);

/// Writes all of `device` at random places, and reads it back with crc32c.
pub fn verified_fio(device: &str) -> String {
    format!(
        "fio --name=verify --filename={device} --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --end_fsync=1"
    )
}

/// Whether the tenant reads and writes its data LUN.
pub fn works(tenant: &mut Machine) -> Result<()> {
    let disk = data_disk(tenant)?;
    works_on(tenant, &disk)
}

/// Whether the tenant reads and writes `disk`.
pub fn works_on(tenant: &mut Machine, disk: &str) -> Result<()> {
    tenant.sh(&format!(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none && \
         dd if=/tmp/data of={disk} bs=1M oflag=direct status=none && \
         dd if={disk} bs=1M count=4 iflag=direct status=none | cmp - /tmp/data"
    ))?;
    Ok(())
}
