use super::*;
use rustix::fs::{MemfdFlags, SealFlags};
use spec::device as registers;
use spec::mailbox::{HEADER_LEN, Header, Reply, Request, RingSetup};
use spec::session as layout;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use uuid::Uuid;
use vhost::vhost_user::message::VhostUserInflight;
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
        Self::with_grace(Duration::from_millis(50))
    }

    fn with_grace(grace: Duration) -> Self {
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
        config.grace = grace;
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

/// The tenant's side of ring 2.
struct TenantRing {
    kick: EventFd,
    call: EventFd,
}

/// Sets up and starts ring 2.
fn start_ring(qemu: &mut Frontend) -> TenantRing {
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
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
    qemu.set_vring_call(2, &call).unwrap();
    qemu.set_vring_kick(2, &kick).unwrap();
    qemu.set_vring_enable(2, true).unwrap();
    TenantRing { kick, call }
}

/// The appliance, as far as the session needs one: answers the mailbox.
struct Appliance {
    client: vfio_user::Client,
    session: File,
    /// Vector 0, for the mailbox, and vector 1, for the kicks of all rings here.
    vectors: [EventFd; 2],
}

impl Appliance {
    fn attach(shim: &Shim) -> Self {
        let mut client = vfio_user::Client::new(&shim.path("vfio")).unwrap();
        let region = client.region(4).unwrap();
        let session = region.file_offset.as_ref().unwrap().file();
        let session = session.try_clone().unwrap();
        let vectors = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        let fds = vectors.each_ref().map(AsRawFd::as_raw_fd);
        // VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER.
        client.set_irqs(1, 0x24, 0, 2, &fds).unwrap();
        let mut appliance = Self {
            client,
            session,
            vectors,
        };
        let version = spec::version::CURRENT.to_register();
        appliance.write(registers::DRIVER_VERSION, version);
        appliance.write(registers::STATUS, registers::status::BACKEND_UP);
        appliance
    }

    fn write(&mut self, register: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.client.region_write(0, register, &bytes).unwrap();
    }

    /// The next request.
    fn request(&mut self) -> (Header, Request) {
        signalled(&self.vectors[0]);
        let mut slot = [0; 128];
        self.session
            .read_exact_at(&mut slot, layout::MAILBOX_REQUEST)
            .unwrap();
        let header = Header::from_bytes(&slot).unwrap();
        let end = HEADER_LEN + usize::try_from(header.len).unwrap();
        let request = Request::parse(header.operation, &slot[HEADER_LEN..end]).unwrap();
        (header, request)
    }

    fn answer(&mut self, header: Header, reply: Reply) {
        let payload = reply.payload();
        let mut slot = Header {
            len: payload.len().try_into().unwrap(),
            status: reply.status(),
            ..header
        }
        .to_bytes()
        .to_vec();
        slot.extend(payload);
        self.session
            .write_all_at(&slot, layout::MAILBOX_REPLY)
            .unwrap();
        self.write(registers::MAILBOX_REPLY, header.sequence);
    }

    /// Answers the next request with Done.
    fn serve(&mut self) -> Request {
        let (header, request) = self.request();
        self.answer(header, Reply::Done);
        request
    }
}

/// Waits until `event` is signalled.
fn signalled(event: &EventFd) {
    let until = Instant::now() + SOON;
    while event.read().is_err() {
        assert!(Instant::now() < until, "never signalled");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A tenant with ring 2 started, and an appliance that runs it.
fn running(shim: &Shim) -> (Frontend, TenantRing, Appliance) {
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    set_memory(&qemu, &memfd(SealFlags::SHRINK)).unwrap();
    let ring = start_ring(&mut qemu);
    assert!(shim.told());
    let mut appliance = Appliance::attach(shim);
    assert!(matches!(appliance.serve(), Request::SetFeatures { .. }));
    assert!(matches!(appliance.serve(), Request::SetMemory { .. }));
    let Request::StartRing(setup) = appliance.serve() else {
        panic!("no ring");
    };
    assert_eq!((setup.ring, setup.base), (2, Some(0)));
    assert_eq!(setup.avail_ring, 0x2000);
    // Each ring is kicked and called once when it runs.
    signalled(&appliance.vectors[1]);
    signalled(&ring.call);
    (qemu, ring, appliance)
}

#[test]
fn kicks_reach_the_appliance_and_calls_the_tenant_asleep_or_polling() {
    let shim = Shim::start();
    let (_qemu, ring, mut appliance) = running(&shim);

    ring.kick.write(1).unwrap();
    signalled(&appliance.vectors[1]);

    // An appliance that does not use the doorbell page.
    appliance.write(registers::doorbell(2), 1);
    signalled(&ring.call);
    for call in 1..=100u32 {
        let counter = layout::call_counter(2);
        let bytes = call.to_le_bytes();
        appliance.session.write_all_at(&bytes, counter).unwrap();
        let mut need_wakeup = [0; 4];
        appliance
            .session
            .read_exact_at(&mut need_wakeup, layout::NEED_WAKEUP)
            .unwrap();
        if need_wakeup != [0; 4] {
            appliance.write(registers::doorbell(2), 1);
        }
        signalled(&ring.call);
    }
}

#[test]
fn get_vring_base_brings_the_answer_of_the_appliance() {
    let shim = Shim::start();
    let (qemu, _ring, mut appliance) = running(&shim);
    let asking = thread::spawn(move || qemu.get_vring_base(2).unwrap());
    let (header, request) = appliance.request();
    assert_eq!(request, Request::StopRing { ring: 2 });
    appliance.answer(header, Reply::Base(41));
    assert_eq!(asking.join().unwrap(), 41);
}

#[test]
fn an_appliance_that_does_not_drain_costs_the_tenant_its_connection_not_a_false_answer() {
    let shim = Shim::start();
    let (qemu, _ring, mut appliance) = running(&shim);
    let asking = thread::spawn(move || qemu.get_vring_base(2));
    assert_eq!(appliance.request().1, Request::StopRing { ring: 2 });
    assert!(asking.join().unwrap().is_err());
}

#[test]
fn an_appliance_that_comes_back_gets_the_session_again() {
    let shim = Shim::start();
    let (_qemu, _ring, appliance) = running(&shim);
    drop(appliance.client);
    let mut appliance = Appliance::attach(&shim);
    appliance.serve();
    appliance.serve();
    assert!(matches!(
        appliance.serve(),
        Request::StartRing(setup) if setup.base.is_none()
    ));
}

#[test]
fn a_stop_tells_the_appliance_and_waits_until_the_function_is_let_go() {
    let shim = Shim::start();
    let (_qemu, _ring, mut appliance) = running(&shim);
    shim.stop.stop();
    assert_eq!(appliance.serve(), Request::Disconnect);
    assert!(!shim.told());
    drop(appliance);
    let mut shim = shim;
    shim.thread.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn the_function_is_plugged_when_the_first_ring_starts_and_unplugged_after_the_tenant_left() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    set_memory(&qemu, &memfd(SealFlags::SHRINK)).unwrap();
    assert!(shim.told.try_recv().is_err());

    let _ring = start_ring(&mut qemu);
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
        let _ring = start_ring(&mut qemu);
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
        let _ring = start_ring(&mut qemu);
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
    let _ring = start_ring(&mut qemu);
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
fn a_storage_vm_that_is_turned_away_after_its_first_message_does_not_abort() {
    let shim = Shim::start();
    for _ in 0..20 {
        let mut early = UnixStream::connect(shim.path("vfio")).unwrap();
        early.set_read_timeout(Some(SOON)).unwrap();
        // It may be closed already: EPIPE is harmless.
        let _ = io::Write::write_all(&mut early, &[1, 0, 1, 0, 16, 0, 0, 0]);
        // ECONNRESET makes QEMU abort.
        early.read_to_end(&mut Vec::new()).unwrap();
    }
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

/// Whether nobody has the other end of the pipe any more, now or soon.
fn is_let_go(ours: &io::PipeReader) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let soon = Timespec::try_from(SOON).unwrap();
    poll(&mut [PollFd::new(ours, PollFlags::IN)], Some(&soon)).unwrap() == 1
}

#[test]
fn a_descriptor_that_comes_with_a_dma_map_is_let_go() {
    let shim = Shim::start();
    let (_qemu, _ring, mut appliance) = running(&shim);
    let (ours, theirs) = io::pipe().unwrap();
    let client = &mut appliance.client;
    client.dma_map(0, 0, 0x1000, theirs.as_raw_fd()).unwrap();
    drop(theirs);
    assert!(is_let_go(&ours));
}

/// As [`start_ring`], with the in-flight memory that the tenant's QEMU has, if it has some: as a
/// start by QEMU, up to the first ring. Returns what it has then.
fn start_tracked(
    qemu: &mut Frontend,
    memory: &OwnedFd,
    kept: Option<(VhostUserInflight, File)>,
) -> (VhostUserInflight, File) {
    negotiate(qemu);
    let wanted = VhostUserInflight::new(0, 0, 10, 128);
    let (layout, file) = kept.unwrap_or_else(|| qemu.get_inflight_fd(&wanted).unwrap());
    qemu.set_inflight_fd(&layout, file.as_raw_fd()).unwrap();
    set_memory(qemu, memory).unwrap();
    start_ring(qemu);
    (layout, file)
}

/// Whether BAR1 is this file.
fn shows(appliance: &mut Appliance, file: &File) -> bool {
    let region = appliance.client.region(1).unwrap();
    let shown = region
        .file_offset
        .as_ref()
        .unwrap()
        .file()
        .metadata()
        .unwrap();
    let wanted = file.metadata().unwrap();
    (shown.dev(), shown.ino()) == (wanted.dev(), wanted.ino())
}

/// The next StartRing, after features and memory.
fn next_start(appliance: &mut Appliance) -> RingSetup {
    loop {
        if let Request::StartRing(setup) = appliance.serve() {
            return setup;
        }
    }
}

// covers: VPCI-INF-1, VPCI-INF-5, VPCI-BAR-5
#[test]
fn what_the_tenants_qemu_is_given_is_bar1_and_empty_and_comes_back_after_a_lost_connection() {
    let shim = Shim::with_grace(SOON);
    let memory = memfd(SealFlags::SHRINK);
    let mut qemu = shim.tenant();
    let (layout, file) = start_tracked(&mut qemu, &memory, None);
    // 10 regions of 2112 bytes.
    assert_eq!({ layout.mmap_size }, 21120);
    assert_eq!({ layout.mmap_offset }, 4096);
    let mut bytes = vec![1; 1 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(shim.told());
    let mut appliance = Appliance::attach(&shim);
    assert!(shows(&mut appliance, &file));
    assert_eq!(next_start(&mut appliance).inflight, Some(4096 + 2 * 2112));
    file.write_all_at(&[1], 4096 + 2 * 2112 + 8).unwrap();

    drop(qemu);
    assert_eq!(appliance.serve(), Request::Disconnect);
    let mut qemu = shim.tenant();
    let starting = thread::spawn(move || {
        let (_, file) = start_tracked(&mut qemu, &memory, Some((layout, file)));
        (qemu, file)
    });
    let setup = next_start(&mut appliance);
    let (mut qemu, file) = starting.join().unwrap();
    assert_eq!((setup.base, setup.inflight), (None, Some(8320)));
    assert!(shim.told.try_recv().is_err(), "the function was kept");
    let mut version = [0];
    file.read_exact_at(&mut version, 8328).unwrap();
    assert_eq!(version, [1], "nobody has cleared it");
    // A reset: QEMU asks anew, and gets the same file without what was there.
    qemu.reset_device().unwrap();
    let (_, again) = qemu.get_inflight_fd(&layout).unwrap();
    assert_eq!(
        again.metadata().unwrap().ino(),
        file.metadata().unwrap().ino()
    );
    file.read_exact_at(&mut version, 8328).unwrap();
    assert_eq!(version, [0]);
}

// covers: VPCI-INF-4
#[test]
fn what_an_earlier_shim_gave_becomes_bar1_before_the_plug() {
    let memory = memfd(SealFlags::SHRINK);
    let earlier = Shim::start();
    let mut qemu = earlier.tenant();
    let kept = start_tracked(&mut qemu, &memory, None);
    drop(qemu);
    earlier.stop();
    kept.1.write_all_at(&[7], 4096 + 2112).unwrap();

    let shim = Shim::start();
    let mut qemu = shim.tenant();
    let (_, file) = start_tracked(&mut qemu, &memory, Some(kept));
    assert!(shim.told());
    let mut appliance = Appliance::attach(&shim);
    assert!(shows(&mut appliance, &file));
    assert_eq!(next_start(&mut appliance).inflight, Some(8320));
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096 + 2112).unwrap();
    assert_eq!(byte, [7], "it is taken as it is");
}

// covers: VPCI-INF-4
#[test]
fn another_file_while_the_function_is_plugged_is_a_new_plug() {
    let shim = Shim::start();
    let memory = memfd(SealFlags::SHRINK);
    let mut qemu = shim.tenant();
    start_tracked(&mut qemu, &memory, None);
    assert!(shim.told());
    let mut appliance = Appliance::attach(&shim);
    next_start(&mut appliance);
    drop(qemu);
    assert_eq!(appliance.serve(), Request::Disconnect);

    // A QEMU without any: it is not given what another one may still have.
    let mut qemu = shim.tenant();
    let starting = thread::spawn(move || {
        let (_, file) = start_tracked(&mut qemu, &memory, None);
        (qemu, file)
    });
    assert!(!shim.told());
    drop(appliance);
    assert!(shim.told());
    let (_qemu, file) = starting.join().unwrap();
    let mut appliance = Appliance::attach(&shim);
    assert!(shows(&mut appliance, &file));
    assert_eq!(next_start(&mut appliance).inflight, Some(8320));
}

// covers: VPCI-INF-1
#[test]
fn more_or_longer_rings_than_there_is_room_for_are_told_that_there_is_none() {
    let shim = Shim::start();
    let mut qemu = shim.tenant();
    negotiate(&mut qemu);
    for (rings, entries) in [(128, 1024), (u16::MAX, u16::MAX), (64, 1024)] {
        let wanted = VhostUserInflight::new(0, 0, rings, entries);
        let (given, _) = qemu.get_inflight_fd(&wanted).unwrap();
        assert_eq!({ given.mmap_size }, 0, "{rings} rings of {entries}");
    }
}

// covers: VPCI-INF-3
#[test]
fn in_flight_memory_that_no_shim_gave_ends_the_connection() {
    let shim = Shim::start();
    let good = |offset, len| VhostUserInflight::new(len, offset, 10, 128);
    let of_len = |len: u64| {
        let file = memfd(SealFlags::SHRINK | SealFlags::GROW);
        (file, good(4096, len))
    };
    let mut given = Vec::new();
    {
        let mut qemu = shim.tenant();
        negotiate(&mut qemu);
        let (_, file) = qemu.get_inflight_fd(&good(0, 0)).unwrap();
        given.push((file.try_clone().unwrap().into(), good(0, 21120)));
        given.push((file.into(), good(4096, 21121)));
    }
    given.push(of_len(21120));
    for (file, layout) in given {
        let mut qemu = shim.tenant();
        negotiate(&mut qemu);
        let layout_text = format!("{:?}", ({ layout.mmap_offset }, { layout.mmap_size }));
        let answer = qemu.set_inflight_fd(&layout, OwnedFd::as_raw_fd(&file));
        assert!(answer.is_err(), "{layout_text}");
    }
}

/// A supervisor at these sockets that goes on from what is in `kept`, and is not run.
fn at_hand(sockets: &[UnixListener; 2], kept: &Kept, tell: mpsc::Sender<bool>) -> Supervisor {
    let [vhost_user, vfio_user] = sockets.each_ref().map(|socket| socket.try_clone().unwrap());
    let mut config = Config::new(
        Profile::new("test", Uuid::from_u128(1)),
        vhost_user,
        vfio_user,
        RelayKind::Thread,
        Plug::Manual(Box::new(move |plug| tell.send(plug).unwrap_or(()))),
    );
    config.kept = kept.clone();
    // No process has this id.
    config.keeper = Some(KeeperProcess {
        id: 0,
        arguments: Vec::new(),
    });
    Supervisor::new(config).unwrap()
}

/// Serves as [`Supervisor::run`] does, until `done`.
fn serve_until(supervisor: &mut Supervisor, done: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    let mut events = Events::with_capacity(EVENTS);
    while !done() {
        assert!(Instant::now() < until, "never done");
        supervisor.work(Instant::now());
        let pause = Some(Duration::from_millis(1));
        supervisor.poll.poll(&mut events, pause).unwrap();
        for event in &events {
            supervisor.event(event.token());
        }
    }
}

#[test]
fn the_next_supervisor_knows_that_the_process_the_user_started_is_gone() {
    let dir = TempDir::new().unwrap();
    let sockets =
        ["vhost", "vfio"].map(|name| UnixListener::bind(dir.as_path().join(name)).unwrap());
    let kept = Kept::alone();
    for is_orphan in [false, true] {
        let mut killed = at_hand(&sockets, &kept, mpsc::channel().0);
        let keeper = killed.keeper.as_mut().unwrap();
        assert!(!keeper.is_orphan());
        keeper.restore(is_orphan);
        killed.changed = true;
        killed.commit();
        std::mem::forget(killed);
    }
    let next = at_hand(&sockets, &kept, mpsc::channel().0);
    assert!(next.keeper.as_ref().unwrap().is_orphan());
}

#[test]
fn a_call_after_one_whose_answer_was_not_written_down_is_served_by_the_next_supervisor() {
    let dir = TempDir::new().unwrap();
    let sockets =
        ["vhost", "vfio"].map(|name| UnixListener::bind(dir.as_path().join(name)).unwrap());
    let kept = Kept::alone();
    let (tell, told) = mpsc::channel();
    let mut killed = at_hand(&sockets, &kept, tell.clone());
    let shim = Shim {
        dir,
        stop: killed.stop_handle(),
        told,
        thread: None,
    };
    let (asks, asked) = mpsc::channel();
    let (go, may_answer) = mpsc::channel();
    let peers = thread::spawn(move || {
        let (qemu, _ring, mut appliance) = running(&shim);
        let asking = thread::spawn(move || {
            let base = qemu.get_vring_base(2).unwrap();
            (base, qemu.set_vring_num(2, 64).is_ok())
        });
        let (header, _) = appliance.request();
        asks.send(()).unwrap();
        may_answer.recv().unwrap();
        appliance.answer(header, Reply::Base(41));
        asking.join().unwrap()
    });
    serve_until(&mut killed, || asked.try_recv().is_ok());
    go.send(()).unwrap();
    let now = Instant::now();
    while !killed.act_all(now) {
        killed.serve();
        killed.device_events(now);
    }
    while killed.relay.receive(now).unwrap().is_none() {
        thread::yield_now();
    }
    // It dies here: the second call is there, and the answer to the first not written down.
    std::mem::forget(killed);

    let mut next = at_hand(&sockets, &kept, tell);
    serve_until(&mut next, || peers.is_finished());

    assert_eq!(peers.join().unwrap(), (41, true));
}
