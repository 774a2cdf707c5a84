mod allocation;
mod atomic;
mod concurrent;
mod copying;
mod files;
mod hung;
mod in_place;
mod offload;
mod operations;
mod random;
mod through;
mod trouble;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempfile::TempFile;

use super::{Event, Io, Request};
use crate::disk::{Cache, Disk, DiskError, FileDisk, FileOptions, Geometry, Op, OpenFile, Reply};
use crate::memory::{Mapping, Segments};

const BOTH: [Cache; 2] = [Cache::Direct, Cache::WriteBack];
const BLOCKS: usize = 4096;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at / 512 + at * 7 + seed) % 251).unwrap())
        .collect()
}

/// A file of [`BLOCKS`] blocks in the build directory, where O_DIRECT works.
fn image() -> (TempFile, PathBuf) {
    let file = TempFile::new_in(&std::env::current_dir().unwrap()).unwrap();
    file.as_file().set_len((BLOCKS * 512) as u64).unwrap();
    let path = file.as_path().to_owned();
    (file, path)
}

fn open(path: PathBuf, cache: Cache) -> Arc<dyn Disk> {
    let options = FileOptions {
        cache,
        ..FileOptions::new(path)
    };
    Arc::new(FileDisk::open(&options).unwrap())
}

/// A tenant's memory: a shared file and its mapping.
fn tenant(len: usize) -> (File, Arc<Mapping>) {
    let file = TempFile::new().unwrap().into_file();
    file.set_len(len as u64).unwrap();
    let mapping = Arc::new(Mapping::new(file.as_fd(), 0, len, None).unwrap());
    (file, mapping)
}

fn segments(mapping: &Arc<Mapping>, pieces: &[(u64, usize)]) -> Segments {
    let mut segments = Segments::new(Arc::clone(mapping));
    for &(offset, len) in pieces {
        segments.push(offset, len).unwrap();
    }
    segments
}

/// Waits until `count` events have come.
fn events(io: &mut Io, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let before = events.len();
        io.wait(Some(Duration::from_secs(20)), &mut events).unwrap();
        assert!(events.len() > before, "nothing happened; so far {events:?}");
    }
    events
}

fn done(tag: u64) -> Event {
    Event::Done {
        tag,
        result: Ok(Reply::Done),
    }
}

fn failed(tag: u64, error: DiskError) -> Event {
    Event::Done {
        tag,
        result: Err(error),
    }
}

fn read(tag: u64, offset: u64, data: Segments) -> Request {
    Request {
        tag,
        op: Op::Read {
            offset,
            len: data.len(),
        },
        data: Some(data),
    }
}

fn write(tag: u64, offset: u64, fua: bool, data: Segments) -> Request {
    Request {
        tag,
        op: Op::Write {
            offset,
            len: data.len(),
            fua,
            atomic: false,
        },
        data: Some(data),
    }
}

/// A disk, a tenant's memory and a loop.
struct Bench {
    image: TempFile,
    disk: Arc<dyn Disk>,
    memory: File,
    mapping: Arc<Mapping>,
    io: Io,
}

impl Bench {
    /// With `whole` on the disk, 4 MiB of memory and a pool of 3 pages.
    fn new(cache: Cache, whole: &[u8]) -> Self {
        Self::with(cache, whole, |disk| disk)
    }

    /// As [`Self::new`], with what `change` makes of the disk.
    fn with(cache: Cache, whole: &[u8], change: fn(FileDisk) -> FileDisk) -> Self {
        let (image, path) = image();
        image.as_file().write_all_at(whole, 0).unwrap();
        image.as_file().sync_all().unwrap();
        let options = FileOptions {
            cache,
            ..FileOptions::new(path)
        };
        let disk = Arc::new(change(FileDisk::open(&options).unwrap()));
        let (memory, mapping) = tenant(4 << 20);
        Self {
            image,
            disk,
            memory,
            mapping,
            io: Io::with_pool(3 * 4096).unwrap(),
        }
    }

