//! Space that operations give back, or tell of.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::tempfile::TempFile;

use super::through::witness;
use super::{BLOCKS, BOTH, Bench, DONE, done, events, failed, open, pattern};
use crate::disk::io::{Completion, Io, Source};
use crate::disk::{Cache, Deed, DiskError, Extent, FileDisk, Op, Reply, sys};

const WHOLE: u64 = BLOCKS as u64 * 512;
/// Bytes that a filesystem may need to remember where a file is.
const SLACK: u64 = 16384;

/// Bytes that the disk's file occupies.
fn occupied(bench: &Bench) -> u64 {
    bench.image.as_file().sync_all().unwrap();
    bench.image.as_file().metadata().unwrap().blocks() * 512
}

#[test]
fn unmapped_blocks_take_no_space_any_more() {
    for cache in BOTH {
        let mut bench = Bench::new(cache, &pattern(BLOCKS * 512, 1));
        let before = occupied(&bench);
        assert!(before >= WHOLE);
        let op = Op::Unmap {
            ranges: Arc::from([(0, 512 << 10), (1 << 20, 512 << 10)]),
            fua: false,
        };
        assert_eq!(bench.run(op, &[]), DONE);
        let freed = before - (1 << 20);
        assert!(occupied(&bench).abs_diff(freed) <= SLACK, "{cache:?}");
        assert_eq!(bench.disk.usage().unwrap().used, occupied(&bench));
    }
}

