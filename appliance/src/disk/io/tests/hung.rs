//! Disks that hang, and what those that do not have to bear.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmm_sys_util::tempdir::TempDir;

use super::{
    BLOCKS, Bench, DONE, done, events, failed, image, pattern, read, segments, tenant, write,
};
use crate::disk::io::{Event, Inbox, Io, Place, Request};
use crate::disk::ranges::Mode;
use crate::disk::{
    Abilities, Cache, Disk, DiskError, FileDisk, FileOptions, Geometry, Op, OpenFile, sys,
};

/// A disk of which some operations hang: they go to a full pipe.
#[derive(Debug)]
struct Hanging {
    disk: Arc<dyn Disk>,
    pipe: Arc<OpenFile>,
    hangs: AtomicBool,
}

impl Disk for Hanging {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn abilities(&self) -> Abilities {
        self.disk.abilities()
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        if self.hangs.load(Ordering::Relaxed) {
            Ok(&self.pipe)
        } else {
            self.disk.file_for(op)
        }
    }
}

/// The other end of the pipe.
struct Release {
    reader: PipeReader,
    filler: usize,
}

impl Release {
    /// Lets what hangs go on, and returns the `len` bytes that it then wrote.
    fn release(mut self, io: &mut Io, len: usize) -> Vec<u8> {
        let mut filler = vec![0; self.filler];
        self.reader.read_exact(&mut filler).unwrap();
        // The kernel writes when the loop asks what has happened.
        io.ring.enter(Some(Duration::from_secs(1))).unwrap();
        let mut late = vec![0; len];
        self.reader.read_exact(&mut late).unwrap();
        late
    }
}

/// A bench whose disk can hang, and whose kernel gives nothing up.
fn bench(cache: Cache) -> (Bench, Arc<Hanging>, Release) {
    bench_with(cache, None)
}

/// As [`bench`], without bounce buffers for what is aligned so.
fn bench_with(cache: Cache, in_place: Option<usize>) -> (Bench, Arc<Hanging>, Release) {
    let mut bench = Bench::new(cache, &pattern(BLOCKS * 512, 8));
    bench.io.ring.stubborn = true;
    let (reader, writer) = io::pipe().unwrap();
    let mut nonblocking = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", writer.as_raw_fd()))
        .unwrap();
    let mut filler = 0;
    while let Ok(n) = nonblocking.write(&[0; 4096]) {
        filler += n;
    }
    let real = bench.disk.file_for(&Op::Flush).unwrap();
    let mut pipe = OpenFile::beside(real, OwnedFd::from(writer).into(), cache);
    pipe.in_place = in_place;
    let disk = Arc::new(Hanging {
        disk: Arc::clone(&bench.disk),
        pipe: Arc::new(pipe),
        hangs: AtomicBool::new(false),
    });
    bench.disk = Arc::clone(&disk) as Arc<dyn Disk>;
    (bench, disk, Release { reader, filler })
}

/// Submits a request that hangs.
fn submit_hanging(bench: &mut Bench, disk: &Hanging, request: Request) {
    disk.hangs.store(true, Ordering::Relaxed);
    bench.io.submit(&bench.disk, request);
    disk.hangs.store(false, Ordering::Relaxed);
    nothing_happens(&mut bench.io);
}

fn nothing_happens(io: &mut Io) {
    let mut events = Vec::new();
    io.wait(Some(Duration::from_millis(50)), &mut events)
        .unwrap();
    assert_eq!(events, []);
}

fn write_of(bench: &Bench, tag: u64, offset: u64, len: usize, byte: u8) -> Request {
    let op = Op::Write {
        offset,
        len,
        fua: false,
        atomic: false,
    };
    bench.request(tag, op, &vec![byte; len])
}

fn sorted(io: &mut Io, count: usize) -> Vec<Event> {
    let mut seen = events(io, count);
    seen.sort_by_key(|event| match event {
        Event::Done { tag, .. } | Event::Wake(tag) => *tag,
    });
    seen
}

