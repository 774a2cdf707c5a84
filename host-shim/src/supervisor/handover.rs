//! From one supervisor to the next: what is written down, and how the next goes on from it.
//!
//! Written down is always a state in which nothing is left to do. What came in stays where it
//! came from until then (messages of the relay in its link) or stands in the journal (those of
//! the storage VM's QEMU). What a killed supervisor did since, the next does again: it tells the
//! same to the same, and all of it may be said twice. Kicks and calls are not written down, since
//! the next one kicks and calls every ring.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;
use serde::{Deserialize, Serialize};

use super::inflight::{Inflight, InflightRecord};
use super::keeper_host::KeeperHost;
use super::relay_host::RelayRecord;
use super::tenant::{RingEvents, RingRecord};
use super::window::WindowRecord;
use super::{About, RELAY, Supervisor};
use crate::journal::Journal;
use crate::kept::{Kept, name};
use crate::session::{FileId, Session};
use crate::vfio_user::{self, Connection};

/// The layout of a record. The next supervisor is the same program, but one that was killed in
/// the middle of an upgrade may not be.
const VERSION: u32 = 2;

/// Everything but the function, which has a record of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Record<S> {
    version: u32,
    session: S,
    relay: Option<RelayRecord>,
    rings: Vec<RingRecord>,
    window: WindowRecord,
    /// The tenant's memory, where it is not shown yet.
    memory: Option<(FileId, u64)>,
    inflight: InflightRecord,
    started: bool,
    connected: bool,
    /// The process that the user started is gone.
    orphan: bool,
    #[serde(with = "crate::moment::option")]
    attach_by: Option<Instant>,
}

/// The journal: that of another supervisor with its records, or a new one.
pub(super) fn open(kept: &Kept) -> io::Result<(Journal, Option<[Vec<u8>; 2]>)> {
    if let Some(fd) = kept.get(name::JOURNAL) {
        let journal = Journal::open(fd)?;
        let records = journal.records();
        return Ok((journal, records));
    }
    let mut journal = Journal::new()?;
    journal.keep(kept)?;
    Ok((journal, None))
}

impl Supervisor {
    /// Writes down where everything is, if it is not where it was; whether it is written down. If
    /// not, the next turn of the loop tries again.
    pub(super) fn commit(&mut self) -> bool {
        if !std::mem::take(&mut self.changed) {
            return true;
        }
        if let Err(error) = self.try_commit() {
            self.complain(&format!(
                "cannot write down the state of this HBA: {error}; a supervisor that is killed \
                 now is not gone on for"
            ));
            self.changed = true;
            return false;
        }
        if self.connection.is_none() {
            self.kept.release(name::CONNECTION);
        }
        self.kept.tidy();
        true
    }

    fn try_commit(&mut self) -> io::Result<()> {
        // The function's record below has all that was changed up to now.
        self.device.take_changed();
        let record = Record {
            version: VERSION,
            session: &self.session,
            relay: self.relay.record(),
            rings: self.rings.iter().map(RingEvents::record).collect(),
            window: self.window.record(),
            memory: self.memory.as_ref().map(|(id, file)| (*id, file.name())),
            inflight: self.inflight.record(),
            started: self.started,
            connected: self.connection.is_some(),
            orphan: self.keeper.as_ref().is_some_and(KeeperHost::is_orphan),
            attach_by: self.attach_by,
        };
        let rest = serde_json::to_vec(&record)?;
        let device = self.device.record()?;
        vfio_user::lock(&self.journal).commit(&device, &rest)
    }

    /// Goes on from `records`.
    pub(super) fn resume(&mut self, now: Instant, records: &[Vec<u8>; 2]) -> io::Result<()> {
        let [device, rest] = records;
        let record: Record<Session> = serde_json::from_slice(rest)?;
        if record.version != VERSION {
            return Err(io::Error::other(format!(
                "the supervisor before this one wrote down version {} of its state",
                record.version
            )));
        }
        self.device.restore(device, &self.kept)?;
        let limits = self.session.limits();
        self.session = record.session.resumed(limits);
        self.window.restore(now, record.window);
        self.inflight = Inflight::restored(&record.inflight, &self.kept);
        self.started = record.started;
        self.attach_by = record.attach_by;
        if let Some(keeper) = &mut self.keeper {
            keeper.restore(record.orphan);
        }
        let memory = record.memory;
        self.memory = memory.and_then(|(id, name)| Some((id, self.kept.get(name)?)));
        self.resume_tenant(now, record.relay.as_ref(), &record.rings)?;
        self.resume_connection(record.connected)?;
        self.session.notify_all();
        self.note(
            About::StorageVm,
            "the supervisor of this HBA was killed; this one goes on",
        );
        Ok(())
    }

    fn resume_tenant(
        &mut self,
        now: Instant,
        relay: Option<&RelayRecord>,
        rings: &[RingRecord],
    ) -> io::Result<()> {
        if let Some(relay) = relay {
            self.relay.restore(now, relay)?;
            if let Some(fd) = self.relay.link_fd() {
                let registry = self.poll.registry();
                registry.register(&mut SourceFd(&fd), RELAY, Interest::READABLE)?;
            }
            // What it says now may have been there before it was watched.
            self.relay_more = true;
        }
        for (ring, record) in (0u16..).zip(rings).take(self.rings.len()) {
            let (mut events, kick) = RingEvents::restored(record, &self.kept);
            // A call may have been counted that nobody saw.
            events.interrupt();
            self.rings[usize::from(ring)] = events;
            self.set_kick(ring, kick);
        }
        Ok(())
    }

    fn resume_connection(&mut self, connected: bool) -> io::Result<()> {
        let Some(kept) = self.kept.get(name::CONNECTION) else {
            if connected {
                self.device.client_gone();
                self.disconnect();
            }
            return Ok(());
        };
        let stream = kept.as_fd().try_clone_to_owned()?;
        if !connected {
            // It was accepted, and nothing else.
            return self.connect(stream);
        }
        let journal = Arc::clone(&self.journal);
        let connection =
            Connection::resume(stream.into(), journal, self.kept.clone(), &self.device)?;
        self.watch_connection(connection)?;
        self.more = true;
        Ok(())
    }
}