    fn request(&self, tag: u64, op: Op, data: &[u8]) -> Request {
        // Not in one piece, nowhere near a block, and with a place of its own for each tag.
        let at = 100 + (tag << 17);
        self.memory.write_all_at(data, at).unwrap();
        let first = data.len().min(1000);
        let pieces = [(at, first), (at + 1000, data.len() - first)];
        Request {
            tag,
            op,
            data: Some(segments(&self.mapping, &pieces)),
        }
    }

    /// What becomes of `op` with this buffer.
    fn run(&mut self, op: Op, data: &[u8]) -> Result<Reply, DiskError> {
        let request = self.request(1, op, data);
        self.io.submit(&self.disk, request);
        match events(&mut self.io, 1).remove(0) {
            Event::Done { tag: 1, result } => result,
            other => panic!("{other:?}"),
        }
    }

    fn on_disk(&self) -> Vec<u8> {
        let mut bytes = vec![0; BLOCKS * 512];
        self.image.as_file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

const DONE: Result<Reply, DiskError> = Ok(Reply::Done);

#[test]
fn a_scattered_write_reaches_the_file_and_a_scattered_read_comes_back() {
    for cache in BOTH {
        let (image, path) = image();
        let disk = open(path, cache);
        let (memory, mapping) = tenant(64 << 10);
        let data = pattern(3072, 1);
        memory.write_at(&data[..1000], 5).unwrap();
        memory.write_at(&data[1000..], 9001).unwrap();
        let mut io = Io::new().unwrap();

        let from = segments(&mapping, &[(5, 1000), (9001, 2072)]);
        io.submit(&disk, write(1, 1024, false, from));
        assert_eq!(events(&mut io, 1), [done(1)], "{cache:?}");
        io.submit(
            &disk,
            Request {
                tag: 2,
                op: Op::Flush,
                data: None,
            },
        );
        assert_eq!(events(&mut io, 1), [done(2)], "{cache:?}");
        let mut on_file = vec![0; 3072];
        image.as_file().read_exact_at(&mut on_file, 1024).unwrap();
        assert_eq!(on_file, data, "{cache:?}");

        io.submit(
            &disk,
            read(3, 1024, segments(&mapping, &[(30_000, 3071), (20_000, 1)])),
        );
        assert_eq!(events(&mut io, 1), [done(3)]);
        let mut back = vec![0; 3072];
        memory.read_exact_at(&mut back[..3071], 30_000).unwrap();
        memory.read_exact_at(&mut back[3071..], 20_000).unwrap();
        assert_eq!(back, data, "{cache:?}");
    }
}

#[test]
fn transfers_larger_than_the_pool_are_cut_and_queued() {
    for cache in BOTH {
        let (image, path) = image();
        let whole = pattern(BLOCKS * 512, 3);
        image.as_file().write_all_at(&whole, 0).unwrap();
        image.as_file().sync_all().unwrap();
        let disk = open(path, cache);
        let (memory, mapping) = tenant(4 * BLOCKS * 512);
        // 3 pages for 8 MiB.
        let mut io = Io::with_pool(3 * 4096).unwrap();
        for tag in 0..4 {
            let at = tag * (BLOCKS as u64) * 512;
            io.submit(
                &disk,
                read(tag, 0, segments(&mapping, &[(at, BLOCKS * 512)])),
            );
        }
        assert_eq!(io.in_flight(), 4);
        let mut seen = events(&mut io, 4);
        seen.sort_by_key(|event| match event {
            Event::Done { tag, .. } | Event::Wake(tag) => *tag,
        });
        assert_eq!(seen, [done(0), done(1), done(2), done(3)], "{cache:?}");
        assert_eq!(io.in_flight(), 0);
        for copy in 0..4 {
            let mut back = vec![0; BLOCKS * 512];
            memory
                .read_exact_at(&mut back, copy * (BLOCKS as u64) * 512)
                .unwrap();
            assert!(back == whole, "copy {copy}, {cache:?}");
        }
    }
}

#[test]
fn a_buffer_of_thousands_of_pieces_is_moved() {
    for cache in BOTH {
        let (image, path) = image();
        let disk = open(path, cache);
        let (memory, mapping) = tenant(1 << 20);
        let data = pattern(1 << 20, 9);
        memory.write_all_at(&data, 0).unwrap();
        let pieces: Vec<_> = (0..4096).map(|at| (at * 256, 256)).collect();
        let mut io = Io::new().unwrap();
        io.submit(&disk, write(1, 0, true, segments(&mapping, &pieces)));
        assert_eq!(events(&mut io, 1), [done(1)]);
        let mut on_file = vec![0; 1 << 20];
        image.as_file().read_exact_at(&mut on_file, 0).unwrap();
        assert!(on_file == data, "{cache:?}");
    }
}

#[test]
fn an_operation_outside_the_disk_or_its_buffer_is_refused() {
    let (_image, path) = image();
    let disk = open(path, Cache::Direct);
    let (_memory, mapping) = tenant(8192);
    let mut io = Io::new().unwrap();
    let last = (BLOCKS as u64 - 1) * 512;
    io.submit(&disk, read(1, last, segments(&mapping, &[(0, 1024)])));
    io.submit(
        &disk,
        read(2, u64::MAX - 511, segments(&mapping, &[(0, 512)])),
    );
    io.submit(&disk, read(3, 1, segments(&mapping, &[(0, 512)])));
    io.submit(
        &disk,
        Request {
            tag: 4,
            op: Op::Read {
                offset: 0,
                len: 1024,
            },
            data: Some(segments(&mapping, &[(0, 512)])),
        },
    );
    let refused: Vec<_> = (1..5)
        .map(|tag| failed(tag, DiskError::OutOfRange))
        .collect();
    assert_eq!(events(&mut io, 4), refused);
    io.submit(&disk, read(5, last, segments(&mapping, &[(0, 512)])));
    assert_eq!(events(&mut io, 1), [done(5)]);
}

#[test]
fn a_file_that_became_shorter_is_an_error() {
    for cache in BOTH {
        let (image, path) = image();
        let disk = open(path, cache);
        let (_memory, mapping) = tenant(1 << 20);
        image.as_file().set_len(4096).unwrap();
        let mut io = Io::new().unwrap();
        io.submit(&disk, read(1, 0, segments(&mapping, &[(0, 1 << 20)])));
        assert_eq!(
            events(&mut io, 1),
            [failed(1, DiskError::Truncated)],
            "{cache:?}"
        );
    }
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let (_image, path) = image();
    let options = FileOptions {
        read_only: true,
        ..FileOptions::new(path)
    };
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(&options).unwrap());
    let (_memory, mapping) = tenant(8192);
    let mut io = Io::new().unwrap();
    io.submit(&disk, write(1, 0, false, segments(&mapping, &[(0, 512)])));
    io.submit(&disk, read(2, 0, segments(&mapping, &[(0, 512)])));
    assert_eq!(
        events(&mut io, 2),
        [failed(1, DiskError::ReadOnly), done(2)]
    );
}

#[test]
fn a_cancelled_read_never_reaches_the_tenant() {
    let (image, path) = image();
    image.as_file().write_all_at(&pattern(8192, 5), 0).unwrap();
    let disk = open(path, Cache::Direct);
    let (memory, mapping) = tenant(8192);
    let mut io = Io::new().unwrap();
    io.submit(&disk, read(1, 0, segments(&mapping, &[(0, 8192)])));
    // The read goes to the kernel, but nobody has looked for its end yet.
    io.ring.enter(Some(Duration::ZERO)).unwrap();
    io.cancel(1);
    io.cancel(1);
    assert_eq!(io.in_flight(), 0);
    assert_eq!(
        Arc::strong_count(&mapping),
        1,
        "the tenant's memory is let go at once"
    );
    assert_eq!(events(&mut io, 1), [failed(1, DiskError::Cancelled)]);
    while !io.transfers.is_idle() {
        let mut none = Vec::new();
        io.wait(Some(Duration::from_millis(10)), &mut none).unwrap();
        assert_eq!(none, []);
    }
    let mut back = vec![0; 8192];
    memory.read_exact_at(&mut back, 0).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
}

#[test]
fn what_had_to_wait_for_its_blocks_or_for_memory_is_told_when_it_is_begun() {
    let (_image, path) = image();
    let disk = open(path, Cache::Direct);
    let (_memory, mapping) = tenant(1 << 20);
    let mut io = Io::with_pool(4096).unwrap();
    let block = |at| segments(&mapping, &[(at, 512)]);
    io.submit(&disk, write(1, 0, false, block(0)));
    assert!(io.take_begun().is_empty());
    // The same block, and then all of the pool.
    io.submit(&disk, write(2, 0, false, block(512)));
    io.submit(
        &disk,
        read(3, 8192, segments(&mapping, &[(1024, 64 << 10)])),
    );
    events(&mut io, 3);
    let mut begun = io.take_begun();
    begun.sort_unstable();
    assert_eq!(begun, [2, 3]);
    assert!(io.take_begun().is_empty());
}

#[test]
fn cancelling_what_waits_for_the_pool_lets_the_others_go_on() {
    let (_image, path) = image();
    let disk = open(path, Cache::Direct);
    let (_memory, mapping) = tenant(1 << 20);
    let mut io = Io::with_pool(4096).unwrap();
    for tag in 0..4 {
        io.submit(
            &disk,
            write(tag, 0, true, segments(&mapping, &[(0, 64 << 10)])),
        );
    }
    io.cancel(1);
    io.cancel(2);
    io.cancel(99);
    let mut seen = events(&mut io, 4);
    seen.sort_by_key(|event| match event {
        Event::Done { tag, .. } | Event::Wake(tag) => *tag,
    });
    assert_eq!(
        seen,
        [
            done(0),
            failed(1, DiskError::Cancelled),
            failed(2, DiskError::Cancelled),
            done(3)
        ]
    );
}

#[test]
fn every_cancelled_request_gets_its_one_event_on_either_kind_of_disk() {
    for cache in BOTH {
        let (_image, path) = image();
        let disk = open(path, cache);
        let (_memory, mapping) = tenant(1 << 20);
        let mut io = Io::with_pool(64 << 10).unwrap();
        for tag in 0..50 {
            let data = segments(&mapping, &[(0, 64 << 10)]);
            let request = match tag % 2 {
                0 => read(tag, 0, data),
                _ => write(tag, 0, false, data),
            };
            io.submit(&disk, request);
        }
        for tag in 0..50 {
            io.cancel(tag);
        }
        let seen = events(&mut io, 50);
        assert_eq!(seen.len(), 50);
        let cancelled = |event: &Event| {
            matches!(
                event,
                Event::Done {
                    result: Err(DiskError::Cancelled),
                    ..
                }
            )
        };
        assert!(seen.iter().all(cancelled), "{cache:?}: {seen:?}");
        let mut more = Vec::new();
        io.wait(Some(Duration::from_millis(20)), &mut more).unwrap();
        assert_eq!((more, io.in_flight()), (vec![], 0));
    }
}

/// A disk whose flushes fail.
#[derive(Debug)]
struct NoFlush(Arc<dyn Disk>);

impl Disk for NoFlush {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        match op {
            Op::Flush => Err(DiskError::NoSpace),
            _ => self.0.file_for(op),
        }
    }
}