#[test]
fn a_cancelled_write_that_hangs_is_over_at_once_and_never_lands_on_a_newer_one() {
    let (mut bench, disk, release) = bench(Cache::Direct);
    let before = bench.on_disk();
    let hanging = write_of(&bench, 1, 4096, 4096, b'a');
    submit_hanging(&mut bench, &disk, hanging);
    bench.io.cancel(1);
    assert_eq!(bench.io.in_flight(), 0);
    assert_eq!(
        Arc::strong_count(&bench.mapping),
        1,
        "the tenant's memory is let go at once"
    );
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::Cancelled)]);

    // A newer write of the last of these blocks waits, one beside them does not, nor does a read.
    let newer = write_of(&bench, 2, 8192 - 512, 512, b'b');
    bench.io.submit(&bench.disk, newer);
    let data = segments(&bench.mapping, &[(0, 8192)]);
    bench.io.submit(&bench.disk, read(3, 4096, data));
    assert_eq!(events(&mut bench.io, 1), [done(3)]);
    let beside = write_of(&bench, 4, 8192, 512, b'c');
    bench.io.submit(&bench.disk, beside);
    assert_eq!(events(&mut bench.io, 1), [done(4)]);
    nothing_happens(&mut bench.io);
    assert_eq!(bench.on_disk()[4096..8192], before[4096..8192]);

    assert_eq!(release.release(&mut bench.io, 4096), [b'a'; 4096]);
    assert_eq!(events(&mut bench.io, 1), [done(2)]);
    assert_eq!(bench.on_disk()[8192 - 512..8192], [b'b'; 512]);
    assert_eq!(bench.on_disk()[4096..8192 - 512], before[4096..8192 - 512]);
    assert!(bench.io.transfers.is_idle());
}

#[test]
fn who_waits_for_a_range_leaves_the_queue_when_it_is_cancelled() {
    for cache in super::BOTH {
        let (mut bench, disk, release) = bench(cache);
        let hanging = write_of(&bench, 1, 0, 4096, b'a');
        submit_hanging(&mut bench, &disk, hanging);
        let op = Op::CompareAndWrite {
            offset: 0,
            len: 512,
            fua: false,
        };
        let exclusive = bench.request(2, op, &[0; 1024]);
        bench.io.submit(&bench.disk, exclusive);
        let behind = write_of(&bench, 3, 0, 512, b'c');
        bench.io.submit(&bench.disk, behind);
        nothing_happens(&mut bench.io);
        bench.io.cancel(2);
        let seen = sorted(&mut bench.io, 2);
        assert_eq!(
            seen,
            [failed(2, DiskError::Cancelled), done(3)],
            "{cache:?}"
        );
        assert_eq!(bench.on_disk()[..512], [b'c'; 512]);
        release.release(&mut bench.io, 4096);
        assert_eq!(events(&mut bench.io, 1), [done(1)]);
    }
}

#[test]
fn a_cancelled_write_from_the_tenant_s_own_memory_is_over_when_the_kernel_is_done() {
    let (mut bench, disk, release) = bench(Cache::WriteBack);
    let hanging = write_of(&bench, 1, 0, 4096, b'a');
    submit_hanging(&mut bench, &disk, hanging);
    bench.io.cancel(1);
    nothing_happens(&mut bench.io);
    assert_eq!(bench.io.in_flight(), 1);
    release.release(&mut bench.io, 4096);
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::Cancelled)]);
}

#[test]
fn without_bounce_buffers_a_cancelled_write_is_over_when_the_kernel_is_done() {
    // What is aligned for the disk, and what has to go through the pool all the same.
    for (at, waits) in [(8192, true), (8191, false)] {
        let (mut bench, disk, release) = bench_with(Cache::Direct, Some(512));
        let data = segments(&bench.mapping, &[(at, 4096)]);
        submit_hanging(&mut bench, &disk, write(1, 0, false, data));
        bench.io.cancel(1);
        let over = failed(1, DiskError::Cancelled);
        if waits {
            nothing_happens(&mut bench.io);
            assert_eq!(bench.io.in_flight(), 1);
            release.release(&mut bench.io, 4096);
        }
        assert_eq!(events(&mut bench.io, 1), [over], "at {at}");
        assert_eq!(Arc::strong_count(&bench.mapping), 1, "at {at}");
    }
}

