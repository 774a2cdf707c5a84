//! The storage appliance.

mod appliance;
mod attachment;
pub mod config;
pub mod device;
pub mod disk;
pub mod lifecycle;
pub mod memory;
pub mod ring;
mod rings;
pub mod scsi;
mod shim;
mod task;
mod task_management;
mod worker;

pub use appliance::{Appliance, LunError, StartError};
pub use attachment::{AttachError, Attachment, Ended};
pub use config::Config;
