//! The supervisor's side of the status socket: one line to whoever connects, and no waiting.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use mio::net::UnixStream;
use mio::{Interest, Registry};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use super::{STATUS, Supervisor};
use crate::status::{Complaint, Counted, Status, Storage, Tenant};

/// Most clients answered in one turn of the loop.
const BATCH: usize = 4;
/// Most characters of an error that are told.
const MAX_ERROR: usize = 1024;

/// A status socket.
pub(super) struct StatusSocket {
    listener: mio::net::UnixListener,
    /// There may be clients who have not been answered.
    pub more: bool,
}

impl StatusSocket {
    /// Answers at `listener`, which `registry` watches.
    ///
    /// # Errors
    /// What the system refused.
    pub fn new(listener: UnixListener, registry: &Registry) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = mio::net::UnixListener::from_std(listener);
        registry.register(&mut listener, STATUS, Interest::READABLE)?;
        // Who came before it was watched.
        let more = true;
        Ok(Self { listener, more })
    }
}

impl Supervisor {
    /// Somebody may have connected to the status socket.
    pub(super) fn status_asked(&mut self) {
        if let Some(socket) = &mut self.status {
            socket.more = true;
        }
    }

    /// Whether somebody at the status socket waits to be answered.
    pub(super) fn has_status_clients(&self) -> bool {
        self.status.as_ref().is_some_and(|socket| socket.more)
    }

    /// Answers those who have connected to the status socket, a few at a time.
    pub(super) fn answer_status(&mut self, now: Instant) {
        for _ in 0..BATCH {
            let Some(socket) = self.status.as_mut().filter(|socket| socket.more) else {
                return;
            };
            match socket.listener.accept() {
                Ok((client, _)) => self.tell_status(now, client),
                Err(error) => {
                    // With too many open files, the next client has it tried again.
                    socket.more = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(hba = %self.name, %error, "status socket");
                    }
                }
            }
        }
    }

    fn tell_status(&self, now: Instant, mut client: UnixStream) {
        let peer = socket_peercred(&client);
        if !peer.is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid()) {
            return;
        }
        let Ok(mut line) = serde_json::to_vec(&self.status(now)) else {
            return;
        };
        line.push(b'\n');
        // It fits into the socket, or nobody is at its other end.
        if let Err(error) = client.write_all(&line) {
            tracing::debug!(hba = %self.name, %error, "status client");
        }
    }

    fn status(&self, now: Instant) -> Status {
        let session = self.session.summary();
        let (regions, memory) = session.memory;
        let error = self.complaints.last().map(|(text, at)| Complaint {
            text: text.chars().take(MAX_ERROR).collect(),
            ago_s: now.saturating_duration_since(at).as_secs(),
        });
        Status {
            name: self.name.clone(),
            hba: self.hba.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: now.saturating_duration_since(self.began).as_secs(),
            resumed: self.resumed,
            stopping: self.stopping.is_some(),
            tenant: Tenant {
                connected: self.relay.has_tenant(),
                features: session.features.filter(|_| self.started),
                regions,
                memory,
                rings: session.rings,
                waiting: session.waiting,
            },
            storage: Storage {
                port: self.window.port().map(str::to_owned),
                connected: self.connection.is_some(),
                appliance: self.device.backend_up(),
                vectors: self.device.vectors(),
            },
            counters: Counted {
                kicks: self.counters.kicks,
                calls: self.counters.calls,
                trapped_doorbells: self.counters.trapped_doorbells,
                attachments: self.counters.attachments,
                requests: self.counters.requests,
            },
            error,
        }
    }
}
