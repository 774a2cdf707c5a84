//! The worst that a tenant can do to memory. The only test of its program: it measures what the
//! process has.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use spec::virtio_scsi::{response, task_management};
use tests::world::{
    Attach, BLOCK, DriverRing, INDIRECT_DESC, Lun, MIB, Shape, Tenant, VERSION_1, World, address,
    descriptor_bytes, eventually, flag, header_bytes, protocol, read10,
};

/// Most memory that this tenant may take: what README has for chains, and bounce buffers. Without the
/// limit on pieces it would be 58 MiB and more.
const MOST: u64 = 34 * MIB;
/// Request queues and their entries: the longest rings that QEMU makes.
const QUEUES: u16 = 4;
const ENTRIES: u16 = 1024;
/// Commands of a ring that share all but their first descriptor.
const COMMANDS: u16 = 256;
/// Blocks of each command, and bytes of each piece of its buffer: as many pieces as can be.
const BLOCKS: u16 = 2048;
const PIECE: u32 = 586;
/// Entries of a ring that is not tracked, most of whose requests wait for the first.
const LONG: u16 = 4096;
/// Most of its requests that are fetched and not given back.
const ORDERED: u16 = 1024;

/// The most anonymous memory that this process had.
struct Meter {
    most: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    fn new() -> Self {
        let (most, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (peak, end) = (most.clone(), over.clone());
        let watch = move || {
            while !end.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        };
        Self {
            most,
            over,
            thread: Some(thread::spawn(watch)),
        }
    }

    fn most(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.most.load(Ordering::Relaxed)
    }
}

/// Bytes of anonymous memory that this process has now: without files, and so without the tenants'
/// memory.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}

/// Waits until the process takes no more memory than it has.
fn settle() {
    let (mut last, mut since) = (anonymous(), Instant::now());
    let begun = Instant::now();
    while since.elapsed() < Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(3) {
        thread::sleep(Duration::from_millis(10));
        let now = anonymous();
        if now > last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Makes the longest chains available that there can be, on every queue; they share their buffers.
fn fill(tenant: &mut Tenant) {
    let memory = tenant.memory().clone();
    let header = memory.allocate(0, 51);
    memory.write(header, &header_bytes(0, &read10(0, BLOCKS)));
    let response = memory.allocate(0, 108);
    let piece = memory.allocate(0, PIECE.into());
    let table = memory.allocate(0, 16 * u64::from(ENTRIES));
    for index in 0..ENTRIES {
        let next = index + 1;
        let flags = flag::WRITE | if next < ENTRIES { flag::NEXT } else { 0 };
        let at = table + 16 * u64::from(index);
        memory.write(at, &descriptor_bytes(piece, PIECE, flags, next));
    }
    for queue in &mut tenant.queues {
        let ring = &mut queue.ring;
        for head in 0..COMMANDS {
            ring.write_descriptor(head, header, 51, flag::NEXT, COMMANDS);
        }
        let next = COMMANDS + 1;
        ring.write_descriptor(COMMANDS, response, 108, flag::WRITE | flag::NEXT, next);
        for index in next..ENTRIES - 1 {
            ring.write_descriptor(index, piece, PIECE, flag::WRITE | flag::NEXT, index + 1);
        }
        let bytes = 16 * u32::from(ENTRIES);
        ring.write_descriptor(ENTRIES - 1, table, bytes, flag::INDIRECT, 0);
        for head in 0..COMMANDS {
            ring.publish(head);
        }
        ring.kick();
    }
}

/// Fills the control queue with resets of the unit.
fn flood(tenant: &mut Tenant) {
    let memory = tenant.memory().clone();
    let mut request = vec![0; 4];
    request.extend(task_management::LOGICAL_UNIT_RESET.to_le_bytes());
    request.extend(address(0));
    request.extend([0; 8]);
    let at = memory.allocate(0, 24);
    memory.write(at, &request);
    let response = memory.allocate(0, 1);
    let ring = &mut tenant.control.ring;
    let last = ENTRIES - 1;
    ring.write_descriptor(last, response, 1, flag::WRITE, 0);
    for head in 0..last {
        ring.write_descriptor(head, at, 24, flag::NEXT, last);
        ring.publish(head);
    }
    ring.kick();
}

/// Waits until the control queue is empty.
fn answered(tenant: &Tenant) {
    let ring = &tenant.control.ring;
    eventually("all functions are answered", || {
        ring.used_index() == ring.avail_index()
    });
}

fn storm(ring: &mut DriverRing) {
    for _ in 0..5_000 {
        ring.kick();
    }
}

/// Everything at once that one tenant can do, while its disk hangs.
fn worst(attach: Attach) {
    let world = World::over(attach)
        .lun(Lun::file(2 * MIB).gated())
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = world.tenant_like(Shape {
        memory: vec![(0, 64 * MIB)],
        queues: QUEUES,
        ring_size: ENTRIES,
        features: VERSION_1 | INDIRECT_DESC,
        ..Shape::default()
    });
    let mut neighbour = world.tenant_of(1, Shape::default());
    neighbour.initiator().write(0, 0, &[7; BLOCK]).unwrap();
    tenant.initiator().ready(0).unwrap();
    let before = anonymous();
    let meter = Meter::new();
    let gate = world.gate(0);
    for _ in 0..2 {
        gate.close();
        fill(&mut tenant);
        eventually("commands are at the disk", || gate.waiting() > 0);
        settle();
        flood(&mut tenant);
        for queue in &mut tenant.queues {
            storm(&mut queue.ring);
        }
        storm(&mut tenant.control.ring);
        settle();
        assert_eq!(neighbour.initiator().read(0, 0, 1).unwrap(), [7; BLOCK]);
        gate.open();
        // What hangs since the last reset of the unit ends with another.
        answered(&tenant);
        flood(&mut tenant);
        answered(&tenant);
        tenant.reset().unwrap();
        tenant.start().unwrap();
    }
    for _ in 0..2 {
        fill(&mut tenant);
        tenant.reset().unwrap();
        tenant.start().unwrap();
    }
    assert_eq!(tenant.initiator().read(0, 0, 1).unwrap(), [0; BLOCK]);
    let took = meter.most().saturating_sub(before);
    println!("{attach:?}: {} KiB at most", took / 1024);
    assert!(took <= MOST, "{} MiB", took / MIB);
}

/// A ring that gives requests back in order holds back what waits for a slow one, but not more of
/// them than it may; then all come back.
fn held_back() {
    let world = World::over(Attach::Socket)
        .lun(Lun::file(MIB).gated())
        .start();
    let mut tenant = world.tenant_like(Shape {
        ring_size: LONG,
        features: VERSION_1,
        protocol: Shape::default().protocol & !protocol::INFLIGHT_SHMFD,
        ..Shape::default()
    });
    tenant.initiator().ready(0).unwrap();
    let gate = world.gate(0);
    gate.close();
    let memory = tenant.memory().clone();
    let [slow, quick, late, status, data] =
        [51, 51, 51, 108, 512].map(|len| memory.allocate(0, len));
    memory.write(slow, &header_bytes(0, &read10(0, 1)));
    memory.write(quick, &header_bytes(0, &[0; 6]));
    // INQUIRY, 36 bytes.
    memory.write(late, &header_bytes(0, &[0x12, 0, 0, 0, 36, 0]));
    let ring = &mut tenant.initiator().ring;
    let used = ring.used_index();
    let (first, last) = (LONG - 2, LONG - 1);
    ring.write_descriptor(last, data, 512, flag::WRITE, 0);
    ring.write_descriptor(first, status, 108, flag::WRITE | flag::NEXT, last);
    for head in 0..first {
        let header = if head == 0 { slow } else { quick };
        ring.write_descriptor(head, header, 51, flag::NEXT, first);
        ring.publish(head);
    }
    ring.kick();
    eventually("the first is at the disk", || gate.waiting() > 0);
    settle();
    // A function looks at what was sent before it, and fetches no more either.
    let answer = tenant.task_management(task_management::QUERY_TASK, address(0), 99);
    assert_eq!(answer, Some(response::OK));
    let ring = &mut tenant.initiator().ring;
    assert_eq!(ring.used_index(), used, "the first one comes first");
    // Those that were fetched are what they were; others become what they are now.
    for head in [ORDERED - 1, ORDERED] {
        ring.write_descriptor(head, late, 51, flag::NEXT, first);
    }
    gate.open();
    gate.let_read(&[0; BLOCK]);
    eventually("all have come back", || {
        ring.used_index() == used.wrapping_add(first)
    });
    let written = |head: u16| {
        let at = ring.used() + 8 + 8 * u64::from(used.wrapping_add(head) % LONG);
        memory.read(at, 4)
    };
    assert_eq!(written(ORDERED - 1), 108_u32.to_le_bytes());
    assert_eq!(written(ORDERED), (108 + 36_u32).to_le_bytes());
}

#[test]
fn the_worst_tenant_takes_no_more_memory_than_is_stated() {
    held_back();
    worst(Attach::Function);
    worst(Attach::Socket);
}
