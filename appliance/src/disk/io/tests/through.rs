//! Writes that are on stable storage when they are done.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};

use super::allocation::{complete, go_on};
use super::trouble::Odd;
use super::{Bench, DONE, Event, Io, done, events, failed, pattern};
use crate::disk::{Cache, Deed, Disk, DiskError, Op, OpenFile, Reply, Witness};

/// A direct disk, and what its witness heard.
fn bench() -> (Bench, Arc<Mutex<Vec<Deed>>>) {
    let mut bench = Bench::new(Cache::Direct, &pattern(1 << 20, 3));
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = options.open(bench.image.as_path()).unwrap();
    // Whatever filesystem it is in.
    let mut file = OpenFile::new(file, Cache::Direct);
    file.keeps_writes = true;
    bench.disk = Arc::new(Odd(Arc::new(file)));
    // Room for what is written and read back.
    bench.io = Io::with_pool(1 << 20).unwrap();
    let heard = witness(&bench.disk);
    (bench, heard)
}

/// All that is done to a disk.
pub fn witness(disk: &Arc<dyn Disk>) -> Arc<Mutex<Vec<Deed>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let file = disk.file_for(&Op::Flush).unwrap();
    file.witnessed_by(Witness::new(move |deed| ear.lock().unwrap().push(deed)));
    heard
}

fn assert_written_and_synced(heard: &[Deed]) {
    assert!(
        matches!(
            heard,
            [Deed::Written { .. }, Deed::SyncBegun(_), Deed::Synced(_)]
        ),
        "{heard:?}"
    );
}

fn write(len: usize, fua: bool) -> Op {
    Op::Write {
        offset: 4096,
        len,
        fua,
        atomic: false,
    }
}

/// All that write and are to end on stable storage, of 8192 bytes.
fn all() -> [Op; 6] {
    let (offset, len, fua) = (4096, 8192, true);
    [
        write(len, fua),
        Op::WriteSame {
            offset,
            len: 8192,
            fua,
        },
        Op::WriteVerify { offset, len },
        Op::CompareAndWrite { offset, len, fua },
        Op::Or { offset, len, fua },
        Op::Zero {
            offset: 4096 + 512,
            len: 1024,
            unmap: false,
            fua,
        },
    ]
}

/// What compares equal, and other bytes.
fn data() -> Vec<u8> {
    let mut data = pattern(1 << 20, 3)[4096..12288].to_vec();
    data.extend(pattern(8192, 9));
    data
}

#[test]
fn what_is_one_piece_is_written_and_synced_at_once() {
    for op in all() {
        let (mut bench, heard) = bench();
        assert_eq!(bench.run(op.clone(), &data()), DONE, "{op:?}");
        let heard = heard.lock().unwrap();
        assert!(
            matches!(heard[..], [Deed::WrittenThrough { .. }]),
            "{op:?}: {heard:?}"
        );
        assert!(!bench.io.transfers.has_through());
    }
}

#[test]
fn what_is_many_pieces_is_synced_once_after_the_last() {
    let (mut bench, heard) = bench();
    assert_eq!(
        bench.run(write(512 << 10, true), &pattern(512 << 10, 5)),
        DONE
    );
    let heard = heard.lock().unwrap();
    let (last, written) = heard.split_last().unwrap();
    let (begun, written) = written.split_last().unwrap();
    assert!(matches!(
        (begun, last),
        (Deed::SyncBegun(_), Deed::Synced(_))
    ));
    let is_plain = |deed: &Deed| matches!(deed, Deed::Written { .. });
    assert!(
        written.len() > 1 && written.iter().all(is_plain),
        "{heard:?}"
    );
}

#[test]
fn a_disk_through_the_page_cache_is_synced_for_itself() {
    let mut bench = Bench::new(Cache::WriteBack, &pattern(1 << 20, 3));
    let heard = witness(&bench.disk);
    assert_eq!(bench.run(write(4096, true), &data()), DONE);
    assert_written_and_synced(&heard.lock().unwrap());
}

/// What becomes of `op` when the first of its writes seem to fail, so many of them.
fn run_failing(bench: &mut Bench, op: Op, writes: usize) -> Result<Reply, DiskError> {
    let reads = usize::from(matches!(op, Op::CompareAndWrite { .. } | Op::Or { .. }));
    let request = bench.request(1, op, &data());
    bench.io.submit(&bench.disk, request);
    let mut seen = 0;
    go_on(bench, |result| {
        seen += 1;
        if (reads + 1..=reads + writes).contains(&seen) {
            -libc::EIO
        } else {
            result
        }
    });
    match events(&mut bench.io, 1).remove(0) {
        Event::Done { tag: 1, result } => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sync_that_fails_with_its_write_is_never_a_success_and_everybody_hears_of_it() {
    let lost = Err(DiskError::WritesLost);
    for op in all() {
        let (mut bench, heard) = bench();
        // The same write works by itself.
        assert_eq!(run_failing(&mut bench, op.clone(), 1), lost, "{op:?}");
        assert_eq!(bench.run(Op::Flush, &[]), lost, "{op:?}");
        assert_eq!(bench.run(write(4096, true), &data()), lost, "{op:?}");
        let heard = heard.lock().unwrap();
        let is_kept = |deed: &Deed| matches!(deed, Deed::WrittenThrough { .. });
        assert!(!heard.iter().any(is_kept), "{op:?}: {heard:?}");
    }
}

#[test]
fn a_write_that_fails_for_itself_makes_nobody_else_fail() {
    for op in all() {
        let (mut bench, _) = bench();
        let failed = run_failing(&mut bench, op.clone(), 2);
        assert_eq!(failed, Err(DiskError::Io(libc::EIO)), "{op:?}");
        assert!(!bench.io.transfers.has_through());
        assert_eq!(bench.run(Op::Flush, &[]), DONE, "{op:?}");
    }
}

#[test]
fn where_the_kernel_knows_no_such_write_it_is_followed_by_a_sync() {
    let (mut bench, heard) = bench();
    let request = bench.request(1, write(4096, true), &data());
    bench.io.submit(&bench.disk, request);
    let mut results = vec![];
    go_on(&mut bench, |result| {
        results.push(result);
        if results.len() == 1 {
            -libc::EOPNOTSUPP
        } else {
            result
        }
    });
    assert_eq!(events(&mut bench.io, 1), [done(1)]);
    assert_eq!(results, [4096, 4096, 0]);
    assert_written_and_synced(&heard.lock().unwrap());
    assert_eq!(bench.run(Op::Flush, &[]), DONE);
}

#[test]
fn a_cancelled_write_that_fails_is_done_again_for_the_sake_of_others() {
    for (failures, flush) in [(1, Err(DiskError::WritesLost)), (2, DONE)] {
        let (mut bench, _) = bench();
        bench.io.ring.stubborn = true;
        let request = bench.request(1, write(4096, true), &data());
        bench.io.submit(&bench.disk, request);
        bench.io.cancel(1);
        assert_eq!(
            bench.io.ready.pop_front(),
            Some(failed(1, DiskError::Cancelled))
        );
        let mut seen = 0;
        while !bench.io.transfers.is_idle() {
            complete(&mut bench, |result| {
                seen += 1;
                if seen <= failures { -libc::EIO } else { result }
            });
        }
        assert_eq!(seen, 2);
        assert_eq!(bench.run(Op::Flush, &[]), flush, "{failures}");
    }
}
