use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Condvar;
use std::time::Duration;

use spec::device::{BAR_TENANT, MAILBOX_REPLY, MAILBOX_REQUEST, RING_ERROR, doorbell, ring_error};
use spec::mailbox::{HEADER_LEN, Header, Reply, Request, RingSetup};
use spec::ring::{INDIRECT_DESC, VERSION_1};
use spec::session::{self as layout, MemoryEntry};
use spec::virtio_scsi::{RequestHeader, Response, feature, response, task_management};

use super::*;
use crate::config::{HbaConfig, LunConfig, Provisioning, Source, Workers};
use crate::disk::{Cache, Disk, DiskError, Geometry, Op, OpenFile};
use crate::inbox::{Come, EndTasks, Inbox, Message, Outbox, Receipt, UnitChange};
use crate::memory::Mapping;
use crate::memory::Segments;
use crate::memory::testing::shared_memory;
use crate::roster::{Enlisted, Roster, View};
use crate::scsi::{Access, Address, Attention, Buffers, Initiator, LogicalUnit, Step};
use crate::{Appliance, Config};

const HBA: Uuid = Uuid::from_u128(0x2f0c_4fd2_4f6c_4b3c_9d3b_1111_1111_1111);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the tenant's memory.
const TENANT_LEN: u64 = 0x20_0000;
const VERSION_RO: [u64; 4] = [MAGIC, VERSION, DEVICE_TYPE, HBA_UUID];
const LUN_0: Address = Address { target: 0, lun: 0 };
const TEST_UNIT_READY: u8 = 0x00;
const READ_10: u8 = 0x28;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A file that is gone when it is closed.
fn anonymous_file(len: u64) -> File {
    let path = std::env::temp_dir().join(format!("function-{}", Uuid::new_v4()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(len).unwrap();
    file
}

/// What a shim, its session memory and its tenant are to the appliance.
struct Function {
    registers: Mutex<HashMap<u64, u32>>,
    written: Mutex<Vec<(u64, u32)>>,
    /// The reply slot's header as it stood when MAILBOX_REPLY was written, each time.
    replies: Mutex<Vec<Header>>,
    changed: Condvar,
    /// BACKEND_UP does not stand; ERROR has this value.
    refuse: Option<u32>,
    /// What STATUS reads then.
    refused_status: u32,
    session: File,
    tenant: File,
    vectors: Mutex<Vec<EventFd>>,
    release: EventFd,
    /// Counts the mappings that exist.
    mapped: Arc<()>,
}

impl Function {
    fn new() -> Self {
        let mut registers = HashMap::from([
            (MAGIC, MAGIC_VALUE),
            (VERSION, CURRENT.to_register()),
            (DEVICE_TYPE, DEVICE_TYPE_SCSI),
        ]);
        for (offset, word) in (HBA_UUID..).step_by(4).zip(HBA.as_bytes().chunks_exact(4)) {
            registers.insert(offset, u32::from_le_bytes(word.try_into().unwrap()));
        }
        Self {
            registers: Mutex::new(registers),
            written: Mutex::default(),
            replies: Mutex::default(),
            changed: Condvar::new(),
            refuse: None,
            refused_status: status::REFUSED,
            session: anonymous_file(layout::LEN),
            tenant: anonymous_file(TENANT_LEN),
            vectors: Mutex::default(),
            release: EventFd::new(EFD_NONBLOCK).unwrap(),
            mapped: Arc::new(()),
        }
    }

    fn with(self, offset: u64, value: u32) -> Self {
        self.set(offset, value);
        self
    }

    fn set(&self, offset: u64, value: u32) {
        self.registers.lock().unwrap().insert(offset, value);
    }

    fn writes_to(&self, offset: u64) -> Vec<u32> {
        let written = self.written.lock().unwrap();
        written
            .iter()
            .filter(|(at, _)| *at == offset)
            .map(|(_, value)| *value)
            .collect()
    }

    /// Waits until `value` is written to the register at `offset`.
    fn wait_for(&self, offset: u64, value: u32) {
        let written = self.written.lock().unwrap();
        let (written, timeout) = self
            .changed
            .wait_timeout_while(written, PATIENCE, |written| {
                !written.contains(&(offset, value))
            })
            .unwrap();
        drop(written);
        assert!(
            !timeout.timed_out(),
            "{value:#x} not written to {offset:#x}"
        );
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        assert_eq!(
            Arc::strong_count(&self.mapped),
            1,
            "a mapping outlives the device"
        );
    }
}

impl Device for Function {
    fn read32(&self, offset: u64) -> io::Result<u32> {
        let registers = self.registers.lock().unwrap();
        Ok(registers.get(&offset).copied().unwrap_or(0))
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        assert!(!VERSION_RO.contains(&offset));
        if offset == STATUS {
            let refused = self.refuse.filter(|_| value != 0);
            self.set(
                STATUS,
                if refused.is_some() {
                    self.refused_status
                } else {
                    value
                },
            );
            self.set(ERROR, refused.unwrap_or(0));
        }
        if offset == MAILBOX_REPLY {
            let mut slot = [0; HEADER_LEN];
            self.session
                .read_exact_at(&mut slot, layout::MAILBOX_REPLY)?;
            let header = Header::from_bytes(&slot).unwrap();
            self.replies.lock().unwrap().push(header);
        }
        self.written.lock().unwrap().push((offset, value));
        self.changed.notify_all();
        Ok(())
    }

    fn map(&self, bar: usize, len: u64) -> io::Result<Mapping> {
        let file = match bar {
            BAR_TENANT => &self.tenant,
            BAR_SESSION => &self.session,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let owner = Arc::clone(&self.mapped);
        let len = usize::try_from(len).unwrap();
        Mapping::new(file.as_fd(), 0, len, Some(owner))
    }

    fn bar_len(&self, bar: usize) -> io::Result<u64> {
        Ok(if bar == BAR_TENANT { TENANT_LEN } else { 0 })
    }

    fn enable_vectors(&self, fds: &[&EventFd]) -> io::Result<usize> {
        let count = fds.len().min(4);
        let clones = fds[..count].iter().map(|fd| fd.try_clone().unwrap());
        *self.vectors.lock().unwrap() = clones.collect();
        self.set(VECTORS, u32::try_from(count).unwrap());
        Ok(count)
    }

    fn disable_vectors(&self) -> io::Result<()> {
        self.vectors.lock().unwrap().clear();
        Ok(())
    }

    fn release_request(&self) -> Option<&EventFd> {
        Some(&self.release)
    }
}

/// An appliance with one HBA, whose LUN 0 is a file of 1 MiB that begins with "blocks".
fn appliance() -> Appliance {
    let path = std::env::temp_dir().join(format!("lun-{}", Uuid::new_v4()));
    std::fs::write(&path, b"blocks").unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let appliance = Appliance::new(Config {
        name: "storage".into(),
        luns: vec![LunConfig {
            name: "data".into(),
            source: Source::Path(path.clone()),
            read_only: false,
            cache: Cache::WriteBack,
            bounce: true,
            shared: false,
            block_size: 512,
            size: None,
            provisioning: Provisioning::Auto,
            protection: None,
            on_error: crate::config::OnError::Report,
            timeout: None,
            threshold: None,
            limit: Default::default(),
        }],
        hbas: vec![HbaConfig {
            name: "tenant".into(),
            uuid: HBA,
            luns: BTreeMap::from([(LUN_0, "data".into())]),
            poll: Default::default(),
            coalesce: Default::default(),
            workers: Default::default(),
            access: Access::default(),
            port: None,
            limit: Default::default(),
            limit_group: None,
            weight: 1,
        }],
        groups: Vec::new(),
        state: None,
        metrics: None,
    })
    .unwrap();
    std::fs::remove_file(path).unwrap();
    appliance
}

/// A disk of 1 MiB whose reads wait for what is written to a pipe.
#[derive(Debug)]
struct SlowDisk(Arc<OpenFile>);

impl SlowDisk {
    fn unit(name: &str) -> (Arc<LogicalUnit>, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        let file = OpenFile::new(OwnedFd::from(reader).into(), Cache::Direct);
        let unit = LogicalUnit::new(name, Arc::new(Self(Arc::new(file)))).unwrap();
        (Arc::new(unit), writer)
    }
}

impl Disk for SlowDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 2048,
            physical_block_size: 512,
            read_only: false,
        }
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Ok(&self.0)
    }
}

