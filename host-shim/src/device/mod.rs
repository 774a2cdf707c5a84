//! The vhost-pci PCI function: everything of it that is not a socket.
//!
//! [`VhostPci`] is state, three memory files and the eventfds of its interrupts. A vfio-user
//! client reaches it through [`crate::vfio_user::Connection`]; the supervisor drives it with the
//! methods here and learns what the storage VM did from [`VhostPci::take_event`].

mod config_space;
mod descriptor;
mod event;
mod inflight_memory;
mod interrupts;
mod profile;
mod record;
mod region;
mod registers;
mod session_memory;
pub(crate) mod shared_memory;
mod tenant_memory;

use std::io;

use spec::mailbox::{Reply, Request};
use spec::session::{MEMORY_SLOTS, MemoryEntry};

use crate::kept::KeptFd;
use config_space::ConfigSpace;
use interrupts::Interrupts;
use registers::Registers;
use session_memory::SessionMemory;
use tenant_memory::TenantMemory;

pub(crate) use descriptor::signal_on_hangup;
pub use event::{DeviceEvent, Refusal};
pub use inflight_memory::{InflightError, InflightMemory};
pub(crate) use interrupts::NoSuchVector;
pub use profile::{Profile, ProfileError};
pub(crate) use region::{OutsideRegion, REGIONS, Region};
pub use registers::PostError;
pub use session_memory::BadReply;
pub use tenant_memory::TenantMemoryError;

/// A memory table that cannot be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More ranges than the table has room for.
    #[error("the tenant has {0} memory ranges; at most 512 are possible")]
    TooLong(usize),
    /// A range that is empty or not all inside the tenant's memory file.
    #[error(
        "the tenant's memory range at {guest_address:#x} ({len:#x} bytes at offset \
         {bar_offset:#x}) is not inside its memory file of {file:#x} bytes"
    )]
    Outside {
        /// Guest-physical address of the range.
        guest_address: u64,
        /// Length of the range in bytes.
        len: u64,
        /// Offset of the range in the file in bytes.
        bar_offset: u64,
        /// Length of the file in bytes, 0 if there is none.
        file: u64,
    },
}

/// The vhost-pci PCI function of one HBA.
#[derive(Debug)]
pub struct VhostPci {
    config: ConfigSpace,
    registers: Registers,
    interrupts: Interrupts,
    session: SessionMemory,
    tenant: Option<TenantMemory>,
    /// Absent in version 1.0.
    inflight: Option<InflightMemory>,
    /// Whether a vfio-user client has the function open.
    open: bool,
    /// The storage VM changed something since [`Self::take_changed`].
    changed: bool,
}

