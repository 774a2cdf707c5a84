//! Copies that the filesystem does, or does not.

use proptest::prelude::*;

use super::*;
use crate::disk::reflink::testing::Fake;
use crate::disk::{Copied, Source};

const LEN: usize = BLOCKS * 512;
const KIB: u64 = 1024;

/// Two disks on files that `fake` copies between; the files have these bytes.
struct Pair {
    fake: Arc<Fake>,
    from: (TempFile, Arc<dyn Disk>),
    to: (TempFile, Arc<dyn Disk>),
    io: Io,
}

impl Pair {
    fn new(cache: Cache, fake: Arc<Fake>) -> Self {
        Self::with(cache, fake, |disk| disk)
    }

    fn with(cache: Cache, fake: Arc<Fake>, change: fn(FileDisk) -> FileDisk) -> Self {
        let open = |seed| {
            let (image, path) = image();
            image
                .as_file()
                .write_all_at(&pattern(LEN, seed), 0)
                .unwrap();
            image.as_file().sync_all().unwrap();
            let options = FileOptions {
                cache,
                reflink: Arc::<Fake>::clone(&fake),
                ..FileOptions::new(path)
            };
            let disk: Arc<dyn Disk> = Arc::new(change(FileDisk::open(&options).unwrap()));
            (image, disk)
        };
        Self {
            from: open(3),
            to: open(9),
            fake,
            io: Io::with_pool(3 * 4096).unwrap(),
        }
    }

    fn submit(&mut self, tag: u64, (from, offset, len): (u64, u64, u64)) {
        let op = Op::Copy {
            source: Source(Arc::clone(&self.from.1)),
            from,
            offset,
            len,
            fua: true,
        };
        let data = None;
        self.io.submit(&self.to.1, Request { tag, op, data });
    }

    fn copy(&mut self, range: (u64, u64, u64)) {
        self.submit(1, range);
        assert_eq!(events(&mut self.io, 1), [done(1)]);
        assert!(self.io.transfers.is_idle() && self.io.transfers.unfinished() == 0);
    }

    fn on_disk(&self) -> Vec<u8> {
        std::fs::read(self.to.0.as_path()).unwrap()
    }

    /// What is to be on the disk after copies, as (from, to, bytes).
    fn expected(copies: &[(usize, usize, usize)]) -> Vec<u8> {
        let (source, mut expected) = (pattern(LEN, 3), pattern(LEN, 9));
        for &(from, to, len) in copies {
            expected[to..to + len].copy_from_slice(&source[from..from + len]);
        }
        expected
    }

    fn copied(&self) -> Copied {
        self.to.1.copied().unwrap()
    }
}

#[test]
fn whole_blocks_are_copied_by_reference_and_the_rest_through_the_pool() {
    for cache in BOTH {
        let mut pair = Pair::new(cache, Fake::new());
        pair.copy((512, 8192 + 512, 64 * KIB));
        // Up to the filesystem's next block, whole blocks, and one block of 512 bytes.
        assert_eq!(pair.fake.asked(), [("clone", 4096, 12288, 60 * KIB)]);
        assert!(
            pair.on_disk() == Pair::expected(&[(512, 8704, 65536)]),
            "{cache:?}"
        );
        let copied = Copied {
            reflink: 60 * KIB,
            filesystem: 0,
            pool: 4 * KIB,
        };
        assert_eq!(pair.copied(), copied);
    }
}

#[test]
fn blocks_that_do_not_begin_together_go_through_the_pool() {
    let mut pair = Pair::new(Cache::Direct, Fake::new());
    pair.copy((512, 4096, 64 * KIB));
    pair.copy((512, 512, 4095 / 512 * 512));
    assert_eq!(pair.fake.asked(), []);
    assert_eq!(pair.copied().pool, 64 * KIB + 7 * 512);
}

