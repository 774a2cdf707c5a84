//! From the messages of crate `vhost` to the session.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use spec::device::MAX_RINGS;
use spec::inflight::REGIONS;
use spec::session::MEMORY_SLOTS;

use super::inflight::{self, Inflight};
use super::regions::Region;
use super::session::{Addresses, Refused, Session};
use super::{LOG_ALL, PROTOCOL_FEATURES};
use crate::worker::FEATURES;

/// Rings that are not for requests: control and event.
const OTHER_RINGS: usize = 2;

/// What the messages of a connection are handed to.
#[derive(Debug)]
pub(super) struct Handler {
    session: Session,
    /// Why the last message was refused, if it was.
    refused: Option<Refused>,
}

impl Handler {
    pub fn new(session: Session) -> Self {
        Self {
            session,
            refused: None,
        }
    }

    /// The session, for what is not a message.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Why a message was refused, if one was since the last question.
    pub fn refusal(&mut self) -> Option<Refused> {
        self.refused.take()
    }

    fn take<T>(
        &mut self,
        act: impl FnOnce(&mut Session) -> std::result::Result<T, Refused>,
    ) -> Result<T> {
        act(&mut self.session).map_err(|refused| {
            self.refused = Some(refused);
            Error::BackendInternalError
        })
    }
}

/// Not offered, so nobody who keeps to the protocol asks for it.
const NOT_OFFERED: Error = Error::InvalidOperation("not offered by this backend");

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.take(Session::reset)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES | PROTOCOL_FEATURES | LOG_ALL)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.take(|session| session.set_features(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = regions.iter().map(|region| Region {
            guest_address: region.guest_phys_addr,
            len: region.memory_size,
            user_address: region.user_addr,
            offset: region.mmap_offset,
        });
        self.take(|session| session.set_memory(regions.zip(files)))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, ring: u32, num: u32) -> Result<()> {
        self.take(|session| session.set_size(ring, num))
    }

    fn set_vring_addr(
        &mut self,
        ring: u32,
        flags: VhostUserVringAddrFlags,
        descriptor_table: u64,
        used_ring: u64,
        avail_ring: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let log = logged.then_some(log);
        let addresses = Addresses {
            descriptor_table,
            avail_ring,
            used_ring,
        };
        self.take(|session| session.set_addresses(ring, addresses, log))
    }

    fn set_vring_base(&mut self, ring: u32, base: u32) -> Result<()> {
        self.take(|session| session.set_base(ring, base))
    }

    fn get_vring_base(&mut self, ring: u32) -> Result<VhostUserVringState> {
        let base = self.take(|session| session.stop_for_base(ring))?;
        Ok(VhostUserVringState::new(ring, base.into()))
    }

    fn set_vring_kick(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.take(|session| session.set_kick(ring.into(), file))
    }

    fn set_vring_call(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.take(|session| session.set_call(ring.into(), file))
    }

    fn set_vring_err(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.take(|session| session.set_error(ring.into(), file))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok((MAX_RINGS - OTHER_RINGS) as u64)
    }

    fn set_vring_enable(&mut self, ring: u32, enable: bool) -> Result<()> {
        self.take(|session| session.set_enabled(ring, enable))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.take(|session| session.add_region(single(region), file))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.take(|session| session.remove_region(&single(region)))
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(NOT_OFFERED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (rings, entries) = (wanted.num_queues, wanted.queue_size);
        let given = self.take(|_| inflight::fresh(rings, entries).map_err(refused))?;
        let place = VhostUserInflight::new(given.len, REGIONS, rings, entries);
        Ok((place, given.file))
    }

    fn set_inflight_fd(&mut self, set: &VhostUserInflight, file: File) -> Result<()> {
        let (place, shape) = (
            (set.mmap_offset, set.mmap_size),
            (set.num_queues, set.queue_size),
        );
        self.take(|session| session.set_inflight(Inflight::adopted(&file, place, shape)?))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        self.take(|session| session.set_log(&file, log.mmap_offset, log.mmap_size))
    }
}

fn refused(error: io::Error) -> Refused {
    Refused::Inflight(error.into())
}

fn single(region: &VhostUserSingleMemoryRegion) -> Region {
    Region {
        guest_address: region.guest_phys_addr,
        len: region.memory_size,
        user_address: region.user_addr,
        offset: region.mmap_offset,
    }
}
