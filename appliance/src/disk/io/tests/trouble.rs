//! Disks that fail in the middle of an operation.

use std::fs::File;
use std::sync::Arc;

use super::{BOTH, Bench, DONE, pattern};
use crate::disk::{Abilities, Atomic, Cache, Disk, DiskError, Geometry, Op, OpenFile, Thin};

/// 1 MiB of a file that is opened already.
#[derive(Debug)]
pub struct Odd(pub Arc<OpenFile>);

impl Disk for Odd {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 2048,
            physical_block_size: 512,
            read_only: false,
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            thin: Some(Thin {
                granularity: 4096,
                mapped: true,
            }),
            // It says so, but its file has none.
            atomic: Some(Atomic {
                min: 512,
                max: 16384,
            }),
            optimal: None,
        }
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Ok(&self.0)
    }
}

fn bench_on(file: File, cache: Cache) -> Bench {
    let mut bench = Bench::new(cache, &[]);
    bench.disk = Arc::new(Odd(Arc::new(OpenFile::new(file, cache))));
    bench
}

/// A file that can only be read, or only be written.
fn half_open(read: bool) -> File {
    let bench = Bench::new(Cache::WriteBack, &pattern(1 << 20, 3));
    let mut options = File::options();
    options.read(read).write(!read);
    options.open(bench.image.as_path()).unwrap()
}

const BAD: Result<crate::disk::Reply, DiskError> = Err(DiskError::Io(libc::EBADF));

fn or(len: usize) -> Op {
    Op::Or {
        offset: 0,
        len,
        fua: true,
    }
}

fn compare_and_write(len: usize) -> Op {
    Op::CompareAndWrite {
        offset: 0,
        len,
        fua: true,
    }
}

#[test]
fn a_read_that_fails_ends_what_reads_first() {
    for cache in BOTH {
        let mut bench = bench_on(half_open(false), cache);
        let (offset, len) = (0, 100 << 10);
        let data = vec![1; 2 * len];
        for op in [
            or(len),
            compare_and_write(len),
            Op::Check { offset, len: 512 },
            Op::Compare {
                offset,
                len: 512,
                same: false,
            },
            // It is written, but cannot be read back.
            Op::WriteVerify { offset, len },
        ] {
            assert_eq!(bench.run(op.clone(), &data), BAD, "{op:?}, {cache:?}");
        }
    }
}

#[test]
fn a_write_that_fails_is_never_a_success() {
    for cache in BOTH {
        let mut bench = bench_on(half_open(true), cache);
        let (offset, len) = (0, 100 << 10);
        let mut data = pattern(len, 3);
        data.extend(vec![1; len]);
        for op in [
            or(len),
            compare_and_write(len),
            Op::WriteVerify { offset, len },
            Op::WriteSame {
                offset,
                len: 8192,
                fua: false,
            },
            Op::Zero {
                offset,
                len: 8192,
                unmap: true,
                fua: false,
            },
            Op::Zero {
                offset: 512,
                len: 512,
                unmap: false,
                fua: false,
            },
            Op::Unmap {
                ranges: Arc::from([(0, 8192)]),
                fua: false,
            },
            Op::Unmap {
                ranges: Arc::from([(512, 512)]),
                fua: false,
            },
        ] {
            assert_eq!(bench.run(op.clone(), &data), BAD, "{op:?}, {cache:?}");
        }
    }
}

#[test]
fn no_space_is_no_space_in_every_operation() {
    for cache in BOTH {
        // Reads as zeros.
        let full = File::options().read(true).write(true).open("/dev/full");
        let mut bench = bench_on(full.unwrap(), cache);
        let (offset, len) = (0, 8192);
        for op in [
            or(len),
            compare_and_write(len),
            Op::WriteVerify { offset, len },
            Op::WriteSame {
                offset,
                len: 8192,
                fua: false,
            },
        ] {
            let refused = bench.run(op.clone(), &[0; 16384]);
            assert_eq!(refused, Err(DiskError::NoSpace), "{op:?}, {cache:?}");
        }
    }
}