fn refusal_of(function: Function) -> (AttachError, Arc<Function>) {
    let function = Arc::new(function);
    let error = appliance().attach(function.clone()).unwrap_err();
    (error, function)
}

/// A shim and a tenant on an attached function.
struct Bench {
    function: Arc<Function>,
    attachment: Attachment,
    session: Mapping,
    tenant: Mapping,
    sequence: u32,
    avail: HashMap<u16, u16>,
}

/// Entries of the rings.
const SIZE: u16 = 8;

/// Guest address of the first page of a ring: descriptors, avail at 0x400, used at 0x800.
fn ring_page(ring: u16) -> u64 {
    0x1000 * (1 + u64::from(ring))
}

fn entry(guest_address: u64, len: u64, bar_offset: u64) -> MemoryEntry {
    MemoryEntry {
        guest_address,
        len,
        bar_offset,
    }
}

fn setup(ring: u16) -> RingSetup {
    RingSetup {
        ring,
        size: SIZE,
        base: Some(0),
        inflight: None,
        descriptor_table: ring_page(ring),
        avail_ring: ring_page(ring) + 0x400,
        used_ring: ring_page(ring) + 0x800,
    }
}

impl Bench {
    fn attached() -> Self {
        Self::attached_by(|function| appliance().attach(function).unwrap())
    }

    fn attached_by(attach: impl FnOnce(Arc<Function>) -> Attachment) -> Self {
        let function = Arc::new(Function::new());
        let map = |file: &File, len| {
            Mapping::new(file.as_fd(), 0, usize::try_from(len).unwrap(), None).unwrap()
        };
        Self {
            attachment: attach(function.clone()),
            session: map(&function.session, layout::LEN),
            tenant: map(&function.tenant, TENANT_LEN),
            sequence: 0,
            avail: HashMap::new(),
            function,
        }
    }

    /// Attached, with memory and these rings running.
    fn running(rings: &[u16]) -> Self {
        Self::attached().with_rings(rings)
    }

    /// With the control queue and ring 2 running, on LUNs 0 and 1 whose reads wait for what is
    /// written to these pipes, and which have no unit attention to report.
    fn with_slow_disks() -> (Self, [PipeWriter; 2]) {
        let ((unit_0, pipe_0), (unit_1, pipe_1)) = (SlowDisk::unit("a"), SlowDisk::unit("b"));
        let (bench, _) = Self::showing([(0, unit_0), (1, unit_1)]);
        let mut bench = bench.with_rings(&[0, 2]);
        bench.take_attentions();
        (bench, [pipe_0, pipe_1])
    }

    /// Attached, with these LUNs of target 0, and a way to tell its worker something.
    fn showing(luns: impl IntoIterator<Item = (u16, Arc<LogicalUnit>)>) -> (Self, Outbox) {
        let luns = luns.into_iter();
        let luns = luns.map(|(lun, unit)| (Address { target: 0, lun }, unit));
        let initiator = Initiator {
            uuid: HBA,
            number: 1,
        };
        let host = Host::new(initiator, luns).unwrap();
        let inbox = Inbox::new().unwrap();
        let outbox = inbox.outbox();
        let bench = Self::attached_by(|function| {
            let line = Line::new(inbox, Arc::default(), [1; 16], Workers::default());
            Attachment::start(function, &Claims::default(), HBA, "tenant", host, line).unwrap()
        });
        (bench, outbox)
    }

    /// Has LUNs 0 and 1 report their unit attention, on ring 2.
    fn take_attentions(&mut self) {
        for (lun, count) in [(0, 1), (1, 2)] {
            self.command(2, 0, lun, TEST_UNIT_READY);
            self.wait_used(2, count);
        }
    }

    fn with_rings(self, rings: &[u16]) -> Self {
        let mut bench = self;
        bench.publish_memory(1);
        assert_eq!(bench.ask(Request::SetMemory { generation: 1 }), Reply::Done);
        for ring in rings {
            assert_eq!(bench.ask(Request::StartRing(setup(*ring))), Reply::Done);
        }
        bench
    }

    /// A table that shows all of BAR2 from address 0.
    fn publish_memory(&self, generation: u32) {
        self.publish_table(generation, &[entry(0, TENANT_LEN, 0)]);
    }

