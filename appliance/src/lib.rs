//! The storage appliance.

pub mod memory;
pub mod ring;
