//! The host shim.

pub mod complaints;
pub mod device;
pub mod link;
pub mod listener;
pub mod lock_file;
pub mod plug;
pub mod ports;
pub mod qmp;
pub mod relay;
pub mod session;
pub mod vfio_user;