    fn publish_table(&self, generation: u32, entries: &[MemoryEntry]) {
        for (index, entry) in entries.iter().take(layout::MEMORY_SLOTS).enumerate() {
            self.put_session(layout::memory_entry(index), &entry.to_bytes());
        }
        let count = u32::try_from(entries.len()).unwrap();
        self.put_session(layout::MEMORY_COUNT, &count.to_le_bytes());
        self.put_session(layout::MEMORY_GENERATION, &generation.to_le_bytes());
    }

    fn put_session(&self, offset: u64, bytes: &[u8]) {
        self.session
            .slice(offset, bytes.len())
            .unwrap()
            .copy_from(bytes);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.tenant
            .slice(address, bytes.len())
            .unwrap()
            .copy_from(bytes);
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.tenant.slice(address, N).unwrap().copy_to(&mut bytes);
        bytes
    }

    fn ask(&mut self, request: Request) -> Reply {
        let payload = request.payload();
        let header = self.ask_raw(request.operation(), payload.len(), &payload);
        assert_eq!(header.sequence, self.sequence);
        let mut payload = vec![0; usize::try_from(header.len).unwrap()];
        let at = layout::MAILBOX_REPLY + HEADER_LEN as u64;
        self.session
            .slice(at, payload.len())
            .unwrap()
            .copy_to(&mut payload);
        Reply::parse(&request, &header, &payload).unwrap()
    }

    /// Posts a request of this operation and payload, said to be of `len` bytes; returns the
    /// header of its reply.
    fn ask_raw(&mut self, operation: u32, len: usize, payload: &[u8]) -> Header {
        self.sequence += 1;
        let header = Header {
            sequence: self.sequence,
            operation,
            len: u32::try_from(len).unwrap(),
            status: 0,
        };
        self.put_session(layout::MAILBOX_REQUEST, &header.to_bytes());
        self.put_session(layout::MAILBOX_REQUEST + HEADER_LEN as u64, payload);
        self.function.set(MAILBOX_REQUEST, self.sequence);
        self.fire(0);
        self.function.wait_for(MAILBOX_REPLY, self.sequence);
        *self.function.replies.lock().unwrap().last().unwrap()
    }

    /// Waits until everything that was offered before has been fetched.
    fn wait_fetched(&mut self) {
        // The first is answered in a turn of the loop that knows of the kicks before it, and the
        // second in a later one.
        for _ in 0..2 {
            assert_eq!(self.ask(Request::SetFeatures { features: 0 }), Reply::Done);
        }
    }

    fn fire(&self, vector: usize) {
        self.function.vectors.lock().unwrap()[vector]
            .write(1)
            .unwrap();
    }

    fn descriptor(&self, ring: u16, index: u64, (at, len, flags, next): (u64, u32, u16, u16)) {
        let to = ring_page(ring) + 16 * index;
        self.put(to, &at.to_le_bytes());
        self.put(to + 8, &len.to_le_bytes());
        self.put(to + 12, &flags.to_le_bytes());
        self.put(to + 14, &next.to_le_bytes());
    }

