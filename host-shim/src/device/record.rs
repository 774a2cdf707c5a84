//! What a next supervisor needs to go on with the function where this one is.

use std::io;

use serde::{Deserialize, Serialize};
use spec::device::MAX_RINGS;
use spec::mailbox::Request;
use spec::version::Version;

use super::inflight_memory::InflightMemory;
use super::interrupts::InterruptsRecord;
use super::session_memory::SessionMemory;
use super::tenant_memory::TenantMemory;
use super::{VhostPci, registers};
use crate::kept::{Kept, KeptFd};

/// A [`VhostPci`] between two processes, descriptors by their names. Not in it: call counters,
/// since every ring is called after a handover.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    config: Vec<u8>,
    interrupts: InterruptsRecord,
    session: u64,
    tenant: Option<u64>,
    inflight: Option<u64>,
    open: bool,
}

impl VhostPci {
    /// Whether the storage VM changed anything that a record holds since this was asked last.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Has session memory and in-flight memory kept.
    ///
    /// # Errors
    /// What duplicating its descriptor gave.
    pub(crate) fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        if let Some(memory) = &mut self.inflight {
            memory.keep(kept)?;
        }
        self.session.keep(kept)
    }

    /// The record, as bytes.
    ///
    /// # Errors
    /// `InvalidData` if it cannot be written, which would be a mistake of ours.
    pub(crate) fn record(&self) -> io::Result<Vec<u8>> {
        let record = Record {
            config: self.config.record(),
            interrupts: self.interrupts.record(),
            session: self.session.fd().name(),
            tenant: self.tenant.as_ref().map(|tenant| tenant.fd().name()),
            inflight: self.inflight.as_ref().map(|memory| memory.fd().name()),
            open: self.open,
        };
        Ok(serde_json::to_vec(&(record, self.registers.state()))?)
    }

    /// Goes on from `record`, with the descriptors in `kept`.
    ///
    /// # Errors
    /// `InvalidData` if the record is none, or names what is not kept.
    pub(crate) fn restore(&mut self, record: &[u8], kept: &Kept) -> io::Result<()> {
        let (record, state): (Record, registers::State) = serde_json::from_slice(record)?;
        let find = |name| kept.get(name).ok_or(io::ErrorKind::InvalidData);
        self.session = SessionMemory::reopen(find(record.session)?, self.registers.rings())?;
        self.tenant = match record.tenant {
            // It was checked when it came, and its seals cannot be taken away.
            Some(name) => Some(TenantMemory::trusted(find(name)?).map_err(io::Error::other)?),
            None => None,
        };
        self.inflight = match record.inflight {
            Some(name) => Some(InflightMemory::kept(find(name)?)),
            None => None,
        };
        self.config.restore(&record.config);
        self.interrupts.restore(record.interrupts, kept);
        self.registers.restore(state);
        self.open = record.open;
        Ok(())
    }

    /// The region whose file is `fd`, which a reply carries.
    pub(crate) fn region_of(&self, fd: &KeptFd) -> Option<usize> {
        (0..super::REGIONS).find(|index| {
            let mapped = self.region(*index).and_then(|region| region.mapped);
            mapped.is_some_and(|(file, _)| file.is(fd))
        })
    }
}

/// A request that waits for its reply: number, operation and payload.
pub(super) mod outstanding {
    use super::{Deserialize, Request, Serialize};
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Option<(u32, Request)>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value
            .map(|(sequence, request)| (sequence, request.operation(), request.payload()))
            .serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<(u32, Request)>, D::Error> {
        let Some((sequence, operation, payload)) =
            Option::<(u32, u32, Vec<u8>)>::deserialize(from)?
        else {
            return Ok(None);
        };
        let request = Request::parse(operation, &payload).map_err(D::Error::custom)?;
        Ok(Some((sequence, request)))
    }
}

/// A version, as its register has it.
pub(super) mod version {
    use super::{Deserialize, Serialize, Version};
    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Version,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.to_register().serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Version, D::Error> {
        u32::deserialize(from).map(Version::from_register)
    }
}

/// A reason for each ring.
pub(super) mod reasons {
    use super::{Deserialize, MAX_RINGS, Serialize};
    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &[u16; MAX_RINGS],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_slice().serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<[u16; MAX_RINGS], D::Error> {
        let mut reasons = [0; MAX_RINGS];
        for (slot, reason) in reasons.iter_mut().zip(Vec::<u16>::deserialize(from)?) {
            *slot = reason;
        }
        Ok(reasons)
    }
}
