//! What the tenant's QEMU said about one vring.

use serde::{Deserialize, Serialize};
use spec::mailbox::RingSetup;

use super::memory::TenantMemory;

/// Largest vring (virtio 1.3 §2.7).
const MAX_SIZE: u32 = 32768;

/// Where the three parts of a vring are, in addresses of the tenant's QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptor_table: u64,
    /// The avail ring.
    pub avail_ring: u64,
    /// The used ring.
    pub used_ring: u64,
}

/// The record of one vring.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Ring {
    pub size: Option<u16>,
    pub addresses: Option<RingAddresses>,
    /// Next avail index, as far as it is known.
    pub base: u16,
    /// An appliance was told to run it and no appliance has since said where it stopped, so
    /// `base` is out of date: only the used index in the ring itself tells.
    pub live: bool,
    /// That appliance ran it with in-flight memory, so the used index alone does not tell.
    pub tracked: bool,
    /// The tenant gave an eventfd for kicks (vhost-user: the ring is started).
    pub kick: bool,
    pub enabled: bool,
    /// It was enabled before, in this connection.
    #[serde(default)]
    pub was_enabled: bool,
    /// GET_VRING_BASE waits for it.
    pub base_asked: bool,
    /// The appliance refused it as it is set up now.
    pub refused: bool,
}

impl Ring {
    /// The size in a SET_VRING_NUM, if a vring can be so large.
    pub fn checked_size(num: u32) -> Option<u16> {
        (num.is_power_of_two() && num <= MAX_SIZE)
            .then(|| u16::try_from(num).ok())
            .flatten()
    }

    /// What the appliance needs to run it, without in-flight memory; `None` if the tenant has not said all of it, or its
    /// parts lie outside `memory`.
    pub fn setup(&self, index: u16, memory: &TenantMemory) -> Option<RingSetup> {
        let addresses = self.addresses?;
        Some(RingSetup {
            ring: index,
            size: self.size?,
            base: (!self.live).then_some(self.base),
            inflight: None,
            descriptor_table: memory.translate(addresses.descriptor_table)?,
            avail_ring: memory.translate(addresses.avail_ring)?,
            used_ring: memory.translate(addresses.used_ring)?,
        })
    }

    /// As after a reset of the device.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// As after the connection ended: only how far it ran is remembered.
    pub fn disconnect(&mut self) {
        *self = Self {
            base: self.base,
            live: self.live,
            tracked: self.tracked,
            ..Self::default()
        };
    }
}

/// Whether two setups are the same ring; where it goes on does not matter.
pub(super) fn same_ring(one: &RingSetup, other: &RingSetup) -> bool {
    RingSetup {
        base: other.base,
        ..*one
    } == *other
}

/// A setup, as the request that starts the ring has it.
pub(super) mod setup {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use spec::mailbox::{Request, RingSetup};

    fn read<E: Error>(payload: &[u8]) -> Result<RingSetup, E> {
        let operation = Request::StartRing(NONE).operation();
        match Request::parse(operation, payload).map_err(E::custom)? {
            Request::StartRing(setup) => Ok(setup),
            _ => Err(E::custom("not a ring's setup")),
        }
    }

    const NONE: RingSetup = RingSetup {
        ring: 0,
        size: 0,
        base: None,
        inflight: None,
        descriptor_table: 0,
        avail_ring: 0,
        used_ring: 0,
    };

    /// Writes `setup`.
    pub(in super::super) fn serialize<S: Serializer>(
        setup: &RingSetup,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        Request::StartRing(*setup).payload().serialize(to)
    }

    /// Reads what [`serialize`] wrote.
    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<RingSetup, D::Error> {
        read(&Vec::deserialize(from)?)
    }

    /// The setups of all rings.
    pub(in super::super) mod each {
        use super::{Deserialize, Deserializer, Request, RingSetup, Serializer, read};

        /// Writes `setups`.
        pub(in super::super::super) fn serialize<S: Serializer>(
            setups: &[Option<RingSetup>],
            to: S,
        ) -> Result<S::Ok, S::Error> {
            let payload = |setup: &Option<RingSetup>| Some(Request::StartRing((*setup)?).payload());
            to.collect_seq(setups.iter().map(payload))
        }

        /// Reads what [`serialize`] wrote.
        pub(in super::super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Vec<Option<RingSetup>>, D::Error> {
            let payloads = Vec::<Option<Vec<u8>>>::deserialize(from)?;
            let setup = |payload: Option<Vec<u8>>| payload.map(|bytes| read(&bytes)).transpose();
            payloads.into_iter().map(setup).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_up_to_32768() {
        assert_eq!(Ring::checked_size(128), Some(128));
        assert_eq!(Ring::checked_size(32768), Some(32768));
        assert_eq!(Ring::checked_size(0), None);
        assert_eq!(Ring::checked_size(100), None);
        assert_eq!(Ring::checked_size(65536), None);
        assert_eq!(Ring::checked_size(u32::MAX), None);
    }
}