#[test]
fn a_filesystem_that_cannot_is_asked_once() {
    for errno in [libc::EXDEV, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOTTY] {
        let mut pair = Pair::new(Cache::Direct, Fake::failing(errno));
        pair.copy((0, 4096, 64 * KIB));
        assert_eq!(pair.fake.asked(), [("clone", 0, 4096, 64 * KIB)]);
        pair.copy((0, 128 * KIB, 64 * KIB));
        assert_eq!(pair.fake.asked(), []);
        let expected = Pair::expected(&[(0, 4096, 65536), (0, 131_072, 65536)]);
        assert!(pair.on_disk() == expected);
        assert_eq!(pair.copied().pool, 128 * KIB);
    }
}

#[test]
fn a_filesystem_that_fails_for_once_is_asked_again() {
    let mut pair = Pair::new(Cache::WriteBack, Fake::failing(libc::EIO));
    pair.copy((0, 4096, 64 * KIB));
    pair.fake.fail_with(None);
    pair.copy((0, 128 * KIB, 64 * KIB));
    let asked = pair.fake.asked();
    let expected = [
        ("clone", 0, 4096, 64 * KIB),
        ("clone", 0, 128 * KIB, 64 * KIB),
    ];
    assert_eq!(asked, expected);
    assert_eq!(
        (pair.copied().pool, pair.copied().reflink),
        (64 * KIB, 64 * KIB)
    );
    let expected = Pair::expected(&[(0, 4096, 65536), (0, 131_072, 65536)]);
    assert!(pair.on_disk() == expected);
}

#[test]
fn a_filesystem_without_references_copies_by_itself_as_much_as_it_likes() {
    let mut pair = Pair::new(Cache::Direct, Fake::elsewhere(24 << 10));
    pair.copy((0, 4096, 64 * KIB));
    let expected = [
        ("clone", 0, 4096, 64 * KIB),
        ("copy", 0, 4096, 64 * KIB),
        ("copy", 24 * KIB, 28 * KIB, 40 * KIB),
        ("copy", 48 * KIB, 52 * KIB, 16 * KIB),
    ];
    assert_eq!(pair.fake.asked(), expected);
    assert!(pair.on_disk() == Pair::expected(&[(0, 4096, 65536)]));
    assert_eq!(pair.copied().filesystem, 64 * KIB);
}

#[test]
fn the_pool_goes_on_at_a_block_where_a_filesystem_stops_inside_of_one() {
    for cache in BOTH {
        let mut pair = Pair::new(cache, Fake::elsewhere(5001));
        pair.fake.fail_after(1);
        pair.copy((0, 4096, 64 * KIB));
        assert!(pair.on_disk() == Pair::expected(&[(0, 4096, 65536)]));
        assert_eq!(pair.copied().pool, 60 * KIB, "{cache:?}");
    }
}

#[test]
fn a_thick_disk_keeps_space_of_its_own() {
    let mut pair = Pair::with(Cache::Direct, Fake::new(), FileDisk::thick);
    pair.copy((0, 4096, 64 * KIB));
    assert_eq!(pair.fake.asked(), []);
    assert!(pair.on_disk() == Pair::expected(&[(0, 4096, 65536)]));
}

#[test]
fn a_copy_that_is_cancelled_lands_on_nothing_newer_and_a_barrier_waits_for_it() {
    let mut pair = Pair::new(Cache::Direct, Fake::new());
    pair.fake.hang(true);
    pair.submit(1, (0, 4096, 64 * KIB));
    pair.fake.wait_until_asked();
    pair.io.cancel(1);
    assert_eq!(events(&mut pair.io, 1), [failed(1, DiskError::Cancelled)]);
    assert!(!pair.io.transfers.is_idle());

    let (_memory, mapping) = tenant(4096);
    mapping.slice(0, 512).unwrap().copy_from(&[0x55_u8; 512]);
    let newer = write(2, 8192, false, segments(&mapping, &[(0, 512)]));
    pair.io.submit(&pair.to.1, newer);
    let (tag, op, data) = (3, Op::Barrier, None);
    pair.io.submit(&pair.to.1, Request { tag, op, data });
    let mut early = Vec::new();
    pair.io
        .wait(Some(Duration::from_millis(100)), &mut early)
        .unwrap();
    assert_eq!(early, [], "the filesystem is still at it");

    pair.fake.hang(false);
    // The write may have a sync before it, for which the barrier does not wait.
    let mut ended = events(&mut pair.io, 2);
    ended.sort_by_key(|event| *event == done(3));
    assert_eq!(ended, [done(2), done(3)]);
    let mut expected = Pair::expected(&[(0, 4096, 65536)]);
    expected[8192..8704].fill(0x55);
    assert!(pair.on_disk() == expected);
    assert!(pair.io.transfers.is_idle() && pair.io.transfers.unfinished() == 0);
}