    /// Makes the chain at descriptor `head` available and kicks.
    fn offer(&mut self, ring: u16, head: u16) {
        let avail = self.avail.entry(ring).or_default();
        let slot = *avail % SIZE;
        *avail += 1;
        let index = *avail;
        let base = ring_page(ring) + 0x400;
        self.put(base + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.put(base + 2, &index.to_le_bytes());
        self.fire(device::kick_vector(usize::from(ring), 4));
    }

    fn used_index(&self, ring: u16) -> u16 {
        u16::from_le_bytes(self.get(ring_page(ring) + 0x802))
    }

    /// The length in the used entry that makes `count` of them.
    fn wait_used(&self, ring: u16, count: u16) -> u32 {
        let start = std::time::Instant::now();
        while self.used_index(ring) != count {
            assert!(start.elapsed() < PATIENCE, "ring {ring} completes nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        let entry = ring_page(ring) + 0x804 + 8 * u64::from((count - 1) % SIZE);
        u32::from_le_bytes(self.get(entry + 4))
    }

    fn calls(&self, ring: u16) -> u32 {
        let mut bytes = [0; 4];
        self.session
            .slice(layout::call_counter(ring), 4)
            .unwrap()
            .copy_to(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// READ(10) of the first block of LUN 0: header at 0x10_0000, response at 0x10_1000, data at
    /// 0x10_2000.
    fn read_first_block(&mut self, ring: u16) {
        let mut cdb = [0; 32];
        cdb[0] = READ_10;
        cdb[8] = 1;
        let header = RequestHeader {
            lun: [1, 0, 0x40, 0, 0, 0, 0, 0],
            tag: 7,
            task_attribute: 0,
            cdb,
        };
        self.put(0x10_0000, &header.to_bytes());
        self.descriptor(ring, 0, (0x10_0000, 51, NEXT, 1));
        self.descriptor(ring, 1, (0x10_1000, 108, NEXT | WRITE, 2));
        self.descriptor(ring, 2, (0x10_2000, 512, WRITE, 0));
        self.offer(ring, 0);
    }

    /// A command for `lun` about its first block, if any, in the chain at descriptor `head`: 0 or
    /// 3, so that its three descriptors are in the ring.
    fn command(&mut self, ring: u16, head: u16, lun: u8, code: u8) {
        let mut cdb = [0; 32];
        cdb[0] = code;
        cdb[8] = u8::from(code == READ_10);
        let header = RequestHeader {
            lun: [1, 0, 0x40, lun, 0, 0, 0, 0],
            tag: head.into(),
            task_attribute: 0,
            cdb,
        };
        let index = u64::from(head);
        let at = 0x11_0000 + 0x1_0000 * index;
        self.put(at, &header.to_bytes());
        self.descriptor(ring, index, (at, 51, NEXT, head + 1));
        self.descriptor(ring, index + 1, (at + 0x1000, 108, NEXT | WRITE, head + 2));
        self.descriptor(ring, index + 2, (at + 0x2000, 512, WRITE, 0));
        self.offer(ring, head);
    }

    /// PERSISTENT RESERVE OUT for LUN 0 on ring 2: header at 0x10_4000, response at 0x10_5000.
    fn reserve_out(&mut self, action: u8, keys: [u8; 2]) {
        let (cdb, list) = reserve_out(action, keys);
        let header = RequestHeader {
            lun: LUN_0.field(),
            tag: 9,
            task_attribute: 0,
            cdb,
        };
        self.put(0x10_4000, &header.to_bytes());
        self.put(0x10_4000 + 51, &list);
        self.descriptor(2, 6, (0x10_4000, 51 + 24, NEXT, 7));
        self.descriptor(2, 7, (0x10_5000, 108, WRITE, 0));
        self.offer(2, 6);
    }

    /// LOGICAL UNIT RESET of `lun` on the control queue.
    fn reset_unit(&mut self, lun: u8) {
        let mut request = [0; 24];
        request[4..8].copy_from_slice(&task_management::LOGICAL_UNIT_RESET.to_le_bytes());
        request[8..16].copy_from_slice(&[1, 0, 0x40, lun, 0, 0, 0, 0]);
        self.put(0x10_0000, &request);
        self.put(0x10_1000, &[0xff]);
        self.descriptor(0, 0, (0x10_0000, 24, NEXT, 1));
        self.descriptor(0, 1, (0x10_1000, 1, WRITE, 0));
        self.offer(0, 0);
    }

    fn response(&self) -> Response {
        Response::from_bytes(&self.get(0x10_1000))
    }
}

#[test]
fn an_unknown_hba_is_named_and_its_function_left_alone() {
    let (error, function) = refusal_of(Function::new().with(HBA_UUID, 0));
    let text = error.to_string();
    assert!(
        text.contains("00000000-4f6c-4b3c-9d3b-111111111111"),
        "{text}"
    );
    assert!(text.contains("add one with uuid"), "{text}");
    assert!(function.written.lock().unwrap().is_empty());
    assert!(!error.may_pass());
}

// covers: VPCI-VER-2
#[test]
fn a_shim_two_minor_versions_ahead_is_refused_with_the_side_to_update_and_told_ours() {
    let ahead = Version {
        minor: CURRENT.minor + 2,
        ..CURRENT
    };
    let (error, function) = refusal_of(Function::new().with(VERSION, ahead.to_register()));
    let text = error.to_string();
    assert!(
        text.contains("version 1.3") && text.contains("update the appliance"),
        "{text}"
    );
    assert_eq!(
        *function.written.lock().unwrap(),
        [
            (DRIVER_VERSION, CURRENT.to_register()),
            (STATUS, status::BACKEND_UP)
        ]
    );
}

// covers: VPCI-VER-1
#[test]
fn a_function_with_another_magic_is_left_alone() {
    // All else about it is right.
    let (error, function) = refusal_of(Function::new().with(MAGIC, MAGIC_VALUE + 1));
    assert!(matches!(error, AttachError::Magic(magic) if magic == MAGIC_VALUE + 1));
    assert!(function.written.lock().unwrap().is_empty());
    assert!(function.vectors.lock().unwrap().is_empty());
}

#[test]
fn a_shim_that_refuses_is_believed_and_let_go() {
    let mut function = Function::new();
    function.refuse = Some(device::error::VERSION);
    let (error, function) = refusal_of(function);
    assert!(matches!(
        error,
        AttachError::Refused(device::error::VERSION)
    ));
    assert_eq!(function.writes_to(STATUS), [status::BACKEND_UP, 0]);
    assert!(function.vectors.lock().unwrap().is_empty());
}

// covers: VPCI-STS-3
#[test]
fn an_appliance_is_attached_only_if_backend_up_stands() {
    let mut function = Function::new();
    // Neither attached nor refused: the function was reset meanwhile.
    function.refuse = Some(device::error::NONE);
    function.refused_status = 0;
    let (error, _) = refusal_of(function);
    assert!(matches!(error, AttachError::Refused(device::error::NONE)));
}

#[test]
fn the_same_hba_cannot_be_attached_twice_but_again() {
    let appliance = appliance();
    let first = appliance.attach(Arc::new(Function::new())).unwrap();
    let second = appliance.attach(Arc::new(Function::new())).unwrap_err();
    assert!(matches!(second, AttachError::Attached { .. }));
    assert_eq!(first.detach(), Ok(Ended::Stopped));
    let third = appliance.attach(Arc::new(Function::new())).unwrap();
    assert_eq!(third.detach(), Ok(Ended::Stopped));
}

#[test]
fn a_function_is_taken_up_in_order() {
    let bench = Bench::attached();
    let written = bench.function.written.lock().unwrap().clone();
    let version = CURRENT.to_register();
    assert_eq!(
        written,
        [
            (RESET, 1),
            (DRIVER_VERSION, version),
            (STATUS, status::BACKEND_UP)
        ]
    );
}

#[test]
fn how_the_tenants_memory_is_mapped_is_found_out_by_reading_when_the_first_ring_starts() {
    let bench = Bench::attached();
    assert_eq!(bench.attachment.window(), None);
    let pattern: Vec<u8> = (0..251).cycle().take(4096).collect();
    bench.put(0, &pattern);
    let before: [u8; 4096] = bench.get(0);
    let bench = bench.with_rings(&[0]);
    // How fast this machine is does not matter here.
    assert!(bench.attachment.window().is_some());
    assert_eq!(bench.get::<4096>(0), before);
}

#[test]
fn a_release_request_ends_the_attachment_and_drops_every_mapping() {
    let Bench {
        function,
        attachment,
        ..
    } = Bench::running(&[2]);
    function.release.write(1).unwrap();
    function.wait_for(STATUS, 0);
    assert_eq!(attachment.detach(), Ok(Ended::Released));
    assert_eq!(Arc::strong_count(&function.mapped), 1);
    assert_eq!(Arc::strong_count(&function), 1);
}

#[test]
fn a_read_is_answered_and_the_tenant_called() {
    let mut bench = Bench::running(&[2]);
    // The first command meets the unit attention after power on.
    bench.read_first_block(2);
    bench.wait_used(2, 1);
    bench.read_first_block(2);
    assert_eq!(bench.wait_used(2, 2), 108 + 512);
    let answer = bench.response();
    assert_eq!((answer.response, answer.status), (response::OK, 0));
    assert_eq!(&bench.get::<6>(0x10_2000), b"blocks");
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(2));
    assert_eq!(bench.calls(2), 2);
    assert!(bench.function.writes_to(doorbell(2)).is_empty());
}

#[test]
fn a_sleeping_shim_is_woken_by_the_trapped_doorbell() {
    let mut bench = Bench::running(&[2]);
    bench.put_session(layout::NEED_WAKEUP, &1u32.to_le_bytes());
    bench.read_first_block(2);
    bench.function.wait_for(doorbell(2), 1);
}

#[test]
fn a_bad_ring_is_retired_and_reported_once_while_another_goes_on() {
    let mut bench = Bench::running(&[2, 3]);
    bench.descriptor(2, 0, (0x10_0000, 51, NEXT, SIZE));
    bench.offer(2, 0);
    let expected = 2 | ring_error::DESCRIPTOR_INDEX << 16;
    bench.function.wait_for(RING_ERROR, expected);
    bench.offer(2, 0);
    bench.read_first_block(3);
    bench.wait_used(3, 1);
    assert_eq!(bench.function.writes_to(RING_ERROR), [expected]);
    assert_eq!(bench.used_index(2), 0);
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(1));
}

#[test]
fn a_chain_too_short_for_header_or_response_retires_its_ring() {
    for (readable, writable) in [(50, 108), (51, 107)] {
        let mut bench = Bench::running(&[2]);
        bench.descriptor(2, 0, (0x10_0000, readable, NEXT, 1));
        bench.descriptor(2, 1, (0x10_1000, writable, WRITE, 0));
        bench.offer(2, 0);
        bench
            .function
            .wait_for(RING_ERROR, 2 | ring_error::TOO_SHORT << 16);
        assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(1));
    }
}

#[test]
fn a_ring_outside_memory_is_retired_at_its_start() {
    let mut bench = Bench::running(&[]);
    let outside = RingSetup {
        used_ring: TENANT_LEN,
        base: Some(5),
        inflight: None,
        ..setup(2)
    };
    assert_eq!(bench.ask(Request::StartRing(outside)), Reply::Done);
    let expected = 2 | ring_error::CONFIGURATION << 16;
    assert_eq!(bench.function.writes_to(RING_ERROR), [expected]);
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(5));
}

#[test]
fn a_stopped_ring_is_not_served_until_it_is_started_again() {
    let mut bench = Bench::running(&[2]);
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(0));
    bench.read_first_block(2);
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Failed(2));
    assert_eq!(bench.used_index(2), 0);
    // It is served without a kick when it starts.
    let again = RingSetup {
        base: None,
        inflight: None,
        ..setup(2)
    };
    assert_eq!(bench.ask(Request::StartRing(again)), Reply::Done);
    bench.wait_used(2, 1);
}

