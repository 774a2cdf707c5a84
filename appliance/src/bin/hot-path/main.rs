//! Requests of one kind through the workers of an HBA, one after the other, for counting what they
//! cost.
//!
//! `cargo instructions` runs it under callgrind, which counts while [`counted`] runs, and under
//! lackey, which tells what memory it touches between its [`MARKS`]; by itself it tells how long a
//! request takes. Memory that is allocated for a request is an error.

mod allocations;
mod crew;
mod rig;

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use appliance::disk::{Cache, Disk, FileDisk, FileOptions, NullDisk};
use appliance::measure::{Driver, Seat, Turned};
use appliance::memory::{Mapping, TenantMemory};
use appliance::scsi::LogicalUnit;
use clap::{Parser, ValueEnum};
use rustix::fs::{MemfdFlags, memfd_create};
use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use spec::session::MemoryEntry;

use self::crew::{Crew, Order};
use self::rig::{MEMORY, Rig};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Bytes of a block, and of the disk.
const BLOCK: u32 = 512;
const DISK: u64 = 16 << 20;
/// Most workers.
const MOST: usize = 4;
/// Rounds before any is counted: whatever grows has grown then.
const WARM_UP: u32 = 20;

/// One for each worker, written to before its turns that are counted, and one more that is written to
/// after these.
static MARKS: [AtomicU8; MOST + 1] = [const { AtomicU8::new(0) }; MOST + 1];

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
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(rig::MAX_DEPTH)))]
    depth: u16,
    /// Rounds that are counted.
    rounds: u32,
    /// With a record in in-flight memory.
    #[arg(long)]
    tracked: bool,
    /// Workers, each with a ring of its own and a thread, which take turns.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MOST as i64))]
    workers: u16,
    /// Tells where the marks are, and for how many workers.
    #[arg(long)]
    marks: bool,
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
    if options.marks {
        println!("marks: {:x} {MOST}", MARKS.as_ptr().addr());
    }
    let crew = crew(options)?;
    for _ in 0..WARM_UP {
        crew.each(Order::Round(options.depth))?;
    }
    let before = crew.calls()?;
    let mut taken = Duration::ZERO;
    let allocated = allocations::count();
    for _ in 0..options.rounds {
        taken += crew.each(Order::Counted(options.depth))?;
    }
    let allocated = allocations::count() - allocated;
    let calls = crew.calls()? - before;
    let rounds = u64::from(options.rounds) * u64::from(options.workers);
    let requests = rounds * u64::from(options.depth);
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

/// A turn that is counted, of the worker at `place`.
fn marked(turned: &mut Turned, place: usize) {
    MARKS[place].store(1, Ordering::SeqCst);
    counted(turned);
    MARKS[MOST].store(1, Ordering::SeqCst);
}

/// Workers with a driver, which has heard all that a new initiator must hear.
fn crew(options: &Options) -> Result<Crew, Box<dyn Error>> {
    let workers = usize::from(options.workers);
    let len = MEMORY * workers;
    let memory = memory(len)?;
    let whole = MemoryEntry {
        guest_address: 0,
        len: len as u64,
        bar_offset: 0,
    };
    let (mut rigs, mut rings) = (Vec::new(), Vec::new());
    for nth in 0..options.workers {
        let inflight = if options.tracked {
            Some(self::memory(usize::try_from(spec::inflight::LEN)?)?)
        } else {
            None
        };
        let rig = Rig::new(&memory, nth, options.depth)?;
        rings.push(rig.ring(inflight)?);
        rigs.push((Seat::of_ring(nth, workers), rig));
    }
    rigs.sort_by_key(|(place, _)| *place);
    let driver = Driver {
        features: VERSION_1 | INDIRECT_DESC | EVENT_IDX,
        memory: Arc::new(TenantMemory::new(memory, vec![whole])?),
        rings,
    };
    let unit = LogicalUnit::new("measured", disk(options.kind)?)?;
    let seats = Seat::all(driver, unit)?.into_iter();
    Crew::start(seats.zip(rigs.into_iter().map(|(_, rig)| rig)))
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
