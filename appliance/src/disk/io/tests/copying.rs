//! Copies from disk to disk, and watches on what is copied.

use proptest::prelude::*;

use super::*;
use crate::disk::{NullDisk, RamDisk, Source, Watch};

const LEN: u64 = (BLOCKS * 512) as u64;

fn copy(source: &Arc<dyn Disk>, from: u64, offset: u64, len: u64) -> Op {
    Op::Copy {
        source: Source(Arc::clone(source)),
        from,
        offset,
        len,
        fua: true,
    }
}

#[test]
fn blocks_of_one_disk_come_to_another() {
    for cache in BOTH {
        let (image, path) = image();
        let whole = pattern(BLOCKS * 512, 3);
        image.as_file().write_all_at(&whole, 0).unwrap();
        let source = open(path, Cache::Direct);
        let before = pattern(BLOCKS * 512, 9);
        let mut bench = Bench::new(cache, &before);
        // Not by the megabyte, and with a pool of three pages.
        let op = copy(&source, 512, 4096 + 1024, 300 * 1024);
        assert_eq!(bench.run(op, &[]), DONE, "{cache:?}");
        let mut expected = before;
        expected[5120..5120 + 300 * 1024].copy_from_slice(&whole[512..512 + 300 * 1024]);
        assert!(bench.on_disk() == expected, "{cache:?}");
        assert!(bench.io.transfers.is_idle());
    }
}

#[test]
fn nothing_of_no_blocks_and_all_of_a_disk_can_be_copied() {
    let whole = pattern(BLOCKS * 512, 3);
    let (image, path) = image();
    image.as_file().write_all_at(&whole, 0).unwrap();
    let source = open(path, Cache::WriteBack);
    let mut bench = Bench::new(Cache::Direct, &[]);
    assert_eq!(bench.run(copy(&source, LEN, LEN, 0), &[]), DONE);
    assert!(bench.on_disk().iter().all(|&byte| byte == 0));
    assert_eq!(bench.run(copy(&source, 0, 0, LEN), &[]), DONE);
    assert!(bench.on_disk() == whole);
}

#[test]
fn what_is_not_on_its_disk_is_not_copied() {
    let (_image, path) = image();
    let source = open(path, Cache::Direct);
    let mut bench = Bench::new(Cache::Direct, &[]);
    for (from, to, len) in [
        (LEN - 512, 0, 1024),
        (0, LEN - 512, 1024),
        (u64::MAX - 511, 0, 512),
        (100, 0, 512),
        (0, 100, 512),
        (0, 0, 100),
    ] {
        let result = bench.run(copy(&source, from, to, len), &[]);
        assert_eq!(result, Err(DiskError::OutOfRange), "{from} {to} {len}");
    }
}

