//! Feature bits about the rings, the same for every virtio device (virtio 1.3 §6).

/// A descriptor may point to a table of further ones.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Either side says by index when it wants to be notified (`used_event`, `avail_event`).
pub const EVENT_IDX: u64 = 1 << 29;
/// A device as of virtio 1.0, not the transitional one before it.
pub const VERSION_1: u64 = 1 << 32;
