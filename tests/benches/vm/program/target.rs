//! The peers of the appliance in the storage VM: Linux's own iSCSI and NVMe targets.
//!
//! Both are in the kernel, which is the best that they can have; both work on the block device
//! itself, past the page cache.

use tests::vm::Machine;
use tests::vm::link::MTU;

use super::error::Result;

/// Modules of the kernel that the shipped image has no use for.
pub const MODULES: &[&str] = &[
    "virtio_net",
    "target_core_mod",
    "target_core_iblock",
    "iscsi_target_mod",
    "nvmet",
    "nvmet_tcp",
];

/// Where the storage VM is; the addresses are those for documentation.
pub const ADDRESS: &str = "192.0.2.1";
/// The name of the iSCSI target.
pub const IQN: &str = "iqn.2026-01.example.bench:disk";
/// The name of the NVMe subsystem.
pub const NQN: &str = "nqn.2026-01.example.bench:disk";

/// Serves the virtio-blk disk `serial` of the storage VM by both.
///
/// # Errors
/// A command in the storage VM failed.
pub fn serve(storage: &mut Machine, serial: &str) -> Result<()> {
    storage.sh(&format!(
        "set -e
         ifconfig lo 127.0.0.1 up
         ifconfig eth0 {ADDRESS} netmask 255.255.255.0 mtu {MTU} up
         mount -t configfs configfs /sys/kernel/config
         for serial in /sys/block/*/serial; do
             [ \"$(cat $serial)\" != {serial} ] || disk=$(basename $(dirname $serial))
         done
         cat /sys/block/$disk/size >/dev/null
         echo none >/sys/block/$disk/queue/scheduler

         cd /sys/kernel/config/nvmet
         mkdir subsystems/{NQN}
         echo 1 >subsystems/{NQN}/attr_allow_any_host
         mkdir subsystems/{NQN}/namespaces/1
         echo -n /dev/$disk >subsystems/{NQN}/namespaces/1/device_path
         echo 1 >subsystems/{NQN}/namespaces/1/enable
         mkdir ports/1
         echo ipv4 >ports/1/addr_adrfam
         echo tcp >ports/1/addr_trtype
         echo {ADDRESS} >ports/1/addr_traddr
         echo 4420 >ports/1/addr_trsvcid
         ln -s /sys/kernel/config/nvmet/subsystems/{NQN} ports/1/subsystems/{NQN}

         cd /sys/kernel/config/target
         mkdir -p core/iblock_0/bench
         echo udev_path=/dev/$disk >core/iblock_0/bench/control
         echo 1 >core/iblock_0/bench/enable
         group=iscsi/{IQN}/tpgt_1
         mkdir -p $group/lun/lun_0
         mkdir $group/np/{ADDRESS}:3260
         ln -s /sys/kernel/config/target/core/iblock_0/bench $group/lun/lun_0/bench
         echo 0 >$group/attrib/authentication
         echo 1 >$group/attrib/generate_node_acls
         echo 0 >$group/attrib/demo_mode_write_protect
         echo No >$group/param/InitialR2T
         echo 1 >$group/enable"
    ))?;
    Ok(())
}