#[test]
fn what_waits_for_a_thread_when_it_is_cancelled_is_not_begun() {
    let mut pair = Pair::new(Cache::Direct, Fake::new());
    pair.fake.hang(true);
    for tag in 1..=3 {
        pair.submit(tag, (0, tag * 128 * KIB, 64 * KIB));
    }
    for tag in 1..=3 {
        pair.io.cancel(tag);
    }
    assert_eq!(events(&mut pair.io, 3).len(), 3);
    pair.fake.hang(false);
    let (tag, op, data) = (4, Op::Barrier, None);
    pair.io.submit(&pair.to.1, Request { tag, op, data });
    assert_eq!(events(&mut pair.io, 1), [done(4)]);
    let asked = pair.fake.asked();
    let third = ("clone", 0, 3 * 128 * KIB, 64 * KIB);
    assert!(!asked.contains(&third), "{asked:?}");
}

#[test]
fn a_loop_that_ends_waits_for_the_filesystem() {
    let mut pair = Pair::new(Cache::Direct, Fake::new());
    pair.fake.hang(true);
    pair.submit(1, (0, 4096, 64 * KIB));
    pair.fake.wait_until_asked();
    let fake = Arc::clone(&pair.fake);
    let opens = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        fake.hang(false);
    });
    assert!(pair.io.close().is_none());
    opens.join().unwrap();
}

#[test]
fn a_file_of_which_blocks_are_shared_is_settled_no_more() {
    let mut pair = Pair::new(Cache::Direct, Fake::new());
    let files = [&pair.from.1, &pair.to.1];
    let files = files.map(|disk| Arc::clone(disk.file_for(&Op::Flush).unwrap()));
    for file in &files {
        file.settle(LEN as u64).unwrap();
        // The build directory is on ext4, or there is nothing to lose.
        let is_ext4 = crate::disk::sys::filesystem_magic(file.file()).unwrap() == 0xef53;
        assert_eq!(file.settled().is(), is_ext4);
    }
    pair.copy((0, 4096, 64 * KIB));
    for file in files {
        assert!(!file.settled().is() && file.syncs_writes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn copies_come_out_the_same_whoever_does_them(
        copies in proptest::collection::vec((0..2000_usize, 0..2000_usize, 0..900_usize), 1..6),
        direct: bool,
        elsewhere in proptest::option::of(1..40_usize),
    ) {
        let cache = if direct { Cache::Direct } else { Cache::WriteBack };
        let fake = elsewhere.map_or_else(Fake::new, |blocks| Fake::elsewhere(blocks * 512));
        let mut pair = Pair::new(cache, fake);
        let copies = copies.into_iter().map(|(from, to, len)| {
            // Half of them begin together.
            let to = if len % 2 == 0 { to / 8 * 8 + from % 8 } else { to };
            (from * 512, to * 512, len * 512)
        });
        let copies: Vec<_> = copies.collect();
        for &(from, to, len) in &copies {
            pair.copy((from as u64, to as u64, len as u64));
        }
        prop_assert!(pair.on_disk() == Pair::expected(&copies));
        let Copied { reflink, filesystem, pool } = pair.copied();
        let all: usize = copies.iter().map(|(.., len)| len).sum();
        prop_assert_eq!(reflink + filesystem + pool, all as u64);
    }
}
