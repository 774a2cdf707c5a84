//! The storage appliance.

pub mod device;
pub mod memory;
pub mod ring;