#[test]
fn on_a_write_back_disk_too_what_goes_through_the_pool_is_over_at_once() {
    let (mut bench, disk, release) = bench(Cache::WriteBack);
    let op = Op::WriteSame {
        offset: 0,
        len: 4096,
        fua: false,
    };
    let hanging = bench.request(1, op, &[b'a'; 512]);
    submit_hanging(&mut bench, &disk, hanging);
    bench.io.cancel(1);
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::Cancelled)]);
    let newer = write_of(&bench, 2, 0, 512, b'b');
    bench.io.submit(&bench.disk, newer);
    nothing_happens(&mut bench.io);
    release.release(&mut bench.io, 4096);
    assert_eq!(events(&mut bench.io, 1), [done(2)]);
    assert_eq!(bench.on_disk()[..512], [b'b'; 512]);
}

#[test]
fn what_hangs_before_it_changes_anything_gives_its_range_up_when_it_is_cancelled() {
    // Reads from this pipe hang.
    let mut bench = Bench::new(Cache::Direct, &[]);
    bench.io.ring.stubborn = true;
    let (reader, mut writer) = io::pipe().unwrap();
    let real = bench.disk.file_for(&Op::Flush).unwrap();
    let pipe = OpenFile::beside(real, OwnedFd::from(reader).into(), Cache::Direct);
    let disk = Arc::new(Hanging {
        disk: Arc::clone(&bench.disk),
        pipe: Arc::new(pipe),
        hangs: AtomicBool::new(false),
    });
    bench.disk = Arc::clone(&disk) as Arc<dyn Disk>;
    for (tag, op) in [
        Op::CompareAndWrite {
            offset: 0,
            len: 512,
            fua: false,
        },
        Op::Or {
            offset: 0,
            len: 512,
            fua: false,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let tag = tag as u64;
        let hanging = bench.request(tag, op, &[1; 1024]);
        submit_hanging(&mut bench, &disk, hanging);
        bench.io.cancel(tag);
        let over = failed(tag, DiskError::Cancelled);
        assert_eq!(events(&mut bench.io, 1), [over]);
        let op = Op::Or {
            offset: 0,
            len: 512,
            fua: false,
        };
        assert_eq!(bench.run(op, &[if tag == 0 { 2 } else { 3 }; 512]), DONE);
    }
    writer.write_all(&[0; 1024]).unwrap();
    let mut none = Vec::new();
    while !bench.io.transfers.is_idle() {
        bench
            .io
            .wait(Some(Duration::from_millis(10)), &mut none)
            .unwrap();
    }
    assert_eq!(none, []);
    assert_eq!(
        bench.on_disk()[..512],
        [3; 512],
        "2 | 3, and never 1 of the cancelled"
    );
}

#[test]
fn a_disk_that_hangs_leaves_memory_for_others() {
    let (mut bench, disk, _release) = bench(Cache::Direct);
    for tag in 0..10 {
        let hanging = write_of(&bench, tag, tag << 17, 128 << 10, b'a');
        submit_hanging(&mut bench, &disk, hanging);
    }
    let data = segments(&bench.mapping, &[(0, 1 << 20)]);
    bench.io.submit(&bench.disk, read(20, 0, data));
    assert_eq!(events(&mut bench.io, 1), [done(20)]);
    // Nor is it different when they are cancelled, though the kernel keeps their memory.
    for tag in 0..10 {
        bench.io.cancel(tag);
    }
    assert_eq!(events(&mut bench.io, 10).len(), 10);
    let data = segments(&bench.mapping, &[(0, 1 << 20)]);
    bench.io.submit(
        &bench.disk,
        write(21, 1 << 20 | 1 << 19, false, data.clone()),
    );
    bench.io.submit(&bench.disk, read(22, 0, data));
    let seen = sorted(&mut bench.io, 2);
    assert_eq!(seen, [failed(21, DiskError::OutOfRange), done(22)]);
}

#[test]
fn another_loop_waits_for_what_a_closed_one_left() {
    for cache in super::BOTH {
        let (mut bench, disk, release) = bench(cache);
        let hanging = write_of(&bench, 1, 0, 4096, b'a');
        submit_hanging(&mut bench, &disk, hanging);
        let mut other = Io::new().unwrap();
        let mut io = std::mem::replace(&mut bench.io, Io::new().unwrap());
        // Concurrent, so that nobody knows which comes first.
        other.submit(&bench.disk, write_of(&bench, 2, 0, 512, b'b'));
        assert_eq!(events(&mut other, 1), [done(2)]);
        let waits = write_of(&bench, 3, 0, 512, b'c');
        io.transfers.cancel_all(&mut io.ring, &mut io.ready);
        other.submit(&bench.disk, waits);
        nothing_happens(&mut other);
        let mut rest = io.close_within(Duration::ZERO).expect("it hangs");
        assert_eq!(rest.unfinished(), 1);
        nothing_happens(&mut other);
        release.release(&mut rest, 4096);
        rest.drain();
        assert_eq!(events(&mut other, 1), [done(3)], "{cache:?}");
        assert_eq!(bench.on_disk()[..512], [b'c'; 512]);
    }
}

#[test]
fn a_loop_that_is_dropped_leaves_no_place_in_a_queue() {
    let (mut bench, disk, release) = bench(Cache::Direct);
    let hanging = write_of(&bench, 1, 0, 4096, b'a');
    submit_hanging(&mut bench, &disk, hanging);
    let op = Op::Or {
        offset: 0,
        len: 512,
        fua: false,
    };
    let mut other = Io::new().unwrap();
    other.submit(&bench.disk, bench.request(2, op, &[0; 512]));
    nothing_happens(&mut other);
    let behind = write_of(&bench, 3, 0, 512, b'c');
    bench.io.submit(&bench.disk, behind);
    nothing_happens(&mut bench.io);
    drop(other);
    assert_eq!(events(&mut bench.io, 1), [done(3)]);
    release.release(&mut bench.io, 4096);
    assert_eq!(events(&mut bench.io, 1), [done(1)]);
}

#[test]
fn who_waits_for_memory_and_is_cancelled_is_not_in_the_way_of_those_behind_it() {
    let (mut bench, disk, _release) = bench(Cache::Direct);
    // One of the three pages hangs.
    let hanging = write_of(&bench, 1, 0, 4096, b'a');
    submit_hanging(&mut bench, &disk, hanging);
    // Another one is held by a second file that hangs, so that a pair cannot be had.
    let (reader, _writer) = io::pipe().unwrap();
    let empty = OpenFile::new(OwnedFd::from(reader).into(), Cache::Direct);
    let second: Arc<dyn Disk> = Arc::new(Hanging {
        disk: Arc::clone(&bench.disk),
        pipe: Arc::new(empty),
        hangs: AtomicBool::new(true),
    });
    let data = segments(&bench.mapping, &[(0, 512)]);
    bench.io.submit(&second, read(2, 0, data.clone()));
    let op = Op::WriteVerify {
        offset: 8192,
        len: 512,
    };
    let pair = bench.request(3, op, &[b'b'; 512]);
    bench.io.submit(&bench.disk, pair);
    bench.io.submit(&bench.disk, read(4, 0, data));
    nothing_happens(&mut bench.io);
    bench.io.cancel(3);
    let seen = sorted(&mut bench.io, 2);
    assert_eq!(seen, [failed(3, DiskError::Cancelled), done(4)]);
}

#[test]
fn a_cancelled_sync_is_over_at_once() {
    for cache in super::BOTH {
        let mut bench = Bench::new(cache, &[]);
        bench.io.ring.stubborn = true;
        // A write of nothing is its sync.
        let request = bench.request(
            1,
            Op::Write {
                offset: 0,
                len: 0,
                fua: true,
                atomic: false,
            },
            &[],
        );
        bench.io.submit(&bench.disk, request);
        assert!(!bench.io.transfers.is_idle());
        bench.io.cancel(1);
        assert_eq!(bench.io.in_flight(), 0);
        assert_eq!(
            bench.io.ready,
            [failed(1, DiskError::Cancelled)],
            "{cache:?}"
        );
    }
}

#[test]
fn beginning_and_cancelling_without_end_on_a_disk_that_hangs_comes_to_an_end() {
    let (mut bench, disk, release) = bench(Cache::Direct);
    bench.io = Io::new().unwrap();
    bench.io.ring.stubborn = true;
    disk.hangs.store(true, Ordering::Relaxed);
    let mut refused = 0;
    for tag in 0..300 {
        let data = segments(&bench.mapping, &[(0, 512)]);
        let hanging = write(tag, tag * 512, false, data);
        bench.io.submit(&bench.disk, hanging);
        bench.io.cancel(tag);
        match events(&mut bench.io, 1)[..] {
            [
                Event::Done {
                    result: Err(DiskError::Cancelled),
                    ..
                },
            ] => {}
            [
                Event::Done {
                    result: Err(DiskError::Busy),
                    ..
                },
            ] => refused += 1,
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 300 - 256);
    disk.hangs.store(false, Ordering::Relaxed);
    assert_eq!(bench.io.transfers.unfinished(), 256);
    // Another disk does not notice.
    let data = segments(&bench.mapping, &[(0, 512)]);
    bench.io.submit(&bench.disk, read(1000, 0, data.clone()));
    assert_eq!(events(&mut bench.io, 1), [done(1000)]);

    // The pipe breaks: all of them end.
    drop(release);
    let mut none = Vec::new();
    while !bench.io.transfers.is_idle() {
        bench
            .io
            .wait(Some(Duration::from_millis(10)), &mut none)
            .unwrap();
    }
    assert_eq!(none, []);
    disk.hangs.store(true, Ordering::Relaxed);
    bench.io.submit(&bench.disk, write(1, 0, false, data));
    let broken = failed(1, DiskError::Io(libc::EPIPE));
    assert_eq!(events(&mut bench.io, 1), [broken]);
}

#[test]
fn a_shared_file_that_is_opened_again_waits_for_what_was_left_when_it_was_closed() {
    let (_file, path) = image();
    let open = || -> Arc<dyn Disk> {
        let options = FileOptions {
            shared: true,
            ..FileOptions::new(&path)
        };
        Arc::new(FileDisk::open(&options).unwrap())
    };
    let first = open();
    let inbox = Arc::new(Inbox::new().unwrap());
    let place = Place {
        operation: 0,
        serial: 0,
    };
    // As a write that was cancelled and hangs.
    let ranges = Arc::clone(first.file_for(&Op::Flush).unwrap().ranges());
    let (left, granted) = ranges.lock((0, 512), (Mode::Exclusive, Some((0, 512))), &inbox, place);
    assert!(granted);
    drop((first, ranges));
    let second = open();
    let (_memory, mapping) = tenant(512);
    let mut io = Io::new().unwrap();
    let data = segments(&mapping, &[(0, 512)]);
    io.submit(&second, write(1, 0, false, data));
    nothing_happens(&mut io);
    drop(left);
    assert_eq!(events(&mut io, 1), [done(1)]);
}

#[test]
fn a_barrier_waits_for_a_cancelled_write_until_it_can_land_no_more() {
    let (mut bench, disk, release) = bench(Cache::Direct);
    let hanging = write_of(&bench, 1, 4096, 4096, b'a');
    submit_hanging(&mut bench, &disk, hanging);
    bench.io.cancel(1);
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::Cancelled)]);

    let barrier = |tag| Request {
        tag,
        op: Op::Barrier,
        data: None,
    };
    bench.io.submit(&bench.disk, barrier(2));
    nothing_happens(&mut bench.io);
    // What comes later waits behind it, at other blocks too, until it is withdrawn.
    let behind = write_of(&bench, 3, 65536, 512, b'b');
    bench.io.submit(&bench.disk, behind);
    nothing_happens(&mut bench.io);
    bench.io.cancel(2);
    assert_eq!(
        sorted(&mut bench.io, 2),
        [failed(2, DiskError::Cancelled), done(3)]
    );

    bench.io.submit(&bench.disk, barrier(4));
    nothing_happens(&mut bench.io);
    assert_eq!(release.release(&mut bench.io, 4096), [b'a'; 4096]);
    assert_eq!(events(&mut bench.io, 1), [done(4)]);
    bench.io.submit(&bench.disk, barrier(5));
    assert_eq!(events(&mut bench.io, 1), [done(5)]);
}