#[test]
fn what_a_disk_refuses_ends_with_its_error() {
    let (_image, path) = image();
    let disk: Arc<dyn Disk> = Arc::new(NoFlush(open(path, Cache::Direct)));
    let mut io = Io::new().unwrap();
    io.submit(
        &disk,
        Request {
            tag: 7,
            op: Op::Flush,
            data: None,
        },
    );
    assert_eq!(events(&mut io, 1), [failed(7, DiskError::NoSpace)]);
}

#[test]
fn a_watched_eventfd_wakes_until_it_is_unwatched() {
    // A blocking eventfd: draining it must not block.
    let eventfd = EventFd::new(0).unwrap();
    eventfd.write(1).unwrap();
    let mut io = Io::new().unwrap();
    io.watch(&eventfd, 42).unwrap();
    assert_eq!(events(&mut io, 1), [Event::Wake(42)], "latched before");
    eventfd.write(1).unwrap();
    assert_eq!(events(&mut io, 1), [Event::Wake(42)]);
    io.unwatch(42);
    eventfd.write(1).unwrap();
    let mut none = Vec::new();
    io.wait(Some(Duration::from_millis(20)), &mut none).unwrap();
    assert_eq!(none, []);
    io.watch(&eventfd, 43).unwrap();
    assert_eq!(events(&mut io, 1), [Event::Wake(43)]);
}