#[test]
fn blocks_that_cannot_be_read_are_mended_and_those_that_can_are_left() {
    let mend = Op::Mend {
        offset: 1024,
        len: 512,
    };
    for cache in BOTH {
        let mut there = pattern(1 << 20, 3);
        let mut bench = Bench::new(cache, &there);
        let image = bench.image.as_path().to_owned();
        assert_eq!(bench.run(mend.clone(), &[]), DONE, "{cache:?}");
        assert!(std::fs::read(&image).unwrap().starts_with(&there));
        let file = File::options().write(true).open(&image).unwrap();
        bench.disk = Arc::new(Odd(Arc::new(OpenFile::new(file, cache))));
        assert_eq!(bench.run(mend.clone(), &[]), DONE, "{cache:?}");
        there[1024..1536].fill(0);
        assert!(std::fs::read(&image).unwrap().starts_with(&there));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut bench = bench_on(full, cache);
        let refused = bench.run(mend.clone(), &[]);
        assert_eq!(refused, Err(DiskError::NoSpace), "{cache:?}");
    }
}

/// Takes what is written, reads as zeros, and cannot be synced: fsync(2) says EINVAL.
fn forgetful(cache: Cache) -> Bench {
    let zeros = File::options().read(true).write(true).open("/dev/zero");
    bench_on(zeros.unwrap(), cache)
}

#[test]
fn a_disk_that_does_not_keep_what_is_written_fails_the_verification() {
    for cache in BOTH {
        let mut bench = forgetful(cache);
        let len = 100 << 10;
        let mut data = vec![0; len];
        data[70_000] = 1;
        data[20_001] = 1;
        let op = Op::WriteVerify { offset: 512, len };
        let miscompare = Err(DiskError::Miscompare { at: 20_001 });
        assert_eq!(bench.run(op, &data), miscompare, "{cache:?}");
    }
}

#[test]
fn a_sync_that_fails_is_never_a_success() {
    for cache in BOTH {
        let (offset, len) = (0, 8192);
        for op in [
            or(len),
            compare_and_write(len),
            Op::WriteVerify { offset, len },
            Op::WriteSame {
                offset,
                len: 8192,
                fua: true,
            },
            Op::Write {
                offset,
                len,
                fua: true,
                atomic: false,
            },
            Op::Zero {
                offset: 512,
                len: 512,
                unmap: false,
                fua: true,
            },
        ] {
            let mut bench = forgetful(cache);
            let failed = bench.run(op.clone(), &[0; 16384]);
            assert_eq!(
                failed,
                Err(DiskError::Io(libc::EINVAL)),
                "{op:?}, {cache:?}"
            );
            let without = Op::Write {
                offset,
                len,
                fua: false,
                atomic: false,
            };
            assert_eq!(bench.run(without, &[0; 8192]), DONE);
            // Whose writes are lost, nobody knows: everyone hears of it.
            let flush = bench.run(Op::Flush, &[]);
            assert_eq!(flush, Err(DiskError::WritesLost), "{op:?}, {cache:?}");
        }
    }
}

#[test]
fn a_write_that_nothing_tears_is_one_write_within_the_limits_or_none() {
    let bench_with_data = Bench::new(Cache::Direct, &pattern(1 << 20, 3));
    let file = File::options()
        .read(true)
        .write(true)
        .open(bench_with_data.image.as_path());
    let mut bench = bench_on(file.unwrap(), Cache::Direct);
    let before = bench_with_data.on_disk();
    for (offset, len) in [
        // Too long, or on both sides of a multiple of the longest.
        (0, 32768),
        (15872, 1024),
        // Within the limits, alone or in a window; the kernel refuses it, since the file is not
        // opened with O_DIRECT.
        (4096, 4096),
        (512, 1024),
        (0, 1536),
    ] {
        let op = Op::Write {
            offset,
            len,
            fua: false,
            atomic: true,
        };
        assert_eq!(
            bench.run(op.clone(), &vec![1; len]),
            Err(DiskError::Unsupported),
            "{op:?}"
        );
    }
    assert!(bench_with_data.on_disk() == before);
}
