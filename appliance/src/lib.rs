//! The storage appliance.

pub mod disk;
pub mod memory;
pub mod scsi;
