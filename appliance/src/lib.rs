//! The storage appliance.

pub mod memory;
