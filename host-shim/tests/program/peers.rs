//! The QEMUs on both sides of a shim, played.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, SealFlags};
use spec::device::{DRIVER_VERSION, MAILBOX_REPLY, MAILBOX_REQUEST, STATUS, status};
use spec::mailbox::{HEADER_LEN, Header, Request};
use spec::session as layout;
use vfio_user::Client;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Place, eventually};

const RAM: u64 = 4 << 20;

/// Memory of a tenant.
pub fn tenant_memory() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("the-tenants-ram", flags).unwrap();
    rustix::fs::ftruncate(&memory, RAM).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
    memory
}

/// A tenant whose ring 2 is started.
pub struct Tenant {
    pub qemu: Frontend,
    /// It kicks by this eventfd.
    pub kick: EventFd,
    /// It is called by this one.
    pub call: EventFd,
}

/// A tenant with this memory that starts its ring.
pub fn tenant(place: &Place, memory: &OwnedFd) -> Tenant {
    let stream = UnixStream::connect(place.path("vhost")).unwrap();
    let mut qemu = Frontend::from_stream(stream, 10);
    qemu.set_owner().unwrap();
    let features = qemu.get_features().unwrap();
    let protocol = qemu.get_protocol_features().unwrap();
    qemu.set_protocol_features(protocol).unwrap();
    qemu.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    qemu.set_features(features).unwrap();
    qemu.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: RAM,
        userspace_addr: 0,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    }])
    .unwrap();
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    qemu.set_vring_num(2, 128).unwrap();
    qemu.set_vring_base(2, 0).unwrap();
    let ring = VringConfigData {
        queue_max_size: 128,
        queue_size: 128,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x3000,
        avail_ring_addr: 0x2000,
        log_addr: None,
    };
    qemu.set_vring_addr(2, &ring).unwrap();
    qemu.set_vring_call(2, &call).unwrap();
    qemu.set_vring_kick(2, &kick).unwrap();
    qemu.set_vring_enable(2, true).unwrap();
    Tenant { qemu, kick, call }
}

/// An appliance that has said yes to everything up to StartRing, and its only vector.
pub fn appliance(place: &Place) -> (Client, EventFd) {
    let mut client = eventually(|| Client::new(&place.path("vfio")).ok());
    let region = client.region(4).unwrap().file_offset.clone().unwrap();
    let session: &File = region.file();
    let vector = EventFd::new(EFD_NONBLOCK).unwrap();
    // VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER.
    client
        .set_irqs(1, 0x24, 0, 1, &[vector.as_raw_fd()])
        .unwrap();
    let mut write = |register, value: u32| {
        client
            .region_write(0, register, &value.to_le_bytes())
            .unwrap();
    };
    write(DRIVER_VERSION, spec::version::CURRENT.to_register());
    write(STATUS, status::BACKEND_UP);
    let mut answered = 0;
    loop {
        let asked = eventually(|| {
            let mut bytes = [0; 4];
            client.region_read(0, MAILBOX_REQUEST, &mut bytes).unwrap();
            Some(u32::from_le_bytes(bytes)).filter(|asked| *asked != answered)
        });
        let mut slot = [0; 128];
        session
            .read_exact_at(&mut slot, layout::MAILBOX_REQUEST)
            .unwrap();
        let header = Header::from_bytes(&slot).unwrap();
        let payload = &slot[HEADER_LEN..][..usize::try_from(header.len).unwrap()];
        let request = Request::parse(header.operation, payload).unwrap();
        let reply = Header { len: 0, ..header };
        session
            .write_all_at(&reply.to_bytes(), layout::MAILBOX_REPLY)
            .unwrap();
        client
            .region_write(0, MAILBOX_REPLY, &asked.to_le_bytes())
            .unwrap();
        answered = asked;
        if let Request::StartRing(_) = request {
            return (client, vector);
        }
    }
}
