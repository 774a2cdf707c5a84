//! Wire structures and constants of the vhost-pci storage protocol.
#![forbid(unsafe_code)]
