//! The host shim.

pub mod device;
pub mod session;
pub mod vfio_user;