#[test]
fn a_ring_stops_when_all_that_was_fetched_from_it_is_completed() {
    for _ in 0..20 {
        let mut bench = Bench::running(&[2]);
        for _ in 0..4 {
            bench.read_first_block(2);
        }
        let Reply::Base(base) = bench.ask(Request::StopRing { ring: 2 }) else {
            panic!("the ring was not stopped");
        };
        assert_eq!(bench.used_index(2), base);
    }
}

// covers: VPCI-MEM-5
#[test]
fn a_table_of_another_generation_is_refused_and_the_old_memory_stays() {
    let mut bench = Bench::running(&[2]);
    let again = libc::EAGAIN.unsigned_abs();
    assert_eq!(
        bench.ask(Request::SetMemory { generation: 9 }),
        Reply::Failed(again)
    );
    bench.read_first_block(2);
    bench.wait_used(2, 1);
    bench.publish_memory(2);
    assert_eq!(bench.ask(Request::SetMemory { generation: 2 }), Reply::Done);
    bench.read_first_block(2);
    bench.wait_used(2, 2);
}

// covers: VPCI-MEM-5
#[test]
fn a_table_that_makes_no_sense_is_refused_and_the_old_memory_stays() {
    let good = entry(0, TENANT_LEN, 0);
    let cases: [(&str, Vec<MemoryEntry>); 7] = [
        ("more than 512 entries", vec![good; 513]),
        ("empty", vec![good, entry(1 << 32, 0, 0)]),
        ("past the address space", vec![entry(u64::MAX, 0x1000, 0)]),
        ("offset overflows", vec![entry(0, 0x1000, u64::MAX - 1)]),
        ("past BAR2", vec![entry(0, TENANT_LEN, 0x1000)]),
        ("after BAR2", vec![good, entry(1 << 32, 0x1000, TENANT_LEN)]),
        ("overlap", vec![good, entry(TENANT_LEN - 1, 0x1000, 0)]),
    ];
    let mut bench = Bench::running(&[2]);
    for (generation, (what, table)) in (2..).zip(cases) {
        bench.publish_table(generation, &table);
        let reply = bench.ask(Request::SetMemory { generation });
        assert!(
            matches!(reply, Reply::Failed(errno) if errno != 0),
            "{what}"
        );
        bench.read_first_block(2);
        bench.wait_used(2, bench.avail[&2]);
    }
    assert!(bench.function.writes_to(RING_ERROR).is_empty());
}

#[test]
fn a_disconnect_lets_the_tenants_memory_go() {
    let mut bench = Bench::running(&[0, 1, 2]);
    let before = Arc::strong_count(&bench.function.mapped);
    assert_eq!(bench.ask(Request::Disconnect), Reply::Done);
    assert_eq!(Arc::strong_count(&bench.function.mapped), before - 1);
    let no_memory = libc::ENODEV.unsigned_abs();
    assert_eq!(
        bench.ask(Request::StartRing(setup(2))),
        Reply::Failed(no_memory)
    );
}

#[test]
fn a_reset_stops_every_ring_and_keeps_memory() {
    let mut bench = Bench::running(&[0, 2]);
    assert_eq!(bench.ask(Request::Reset), Reply::Done);
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Failed(2));
    assert_eq!(bench.ask(Request::StartRing(setup(2))), Reply::Done);
    bench.read_first_block(2);
    bench.wait_used(2, 1);
}

// covers: VPCI-MBX-4
#[test]
fn a_request_is_acted_on_once_however_often_its_vector_fires() {
    let mut bench = Bench::running(&[2]);
    let asked = bench.sequence;
    for _ in 0..20 {
        bench.fire(0);
        // Vector 0 has been looked at when this is served: one thread does both, in turns.
        bench.read_first_block(2);
        bench.wait_used(2, bench.avail[&2]);
    }
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(20));
    let answered = bench.function.writes_to(MAILBOX_REPLY);
    assert_eq!(answered, (1..=asked + 1).collect::<Vec<_>>());
}

