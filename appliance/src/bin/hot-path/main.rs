//! Requests of one kind through one worker, in one thread, for counting instructions.
//!
//! `cargo instructions` runs it under callgrind, which counts while [`counted`] runs; by itself it
//! tells how long a request takes. Memory that is allocated for a request is an error.

mod allocations;

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use appliance::disk::{Cache, Disk, FileDisk, FileOptions, NullDisk};
use appliance::measure::{Driver, Turned};
use appliance::memory::{Mapping, TenantMemory};
use appliance::scsi::LogicalUnit;
use clap::{Parser, ValueEnum};
use rustix::fs::{MemfdFlags, memfd_create};
use spec::mailbox::RingSetup;
use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use spec::session::MemoryEntry;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Entries of the ring.
const SIZE: u16 = 256;
/// Bytes of a request's data, and of its blocks.
const DATA: u32 = 4096;
const BLOCK: u32 = 512;
/// Bytes of the disk.
const DISK: u64 = 16 << 20;

// Where things are in the driver's memory, which starts at guest address 0.
const DESCRIPTORS: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
/// A request's header, and its response in a cache line of its own.
const HEADERS: usize = 0x4000;
const HEADER: usize = 256;
const RESPONSE: usize = 64;
/// A request's table of descriptors.
const TABLES: usize = 0x1_0000;
const TABLE: usize = 64;
const BUFFERS: usize = 0x2_0000;
const MEMORY: usize = BUFFERS + DATA as usize * MAX_DEPTH;
const MAX_DEPTH: usize = 64;

/// Descriptor flags (virtio 1.3 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of header and response without the data (virtio 1.3 §5.6.6.1).
const HEADER_LEN: u32 = 51;
const RESPONSE_LEN: u32 = 108;

/// What the requests are for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A disk that answers at once.
    Null,
    /// A file that is in the page cache, through it.
    File,
}

/// Reads of 4 KiB, in rounds: the next begins when all of one are done.
#[derive(Debug, Parser)]
struct Options {
    /// The disk.
    #[arg(value_enum)]
    kind: Kind,
    /// Requests of a round.
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    depth: u16,
    /// Rounds that are counted.
    rounds: u32,
    /// With a record in in-flight memory.
    #[arg(long)]
    tracked: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hot-path: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut rig = Rig::new(options)?;
    rig.pass_attentions()?;
    // Whatever grows has grown then.
    for _ in 0..20 {
        rig.round(options.depth, Turned::turn)?;
    }
    let calls = rig.turned.calls();
    let mut taken = Duration::ZERO;
    let allocated = allocations::count();
    for _ in 0..options.rounds {
        taken += rig.round(options.depth, counted)?;
    }
    let allocated = allocations::count() - allocated;
    let calls = rig.turned.calls() - calls;
    let requests = u64::from(options.rounds) * u64::from(options.depth);
    let nanoseconds = taken.as_nanos() / u128::from(requests.max(1));
    println!("{requests} requests, {calls} calls, {nanoseconds} ns for a request");
    if allocated > 0 {
        return Err(format!("memory was allocated {allocated} times").into());
    }
    Ok(())
}

/// The turns that callgrind counts; it knows them by this name.
#[inline(never)]
fn counted(turned: &mut Turned) {
    turned.turn();
}

/// A driver's side of one ring, and the worker behind it.
struct Rig {
    memory: Arc<Mapping>,
    kick: EventFd,
    next: u16,
    /// Block of the next request.
    lba: u32,
    turned: Turned,
}

impl Rig {
    fn new(options: &Options) -> Result<Self, Box<dyn Error>> {
        let memory = memory(MEMORY)?;
        let whole = MemoryEntry {
            guest_address: 0,
            len: MEMORY as u64,
            bar_offset: 0,
        };
        let inflight = if options.tracked {
            Some(self::memory(usize::try_from(spec::inflight::LEN)?)?)
        } else {
            None
        };
        let region = u32::try_from(spec::inflight::REGIONS)?;
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let driver = Driver {
            features: VERSION_1 | INDIRECT_DESC | EVENT_IDX,
            memory: Arc::new(TenantMemory::new(Arc::clone(&memory), vec![whole])?),
            setup: RingSetup {
                ring: 2,
                size: SIZE,
                base: Some(0),
                inflight: inflight.as_ref().map(|_| region),
                descriptor_table: DESCRIPTORS as u64,
                avail_ring: AVAIL as u64,
                used_ring: USED as u64,
            },
            inflight,
            kick: kick.try_clone()?,
        };
        let unit = LogicalUnit::new("measured", disk(options.kind)?)?;
        let rig = Self {
            memory,
            kick,
            next: 0,
            lba: 0,
            turned: Turned::new(driver, unit)?,
        };
        for slot in 0..options.depth {
            rig.lay_out(slot);
        }
        Ok(rig)
    }