#[test]
fn another_thread_wakes_a_loop_that_waits_for_ever() {
    let eventfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let other = eventfd.try_clone().unwrap();
    let mut io = Io::new().unwrap();
    io.watch(&eventfd, 1).unwrap();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        other.write(1).unwrap();
    });
    let mut events = Vec::new();
    io.wait(None, &mut events).unwrap();
    assert_eq!(events, [Event::Wake(1)]);
    thread.join().unwrap();
}

#[test]
fn a_wait_without_time_returns_at_once_and_one_with_time_after_it() {
    let mut io = Io::new().unwrap();
    let mut events = Vec::new();
    io.wait(Some(Duration::ZERO), &mut events).unwrap();
    let start = std::time::Instant::now();
    io.wait(Some(Duration::from_millis(30)), &mut events)
        .unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(events, []);
}

#[test]
fn more_requests_than_the_submission_queue_holds_all_end() {
    let (_image, path) = image();
    let disk = open(path, Cache::Direct);
    let (_memory, mapping) = tenant(8192);
    let mut io = Io::new().unwrap();
    for tag in 0..3000 {
        io.submit(&disk, read(tag, 0, segments(&mapping, &[(0, 512)])));
    }
    assert_eq!(events(&mut io, 3000).len(), 3000);
}

#[test]
fn dropping_a_loop_with_requests_in_flight_waits_for_the_kernel() {
    for cache in BOTH {
        let (_image, path) = image();
        let disk = open(path, cache);
        let (_memory, mapping) = tenant(1 << 20);
        let mut io = Io::new().unwrap();
        for tag in 0..20 {
            io.submit(
                &disk,
                write(tag, 0, false, segments(&mapping, &[(0, 1 << 20)])),
            );
        }
        io.ring.enter(Some(Duration::ZERO)).unwrap();
        drop(io);
        assert_eq!(Arc::strong_count(&mapping), 1, "{cache:?}");
    }
}

