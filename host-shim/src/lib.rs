//! The host shim.

pub mod device;
pub mod vfio_user;
