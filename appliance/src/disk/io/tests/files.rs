//! Files that rings know by a slot, and what becomes of them when nobody else has them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::tempfile::TempFile;

use super::trouble::Odd;
use super::{
    BLOCKS, BOTH, Bench, DONE, done, events, image, open, pattern, read, segments, tenant, write,
};
use crate::disk::io::Io;
use crate::disk::io::files::Files;
use crate::disk::{Cache, Disk, Op, OpenFile, sys};

const SLOTS: usize = 64;
/// Milliseconds that any kernel has closed a file in.
const LONG: u32 = 20_000;

/// A file whose blocks are all `byte`.
fn image_of(byte: u8) -> (TempFile, PathBuf) {
    let (file, path) = image();
    file.as_file().write_all_at(&[byte; 4096], 0).unwrap();
    file.as_file().sync_all().unwrap();
    (file, path)
}

/// The first byte of a disk, by way of the tenant's memory.
fn first_byte(io: &mut Io, disk: &Arc<dyn Disk>) -> u8 {
    let (memory, mapping) = tenant(4096);
    io.submit(disk, read(1, 0, segments(&mapping, &[(0, 4096)])));
    assert_eq!(events(io, 1), [done(1)]);
    let mut byte = [0];
    memory.read_exact_at(&mut byte, 0).unwrap();
    byte[0]
}

/// Whether nobody has a lock on a file; it is looked once.
fn is_free(path: &Path) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    match sys::lock(&file, true) {
        Ok(()) => {
            // A program that is being started may have inherited it.
            sys::unlock(&file).unwrap();
            true
        }
        Err(error) if sys::is_locked(&error) => false,
        Err(error) => panic!("{error}"),
    }
}

fn known(io: &mut Io) -> usize {
    io.transfers.files().len()
}

/// Turns a loop until its ring knows so many files.
fn turn_until(io: &mut Io, files: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut events = Vec::new();
    while known(io) != files {
        assert!(Instant::now() < deadline, "it knows {}", known(io));
        io.wait(Some(Duration::from_millis(1)), &mut events)
            .unwrap();
    }
    assert_eq!(events, []);
}

#[test]
fn a_file_can_be_had_alone_as_soon_as_nobody_has_its_disk_though_no_loop_turns() {
    for cache in BOTH {
        let (_image, path) = image_of(7);
        let mut io = Io::new().unwrap();
        for round in 0..200 {
            let disk = open(path.clone(), cache);
            assert_eq!(first_byte(&mut io, &disk), 7);
            assert!(!is_free(&path));
            assert_eq!(known(&mut io) > 0, cache == Cache::WriteBack);
            drop(disk);
            assert!(is_free(&path), "{cache:?}, round {round}");
        }
        turn_until(&mut io, 0);
    }
}

#[test]
fn a_file_can_be_had_alone_as_soon_as_its_last_operation_is_over() {
    let (_image, path) = image_of(7);
    let (_memory, mapping) = tenant(4096);
    let mut io = Io::new().unwrap();
    for _ in 0..20 {
        let disk = open(path.clone(), Cache::WriteBack);
        io.submit(&disk, read(1, 0, segments(&mapping, &[(0, 4096)])));
        drop(disk);
        assert!(!is_free(&path));
        assert_eq!(events(&mut io, 1), [done(1)]);
        assert!(is_free(&path));
    }
    turn_until(&mut io, 0);
}

/// A disk that is a pipe, and its other end, which meets the end as soon as the kernel has closed
/// the file of the disk.
fn pipe() -> (Arc<dyn Disk>, File) {
    let (reader, writer) = io::pipe().unwrap();
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let fd = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let file = OpenFile::new(OwnedFd::from(writer).into(), Cache::WriteBack);
    let disk = Arc::new(Odd(Arc::new(file)));
    (disk, options.open(fd).unwrap())
}

/// Writes 512 bytes through a pipe.
fn write_through(io: &mut Io, disk: &Arc<dyn Disk>, reader: &mut File) {
    let (_memory, mapping) = tenant(4096);
    io.submit(disk, write(1, 0, false, segments(&mapping, &[(0, 512)])));
    assert_eq!(events(io, 1), [done(1)]);
    assert_eq!(reader.read(&mut [1; 4096]).unwrap(), 512);
}

/// Whether it is closed within so many milliseconds: a program that is being started may have
/// inherited it, and older kernels take their time.
fn is_closed(reader: &mut File, within: u32) -> bool {
    (0..within).any(|_| match reader.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            std::thread::sleep(Duration::from_millis(1));
            false
        }
        read => read.unwrap() == 0,
    })
}

#[test]
fn a_ring_has_a_file_open_until_its_loop_turns_and_no_longer() {
    let (disk, mut reader) = pipe();
    let mut io = Io::new().unwrap();
    write_through(&mut io, &disk, &mut reader);
    drop(disk);
    assert!(!is_closed(&mut reader, 5), "the ring has it");
    turn_until(&mut io, 0);
    assert!(is_closed(&mut reader, LONG));
}

