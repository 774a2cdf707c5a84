//! The host shim.

pub mod device;
pub mod link;
pub mod listener;
pub mod lock_file;
pub mod relay;
pub mod session;
pub mod vfio_user;
