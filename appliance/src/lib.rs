//! The storage appliance.

pub mod config;
pub mod device;
pub mod memory;
pub mod ring;
