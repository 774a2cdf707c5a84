use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::{Cache, FileDisk, FileOptions, OpenProblem};
use crate::disk::{Disk, DiskError, Op, Reply, Thin};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;

fn image(bytes: u64) -> (TempFile, PathBuf) {
    let file = TempFile::new_in(&std::env::current_dir().unwrap()).unwrap();
    file.as_file().set_len(bytes).unwrap();
    let path = file.as_path().to_owned();
    (file, path)
}

fn problem(options: &FileOptions) -> OpenProblem {
    FileDisk::open(options).unwrap_err().problem
}

#[test]
fn a_file_has_as_many_blocks_as_fit() {
    let (_file, path) = image(1 << 20);
    let disk = FileDisk::open(&FileOptions::new(&path)).unwrap();
    let geometry = disk.geometry();
    assert_eq!((geometry.block_size, geometry.blocks), (512, 2048));
    assert!(!geometry.read_only);
    drop(disk);
    let options = FileOptions {
        block_size: 4096,
        size: Some(8192),
        ..FileOptions::new(&path)
    };
    let geometry = FileDisk::open(&options).unwrap().geometry();
    assert_eq!((geometry.block_size, geometry.blocks), (4096, 2));
}

#[test]
fn a_missing_file_is_named_with_its_mend() {
    let error = FileDisk::open(&FileOptions::new("/nowhere/disk.img")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nowhere/disk.img: no such file or device; create it or correct `path` (or `serial`) of \
         the LUN"
    );
}

#[test]
fn a_size_that_is_no_number_of_blocks_is_refused() {
    let (_file, path) = image(1000);
    let error = FileDisk::open(&FileOptions::new(&path)).unwrap_err();
    assert_eq!(
        error.problem.to_string(),
        "its size of 1000 bytes is not a multiple of the block size 512; resize it to 1024 bytes"
    );
    let (_file, path) = image(511);
    assert!(matches!(
        problem(&FileOptions::new(&path)),
        OpenProblem::TooSmall { size: 511, .. }
    ));
    let (_file, path) = image(0);
    assert!(matches!(
        problem(&FileOptions::new(&path)),
        OpenProblem::TooSmall { size: 0, .. }
    ));
}

#[test]
fn a_lun_larger_than_its_disk_is_refused() {
    let (_file, path) = image(1024);
    let options = FileOptions {
        size: Some(2048),
        ..FileOptions::new(&path)
    };
    let problem = problem(&options);
    assert!(problem.to_string().contains("2048 bytes"), "{problem}");
    assert!(matches!(problem, OpenProblem::LargerThanDisk { .. }));
}

#[test]
fn a_block_size_that_drivers_do_not_know_is_refused() {
    let (_file, path) = image(8192);
    let options = FileOptions {
        block_size: 1024,
        ..FileOptions::new(&path)
    };
    assert!(matches!(problem(&options), OpenProblem::BlockSize(1024)));
}

#[test]
fn a_directory_or_a_device_without_blocks_is_refused() {
    let directory = TempDir::new().unwrap();
    for path in [directory.as_path(), "/dev/null".as_ref()] {
        assert!(matches!(
            problem(&FileOptions::new(path)),
            OpenProblem::WrongKind
        ));
    }
}

#[test]
fn a_second_user_of_a_file_is_refused_unless_both_share_or_only_read() {
    let (_file, path) = image(8192);
    let alone = FileOptions::new(&path);
    let shared = FileOptions {
        shared: true,
        ..alone.clone()
    };
    let reader = FileOptions {
        read_only: true,
        ..alone.clone()
    };
    {
        let _first = FileDisk::open(&alone).unwrap();
        for second in [&alone, &shared, &reader] {
            assert!(matches!(problem(second), OpenProblem::Locked));
        }
    }
    let _first = FileDisk::open(&shared).unwrap();
    let _second = FileDisk::open(&shared).unwrap();
    let _third = FileDisk::open(&reader).unwrap();
    assert!(matches!(problem(&alone), OpenProblem::Locked));
}

#[test]
fn the_lock_is_held_as_long_as_somebody_has_the_file() {
    let (_file, path) = image(8192);
    let disk = FileDisk::open(&FileOptions::new(&path)).unwrap();
    let in_flight = Arc::clone(disk.file_for(&Op::Flush).unwrap());
    drop(disk);
    assert!(matches!(
        problem(&FileOptions::new(&path)),
        OpenProblem::Locked
    ));
    drop(in_flight);
    FileDisk::open(&FileOptions::new(&path)).unwrap();
}

#[test]
fn a_read_only_disk_is_opened_for_reading_only() {
    let (file, path) = image(8192);
    file.as_file().write_all_at(b"untouched", 0).unwrap();
    let options = FileOptions {
        read_only: true,
        cache: Cache::WriteBack,
        ..FileOptions::new(&path)
    };
    let disk = FileDisk::open(&options).unwrap();
    assert!(disk.geometry().read_only);
    let write = Op::Write {
        offset: 0,
        len: 512,
        fua: false,
        atomic: false,
    };
    assert_eq!(disk.file_for(&write).unwrap_err(), DiskError::ReadOnly);
}