#[test]
fn a_loop_that_ends_lets_go_of_its_files_at_once_and_of_no_lock() {
    let (pipe, mut reader) = pipe();
    let (_image, path) = image_of(7);
    let disk = open(path.clone(), Cache::WriteBack);
    let mut io = Io::new().unwrap();
    write_through(&mut io, &pipe, &mut reader);
    assert_eq!(first_byte(&mut io, &disk), 7);
    assert_eq!(known(&mut io), 2);
    drop(pipe);
    assert!(!is_closed(&mut reader, 5));
    drop(io);
    assert!(is_closed(&mut reader, LONG));
    assert!(!is_free(&path));
    assert_eq!(first_byte(&mut Io::new().unwrap(), &disk), 7);
    drop(disk);
    assert!(is_free(&path));
}

#[test]
fn a_loop_that_a_disk_keeps_lets_go_of_its_other_files() {
    let (pipe, mut reader) = pipe();
    let (hanging, end) = io::pipe().unwrap();
    let file = OpenFile::new(OwnedFd::from(hanging).into(), Cache::WriteBack);
    let hanging: Arc<dyn Disk> = Arc::new(Odd(Arc::new(file)));
    let (_memory, mapping) = tenant(4096);
    let mut io = Io::new().unwrap();
    write_through(&mut io, &pipe, &mut reader);
    io.submit(&hanging, read(2, 0, segments(&mapping, &[(0, 512)])));
    io.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
    drop((pipe, hanging));
    io.ring.stubborn = true;
    let left = io.close_within(Duration::ZERO).expect("the disk hangs");
    assert!(is_closed(&mut reader, LONG));
    drop(end);
    left.drain();
}

#[test]
fn a_file_with_a_descriptor_that_another_had_is_not_taken_for_that() {
    let images = [image_of(1), image_of(2)];
    let mut io = Io::new().unwrap();
    for round in 0..50 {
        let (_, path) = &images[round % 2];
        let disk = open(path.clone(), Cache::WriteBack);
        // The ring has still the one before, which had most likely the same descriptor.
        assert_eq!(usize::from(first_byte(&mut io, &disk)), round % 2 + 1);
    }
}

#[test]
fn files_beyond_the_slots_work_and_get_one_when_there_is_one() {
    let images: Vec<_> = (0..70).map(image_of).collect();
    let open_all = || {
        images
            .iter()
            .map(|(_, path)| open(path.clone(), Cache::WriteBack))
    };
    let mut disks: Vec<_> = open_all().collect();
    let mut io = Io::new().unwrap();
    for _ in 0..2 {
        for (byte, disk) in disks.iter().enumerate() {
            assert_eq!(usize::from(first_byte(&mut io, disk)), byte);
        }
    }
    assert_eq!(known(&mut io), SLOTS);
    disks.drain(..3);
    turn_until(&mut io, SLOTS - 3);
    for (byte, disk) in disks.iter().enumerate() {
        assert_eq!(usize::from(first_byte(&mut io, disk)), byte + 3);
    }
    assert_eq!(known(&mut io), SLOTS);
    disks.clear();
    assert!(images.iter().all(|(_, path)| is_free(path)));
    turn_until(&mut io, 0);
}

#[test]
fn without_slots_everything_works_by_descriptors() {
    let whole = pattern(BLOCKS * 512, 3);
    for cache in BOTH {
        let mut bench = Bench::new(cache, &whole);
        // The ring has slots already, so that it is refused others.
        let refused = Files::new(Arc::clone(&bench.io.inbox), &bench.io.ring);
        *bench.io.transfers.files() = refused;
        let zero = Op::Zero {
            offset: 0,
            len: 8192,
            unmap: true,
            fua: true,
        };
        assert_eq!(bench.run(zero, &[]), DONE);
        let write = Op::Write {
            offset: 512,
            len: 512,
            fua: false,
            atomic: false,
        };
        assert_eq!(bench.run(write, &[b'w'; 512]), DONE);
        let (offset, len) = (8192, 4096);
        assert_eq!(bench.run(Op::Prefetch { offset, len }, &[]), DONE);
        assert_eq!(bench.run(Op::Flush, &[]), DONE);
        assert_eq!(bench.run(Op::Check { offset: 0, len }, &[]), DONE);
        let mut expected = whole.clone();
        expected[..8192].fill(0);
        expected[512..1024].fill(b'w');
        assert!(bench.on_disk() == expected, "{cache:?}");
        assert_eq!(known(&mut bench.io), 0);
        let path = bench.image.as_path().to_owned();
        bench.disk = open(image().1, cache);
        assert!(is_free(&path));
    }
}

#[test]
fn loops_that_share_a_file_each_let_go_of_it() {
    let (_image, path) = image_of(9);
    let disk = open(path.clone(), Cache::WriteBack);
    let mut loops = [(); 2].map(|()| Io::new().unwrap());
    for _ in 0..2 {
        for io in &mut loops {
            assert_eq!(first_byte(io, &disk), 9);
            assert_eq!(known(io), 1);
        }
    }
    drop(disk);
    assert!(is_free(&path));
    let again = open(path.clone(), Cache::WriteBack);
    turn_until(&mut loops[0], 0);
    assert_eq!(first_byte(&mut loops[1], &again), 9);
    turn_until(&mut loops[1], 1);
    drop(again);
    turn_until(&mut loops[1], 0);
}
