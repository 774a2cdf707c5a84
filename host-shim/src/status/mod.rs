//! What a shim tells of itself to those who look: one line of JSON to whoever connects to its
//! status socket, which is for its user and for root.
//!
//! [`find`] looks for the sockets in a folder and reads them, [`table`] and [`watch`] show what
//! they said. The supervisor's side is `supervisor/status.rs`.

pub mod find;
pub mod table;
pub mod watch;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where shims are looked for unless it is said otherwise.
pub const DEFAULT_FOLDER: &str = "/run/vhost-pci";
/// What the names of status sockets end with.
pub const EXTENSION: &str = "status";
/// Most bytes of a line; a shim writes a tenth of it.
pub const MAX_LINE: usize = 64 << 10;

/// A shim at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the HBA.
    pub name: String,
    /// UUID of the HBA.
    pub hba: String,
    /// Version of the shim.
    pub version: String,
    /// Process id of its supervisor.
    pub pid: u32,
    /// Seconds since that was started.
    pub uptime_s: u64,
    /// Whether it goes on for one that was killed.
    pub resumed: bool,
    /// Whether it is about to end.
    pub stopping: bool,
    /// The tenant's side.
    pub tenant: Tenant,
    /// The storage VM's side.
    pub storage: Storage,
    /// What this supervisor counted.
    pub counters: Counted,
    /// The last thing that went wrong, and what to do about it.
    pub error: Option<Complaint>,
}

/// The tenant's side of a shim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Whether a tenant's QEMU is connected.
    pub connected: bool,
    /// Virtio features that its driver has accepted, if it has.
    pub features: Option<u64>,
    /// Regions of its memory.
    pub regions: usize,
    /// Bytes of them.
    pub memory: u64,
    /// Rings that the appliance runs for it.
    pub rings: Vec<u16>,
    /// Calls of its QEMU that wait for an answer.
    pub waiting: usize,
}

/// The storage VM's side of a shim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// The root port behind which the function is plugged; nothing if it is not, or not by QMP.
    pub port: Option<String>,
    /// Whether the storage VM's QEMU is connected.
    pub connected: bool,
    /// Whether an appliance is attached.
    pub appliance: bool,
    /// MSI vectors that it has enabled.
    pub vectors: usize,
}

/// What a supervisor counted since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Notifications from the tenant to the appliance.
    pub kicks: u64,
    /// Notifications from the appliance to the tenant.
    pub calls: u64,
    /// Calls that had to wake the supervisor up.
    pub trapped_doorbells: u64,
    /// Times that an appliance attached, and was told everything.
    pub attachments: u64,
    /// Requests that it was sent.
    pub requests: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// What, and the mend.
    pub text: String,
    /// How many seconds ago.
    pub ago_s: u64,
}

/// The status socket that goes with the socket for the storage VM's QEMU.
pub fn beside(vfio_user: &Path) -> PathBuf {
    let mut path = vfio_user.as_os_str().to_owned();
    path.push(".");
    path.push(EXTENSION);
    path.into()
}
