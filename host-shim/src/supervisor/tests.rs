use super::*;
use rustix::fs::{MemfdFlags, SealFlags};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use uuid::Uuid;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::tempdir::TempDir;

const RAM: u64 = 4 << 20;
/// Where the tenant's QEMU has it.
const USER: u64 = 0x7f00_0000_0000;
/// How long an answer or a callback may take in these tests.
const SOON: Duration = Duration::from_secs(5);

/// A running supervisor, with a test in the place of both QEMUs.
struct Shim {
    dir: TempDir,
    stop: Stop,
    /// What it told the plug.
    told: Receiver<bool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Shim {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let bind = |name: &str| UnixListener::bind(dir.as_path().join(name)).unwrap();
        let (tell, told) = mpsc::channel();
        let mut config = Config::new(
            Profile::new("test", Uuid::from_u128(1)),
            bind("vhost"),
            bind("vfio"),
            RelayKind::Thread,
            Plug::Manual(Box::new(move |plug| tell.send(plug).unwrap_or(()))),
        );
        config.grace = Duration::from_millis(50);
        config.drain_timeout = Duration::from_millis(300);
        let supervisor = Supervisor::new(config).unwrap();
        let stop = supervisor.stop_handle();
        let thread = thread::spawn(move || supervisor.run());
        Self {
            dir,
            stop,
            told,
            thread: Some(thread),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_path().join(name)
    }

    fn tenant(&self) -> Frontend {
        let stream = UnixStream::connect(self.path("vhost")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Frontend::from_stream(stream, 10)
    }

    fn told(&self) -> bool {
        self.told.recv_timeout(SOON).unwrap()
    }

    /// Stops it, as SIGTERM does, and waits for its end.
    fn stop(mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Twice: at once.
        self.stop.stop();
        self.stop.stop();
    }
}

fn memfd(seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("tenant", flags).unwrap();
    rustix::fs::ftruncate(&memory, RAM).unwrap();
    rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
    memory
}

/// The handshake and the features, as far as QEMU goes before it names memory.
fn negotiate(qemu: &mut Frontend) {
    qemu.set_owner().unwrap();
    let features = qemu.get_features().unwrap();
    let protocol = qemu.get_protocol_features().unwrap();
    qemu.set_protocol_features(protocol).unwrap();
    qemu.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    qemu.set_features(features).unwrap();
}

fn set_memory(qemu: &Frontend, memory: &OwnedFd) -> vhost::Result<()> {
    qemu.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: RAM,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    }])
    .map(|_| ())
}

/// Sets up and starts ring 2; the caller keeps its kick eventfd.
fn start_ring(qemu: &mut Frontend) -> EventFd {
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    qemu.set_vring_num(2, 128).unwrap();
    qemu.set_vring_base(2, 0).unwrap();
    let rings = VringConfigData {
        queue_max_size: 128,
        queue_size: 128,
        flags: 0,
        desc_table_addr: USER + 0x1000,
        used_ring_addr: USER + 0x3000,
        avail_ring_addr: USER + 0x2000,
        log_addr: None,
    };
    qemu.set_vring_addr(2, &rings).unwrap();
    qemu.set_vring_call(2, &EventFd::new(EFD_NONBLOCK).unwrap())
        .unwrap();
    qemu.set_vring_kick(2, &kick).unwrap();
    qemu.set_vring_enable(2, true).unwrap();
    kick
}

#[test]
fn the_function_is_plugged_when_the_first_ring_starts_and_unplugged_after_the_tenant_left() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    set_memory(&qemu, &memfd(SealFlags::SHRINK)).unwrap();
    assert!(shim.told.try_recv().is_err());

    let _kick = start_ring(&mut qemu);
    assert!(shim.told());

    drop(qemu);
    assert!(!shim.told());
    shim.stop();
}

#[test]
fn a_tenant_that_is_back_soon_with_the_same_memory_keeps_the_function() {
    let shim = Shim::start();
    let memory = memfd(SealFlags::SHRINK);
    for _ in 0..3 {
        let mut qemu = shim.tenant();
        negotiate(&mut qemu);
        set_memory(&qemu, &memory).unwrap();
        let _kick = start_ring(&mut qemu);
    }
    let _back = shim.tenant();
    assert!(shim.told());
    // Gone for good now, so told once more, and only once.
    assert!(!shim.told());
    assert!(shim.told.try_recv().is_err());
}

#[test]
fn another_memory_file_is_plugged_anew() {
    let shim = Shim::start();
    for expected in [[true, false], [true, false]] {
        let mut qemu = shim.tenant();
        negotiate(&mut qemu);
        set_memory(&qemu, &memfd(SealFlags::SHRINK)).unwrap();
        let _kick = start_ring(&mut qemu);
        assert_eq!(shim.told(), expected[0]);
        drop(qemu);
        assert_eq!(shim.told(), expected[1]);
    }
}

#[test]
fn an_unsealed_memory_file_costs_the_tenant_its_connection() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    assert!(set_memory(&qemu, &memfd(SealFlags::GROW)).is_err());
    assert!(qemu.get_features().is_err());

    let mut again = shim.tenant();
    negotiate(&mut again);
    set_memory(&again, &memfd(SealFlags::SHRINK)).unwrap();
}

#[test]
fn a_ring_that_never_ran_gives_its_base_back() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    set_memory(&qemu, &memfd(SealFlags::SHRINK)).unwrap();
    let _kick = start_ring(&mut qemu);
    assert_eq!(qemu.get_vring_base(2).unwrap(), 0);
}

#[test]
fn a_file_in_place_of_a_kick_costs_the_tenant_its_connection() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    use std::os::fd::{FromRawFd, IntoRawFd};
    let file = memfd(SealFlags::SHRINK).into_raw_fd();
    #[expect(unsafe_code, reason = "EventFd has no other way to be anything else")]
    // SAFETY: the descriptor is open, and given away here.
    let no_event = unsafe { EventFd::from_raw_fd(file) };
    assert!(qemu.set_vring_kick(2, &no_event).is_err());
}

#[test]
fn the_storage_vm_is_turned_away_while_there_is_no_tenant() {
    let shim = Shim::start();
    let mut early = UnixStream::connect(shim.path("vfio")).unwrap();
    early.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(early.read(&mut [0; 1]).unwrap(), 0);
    shim.stop();
}

#[test]
fn a_relay_that_hangs_is_replaced() {
    let shim = Shim::start();
    // Half a message: the relay waits for the rest and answers no ping.
    let mut hostile = UnixStream::connect(shim.path("vhost")).unwrap();
    io::Write::write_all(&mut hostile, &[1, 0, 0]).unwrap();
    hostile.set_read_timeout(Some(SOON * 3)).unwrap();
    assert_eq!(hostile.read(&mut [0; 1]).unwrap(), 0);
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
}

#[test]
fn a_stop_ends_a_tenants_connection_and_the_loop() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    shim.stop();
    assert!(qemu.get_features().is_err());
}