    /// Makes request `slot` a read of one block, as Linux's driver does: one descriptor of the
    /// ring, with a table of three.
    fn lay_out(&self, slot: u16) {
        let at = usize::from(slot);
        let (header, table) = (HEADERS + HEADER * at, TABLES + TABLE * at);
        // virtio 1.3 §5.6.6.1: 1, target 0, LUN 0 in flat space; then the tag.
        self.memory.write(header, &[1, 0, 0x40, 0, 0, 0, 0, 0]);
        self.memory
            .write(header + 8, &u64::from(slot).to_le_bytes());
        let buffer = BUFFERS + DATA as usize * at;
        self.descriptor(table, header, HEADER_LEN, NEXT, 1);
        self.descriptor(table + 16, header + RESPONSE, RESPONSE_LEN, NEXT | WRITE, 2);
        self.descriptor(table + 32, buffer, DATA, WRITE, 0);
        self.descriptor(DESCRIPTORS + 16 * at, table, 48, INDIRECT, 0);
    }

    fn descriptor(&self, at: usize, address: usize, len: u32, flags: u16, next: u16) {
        self.memory.write(at, &(address as u64).to_le_bytes());
        self.memory.write(at + 8, &len.to_le_bytes());
        self.memory.write(at + 12, &flags.to_le_bytes());
        self.memory.write(at + 14, &next.to_le_bytes());
    }

    /// Reads until the unit has told all that a new initiator must hear.
    fn pass_attentions(&mut self) -> Result<(), Box<dyn Error>> {
        let mut passed = Ok(Duration::ZERO);
        for _ in 0..8 {
            passed = self.round(1, Turned::turn);
            if passed.is_ok() {
                break;
            }
        }
        passed.map(drop)
    }

    /// One round of requests, each checked; how long the worker took.
    fn round(&mut self, depth: u16, turn: fn(&mut Turned)) -> Result<Duration, Box<dyn Error>> {
        let old = self.next;
        for slot in 0..depth {
            self.prepare(slot);
        }
        // One call, when the last is done.
        let last = self.next.wrapping_sub(1);
        self.store(AVAIL + 4 + 2 * usize::from(SIZE), last);
        self.store(AVAIL + 2, self.next);
        fence(Ordering::SeqCst);
        let event = self.load(USED + 4 + 8 * usize::from(SIZE));
        // virtio 1.3 §2.7.10.1.
        if self.next.wrapping_sub(event).wrapping_sub(1) >= self.next.wrapping_sub(old) {
            return Err("the worker wants no kick, though nothing is under way".into());
        }
        self.kick.write(1)?;
        let begin = Instant::now();
        while self.load(USED + 2) != self.next {
            turn(&mut self.turned);
        }
        let taken = begin.elapsed();
        (0..depth).try_for_each(|slot| self.check(slot))?;
        Ok(taken)
    }

    /// Makes request `slot` available, with an answer that no target gives.
    fn prepare(&mut self, slot: u16) {
        let header = HEADERS + HEADER * usize::from(slot);
        let [a, b, c, d] = self.lba.to_be_bytes();
        let blocks = u16::try_from(DATA / BLOCK).unwrap_or(u16::MAX);
        let [high, low] = blocks.to_be_bytes();
        // SBC-4, READ (10).
        let cdb = [0x28, 0, a, b, c, d, 0, high, low, 0];
        self.memory.write(header + 19, &cdb);
        self.memory.write(header + RESPONSE + 10, &[0xff; 2]);
        let place = usize::from(self.next % SIZE);
        self.store(AVAIL + 4 + 2 * place, slot);
        self.next = self.next.wrapping_add(1);
        // Any order that is no sequence.
        let all = u32::try_from(DISK / u64::from(BLOCK)).unwrap_or(u32::MAX);
        self.lba = (self.lba + 8 * 1021) % (all - all % 8);
    }

    /// Whether request `slot` was answered GOOD, without a residual.
    fn check(&self, slot: u16) -> Result<(), Box<dyn Error>> {
        let response = HEADERS + HEADER * usize::from(slot) + RESPONSE;
        let mut bytes = [0; 12];
        self.memory.read(response, &mut bytes);
        if bytes != [0; 12] {
            return Err(format!("a request was answered {bytes:x?}").into());
        }
        Ok(())
    }

    fn load(&self, at: usize) -> u16 {
        self.memory.atomic_u16(at).load(Ordering::Acquire)
    }

    fn store(&self, at: usize, value: u16) {
        self.memory.atomic_u16(at).store(value, Ordering::Release);
    }
}

/// A mapping of fresh memory.
fn memory(len: usize) -> Result<Arc<Mapping>, Box<dyn Error>> {
    let file = File::from(memfd_create("hot-path", MemfdFlags::CLOEXEC)?);
    file.set_len(len as u64)?;
    Ok(Arc::new(Mapping::new(file.as_fd(), 0, len, None)?))
}

fn disk(kind: Kind) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    Ok(match kind {
        Kind::Null => Arc::new(NullDisk::new(DISK, BLOCK, false).ok_or("no whole blocks")?),
        Kind::File => {
            let path = std::env::temp_dir().join(format!("hot-path-{}", std::process::id()));
            std::fs::write(&path, vec![1; usize::try_from(DISK)?])?;
            let mut options = FileOptions::new(&path);
            options.cache = Cache::WriteBack;
            let opened = FileDisk::open(&options);
            std::fs::remove_file(&path)?;
            Arc::new(opened?)
        }
    })
}
