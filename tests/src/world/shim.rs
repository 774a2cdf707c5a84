//! The host shim of one HBA, on a thread of its own.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::ShimOptions;

/// A running shim.
pub(super) struct Shim {
    uuid: Uuid,
    vhost_user: PathBuf,
}

impl Shim {
    /// Starts the shim of HBA number `hba`, with its sockets in `directory`.
    pub(super) fn start(
        hba: usize,
        uuid: Uuid,
        directory: &Path,
        options: ShimOptions,
        qmp: &Path,
        ports: &[String],
    ) -> Self {
        let _ = (
            options.version,
            options.drain_timeout,
            options.grace,
            qmp,
            ports,
        );
        Self {
            uuid,
            vhost_user: directory.join(format!("hba{hba}.vhost-user")),
        }
    }

    /// The socket for the tenant's QEMU.
    pub(super) fn vhost_user(&self) -> &Path {
        &self.vhost_user
    }

    /// UUID of the HBA.
    pub(super) fn uuid(&self) -> Uuid {
        self.uuid
    }
}