#[test]
fn a_disk_stays_locked_until_the_last_io_on_it_is_over() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let file = open();
    sys::lock(&file, true).unwrap();
    // Reads from it hang: nobody has written.
    let mut bench = Bench::new(Cache::Direct, &[]);
    bench.io.ring.stubborn = true;
    let disk = Arc::new(Hanging {
        disk: Arc::clone(&bench.disk),
        pipe: Arc::new(OpenFile::new(file, Cache::Direct)),
        hangs: AtomicBool::new(false),
    });
    let hanging = read(1, 0, segments(&bench.mapping, &[(0, 512)]));
    bench.disk = Arc::clone(&disk) as Arc<dyn Disk>;
    submit_hanging(&mut bench, &disk, hanging);
    bench.io.cancel(1);
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::Cancelled)]);

    // The appliance has let the disk go; a new one must not have it yet.
    bench.disk = Arc::clone(&disk.disk);
    drop(disk);
    let mut new = open();
    let locked = sys::lock(&new, true).unwrap_err();
    assert_eq!(locked.raw_os_error(), Some(libc::EAGAIN));
    new.write_all(&[0; 512]).unwrap();
    while !bench.io.transfers.is_idle() {
        nothing_happens(&mut bench.io);
    }
    sys::lock(&new, true).unwrap();
}

