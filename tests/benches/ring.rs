//! What a request costs its ring, from the avail index to the used index, on our ring and on
//! virtio-queue.
//!
//! A request is a header, a response and 4 KiB of data to be written, three descriptors in three
//! ranges of memory; each buffer is translated to where it is. Memory is cached, and the driver
//! is the same thread: what a real one adds are its own cache misses.

use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use appliance::memory::{Hint, Mapping, TenantMemory};
use appliance::ring::{Chain, Ring};
use criterion::{BenchmarkId, Criterion, Throughput};
use spec::mailbox::RingSetup;
use spec::ring::EVENT_IDX;
use spec::session::MemoryEntry;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions,
};
use vm_memory::{VolatileMemory, VolatileSlice};

const BATCHES: [u16; 3] = [1, 8, 32];
const SIZE: u16 = 256;
const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
/// Guest addresses and lengths of the ranges: the ring, headers and responses, data.
const RANGES: [(u64, u64); 3] = [(0, 0x8000), (0x10_0000, 0x1_0000), (0x4000_0000, 0x10_0000)];
/// Bytes that a request writes: the response with its data.
const WRITTEN: u32 = 108 + 4096;

/// Something that serves one ring.
trait Serve {
    /// Takes `batch` requests, looks at all their buffers, gives them back and asks whether the
    /// driver wants a call.
    fn serve(&mut self, batch: u16);
}

/// The bytes of a ring with 64 requests, all of them in the avail ring again and again.
fn ring_bytes() -> Vec<(u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    for request in 0..64u16 {
        let at = u64::from(request);
        let descriptors = [
            (RANGES[1].0 + 0x200 * at, 51, 1),
            (RANGES[1].0 + 0x200 * at + 0x100, 108, 3),
            (RANGES[2].0 + 0x1000 * at, 4096, 2),
        ];
        for (index, (address, len, flags)) in (3 * request..).zip(descriptors) {
            let mut descriptor = Vec::new();
            descriptor.extend(u64::to_le_bytes(address));
            descriptor.extend(u32::to_le_bytes(len));
            descriptor.extend(u16::to_le_bytes(flags));
            descriptor.extend(u16::to_le_bytes(index + 1));
            bytes.push((DESCRIPTORS + 16 * u64::from(index), descriptor));
        }
    }
    for entry in 0..SIZE {
        let head = 3 * (entry % 64);
        bytes.push((
            AVAIL + 4 + 2 * u64::from(entry),
            head.to_le_bytes().to_vec(),
        ));
    }
    bytes
}

struct Ours {
    memory: TenantMemory,
    ring: Ring,
    avail: u16,
    chains: Vec<Chain>,
}

impl Ours {
    fn new() -> Self {
        let len = RANGES.iter().map(|(_, len)| len).sum::<u64>();
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("a longer file");
        let len = usize::try_from(len).expect("a few MiB");
        let mapping = Mapping::new(file.as_fd(), 0, len, None).expect("a mapping");
        let mut offset = 0;
        let entries = RANGES.map(|(guest_address, len)| {
            let bar_offset = offset;
            offset += len;
            MemoryEntry {
                guest_address,
                len,
                bar_offset,
            }
        });
        let memory = TenantMemory::new(Arc::new(mapping), entries.into()).expect("a table");
        let mut hint = Hint::default();
        for (address, bytes) in ring_bytes() {
            let at = memory
                .run(&mut hint, address, bytes.len() as u64)
                .expect("in memory");
            memory.mapping().write(at, &bytes);
        }
        let setup = RingSetup {
            ring: 2,
            size: SIZE,
            base: Some(0),
            inflight: None,
            descriptor_table: DESCRIPTORS,
            avail_ring: AVAIL,
            used_ring: USED,
        };
        Self {
            ring: Ring::new(&setup, EVENT_IDX, &memory).expect("a ring"),
            memory,
            avail: 0,
            chains: Vec::new(),
        }
    }
}

