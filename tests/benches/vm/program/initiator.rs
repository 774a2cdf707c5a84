//! The tenant's ends of iSCSI and NVMe/TCP: Linux's own initiators.
//!
//! The tenant's system has the drivers, but not the program that logs in to an iSCSI target: it is
//! fetched for this bench alone, and given to the tenant as an archive on a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::vm::debian::PackageTree;
use tests::vm::error::FileContext;
use tests::vm::link::MTU;
use tests::vm::{Machine, progress, store};

use super::error::{Error, Result};
use super::target::{ADDRESS, IQN, NQN};

const PACKAGES: &[&str] = &["open-iscsi"];
/// How long a read may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of that package and those that it needs.
const FILES: &[&str] = &[
    "usr/sbin/iscsistart",
    "usr/lib/x86_64-linux-gnu/libopeniscsiusr.so.0",
    "usr/lib/x86_64-linux-gnu/libkmod.so.2",
    "usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "usr/lib/x86_64-linux-gnu/libz.so.1",
    "usr/lib/x86_64-linux-gnu/libzstd.so.1",
];

/// The archive with the program.
///
/// # Errors
/// It cannot be fetched.
pub fn archive() -> Result<PathBuf> {
    let directory = store::keep("initiator", (PACKAGES, FILES), |directory| {
        let _step = progress::step("fetching the iSCSI initiator");
        let tree = directory.join("tree");
        fs::create_dir(&tree).file("create", &tree)?;
        PackageTree::unpack(&tree, PACKAGES, false)?;
        let mut tar = Command::new("tar");
        // What is linked to is packed, not the link.
        tar.args(["-c", "-h", "-f"])
            .arg(directory.join("initiator.tar"))
            .arg("-C")
            .arg(&tree)
            .args(FILES);
        tests::vm::process::run("packing the iSCSI initiator", &mut tar)?;
        fs::remove_dir_all(&tree).file("remove", &tree)
    })?;
    Ok(directory.join("initiator.tar"))
}

/// Connects `tenant` to both targets, by the program on its disk `archive`.
///
/// # Errors
/// A command in the tenant failed, or a disk did not come.
pub fn connect(tenant: &mut Machine, archive: &Path) -> Result<()> {
    let archive = archive.display();
    tenant.sh(&format!(
        "set -e
         modprobe -a virtio_net iscsi_tcp nvme_tcp
         busybox ifconfig lo 127.0.0.1 up
         busybox ifconfig eth0 192.0.2.2 netmask 255.255.255.0 mtu {MTU} up
         busybox ping -c 1 -w 10 {ADDRESS}

         mkdir -p /run/initiator
         busybox tar -x -C /run/initiator -f {archive}
         export LD_LIBRARY_PATH=/run/initiator/usr/lib/x86_64-linux-gnu
         /run/initiator/usr/sbin/iscsistart -i iqn.2026-01.example.bench:tenant \
             -t {IQN} -g 1 -a {ADDRESS} -p 3260

         echo transport=tcp,traddr={ADDRESS},trsvcid=4420,nqn={NQN},\
hostnqn=nqn.2014-08.org.nvmexpress:uuid:6a6f1d4e-0b7e-4d5b-9b0e-76636970726f,\
hostid=6a6f1d4e-0b7e-4d5b-9b0e-76636970726f >/dev/nvme-fabrics

         for attempt in $(seq 100); do
             [ ! -b /dev/nvme0n1 ] || ! {FIND_ISCSI} || exit 0
             sleep 0.1
         done
         echo 'no disk came'
         exit 1"
    ))?;
    Ok(())
}

/// A shell command that prints the name of the iSCSI disk, without `/dev/`.
const FIND_ISCSI: &str =
    "(cd /sys/class/iscsi_session/session1/device/target*/*:0/block 2>/dev/null && ls)";

/// The tenant's disk by iSCSI, `/dev/sdX`.
///
/// # Errors
/// There is none.
pub fn iscsi_disk(tenant: &mut Machine) -> Result<String> {
    let name = tenant.sh(FIND_ISCSI)?;
    Ok(format!("/dev/{}", name.trim()))
}

/// The tenant's disk by NVMe/TCP.
pub const NVME_DISK: &str = "/dev/nvme0n1";

/// Sets the same queueing for all disks, and checks by a mark that `disks` are one; the first has
/// the name of its way beside it, as the others have.
///
/// # Errors
/// One is another disk.
pub fn check_same(tenant: &mut Machine, disks: &[(&'static str, String)]) -> Result<()> {
    let Some(((_, first), others)) = disks.split_first() else {
        return Ok(());
    };
    tenant.sh(&format!(
        "head -c 4096 /dev/urandom >/run/mark && dd if=/run/mark of={first} bs=4k oflag=direct"
    ))?;
    for (way, disk) in others {
        let read = format!("dd if={disk} bs=4k count=1 iflag=direct status=none");
        let same = tenant.start_sh(&format!("{read} | cmp - /run/mark"))?;
        if same.output(PATIENCE)?.status != 0 {
            return Err(Error::OtherDisk { way });
        }
    }
    // An NVMe disk may be the head of its paths: queueing is theirs.
    tenant.sh(
        "for scheduler in /sys/block/sd*/queue/scheduler /sys/block/nvme0c*/queue/scheduler; do
             [ ! -e $scheduler ] || echo none >$scheduler || exit 1
         done",
    )?;
    Ok(())
}