// covers: VPCI-MBX-5
#[test]
fn each_request_is_answered_by_its_number_and_operation_in_the_slot_first() {
    let mut bench = Bench::attached();
    bench.publish_memory(1);
    let requests = [
        Request::SetFeatures { features: 0 },
        Request::SetMemory { generation: 1 },
        Request::StartRing(setup(2)),
        Request::StopRing { ring: 2 },
        // One that fails is answered too.
        Request::StopRing { ring: 2 },
        Request::Reset,
        Request::Disconnect,
    ];
    for request in requests {
        bench.ask(request);
    }
    let replies = bench.function.replies.lock().unwrap().clone();
    let answered: Vec<_> = replies
        .iter()
        .map(|reply| (reply.sequence, reply.operation))
        .collect();
    let asked: Vec<_> = (1..).zip(requests.map(|asked| asked.operation())).collect();
    assert_eq!(answered, asked);
    assert_eq!(
        bench.function.writes_to(MAILBOX_REPLY),
        [1, 2, 3, 4, 5, 6, 7]
    );
}

// covers: VPCI-MBX-6
#[test]
fn a_request_unknown_or_misshapen_is_answered_with_an_error_and_changes_nothing() {
    let mut bench = Bench::running(&[2]);
    let start = Request::StartRing(setup(3));
    let beyond = RingSetup {
        ring: 128,
        ..setup(3)
    };
    let beyond = Request::StartRing(beyond).payload();
    for (operation, len, payload, errno) in [
        (0, 0, &[][..], libc::EOPNOTSUPP),
        (0x999, 4, &[0; 4], libc::EOPNOTSUPP),
        // A Reset has no payload, a StopRing a ring, a StartRing 40 bytes.
        (Request::Reset.operation(), 4, &[0; 4], libc::EINVAL),
        (
            Request::StopRing { ring: 2 }.operation(),
            0,
            &[],
            libc::EINVAL,
        ),
        (start.operation(), 39, &start.payload()[..39], libc::EINVAL),
        (start.operation(), 40, &beyond, libc::EINVAL),
        // A payload that the slot has no room for.
        (start.operation(), 4081, &start.payload(), libc::EINVAL),
    ] {
        let reply = bench.ask_raw(operation, len, payload);
        let expected = (operation, errno.unsigned_abs(), 0);
        assert_eq!((reply.operation, reply.status, reply.len), expected);
    }
    bench.read_first_block(2);
    bench.wait_used(2, 1);
    assert_eq!(bench.ask(Request::StopRing { ring: 3 }), Reply::Failed(2));
}

// covers: VPCI-MBX-6
#[test]
fn a_request_out_of_place_is_answered_with_an_error_and_changes_nothing() {
    let failed = |errno: i32| Reply::Failed(errno.unsigned_abs());
    let mut bench = Bench::attached();
    let early = bench.ask(Request::StartRing(setup(2)));
    assert_eq!(early, failed(libc::ENODEV), "before SetMemory");
    let never = bench.ask(Request::StopRing { ring: 2 });
    assert_eq!(never, failed(libc::ENOENT), "it was not started by that");

    bench.publish_memory(1);
    bench.ask(Request::SetMemory { generation: 1 });
    assert_eq!(bench.ask(Request::StartRing(setup(2))), Reply::Done);
    bench.read_first_block(2);
    bench.wait_used(2, 1);
    let again = bench.ask(Request::StartRing(setup(2)));
    assert_eq!(again, failed(libc::EBUSY), "it runs");
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(1));
}

// covers: VPCI-MBX-7
#[test]
fn features_that_the_appliance_lacks_are_refused_and_the_old_ones_stay() {
    let lacks = Reply::Failed(libc::EOPNOTSUPP.unsigned_abs());
    let mut bench = Bench::attached();
    bench.publish_memory(1);
    bench.ask(Request::SetMemory { generation: 1 });
    let has = VERSION_1 | INDIRECT_DESC;
    let features = |features| Request::SetFeatures { features };
    assert_eq!(bench.ask(features(has)), Reply::Done);
    for bit in [24, 27, 30, 33, 34, 40, 63] {
        assert_eq!(bench.ask(features(1 << bit)), lacks, "bit {bit}");
        assert_eq!(bench.ask(features(has | 1 << bit)), lacks, "bit {bit}");
    }

    // An indirect table is still allowed.
    assert_eq!(bench.ask(Request::StartRing(setup(2))), Reply::Done);
    bench.read_first_block(2);
    bench.wait_used(2, 1);
    let direct: [u8; 48] = bench.get(ring_page(2));
    bench.put(0x10_4000, &direct);
    bench.descriptor(2, 0, (0x10_4000, 48, INDIRECT, 0));
    bench.offer(2, 0);
    bench.wait_used(2, 2);
}

// covers: VPCI-STS-8
#[test]
fn an_appliance_that_the_shim_drops_ends_with_its_error() {
    let bench = Bench::attached();
    bench.function.set(STATUS, status::REFUSED);
    bench.function.set(ERROR, device::error::TIMEOUT);
    bench.fire(0);
    let start = std::time::Instant::now();
    while !bench.attachment.is_over() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let error = bench.attachment.detach().unwrap_err();
    assert!(error.contains("ERROR 4"), "{error}");
}

#[test]
fn requests_beyond_the_ring_while_an_old_one_hangs_retire_it() {
    let (mut bench, [mut pipe, _hangs]) = Bench::with_slow_disks();
    bench.command(2, 0, 0, READ_10);
    for _ in 1..SIZE {
        bench.command(2, 3, 1, TEST_UNIT_READY);
    }
    bench.wait_fetched();
    assert!(bench.function.writes_to(RING_ERROR).is_empty());
    bench.command(2, 3, 1, TEST_UNIT_READY);
    bench
        .function
        .wait_for(RING_ERROR, 2 | ring_error::AVAIL_INDEX << 16);
    pipe.write_all(&[0x5a; 512]).unwrap();
    bench.wait_used(2, 2 + SIZE);
    assert_eq!(
        bench.ask(Request::StopRing { ring: 2 }),
        Reply::Base(2 + SIZE)
    );
}

#[test]
fn a_ring_stops_though_the_memory_of_its_requests_was_taken_away() {
    let (mut bench, [mut pipe, _hangs]) = Bench::with_slow_disks();
    bench.command(2, 0, 0, READ_10);
    std::thread::sleep(Duration::from_millis(20));
    bench.put_session(layout::MEMORY_COUNT, &0u32.to_le_bytes());
    bench.put_session(layout::MEMORY_GENERATION, &2u32.to_le_bytes());
    let disk = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        pipe.write_all(&[0x5a; 512]).unwrap();
    });
    assert_eq!(bench.ask(Request::SetMemory { generation: 2 }), Reply::Done);
    assert_eq!(bench.ask(Request::StopRing { ring: 2 }), Reply::Base(3));
    disk.join().unwrap();
}

