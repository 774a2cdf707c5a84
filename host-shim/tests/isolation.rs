//! What the shim's processes hold of two memories: the tenant's, which none may map, and session
//! memory, which the tenant's side may not have.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, as which clippy does not know them"
)]

mod program;

use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use spec::device::{DRIVER_VERSION, MAILBOX_REPLY, MAILBOX_REQUEST, STATUS, status};
use spec::mailbox::{HEADER_LEN, Header, Request};
use spec::session as layout;
use vfio_user::Client;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use program::{Place, Shim, eventually};

const RAM: u64 = 4 << 20;
/// The tenant's memory, as /proc shows it.
const TENANT: &str = "/memfd:the-tenants-ram";
/// Session memory, as /proc shows it.
const SESSION: &str = "/memfd:vhost-pci-session";

fn tenant_memory() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("the-tenants-ram", flags).unwrap();
    rustix::fs::ftruncate(&memory, RAM).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
    memory
}

/// A tenant whose ring 2 is started; it kicks by the eventfd.
fn tenant(place: &Place, memory: &OwnedFd) -> (Frontend, EventFd) {
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
    (qemu, kick)
}

/// An appliance that has said yes to everything up to StartRing, and its only vector.
fn appliance(place: &Place) -> (Client, EventFd) {
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

/// What a process has mapped, one line each.
fn mapped(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

/// What a process has open, one line each.
fn open(pid: u32) -> String {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    links
        .map(|link| fs::read_link(link.unwrap().path()))
        .filter_map(|target| Some(format!("{}\n", target.ok()?.display())))
        .collect()
}

// covers: VPCI-SEC-2, VPCI-SEC-5
#[test]
fn nobody_maps_the_tenants_memory_and_the_relay_has_no_session_memory() {
    let place = Place::new();
    let shim = Shim::start(&place);
    let (supervisor, relay) = (shim.pid(), shim.relay());
    let memory = tenant_memory();
    let (_qemu, kick) = tenant(&place, &memory);
    let (_client, vector) = appliance(&place);
    for _ in 0..10 {
        kick.write(1).unwrap();
        eventually(|| vector.read().ok());
    }

    // The supervisor shows both memories to the storage VM, and maps only its own.
    assert!(open(supervisor).contains(TENANT));
    assert!(open(supervisor).contains(SESSION));
    assert!(mapped(supervisor).contains(SESSION));
    assert!(!mapped(supervisor).contains(TENANT));
    // The relay, which talks to the tenant's QEMU, has neither.
    assert!(!mapped(relay).contains(TENANT));
    assert!(!mapped(relay).contains(SESSION));
    assert!(open(relay).contains("socket:"));
    assert!(!open(relay).contains(SESSION));
}

// covers: VPCI-SEC-5
#[test]
fn no_vhost_user_message_is_answered_with_a_descriptor() {
    let place = Place::new();
    let _shim = Shim::start(&place);
    let mut answers = 0;
    for request in 1..=50u32 {
        let mut stream = UnixStream::connect(place.path("vhost")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // Version 1, a reply wanted; 24 bytes, which begin as GET_INFLIGHT_FD's may.
        let words = [request, 1 | 8, 24, 4096, 0, 0, 0, 0x80_0002, 0];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let bare: Vec<u8> = [request, 1, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        for message in [bare, message] {
            // A shim that hung up already does not take the second.
            let _ = stream.write_all(&message);
        }
        let _ = stream.shutdown(Shutdown::Write);
        loop {
            let received = stream.recv_with_fd(&mut [0; 256]);
            // A reset connection has nothing more to give either.
            let Ok((len, file)) = received else { break };
            assert!(file.is_none(), "request {request}");
            answers += usize::from(len > 0);
            if len == 0 {
                break;
            }
        }
    }
    assert!(answers >= 3, "only {answers} answers show nothing");
}