#[test]
fn what_is_left_of_a_closed_loop_is_waited_for_by_draining_it() {
    for cache in BOTH {
        let (_image, path) = image();
        let disk = open(path, cache);
        let (_memory, mapping) = tenant(1 << 20);
        let mut io = Io::new().unwrap();
        for tag in 0..20 {
            let data = segments(&mapping, &[(0, 1 << 20)]);
            io.submit(&disk, write(tag, 0, true, data));
        }
        io.ring.enter(Some(Duration::ZERO)).unwrap();
        // Nothing is left if the kernel was quick.
        if let Some(rest) = io.close_within(Duration::ZERO) {
            assert!(rest.unfinished() > 0);
            rest.drain();
        }
        assert_eq!(Arc::strong_count(&mapping), 1);
        assert_eq!(Arc::strong_count(disk.file_for(&Op::Flush).unwrap()), 1);
    }
}

#[test]
fn a_failed_flush_is_remembered_until_the_disk_is_opened_anew() {
    let (_image, path) = image();
    for cache in BOTH {
        let disk = open(path.clone(), cache);
        let file = disk.file_for(&Op::Flush).unwrap();
        let broken = Err(DiskError::Io(libc::EIO));
        assert_eq!(file.flushed(Ok(())), Ok(()));
        assert_eq!(
            file.flushed(Err(DiskError::Cancelled)),
            Err(DiskError::Cancelled)
        );
        assert_eq!(file.flushed(broken), broken);
        let lost = Err(DiskError::WritesLost);
        assert_eq!(file.flushed(Ok(())), lost, "{cache:?}");
    }
}