#[test]
fn a_lun_reset_is_complete_when_the_commands_that_it_ended_are_back() {
    let (mut bench, [mut pipe, _hangs]) = Bench::with_slow_disks();
    // Requests go back in order, so these two wait for the first, which goes on.
    bench.command(2, 0, 0, READ_10);
    bench.command(2, 3, 1, READ_10);
    std::thread::sleep(Duration::from_millis(20));
    bench.reset_unit(1);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((bench.used_index(2), bench.used_index(0)), (2, 0));
    pipe.write_all(&[0x5a; 512]).unwrap();
    bench.wait_used(0, 1);
    assert_eq!(bench.used_index(2), 4);
    assert_eq!(bench.get(0x10_1000), [response::OK]);
    assert_eq!(
        Response::from_bytes(&bench.get(0x14_1000)).response,
        response::RESET
    );
    assert_eq!(bench.get(0x11_2000), [0x5a; 512]);
}

#[test]
fn a_lun_reset_waits_for_commands_that_ended_before_it_but_are_not_back() {
    let (mut bench, [mut pipe, _hangs]) = Bench::with_slow_disks();
    bench.command(2, 0, 0, READ_10);
    bench.command(2, 3, 1, TEST_UNIT_READY);
    std::thread::sleep(Duration::from_millis(20));
    bench.reset_unit(1);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((bench.used_index(2), bench.used_index(0)), (2, 0));
    pipe.write_all(&[0x5a; 512]).unwrap();
    bench.wait_used(0, 1);
    assert_eq!(bench.used_index(2), 4);
}

#[test]
fn a_lun_reset_without_tasks_is_complete_at_once() {
    let mut bench = Bench::running(&[0]);
    let mut request = [0; 24];
    request[4..8].copy_from_slice(&task_management::LOGICAL_UNIT_RESET.to_le_bytes());
    request[8..12].copy_from_slice(&[1, 0, 0x40, 0]);
    bench.put(0x10_0000, &request);
    bench.put(0x10_1000, &[0xff]);
    bench.descriptor(0, 0, (0x10_0000, 24, NEXT, 1));
    bench.descriptor(0, 1, (0x10_1000, 1, WRITE, 0));
    bench.offer(0, 0);
    assert_eq!(bench.wait_used(0, 1), 1);
    assert_eq!(bench.get::<1>(0x10_1000), [response::OK]);
}

/// Bytes of PERSISTENT RESERVE OUT with this service action, and of its list with these keys.
fn reserve_out(action: u8, keys: [u8; 2]) -> ([u8; 32], [u8; 24]) {
    let (mut cdb, mut list) = ([0; 32], [0; 24]);
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, 1, 24);
    (list[7], list[15]) = (keys[0], keys[1]);
    (cdb, list)
}

/// Attached, with LUN 0 that it shares with a neighbour, which is registered with key 2 and does
/// nothing by itself; the inbox is the neighbour's.
fn with_a_neighbour() -> (Bench, Inbox) {
    const OTHER: Uuid = Uuid::from_bytes([2; 16]);
    let (unit, _) = SlowDisk::unit("a");
    let roster = Arc::new(Roster::default());
    let views = [(HBA, 1), (OTHER, 2)].map(|(uuid, number)| {
        let view = View {
            name: number.to_string(),
            initiator: Initiator { uuid, number },
            access: Access::default(),
            poll: Default::default(),
            limit: Default::default(),
            group: None,
            weight: 1,
            coalesce: Default::default(),
            workers: Default::default(),
            units: BTreeMap::from([(LUN_0, Arc::clone(&unit))]),
        };
        (uuid, view)
    });
    let limits = crate::roster::SharedLimits::default();
    roster.replace([("a".to_owned(), unit)].into(), views.into(), &limits);
    let Enlisted { host, inbox, .. } = roster.enlist(HBA).unwrap();
    let them = roster.enlist(OTHER).unwrap();
    let (neighbour, their_inbox) = (them.host, them.inbox);
    let (cdb, list) = reserve_out(6, [0, 2]);
    let mut segments = Segments::new(shared_memory(24));
    segments.push(0, 24).unwrap();
    segments.write_at(0, &list);
    let buffers = Buffers {
        data_out: &segments,
        data_in: 0,
        tags: crate::scsi::Tags::default(),
    };
    for status in [2, 0] {
        let step = neighbour.start(LUN_0.field(), 0, &cdb, buffers);
        assert!(matches!(step, Step::Answer(answer) if answer.status == status));
    }
    let bench = Bench::attached_by(|function| {
        let line = Line::new(inbox, roster, [1; 16], Workers::default());
        Attachment::start(function, &Claims::default(), HBA, "tenant", host, line).unwrap()
    });
    let mut bench = bench.with_rings(&[0, 2]);
    bench.command(2, 0, 0, TEST_UNIT_READY);
    bench.wait_used(2, 1);
    bench.reserve_out(6, [0, 1]);
    bench.wait_used(2, 2);
    (bench, their_inbox)
}

