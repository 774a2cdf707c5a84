//! Our own vfio-user server: how the storage VM's QEMU reaches the function.
//!
//! One [`Connection`] serves one client. It never waits, holds at most one message in each
//! direction, and reads every message to its end whatever is in it. What it does is shaped by
//! what QEMU 11.1 does with a server's answers: it aborts on several that would be legal.

mod connection;
mod server;
mod socket;
#[cfg(test)]
mod steps;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use connection::lock;
pub use connection::{Closed, Connection, Progress};