#[test]
fn a_source_that_fails_is_not_taken_for_the_disk() {
    let (image, path) = image();
    let source = open(path, Cache::Direct);
    // What is behind the end of its file cannot be read.
    image.as_file().set_len(8192).unwrap();
    let mut bench = Bench::new(Cache::Direct, &[]);
    let result = bench.run(copy(&source, 4096, 0, 32768), &[]);
    assert_eq!(result, Err(DiskError::SourceFailed));
    let null: Arc<dyn Disk> = Arc::new(NullDisk::new(LEN, 512, false).unwrap());
    let result = bench.run(copy(&null, 0, 0, 512), &[]);
    assert_eq!(result, Err(DiskError::SourceFailed));
    let ram: Arc<dyn Disk> = Arc::new(RamDisk::new(LEN, 512, false).unwrap().unwrap());
    let (tag, op, data) = (1, copy(&source, 0, 0, 512), None);
    bench.io.submit(&ram, Request { tag, op, data });
    assert_eq!(
        events(&mut bench.io, 1),
        [failed(1, DiskError::Unsupported)]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn blocks_that_overlap_are_copied_as_if_all_were_read_before(
        from in 0..2000_usize,
        distance in 0..400_usize,
        behind: bool,
        len in 0..900_usize,
        direct: bool,
    ) {
        let to = if behind { from + distance } else { from.saturating_sub(distance) };
        let cache = if direct { Cache::Direct } else { Cache::WriteBack };
        let before = pattern(BLOCKS * 512, 5);
        let mut bench = Bench::new(cache, &before);
        let source = Arc::clone(&bench.disk);
        let [from, to, len] = [from, to, len].map(|blocks| blocks * 512);
        let op = copy(&source, from as u64, to as u64, len as u64);
        prop_assert_eq!(bench.run(op, &[]), DONE);
        let mut expected = before;
        expected.copy_within(from..from + len, to);
        prop_assert!(bench.on_disk() == expected);
    }
}

#[test]
fn a_copy_that_is_cancelled_ends_at_once_and_writes_nothing_more() {
    let whole = pattern(BLOCKS * 512, 3);
    let mut bench = Bench::new(Cache::Direct, &whole);
    let source = Arc::clone(&bench.disk);
    let request = bench.request(1, copy(&source, 0, LEN / 2, LEN / 2), &[]);
    bench.io.submit(&source, request);
    bench.io.cancel(1);
    assert_eq!(events(&mut bench.io, 1), [failed(1, DiskError::Cancelled)]);
    assert_eq!(bench.run(Op::Barrier, &[]), DONE);
    let after = bench.on_disk();
    assert_eq!(bench.run(Op::Flush, &[]), DONE);
    assert!(bench.on_disk() == after && bench.io.transfers.unfinished() == 0);
}

#[test]
fn a_watch_hears_of_everything_that_changes_its_blocks_and_of_nothing_else() {
    let whole = pattern(BLOCKS * 512, 3);
    let write = |offset| Op::Write {
        offset,
        len: 512,
        fua: false,
        atomic: false,
    };
    let zero = Op::Zero {
        offset: 0,
        len: 1024,
        unmap: false,
        fua: false,
    };
    let unmap = Op::Unmap {
        ranges: [(0, 512), (1024, 512)].into(),
        fua: false,
    };
    let bench = || Bench::new(Cache::Direct, &whole);
    let source = bench();
    let changes = [
        write(1024),
        write(1536),
        zero,
        unmap,
        copy(&source.disk, 0, 512, 1024),
        Op::Or {
            offset: 1536,
            len: 512,
            fua: false,
        },
    ];
    for (number, op) in changes.into_iter().enumerate() {
        let mut bench = bench();
        let watch = Watch::new([(1024, 1024), (0, 512)]);
        assert_eq!(bench.run(write(1024), &[1; 512]), DONE, "before");
        assert_eq!(bench.run(Op::Watch(watch.clone()), &[]), DONE);
        let own = Arc::clone(&bench.disk);
        for harmless in [
            Op::Read {
                offset: 0,
                len: 4096,
            },
            write(512),
            write(2048),
            copy(&own, 0, 4096, 2048),
            Op::Barrier,
            Op::Flush,
        ] {
            assert_eq!(bench.run(harmless, &[1; 4096]), DONE);
        }
        assert!(!watch.is_changed());
        assert_eq!(bench.run(op, &[2; 512]), DONE);
        assert!(watch.is_changed(), "change {number}");
    }
}

#[test]
fn a_watch_waits_for_what_is_under_way_and_a_disk_in_memory_has_none() {
    let mut bench = Bench::new(Cache::Direct, &[]);
    let disk = Arc::clone(&bench.disk);
    let watch = Watch::new([(0, LEN)]);
    let write = Op::Write {
        offset: 0,
        len: 100 * 1024,
        fua: true,
        atomic: false,
    };
    let write = bench.request(1, write, &[1; 100 * 1024]);
    bench.io.submit(&disk, write);
    let (tag, op, data) = (2, Op::Watch(watch.clone()), None);
    bench.io.submit(&disk, Request { tag, op, data });
    // The lock is given up before the sync.
    let mut order = events(&mut bench.io, 2);
    order.sort_by_key(|event| *event == done(2));
    assert_eq!(order, [done(1), done(2)]);
    assert!(!watch.is_changed(), "it began before");
    let ram: Arc<dyn Disk> = Arc::new(RamDisk::new(LEN, 512, false).unwrap().unwrap());
    let (tag, op, data) = (3, Op::Watch(watch), None);
    bench.io.submit(&ram, Request { tag, op, data });
    assert_eq!(
        events(&mut bench.io, 1),
        [failed(3, DiskError::Unsupported)]
    );
}
