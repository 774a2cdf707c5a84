//! The real shim and the real appliance, joined in one process.

mod frontend;
mod function;
mod initiator;
mod memfd;
mod readiness;
mod ring;
mod tenant;
mod tenant_memory;
mod vfio_user;

pub use frontend::{Frontend, FrontendError, VringAddress, protocol, request};
pub use function::Function;
pub use initiator::*;
pub use readiness::{eventually, readable};
pub use ring::*;
pub use tenant::{Shape, Tenant};
pub use tenant_memory::{MIB, Region, TenantMemory, user_address};
pub use vfio_user::{DeviceInfo, RegionInfo, VfioUser};