#[test]
fn a_disk_follows_the_length_of_its_file() {
    let (file, path) = image(1 << 20);
    let disk = FileDisk::open(&FileOptions::new(&path)).unwrap();
    assert!(!disk.refresh().unwrap());
    file.as_file().set_len((1 << 20) + 512).unwrap();
    assert_eq!(disk.geometry().blocks, 2048, "nobody has looked yet");
    assert!(disk.refresh().unwrap());
    assert_eq!(disk.geometry().blocks, 2049);
    assert!(!disk.refresh().unwrap());
    // A part of a block does not count.
    file.as_file().set_len(1023).unwrap();
    assert!(disk.refresh().unwrap());
    assert_eq!(disk.geometry().blocks, 1);
    file.as_file().set_len(511).unwrap();
    let error = disk.refresh().unwrap_err();
    assert_eq!(error.to_string(), "not even one block is left of it");
    assert_eq!(disk.geometry().blocks, 1, "a disk has at least one");
}

#[test]
fn a_configured_size_stays() {
    let (file, path) = image(1 << 20);
    let options = FileOptions {
        size: Some(8192),
        ..FileOptions::new(&path)
    };
    let disk = FileDisk::open(&options).unwrap();
    file.as_file().set_len(4096).unwrap();
    assert!(!disk.refresh().unwrap());
    assert_eq!(disk.geometry().blocks, 16);
}

#[test]
fn a_file_is_thin_unless_it_is_only_read_or_thick() {
    let (file, path) = image(1 << 20);
    let options = FileOptions::new(&path);
    let thin = Thin {
        // Of the filesystem that the tests run on.
        granularity: 4096,
        mapped: true,
    };
    let disk = FileDisk::open(&options).unwrap();
    assert_eq!(disk.abilities().thin, Some(thin));
    assert_eq!(disk.thick().abilities().thin, None);
    let options = FileOptions {
        read_only: true,
        ..options
    };
    let disk = FileDisk::open(&options).unwrap();
    assert_eq!(disk.abilities().thin, None);
    assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
}

#[test]
fn small_blocks_in_large_ones_are_told() {
    for cache in [Cache::Direct, Cache::WriteBack] {
        for block_size in [512, 4096] {
            let (_file, path) = image(1 << 20);
            let options = FileOptions {
                cache,
                block_size,
                ..FileOptions::new(&path)
            };
            let disk = FileDisk::open(&options).unwrap();
            assert_eq!(disk.geometry().physical_block_size, 4096);
            // 4096 bytes, which its filesystem likes best, are no reason to send no more at once.
            assert_eq!(disk.abilities().optimal, None);
        }
    }
}

#[test]
fn a_disk_tells_how_full_it_is() {
    let (file, path) = image(1 << 20);
    let disk = FileDisk::open(&FileOptions::new(&path)).unwrap();
    let before = disk.usage().unwrap();
    assert_eq!(before.used, 0);
    assert!(before.available > 0);
    file.as_file().write_all_at(&[1; 65536], 0).unwrap();
    file.as_file().sync_all().unwrap();
    assert_eq!(disk.usage().unwrap().used, 65536);
}

/// A buffer of 4096 bytes in two pieces.
fn buffer() -> Segments {
    let mut buffer = Segments::new(shared_memory(8192));
    buffer.push(4096, 1024).unwrap();
    buffer.push(0, 3072).unwrap();
    buffer
}

#[test]
fn of_a_file_in_memory_what_is_there_is_read_at_once() {
    let file = TempFile::new_in(Path::new("/dev/shm")).unwrap();
    file.as_file().write_all_at(&[7; 8192], 0).unwrap();
    let options = FileOptions {
        cache: Cache::WriteBack,
        ..FileOptions::new(file.as_path())
    };
    let disk = FileDisk::open(&options).unwrap();
    assert!(disk.answers_at_once());
    let data = buffer();
    let read = |offset, len| disk.at_once(&Op::Read { offset, len }, Some(&data));

    assert_eq!(read(4096, 4096), Some(Ok(Reply::Done)));
    let mut bytes = [0; 4096];
    data.read_at(0, &mut bytes);
    assert_eq!(bytes, [7; 4096]);

    // What is not all there, or not short, or changes anything, is not for this.
    file.as_file().set_len(4096).unwrap();
    assert_eq!(read(4096, 4096), None);
    assert_eq!(read(0, 128 << 10), None);
    assert_eq!(disk.at_once(&Op::Flush, None), None);
}

#[test]
fn nothing_of_a_file_on_a_disk_is_done_at_once() {
    let (_file, path) = image(8192);
    let disk = FileDisk::open(&FileOptions::new(&path)).unwrap();
    let read = Op::Read {
        offset: 0,
        len: 512,
    };
    assert!(!disk.answers_at_once());
    assert_eq!(disk.at_once(&read, Some(&buffer())), None);
}

#[test]
fn a_file_that_another_made_longer_meanwhile_does_not_become_shorter() {
    let (file, _) = image(8192);
    super::lengthen(file.as_file(), 4096, 512).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), 8192);
    super::lengthen(file.as_file(), 1 << 20, 512).unwrap();
    let metadata = file.as_file().metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 20);
    // What is new stays a hole, but for its end.
    assert!(metadata.blocks() * 512 < 1 << 19);
}