/// What the neighbour is told to end.
fn told_to_end(inbox: &Inbox) -> EndTasks {
    let start = std::time::Instant::now();
    loop {
        match inbox.next() {
            Some(Message::End(end)) => return end,
            // What each worker is told first.
            Some(Message::Poll(_) | Message::Coalesce(_) | Message::Limit(_)) => {}
            Some(other) => panic!("{other:?}"),
            None => assert!(start.elapsed() < PATIENCE, "it is told nothing"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn preempt_and_abort_is_answered_when_the_neighbour_has_ended_its_commands() {
    let (mut bench, neighbour) = with_a_neighbour();
    bench.reserve_out(5, [1, 2]);
    let end = told_to_end(&neighbour);
    let whose = end.whose.as_deref().unwrap();
    assert_eq!((whose.len(), whose[0].target), (1, Some(0)));
    assert_eq!(
        (end.with, end.attention),
        (response::ABORTED, Some(Attention::CommandsCleared))
    );
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.used_index(2), 2);
    drop(end);
    bench.wait_used(2, 3);
    let answer = Response::from_bytes(&bench.get(0x10_5000));
    assert_eq!((answer.response, answer.status), (response::OK, 0));
}

#[test]
fn preempt_and_abort_is_answered_when_the_neighbour_has_gone_with_all_its_commands() {
    let (mut bench, neighbour) = with_a_neighbour();
    bench.reserve_out(5, [1, 2]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.used_index(2), 2);
    // Whatever was told to it is not read any more.
    drop(neighbour);
    bench.wait_used(2, 3);
}

#[test]
fn a_reset_ends_a_preempt_and_abort_that_waits_and_it_is_not_answered_again() {
    let (mut bench, neighbour) = with_a_neighbour();
    bench.reserve_out(5, [1, 2]);
    let end = told_to_end(&neighbour);
    bench.reset_unit(0);
    bench.wait_used(2, 3);
    let answer = Response::from_bytes(&bench.get(0x10_5000));
    assert_eq!(answer.response, response::RESET);
    // The reset itself waits for the neighbour.
    let reset = told_to_end(&neighbour);
    assert!(reset.whose.is_none());
    assert_eq!(bench.used_index(0), 0);
    drop(reset);
    bench.wait_used(0, 1);
    bench.put(0x10_5000, &[0xee; 108]);
    drop(end);
    bench.wait_fetched();
    assert_eq!(bench.get(0x10_5000), [0xee; 108]);
    assert_eq!(bench.used_index(2), 3);
}

#[test]
fn a_preempt_and_abort_that_waits_is_forgotten_with_its_ring() {
    let (mut bench, neighbour) = with_a_neighbour();
    bench.reserve_out(5, [1, 2]);
    let end = told_to_end(&neighbour);
    assert_eq!(bench.ask(Request::Reset), Reply::Done);
    drop(end);
    bench.wait_fetched();
    assert_eq!(bench.used_index(2), 2);
}

#[test]
fn event_buffers_stay_in_their_ring() {
    let mut bench = Bench::running(&[1, 2]);
    bench.descriptor(1, 0, (0x10_3000, 16, WRITE, 0));
    bench.offer(1, 0);
    bench.read_first_block(2);
    bench.wait_used(2, 1);
    assert_eq!(bench.ask(Request::StopRing { ring: 1 }), Reply::Base(0));
}

#[test]
fn another_hba_does_not_wait_for_the_disks_that_hold_ended_commands_back() {
    let ((mine, mut pipe), (shared, _hangs)) = (SlowDisk::unit("a"), SlowDisk::unit("b"));
    let (bench, outbox) = Bench::showing([(0, mine), (1, Arc::clone(&shared))]);
    let mut bench = bench.with_rings(&[0, 2]);
    bench.take_attentions();
    bench.command(2, 0, 0, READ_10);
    bench.command(2, 3, 1, READ_10);
    bench.wait_fetched();
    let neighbour = Inbox::new().unwrap();
    let ended = || {
        let start = std::time::Instant::now();
        loop {
            match neighbour.next() {
                Some(Message::Ended(number)) => return number,
                Some(other) => panic!("{other:?}"),
                None => assert!(start.elapsed() < PATIENCE, "the neighbour still waits"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // The command that has ended by the time of the second is held back behind the other.
    for number in [7, 8] {
        outbox.send(Message::End(EndTasks {
            unit: Arc::clone(&shared),
            whose: None,
            with: response::RESET,
            attention: None,
            receipt: Receipt::new(number, neighbour.outbox()),
        }));
        assert_eq!(ended(), number);
        assert_eq!(bench.used_index(2), 2);
    }
    pipe.write_all(&[0x5a; 512]).unwrap();
    bench.wait_used(2, 4);
    let answer = Response::from_bytes(&bench.get(0x14_1000));
    assert_eq!(answer.response, response::RESET);
}

#[test]
fn neighbours_that_send_without_end_do_not_keep_the_tenant_waiting() {
    let (unit, _pipe) = SlowDisk::unit("a");
    let (other, _) = SlowDisk::unit("b");
    // Looking for a unit among so many takes its time.
    let (bench, outbox) = Bench::showing((0..4000).map(|lun| (lun, Arc::clone(&unit))));
    let mut bench = bench.with_rings(&[2]);
    // Ends the sender, however this ends.
    let running = Arc::new(());
    let runs = Arc::downgrade(&running);
    let (at_work, works) = mpsc::channel();
    let sender = std::thread::spawn(move || {
        while runs.strong_count() > 0 {
            if Arc::strong_count(&other) < 5000 {
                outbox.send(Message::Changed(
                    Arc::clone(&other),
                    Attention::CapacityChanged,
                ));
            } else {
                let _ = at_work.send(());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    works.recv().unwrap();
    bench.command(2, 0, 0, TEST_UNIT_READY);
    bench.wait_used(2, 1);
    drop(running);
    sender.join().unwrap();
}

#[test]
fn what_comes_and_goes_at_an_address_is_told_in_order_while_old_commands_are_held_back() {
    let ((unit_0, mut pipe), (unit_1, _hangs)) = (SlowDisk::unit("a"), SlowDisk::unit("b"));
    let (mut bench, outbox) = Bench::showing([(0, unit_0), (1, unit_1)]);
    let features = VERSION_1 | feature::HOTPLUG;
    assert_eq!(bench.ask(Request::SetFeatures { features }), Reply::Done);
    let mut bench = bench.with_rings(&[1, 2]);
    bench.take_attentions();
    // The second is held back behind the first.
    bench.command(2, 0, 0, READ_10);
    bench.command(2, 3, 1, READ_10);
    for index in 0..4 {
        let at = 0x10_4000 + 16 * index;
        bench.descriptor(1, index, (at, 16, WRITE, 0));
        bench.offer(1, u16::try_from(index).unwrap());
    }
    let at = Address { target: 0, lun: 1 };
    let come = |name| vec![(at, Come::Unit(SlowDisk::unit(name).0))];
    for (gone, come) in [
        (vec![(at, 0)], vec![]),
        (vec![], come("c")),
        (vec![(at, 0)], come("d")),
    ] {
        outbox.send(Message::Units(UnitChange { gone, come }));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.used_index(1), 0);
    pipe.write_all(&[0x5a; 512]).unwrap();
    bench.wait_used(1, 4);
    // Reason of a TRANSPORT_RESET: 2 removed, 1 rescan.
    let reasons = [0, 1, 2, 3].map(|index| bench.get::<16>(0x10_4000 + 16 * index)[12]);
    assert_eq!(reasons, [2, 1, 2, 1]);
}