#[test]
fn zeroed_blocks_are_given_back_only_if_they_may_be_and_the_disk_is_thin() {
    let thin: fn(FileDisk) -> FileDisk = |disk| disk;
    for cache in BOTH {
        for (change, unmap, freed) in [
            (thin, true, WHOLE),
            (thin, false, 0),
            (FileDisk::thick, true, 0),
        ] {
            let mut bench = Bench::with(cache, &pattern(BLOCKS * 512, 1), change);
            let before = occupied(&bench);
            let op = Op::Zero {
                offset: 0,
                len: WHOLE,
                unmap,
                fua: false,
            };
            assert_eq!(bench.run(op, &[]), DONE);
            let after = occupied(&bench);
            assert!(
                after.abs_diff(before - freed) <= SLACK,
                "{cache:?}, unmap {unmap}: {before} to {after}"
            );
            assert!(bench.on_disk().iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn what_is_given_back_is_synced_on_a_direct_disk_or_where_it_is_to_be_on_stable_storage() {
    for (cache, fua, pieces) in [
        (Cache::Direct, false, 2),
        (Cache::WriteBack, false, 1),
        (Cache::WriteBack, true, 2),
    ] {
        let mut bench = Bench::new(cache, &pattern(BLOCKS * 512, 1));
        for op in [
            Op::Unmap {
                ranges: Arc::from([(0, 8192)]),
                fua,
            },
            Op::Zero {
                offset: 8192,
                len: 8192,
                unmap: false,
                fua,
            },
        ] {
            assert_eq!(pieces_of(&mut bench, op, &[]), pieces, "{cache:?}, {fua}");
        }
    }
}

/// Goes on until `bench` has an event, with every completion as `change` makes it.
pub fn go_on(bench: &mut Bench, mut change: impl FnMut(i32) -> i32) {
    while bench.io.ready.is_empty() {
        complete(bench, &mut change);
    }
}

/// Waits for completions, and takes each as `change` makes it.
pub fn complete(bench: &mut Bench, mut change: impl FnMut(i32) -> i32) {
    bench.io.ring.enter(Some(Duration::from_secs(1))).unwrap();
    let mut completions = Vec::new();
    bench.io.ring.completions(&mut completions);
    for Completion {
        user_data, result, ..
    } in completions
    {
        let Source::Piece(index) = Source::of(user_data) else {
            panic!("{user_data}");
        };
        let Io {
            transfers,
            ring,
            ready,
            ..
        } = &mut bench.io;
        transfers.complete(index, change(result), ring, ready);
    }
}

/// How many pieces the kernel carries out for an operation that ends well.
fn pieces_of(bench: &mut Bench, op: Op, data: &[u8]) -> usize {
    let request = bench.request(1, op, data);
    bench.io.submit(&bench.disk, request);
    let mut seen = 0;
    go_on(bench, |result| {
        seen += 1;
        result
    });
    assert_eq!(events(&mut bench.io, 1), [done(1)]);
    seen
}

/// In place only ext4 overwrites for certain; elsewhere each write is put on stable storage.
fn may_settle(image: &TempFile) -> bool {
    sys::filesystem_magic(image.as_file()).unwrap() == 0xef53
}

fn keeps_writes(image: &TempFile) -> bool {
    [0xef53, 0x5846_5342].contains(&sys::filesystem_magic(image.as_file()).unwrap())
}

#[test]
fn a_direct_write_is_on_stable_storage_unless_every_block_has_its_place_already() {
    let (offset, len) = (8192, 4096);
    let written = Deed::Written { offset, len };
    let through = Deed::WrittenThrough { offset, len };
    let deed_of = |bench: &mut Bench| {
        let heard = witness(&bench.disk);
        let op = Op::Write {
            offset,
            len: 4096,
            fua: false,
            atomic: false,
        };
        assert_eq!(bench.run(op, &[7; 4096]), DONE);
        let deeds = heard.lock().unwrap();
        match deeds[..] {
            [deed] => deed,
            // Where a write cannot be put there by itself.
            [_, Deed::SyncBegun(_), Deed::Synced(_)] if !keeps_writes(&bench.image) => through,
            _ => panic!("{deeds:?}"),
        }
    };
    let whole = pattern(BLOCKS * 512, 1);
    let image = Bench::new(Cache::Direct, &whole).image;
    let in_place = if may_settle(&image) { written } else { through };
    for (cache, content, deed) in [
        (Cache::Direct, &whole[..], in_place),
        // The hole is elsewhere, but who knows.
        (Cache::Direct, &whole[..1 << 20], through),
        (Cache::Direct, &[], through),
        (Cache::WriteBack, &[], written),
    ] {
        let seen = deed_of(&mut Bench::new(cache, content));
        assert_eq!(seen, deed, "{cache:?}, {} bytes", content.len());
    }
    let mut bench = Bench::new(Cache::Direct, &whole);
    let ranges = Arc::from([(8192, 4096)]);
    let unmap = Op::Unmap { ranges, fua: false };
    assert_eq!(pieces_of(&mut bench, unmap, &[]), 2);
    assert_eq!(deed_of(&mut bench), through, "a hole");
}

#[test]
fn on_a_full_disk_what_is_no_whole_granule_is_made_zero_without_space() {
    for (cache, last) in [(Cache::Direct, vec![0, 0]), (Cache::WriteBack, vec![0])] {
        let mut expected = pattern(BLOCKS * 512, 3);
        let mut bench = Bench::new(cache, &expected);
        let op = Op::Unmap {
            ranges: Arc::from([(512, 1024)]),
            fua: false,
        };
        let request = bench.request(1, op, &[]);
        bench.io.submit(&bench.disk, request);
        let image = bench.image.as_file().try_clone().unwrap();
        let mut seen = Vec::new();
        go_on(&mut bench, |result| {
            seen.push(result);
            if seen.len() > 1 {
                return result;
            }
            // As if it had not been written.
            image.write_all_at(&expected[..4096], 0).unwrap();
            -libc::ENOSPC
        });
        assert_eq!(events(&mut bench.io, 1), [done(1)]);
        // The write, the fallocate, and the sync of a direct disk.
        assert_eq!(seen, [vec![1024], last].concat(), "{cache:?}");
        expected[512..1536].fill(0);
        assert!(bench.on_disk() == expected, "{cache:?}");
        // There may be a hole, until all is written and looked at again.
        let file = bench.disk.file_for(&Op::Flush).unwrap();
        assert!(!file.settled().is(), "{cache:?}");
        bench.image.as_file().write_all_at(&expected, 0).unwrap();
        file.settle(WHOLE).unwrap();
        assert_eq!(file.settled().is(), may_settle(&bench.image), "{cache:?}");
    }
}

#[test]
fn a_write_on_a_full_disk_still_has_no_space() {
    let mut bench = Bench::new(Cache::Direct, &pattern(BLOCKS * 512, 3));
    let op = Op::Zero {
        offset: 512,
        len: 1024,
        unmap: true,
        fua: false,
    };
    let request = bench.request(1, op, &[]);
    bench.io.submit(&bench.disk, request);
    go_on(&mut bench, |_| -libc::ENOSPC);
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::NoSpace)]);
}

#[test]
fn a_thick_disk_refuses_to_unmap() {
    let mut bench = Bench::with(Cache::Direct, &[], FileDisk::thick);
    let op = Op::Unmap {
        ranges: Arc::from([(0, 4096)]),
        fua: false,
    };
    assert_eq!(bench.run(op, &[]), Err(DiskError::Unsupported));
}

#[test]
fn where_the_filesystem_cannot_zero_a_range_zeros_are_written() {
    // tmpfs has no FALLOC_FL_ZERO_RANGE.
    let file = TempFile::new_in(Path::new("/dev/shm")).unwrap();
    let before = pattern(BLOCKS * 512, 7);
    file.as_file().write_all_at(&before, 0).unwrap();
    let mut bench = Bench::new(Cache::WriteBack, &[]);
    bench.disk = open(file.as_path().to_owned(), Cache::WriteBack);
    assert!(bench.disk.abilities().thin.is_some(), "it punches holes");
    let op = Op::Zero {
        offset: 512,
        len: 1 << 20,
        unmap: false,
        fua: true,
    };
    assert_eq!(bench.run(op, &[]), DONE);
    let mut after = vec![1; BLOCKS * 512];
    file.as_file().read_exact_at(&mut after, 0).unwrap();
    assert!(after[..512] == before[..512]);
    assert!(after[512..512 + (1 << 20)].iter().all(|&byte| byte == 0));
    assert!(after[512 + (1 << 20)..] == before[512 + (1 << 20)..]);
}

fn extents(bench: &mut Bench, offset: u64, limit: usize) -> Vec<(u64, bool)> {
    match bench.run(Op::Allocation { offset, limit }, &[]) {
        Ok(Reply::Allocation(extents)) => extents
            .into_iter()
            .map(|Extent { len, allocated }| (len, allocated))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_extents_of_a_sparse_file_are_told() {
    for cache in BOTH {
        let mut bench = Bench::new(cache, &[]);
        for (at, len) in [(8192, 8192), (65536, 4096), (WHOLE - 4096, 4096)] {
            let file = bench.image.as_file();
            file.write_all_at(&vec![1; len], at).unwrap();
        }
        bench.image.as_file().sync_all().unwrap();
        let all = [
            (8192, false),
            (8192, true),
            (49152, false),
            (4096, true),
            (WHOLE - 4096 - 69632, false),
            (4096, true),
        ];
        assert_eq!(extents(&mut bench, 0, 100), all);
        assert_eq!(extents(&mut bench, 0, 3), all[..3]);
        assert_eq!(extents(&mut bench, 8192 + 512, 1), [(8192 - 512, true)]);
        assert_eq!(extents(&mut bench, WHOLE - 512, 0), [(512, true)]);
        let at_the_end = Op::Allocation {
            offset: WHOLE,
            limit: 1,
        };
        assert_eq!(bench.run(at_the_end, &[]), Err(DiskError::OutOfRange));
    }
}

#[test]
fn a_file_of_holes_or_without_any_is_one_extent() {
    let mut bench = Bench::new(Cache::Direct, &[]);
    assert_eq!(extents(&mut bench, 0, 10), [(WHOLE, false)]);
    let mut bench = Bench::new(Cache::Direct, &pattern(BLOCKS * 512, 1));
    assert_eq!(extents(&mut bench, 512, 10), [(WHOLE - 512, true)]);
}

#[test]
fn a_cancelled_question_is_over_at_once_and_its_answer_reaches_nobody() {
    let mut bench = Bench::new(Cache::Direct, &[]);
    let question = |tag| {
        let op = Op::Allocation {
            offset: 0,
            limit: 1,
        };
        bench.request(tag, op, &[])
    };
    let (first, second) = (question(1), question(2));
    bench.io.submit(&bench.disk, first);
    bench.io.cancel(1);
    assert_eq!(bench.io.in_flight(), 0);
    bench.io.submit(&bench.disk, second);
    let seen = events(&mut bench.io, 2);
    assert_eq!(seen[0], failed(1, DiskError::Cancelled));
    let expected = super::Event::Done {
        tag: 2,
        result: Ok(Reply::Allocation(vec![Extent {
            len: WHOLE,
            allocated: false,
        }])),
    };
    assert_eq!(seen[1], expected);
}
