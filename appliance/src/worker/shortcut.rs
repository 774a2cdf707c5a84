//! The shortcut of a READ or WRITE that its disk does at once: from the chain to the used ring,
//! without becoming a task.
//!
//! What it takes is decided in `scsi/transfer.rs`, as for [`Worker::command`]; whatever is out of the
//! ordinary goes on there as if nothing had happened.

use std::time::Duration;

use spec::virtio_scsi::{RequestHeader, Response, feature};

use super::Worker;
use crate::disk::Op;
use crate::in_flight::Waiters;
use crate::ring::Chain;
use crate::statistics::Ending;
use crate::task::{Command, Name, Used};

impl Worker {
    /// Carries a command out if that can be done at once, and gives it back; whether it was so.
    #[inline]
    pub(super) fn shortcut(&mut self, ring: u16, chain: &mut Chain) -> bool {
        if self.features & feature::T10_PI != 0
            || !self.pauses.is_empty()
            || Command::check(chain, self.features).is_err()
        {
            return false;
        }
        let mut bytes = [0; RequestHeader::LEN];
        chain.readable.read_at(0, &mut bytes);
        let header = RequestHeader::from_bytes(&bytes);
        let lengths = (
            chain.readable.len() - RequestHeader::LEN,
            chain.writable.len() - Response::LEN,
        );
        let Some(ready) = self.host.transfer(&header, lengths) else {
            return false;
        };
        let (unit, op) = (ready.unit(), ready.transfer().op());
        if self.limits.concern(unit) {
            return false;
        }
        let writes = matches!(op, Op::Write { .. });
        // What was written is marked where it may be lost.
        if writes && unit.disk().caches_writes() {
            return false;
        }
        let (buffer, before) = if writes {
            (&mut chain.readable, RequestHeader::LEN)
        } else {
            (&mut chain.writable, Response::LEN)
        };
        let data = buffer.split_off(before);
        if !matches!(unit.disk().at_once(&op, Some(&data)), Some(Ok(_))) {
            buffer.append(&data);
            return false;
        }
        let name = Name {
            place: ready.place(),
            tag: header.tag,
        };
        tracing::trace!(hba = self.shim.hba(), ring, tag = name.tag, "pop, push");
        ready.count();
        self.polling.came();
        // GOOD, and nothing is left of the buffers.
        chain.writable.write_at(0, &[0; Response::LEN]);
        let ending = Ending::moved(header.cdb, self.now, lengths);
        self.statistics
            .ended(name.place, name.tag, &ending, self.now);
        self.polling.ended(Duration::ZERO);
        let chain = Used {
            head: chain.head,
            written: u32::try_from(Response::LEN + lengths.1).unwrap_or(u32::MAX),
        };
        self.give_back(ring, chain, Some(name), Waiters::new());
        true
    }
}
