//! The operator's way in: JSON-RPC 2.0, one object a line, on a unix socket or a virtio port.
//!
//! [`protocol`] has what crosses. [`Server`] takes clients, each on a thread of its own; a
//! [`Desk`] does what they ask. Nothing here is on the way of a tenant's command: workers are asked
//! through their inboxes, and one that does not answer is reported as such.
//!
//! `appliance/docs/control.md` is the reference; a test compares it with [`reference()`].

mod ask;
mod book;
mod change;
mod client;
mod desk;
mod diff;
mod edit;
mod handover;
mod lines;
mod logs;
mod methods;
mod port;
pub mod protocol;
mod server;
mod utc;

pub(crate) use self::ask::{Known, ask};
pub use self::book::{Book, BookError};
pub use self::desk::Desk;
pub use self::logs::Logs;
pub(crate) use self::methods::disks;
pub use self::methods::reference;
pub use self::port::serve_port;
pub use self::server::{ControlError, Server};

/// Where the appliance of a storage VM is controlled, unless it is said otherwise.
pub const DEFAULT_PATH: &str = "/run/vhost-pci/appliance.sock";
/// The virtio-serial port by which the host controls the appliance of a storage VM.
pub const PORT_NAME: &str = "org.vhost-pci.control";
