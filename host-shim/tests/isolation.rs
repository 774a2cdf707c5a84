//! What the shim's processes hold of two memories: the tenant's, which none may map, and session
//! memory, which the tenant's side may not have.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, as which clippy does not know them"
)]

mod program;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use program::peers::{appliance, tenant, tenant_memory};
use program::{Place, Shim, eventually};

/// The tenant's memory, as /proc shows it.
const TENANT: &str = "/memfd:the-tenants-ram";
/// Session memory, as /proc shows it.
const SESSION: &str = "/memfd:vhost-pci-session";

/// The journal, as /proc shows it.
const JOURNAL: &str = "/memfd:vhost-pci-journal";

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
    let (keeper, supervisor, relay) = (shim.pid(), shim.supervisor(), shim.relay());
    let memory = tenant_memory();
    let tenant = tenant(&place, &memory);
    let (_client, vector) = appliance(&place);
    for _ in 0..10 {
        tenant.kick.write(1).unwrap();
        eventually(|| vector.read().ok());
    }

    // The supervisor shows both memories to the storage VM, and maps only its own.
    assert!(open(supervisor).contains(TENANT));
    assert!(open(supervisor).contains(SESSION));
    assert!(mapped(supervisor).contains(SESSION));
    assert!(!mapped(supervisor).contains(TENANT));
    // The keeper has both, and maps neither: it does not look into what it keeps.
    assert!(open(keeper).contains(TENANT));
    assert!(open(keeper).contains(SESSION));
    assert!(!mapped(keeper).contains("memfd:"));
    // The relay, which talks to the tenant's QEMU, has neither.
    assert!(!mapped(relay).contains(TENANT));
    assert!(!mapped(relay).contains(SESSION));
    assert!(open(relay).contains("socket:"));
    assert!(!open(relay).contains(SESSION));
    assert!(!open(relay).contains(JOURNAL));
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