impl VhostPci {
    /// A function with this profile, without tenant memory, that nobody has opened.
    ///
    /// # Errors
    /// `InvalidInput` with a [`ProfileError`] for a profile no function can have; otherwise what
    /// the kernel says when session memory cannot be had.
    pub fn new(profile: &Profile) -> io::Result<Self> {
        profile
            .check()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Self {
            config: ConfigSpace::new(profile.vectors),
            registers: Registers::new(profile),
            interrupts: Interrupts::new(profile.vectors),
            session: SessionMemory::new(profile.rings)?,
            tenant: None,
            inflight: match profile.version.has_inflight() {
                true => Some(InflightMemory::new()?),
                false => None,
            },
            open: false,
            changed: false,
        })
    }

    /// Makes a memfd of the tenant BAR2: all of it, BAR offset = file offset. The memory table
    /// becomes invalid until it is published again.
    ///
    /// # Errors
    /// [`TenantMemoryError`] if somebody could shrink it, if it cannot be mapped, or if a
    /// vfio-user client has the function open: what QEMU has mapped cannot be changed.
    pub fn set_tenant_memory(&mut self, file: impl Into<KeptFd>) -> Result<(), TenantMemoryError> {
        self.set_memory(file.into(), TenantMemory::sealed)
    }

    /// As [`Self::set_tenant_memory`] for a path-backed file, which cannot be sealed: the
    /// operator vouches that nobody will shrink it.
    ///
    /// # Errors
    /// [`TenantMemoryError`] as there, except that the file need not be sealed.
    pub fn set_trusted_tenant_memory(
        &mut self,
        file: impl Into<KeptFd>,
    ) -> Result<(), TenantMemoryError> {
        self.set_memory(file.into(), TenantMemory::trusted)
    }

    /// Lets the tenant's memory go.
    ///
    /// # Errors
    /// [`TenantMemoryError::InUse`] while a vfio-user client has the function open.
    pub fn clear_tenant_memory(&mut self) -> Result<(), TenantMemoryError> {
        self.check_closed()?;
        self.tenant = None;
        self.config.set_tenant_bar(false);
        self.forget_table();
        Ok(())
    }

    /// In-flight memory, if the function is of a version that has it.
    pub fn inflight_memory(&self) -> Option<&InflightMemory> {
        self.inflight.as_ref()
    }

    /// Makes other in-flight memory BAR1.
    ///
    /// # Errors
    /// [`InflightError::InUse`] while a vfio-user client has the function open.
    pub fn set_inflight_memory(&mut self, memory: InflightMemory) -> Result<(), InflightError> {
        if self.open {
            return Err(InflightError::InUse);
        }
        self.inflight = Some(memory);
        Ok(())
    }

    /// Length of the largest BAR in bytes: what the root port must have room for.
    pub fn largest_bar(&self) -> u64 {
        self.tenant
            .as_ref()
            .map_or(0, TenantMemory::bar_len)
            .max(spec::session::LEN)
    }

    /// Writes the memory table into session memory; returns its generation, which a
    /// [`Request::SetMemory`] names. An empty table is an invalid one (MEM_VALID is 0).
    ///
    /// # Errors
    /// [`TableError`] if there are too many entries or one is not inside the tenant's memory;
    /// the table stays as it was.
    pub fn publish_memory(&mut self, entries: &[MemoryEntry]) -> Result<u32, TableError> {
        if entries.len() > MEMORY_SLOTS {
            return Err(TableError::TooLong(entries.len()));
        }
        let file = self.tenant.as_ref().map_or(0, TenantMemory::len);
        for entry in entries {
            let end = entry.bar_offset.checked_add(entry.len);
            let last_address = entry.guest_address.checked_add(entry.len);
            if entry.len == 0 || last_address.is_none() || end.is_none_or(|end| end > file) {
                return Err(TableError::Outside {
                    guest_address: entry.guest_address,
                    len: entry.len,
                    bar_offset: entry.bar_offset,
                    file,
                });
            }
        }
        let generation = self.registers.next_memory_generation(!entries.is_empty());
        self.session.publish_table(entries, generation);
        Ok(generation)
    }

    /// Says whether the tenant's QEMU is connected; each time it newly is counts as a
    /// connection.
    pub fn set_frontend_up(&mut self, up: bool) {
        self.registers.set_frontend_up(up);
    }

    /// Whether an appliance is attached.
    pub fn backend_up(&self) -> bool {
        self.registers.backend_up()
    }

    /// MSI vectors that are enabled.
    pub fn vectors(&self) -> usize {
        self.interrupts.enabled()
    }

    /// Whether a vfio-user client has the function open.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Posts a request to the appliance; returns its sequence number, which the reply will
    /// carry.
    ///
    /// # Errors
    /// [`PostError`] if no appliance is attached or the previous request is unanswered.
    pub fn post(&mut self, request: Request) -> Result<u32, PostError> {
        let sequence = self.registers.post(request)?;
        self.session.write_request(sequence, &request);
        self.interrupts.fire_mailbox();
        self.sync_vectors();
        Ok(sequence)
    }

    /// Reads, once, the reply to the outstanding request; `sequence` is what
    /// [`DeviceEvent::Reply`] said. Whatever comes back, the request is outstanding no longer.
    ///
    /// # Errors
    /// [`BadReply`] if it is not the answer to the request that was posted last;
    /// [`Self::refuse`] the appliance then.
    pub fn reply(&mut self, sequence: u32) -> Result<Reply, BadReply> {
        let request = self.registers.answered(sequence)?;
        self.session.read_reply(sequence, &request)
    }

    /// Turns the appliance away: it is detached, STATUS.REFUSED and ERROR say why, and an
    /// interrupt makes it look. [`DeviceEvent::BackendDown`] follows if it was attached.
    pub fn refuse(&mut self, reason: Refusal) {
        self.registers.refuse(reason);
        self.interrupts.fire_mailbox();
        self.sync_vectors();
    }

    /// The tenant has reset its HBA: no ring counts as retired any more.
    pub fn clear_ring_errors(&mut self) {
        self.registers.clear_ring_errors();
    }

    /// Tells the appliance that the tenant kicked `ring`: fires the MSI vector that carries it,
    /// at once or, while MSI is off, when it is enabled.
    pub fn kick(&mut self, ring: u16) {
        self.interrupts.kick(ring);
        self.sync_vectors();
    }

    /// What the storage VM did; `None` when everything was told. To be called until then after
    /// each [`crate::vfio_user::Connection::ready`].
    pub fn take_event(&mut self) -> Option<DeviceEvent> {
        self.registers.take_event()
    }

    /// Before the shim sleeps: from now on the appliance must ring the trapped doorbell.
    /// Returns whether a call came before that; the caller then does not sleep but collects.
    #[must_use = "a call that came before must be collected"]
    pub fn arm(&mut self) -> bool {
        self.session.arm()
    }

    /// After the shim woke and while it polls with [`Self::collect_calls`]: the appliance need
    /// not ring.
    pub fn disarm(&mut self) {
        self.session.disarm();
    }

    /// Calls `call` with each ring for which the appliance wants an interrupt and has not been
    /// given one, according to its call counters.
    pub fn collect_calls(&mut self, call: impl FnMut(u16)) {
        self.session.collect_calls(call);
    }

    /// The vfio-user client is gone: the function is as nobody had opened it. A
    /// [`crate::vfio_user::Connection`] that closed has said so already.
    pub fn client_gone(&mut self) {
        self.open = false;
        self.interrupts.release_all();
        self.registers.set_vectors(0);
        self.reset();
    }

    /// A vfio-user client has opened the function.
    pub(crate) fn client_arrived(&mut self) {
        self.changed = true;
        self.open = true;
    }

    /// Back to what it is after power-on, as far as the storage VM can see; the tenant's side
    /// stays.
    pub(crate) fn reset(&mut self) {
        self.changed = true;
        self.config.reset();
        self.registers.reset();
    }

    /// MSI vectors that the function offers.
    pub(crate) fn offered_vectors(&self) -> usize {
        self.interrupts.offered()
    }

    /// Gives `count` vectors from `start` these eventfds, or takes theirs away if there are
    /// none.
    pub(crate) fn assign_vectors(
        &mut self,
        start: usize,
        count: usize,
        fds: Vec<KeptFd>,
    ) -> Result<(), NoSuchVector> {
        self.changed = true;
        let result = self.interrupts.assign(start, count, fds);
        self.sync_vectors();
        result
    }

    /// Takes the eventfds of all vectors away: MSI was disabled.
    pub(crate) fn release_vectors(&mut self) {
        self.changed = true;
        self.interrupts.release_all();
        self.sync_vectors();
    }

    fn sync_vectors(&mut self) {
        self.registers.set_vectors(self.interrupts.enabled());
    }

    fn set_memory(
        &mut self,
        file: KeptFd,
        check: fn(KeptFd) -> Result<TenantMemory, TenantMemoryError>,
    ) -> Result<(), TenantMemoryError> {
        self.check_closed()?;
        self.tenant = Some(check(file)?);
        self.config.set_tenant_bar(true);
        self.forget_table();
        Ok(())
    }

    fn check_closed(&self) -> Result<(), TenantMemoryError> {
        if self.open {
            Err(TenantMemoryError::InUse)
        } else {
            Ok(())
        }
    }

    fn forget_table(&mut self) {
        let generation = self.registers.next_memory_generation(false);
        self.session.publish_table(&[], generation);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::interrupts::tests::eventfd;
    pub(crate) use super::tenant_memory::tests::{SHRINK, memfd};

    use uuid::Uuid;

    use super::*;

    fn device() -> VhostPci {
        let mut device = VhostPci::new(&Profile::new("hba0", Uuid::nil())).unwrap();
        device.set_tenant_memory(memfd(1 << 20, SHRINK)).unwrap();
        device
    }

    fn entry(guest_address: u64, len: u64, bar_offset: u64) -> MemoryEntry {
        MemoryEntry {
            guest_address,
            len,
            bar_offset,
        }
    }

    #[test]
    fn a_profile_that_no_function_can_have_is_named() {
        let profile = Profile {
            vectors: 3,
            ..Profile::new("hba0", Uuid::nil())
        };
        let error = VhostPci::new(&profile).unwrap_err();
        assert!(error.to_string().contains("3 MSI vectors"), "{error}");
    }

    // covers: VPCI-MEM-2
    #[test]
    fn each_table_has_a_generation_of_its_own() {
        let mut device = device();
        let first = device.publish_memory(&[entry(0, 4096, 0)]).unwrap();
        let second = device.publish_memory(&[entry(0, 8192, 0)]).unwrap();
        assert_ne!(first, second);
        assert_ne!(first, 0);
    }

    // covers: VPCI-MEM-3
    #[test]
    fn a_range_outside_the_tenants_memory_is_not_published() {
        let mut device = device();
        for bad in [
            entry(0, 0, 0),
            entry(0, (1 << 20) + 1, 0),
            entry(0, 4096, 1 << 20),
            entry(0, 2, u64::MAX),
            entry(u64::MAX, 4096, 0),
        ] {
            let result = device.publish_memory(&[entry(0, 4096, 0), bad]);
            assert!(matches!(result, Err(TableError::Outside { .. })), "{bad:?}");
        }
        let many = vec![entry(0, 4096, 0); 513];
        assert_eq!(device.publish_memory(&many), Err(TableError::TooLong(513)));
        assert_eq!(device.publish_memory(&many[..512]).map(|_| ()), Ok(()));
        device.clear_tenant_memory().unwrap();
        assert!(device.publish_memory(&[entry(0, 4096, 0)]).is_err());
        assert!(device.publish_memory(&[]).is_ok());
    }

    #[test]
    fn the_largest_bar_is_what_the_root_port_must_hold() {
        let mut device = device();
        assert_eq!(device.largest_bar(), 1 << 20);
        device.set_tenant_memory(memfd(3 << 30, SHRINK)).unwrap();
        assert_eq!(device.largest_bar(), 4 << 30);
        device.clear_tenant_memory().unwrap();
        assert_eq!(device.largest_bar(), 0x2_0000);
    }

    #[test]
    fn nobody_is_asked_anything_before_an_appliance_is_attached() {
        let mut device = device();
        assert_eq!(device.post(Request::Reset), Err(PostError::NotAttached));
        assert_eq!(device.reply(1), Err(BadReply::NothingAsked));
    }
}
