//! A vhost-user socket on the same host, in the place of a vhost-pci function.
//!
//! ```text
//! tenant's QEMU ── socket ── `server`, `handler` ── `session` ── `link` ── worker
//!        └───────── memory files, kick and call eventfds ─────────────────────┘
//! ```
//!
//! Each HBA has one [`Socket`], and one thread (`server`) that waits for a frontend, reads its
//! messages and answers them. Crate `vhost` takes the messages apart; `handler` hands them to the
//! `session`, which records what the frontend said and asks the worker for the next step towards
//! it, as the shim does for a function. `link` carries the requests; the worker's end of it is a
//! `front::Front`, so the worker does the same as behind a function. Data goes between the worker
//! and the tenant's memory (`regions`), kicks come to the worker's loop, and calls go from the
//! worker to the tenant's eventfds (`calls`, `signal`), all without this thread. What is under way is recorded in
//! memory that the frontend keeps (`inflight`), so an appliance that comes after this one goes on.
//! While it migrates its tenant, what is written is marked in a bitmap of its (`log`).

mod calls;
mod eventfd;
mod handler;
mod inflight;
mod link;
mod listener;
mod log;
mod regions;
mod served;
mod server;
mod session;
mod signal;

use std::time::Duration;

pub use listener::{ListenError, Socket};
pub use served::Served;
pub(crate) use server::start;

pub(crate) use self::link::WorkerEnd;

/// Virtio feature bit by which a frontend and a backend agree to negotiate protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// VHOST_F_LOG_ALL: a frontend that accepts it wants to see what is written to its tenant's memory.
const LOG_ALL: u64 = 1 << 26;

/// How a frontend is treated.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a frontend waits for a ring to stop, or for memory to be let go, before its
    /// connection is dropped.
    pub patience: Duration,
    /// Take memory files that their owner can shorten, which would end this program by SIGBUS.
    pub trust_memory: bool,
}

impl Default for Options {
    /// A patience beyond the time that a command may take, and no trust.
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            trust_memory: false,
        }
    }
}
