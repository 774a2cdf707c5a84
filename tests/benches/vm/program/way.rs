//! The ways from the tenant to the disk.

use clap::ValueEnum;
use serde::Serialize;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The appliance in the storage VM, by its shim.
    VhostPci,
    /// Linux's iSCSI target in the storage VM, over a network between the machines.
    Iscsi,
    /// Linux's NVMe target in the storage VM, over the same network.
    NvmeTcp,
    /// The virtio-scsi adapter of the tenant's own QEMU; no storage VM is in it.
    Qemu,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::VhostPci => "vhost-pci",
            Self::Iscsi => "iSCSI (LIO)",
            Self::NvmeTcp => "NVMe/TCP (nvmet)",
            Self::Qemu => "QEMU virtio-scsi",
        }
    }
}