impl Serve for Ours {
    fn serve(&mut self, batch: u16) {
        let Self {
            memory,
            ring,
            avail,
            chains,
        } = self;
        *avail = avail.wrapping_add(batch);
        // The ring is in the first range, whose offsets are its addresses.
        let index = memory.mapping().atomic_u16(0x3002);
        index.store(*avail, Ordering::Release);
        ring.fetch(memory, 0, usize::from(batch), chains)
            .expect("no violation");
        assert_eq!(chains.len(), usize::from(batch));
        for chain in chains.drain(..) {
            ring.put(black_box(&chain).head, WRITTEN).expect("a head");
        }
        ring.publish(memory).expect("no violation");
        black_box(ring.wants_call(memory).expect("no violation"));
    }
}

struct VirtioQueue {
    memory: GuestMemoryMmap,
    queue: Queue,
    avail: u16,
    heads: Vec<u16>,
}

impl VirtioQueue {
    fn new() -> Self {
        let ranges = RANGES.map(|(at, len)| (GuestAddress(at), usize::try_from(len).expect("MiB")));
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
        for (address, bytes) in ring_bytes() {
            let written = memory.write_slice(&bytes, GuestAddress(address));
            written.expect("in memory");
        }
        let mut queue = Queue::new(SIZE).expect("a queue");
        queue
            .try_set_desc_table_address(GuestAddress(DESCRIPTORS))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(GuestAddress(AVAIL))
            .expect("aligned");
        queue
            .try_set_used_ring_address(GuestAddress(USED))
            .expect("aligned");
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self {
            memory,
            queue,
            avail: 0,
            heads: Vec::new(),
        }
    }
}

impl Serve for VirtioQueue {
    fn serve(&mut self, batch: u16) {
        let Self {
            memory,
            queue,
            avail,
            heads,
        } = self;
        *avail = avail.wrapping_add(batch);
        let ring = memory.iter().next().expect("the ring's range");
        let slice: VolatileSlice<'_> = ring.as_volatile_slice();
        let index = slice
            .get_atomic_ref::<AtomicU16>(0x3002)
            .expect("in the range");
        index.store(*avail, Ordering::Release);
        for chain in queue.iter(&*memory).expect("no violation") {
            heads.push(chain.head_index());
            for descriptor in chain {
                let len = usize::try_from(descriptor.len()).expect("32 bits");
                let slices =
                    GuestMemory::get_slices(memory, descriptor.addr(), len, Permissions::Write);
                for slice in slices.expect("in memory") {
                    black_box(slice.expect("in memory").ptr_guard_mut().as_ptr());
                }
            }
        }
        assert_eq!(heads.len(), usize::from(batch));
        for head in heads.drain(..) {
            queue.add_used(memory, head, WRITTEN).expect("a head");
        }
        black_box(queue.needs_notification(memory).expect("no violation"));
    }
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for batch in BATCHES {
        group.throughput(Throughput::Elements(u64::from(batch)));
        let mut run = |name, server: &mut dyn Serve| {
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                bencher.iter(|| server.serve(batch));
            });
        };
        run("ours", &mut Ours::new());
        run("virtio-queue", &mut VirtioQueue::new());
    }
    group.finish();
}

/// Nanoseconds per request, over some milliseconds.
fn measure(server: &mut dyn Serve, batch: u16) -> f64 {
    let start = Instant::now();
    let mut requests = 0;
    while start.elapsed() < Duration::from_millis(5) {
        for _ in 0..64 {
            server.serve(batch);
        }
        requests += 64 * u32::from(batch);
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(requests)
}

/// Prints what both cost in turns of a few milliseconds, which share whatever else the machine
/// does.
fn ratios() {
    println!("\nring: ns per request, best of 41 turns each, in turn");
    println!("batch      ours  virtio-queue  ratio");
    for batch in BATCHES {
        let (mut ours, mut theirs) = (Ours::new(), VirtioQueue::new());
        let mut best = [f64::MAX; 2];
        for _ in 0..41 {
            best[0] = best[0].min(measure(&mut ours, batch));
            best[1] = best[1].min(measure(&mut theirs, batch));
        }
        let [ours, theirs] = best;
        let ratio = theirs / ours;
        println!("{batch:>5}  {ours:>8.1}  {theirs:>12.1}  {ratio:>4.1}x");
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
    // `cargo bench` says so; `cargo test` only wants to see it run.
    if std::env::args().any(|argument| argument == "--bench") {
        ratios();
    }
}