#[test]
fn nobody_writes_a_block_between_its_failed_read_and_the_zeros() {
    for cache in super::BOTH {
        // It cannot be read, and writing the zeros hangs.
        let (mut bench, disk, release) = bench(cache);
        let mend = |tag| Request {
            tag,
            op: Op::Mend {
                offset: 512,
                len: 512,
            },
            data: None,
        };
        submit_hanging(&mut bench, &disk, mend(1));
        let newer = write_of(&bench, 2, 512, 512, 9);
        bench.io.submit(&bench.disk, newer);
        nothing_happens(&mut bench.io);
        assert_eq!(release.release(&mut bench.io, 512), [0; 512], "{cache:?}");
        // A pipe cannot be synced.
        let unsynced = failed(1, DiskError::Io(libc::EINVAL));
        let happened = events(&mut bench.io, 2);
        assert!(happened.contains(&unsynced), "{happened:?}");
        assert!(happened.contains(&done(2)), "{happened:?}");
    }
}

#[test]
fn a_mend_keeps_writes_away_as_long_as_it_reads_and_writes_nothing_once_cancelled() {
    for cache in super::BOTH {
        let (mut bench, disk, _) = bench(cache);
        let (reader, writer) = io::pipe().unwrap();
        let real = bench.disk.file_for(&Op::Flush).unwrap();
        let pipe = OpenFile::beside(real, OwnedFd::from(reader).into(), cache);
        let disk = Arc::new(Hanging {
            disk: Arc::clone(&disk.disk),
            pipe: Arc::new(pipe),
            hangs: AtomicBool::new(false),
        });
        bench.disk = Arc::clone(&disk) as Arc<dyn Disk>;
        let op = Op::Mend {
            offset: 512,
            len: 512,
        };
        let (tag, data) = (1, None);
        submit_hanging(&mut bench, &disk, Request { tag, op, data });
        let newer = write_of(&bench, 2, 512, 512, 9);
        bench.io.submit(&bench.disk, newer);
        nothing_happens(&mut bench.io);
        bench.io.cancel(1);
        let happened = events(&mut bench.io, 2);
        assert!(happened.contains(&failed(1, DiskError::Cancelled)));
        assert!(happened.contains(&done(2)), "{happened:?}");
        // The read ends with an error at last.
        drop(writer);
        nothing_happens(&mut bench.io);
        assert_eq!(bench.io.unfinished(), 0);
        let whole = std::fs::read(bench.image.as_path()).unwrap();
        assert_eq!(whole[512..1024], [9; 512], "{cache:?}");
    }
}
