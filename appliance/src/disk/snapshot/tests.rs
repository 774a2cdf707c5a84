use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::ranges::{Ranges, Subject};
use crate::disk::reflink::testing::Fake;
use crate::disk::{
    Cache, Disk, DiskError, Event, FileDisk, FileOptions, Io, Kernel, Op, OpenProblem, Reply,
    Request, Source,
};
use crate::memory::Segments;
use crate::memory::testing::shared_memory;
use crate::scsi::testing::Scratch;

const LEN: u64 = 256 << 10;

/// A disk on a file in a filesystem that copies as `fake` does.
struct Bench {
    scratch: Scratch,
    fake: Arc<Fake>,
    options: FileOptions,
    /// `None` while it is closed.
    disk: Option<Arc<dyn Disk>>,
}

impl Bench {
    /// Each byte of the file is `fill`.
    fn new(cache: Cache, fill: u8) -> Self {
        let (scratch, fake) = (Scratch::new(), Fake::new());
        let path = scratch.path().join("a.img");
        fs::write(&path, vec![fill; usize::try_from(LEN).unwrap()]).unwrap();
        let options = FileOptions {
            cache,
            reflink: Arc::<Fake>::clone(&fake),
            ..FileOptions::new(path)
        };
        let mut bench = Self {
            scratch,
            fake,
            options,
            disk: None,
        };
        bench.open().unwrap();
        bench
    }

    fn open(&mut self) -> Result<(), OpenProblem> {
        self.disk = None;
        let disk = FileDisk::open(&self.options).map_err(|error| error.problem)?;
        self.disk = Some(Arc::new(disk));
        Ok(())
    }

    fn disk(&self) -> &Arc<dyn Disk> {
        self.disk.as_ref().unwrap()
    }

    fn snapshots(&self) -> Snapshots<'_> {
        self.disk().snapshots().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let all = self.snapshots().list().unwrap();
        all.into_iter().map(|snapshot| snapshot.name).collect()
    }

    fn roll_back(&self, name: &str) -> Result<(), SnapshotError> {
        self.snapshots().rollback(name, || Ok(())).map(drop)
    }

    /// What is in the file.
    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.options.path).unwrap()
    }

    fn is_filled_with(&self, fill: u8) -> bool {
        let bytes = self.bytes();
        bytes.len() as u64 >= LEN
            && bytes[..usize::try_from(LEN).unwrap()]
                .iter()
                .all(|&byte| byte == fill)
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("a.img.snapshots")
    }

    /// Through the page cache, as nobody else has the file.
    fn fill(&self, fill: u8) {
        let file = File::options()
            .write(true)
            .open(&self.options.path)
            .unwrap();
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        file.write_all_at(&vec![fill; len], 0).unwrap();
    }
}

/// Which disk a file is.
fn subject(path: &Path) -> Subject {
    let metadata = fs::metadata(path).unwrap();
    Subject::File {
        filesystem: metadata.dev(),
        inode: metadata.ino(),
    }
}

/// A buffer of 4096 bytes that are all `fill`.
fn buffer(fill: u8) -> Segments {
    let memory = shared_memory(4096);
    memory.slice(0, 4096).unwrap().copy_from(&[fill; 4096]);
    let mut segments = Segments::new(memory);
    segments.push(0, 4096).unwrap();
    segments
}

fn write(io: &mut Io, disk: &Arc<dyn Disk>, tag: u64, offset: u64, fill: u8) {
    let op = Op::Write {
        offset,
        len: 4096,
        fua: false,
        atomic: false,
    };
    let data = Some(buffer(fill));
    io.submit(disk, Request { tag, op, data });
}

/// The tags of those that end within that time, all of them well.
fn ended(io: &mut Io, time: Duration) -> Vec<u64> {
    let mut events = Vec::new();
    io.wait(Some(time), &mut events).unwrap();
    let tags = events.into_iter().map(|event| match event {
        Event::Done { tag, result: Ok(_) } => tag,
        other => panic!("{other:?}"),
    });
    tags.collect()
}

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_disk_comes_back_as_it_was_and_snapshots_stay() {
    for cache in [Cache::Direct, Cache::WriteBack] {
        let bench = Bench::new(cache, 1);
        bench.snapshots().create("one").unwrap();
        bench.fill(2);
        bench.snapshots().create("two").unwrap();
        bench.fill(3);
        bench.roll_back("one").unwrap();
        assert!(bench.is_filled_with(1), "{cache:?}");
        bench.roll_back("two").unwrap();
        assert!(bench.is_filled_with(2), "{cache:?}");
        assert_eq!(bench.names(), ["one", "two"]);
        let files = fs::read_dir(bench.folder()).unwrap().count();
        assert_eq!(files, 2, "nothing else is left there");
        for name in ["one", "two"] {
            bench.snapshots().remove(name).unwrap();
        }
        assert!(!bench.folder().exists());
        assert!(bench.is_filled_with(2));
    }
}

#[test]
fn a_snapshot_is_told_with_its_size_and_survives_a_restart() {
    let mut bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.open().unwrap();
    let listed = bench.snapshots().list().unwrap();
    assert_eq!((&*listed[0].name, listed[0].bytes), ("one", LEN));
    assert!(listed[0].created.elapsed().unwrap() < LONG);
}

#[test]
fn what_a_name_is_of_is_told_with_what_there_is() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    let again = bench.snapshots().create("one").unwrap_err();
    assert!(matches!(again, SnapshotError::Exists(_)), "{again}");
    let bad = bench.snapshots().create("../b").unwrap_err();
    assert!(matches!(bad, SnapshotError::Name(_)), "{bad}");
    for error in [
        bench.roll_back("two").unwrap_err(),
        bench.snapshots().remove("two").unwrap_err(),
        bench
            .snapshots()
            .clone_to(Some("two"), Path::new("/x"))
            .unwrap_err(),
    ] {
        let text = error.to_string();
        assert_eq!(text, "there is no snapshot \"two\"; there are one");
    }
}

#[test]
fn a_filesystem_that_cannot_is_named_and_leaves_nothing() {
    let mut bench = Bench::new(Cache::Direct, 1);
    bench.options.reflink = Arc::new(Kernel);
    bench.options.path =
        PathBuf::from("/dev/shm").join(format!("snapshot-{}", uuid::Uuid::new_v4()));
    bench.options.cache = Cache::WriteBack;
    fs::write(&bench.options.path, [0; 4096]).unwrap();
    bench.open().unwrap();
    let refused = bench.snapshots().create("one");
    let folder = Folder::of(&bench.options.path);
    let left = folder.list().unwrap();
    fs::remove_file(&bench.options.path).unwrap();
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains(" is on tmpfs, which cannot have files share blocks"),
        "{text}"
    );
    assert!(left.is_empty() && folder.mark().unwrap().is_none());
}

#[test]
fn a_disk_without_a_file_has_no_snapshots() {
    let ram = crate::disk::RamDisk::new(4096, 512, false)
        .unwrap()
        .unwrap();
    assert!(matches!(ram.snapshots(), Err(SnapshotError::NoFile)));
}

#[test]
fn a_read_only_disk_is_not_rolled_back() {
    let mut bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.options.read_only = true;
    bench.open().unwrap();
    assert!(matches!(
        bench.roll_back("one"),
        Err(SnapshotError::ReadOnly)
    ));
    bench.snapshots().create("two").unwrap();
}

#[test]
fn a_disk_that_another_has_open_is_left_alone() {
    let mut bench = Bench::new(Cache::Direct, 1);
    bench.options.shared = true;
    bench.open().unwrap();
    bench.snapshots().create("one").unwrap();
    let other = FileDisk::open(&bench.options).unwrap();
    for error in [
        bench.snapshots().create("two").unwrap_err(),
        bench.roll_back("one").unwrap_err(),
    ] {
        assert!(matches!(error, SnapshotError::Shared), "{error}");
    }
    drop(other);
    bench.roll_back("one").unwrap();
    drop(FileDisk::open(&bench.options).expect("it is shared again"));
}

#[test]
fn writes_wait_for_a_snapshot_and_are_not_in_it() {
    let bench = Bench::new(Cache::WriteBack, 1);
    let mut io = Io::new().unwrap();
    bench.fake.hang(true);
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| bench.snapshots().create("one"));
        bench.fake.wait_until_asked();
        write(&mut io, bench.disk(), 1, 8192, 7);
        let (op, data) = (
            Op::Read {
                offset: 0,
                len: 4096,
            },
            Some(buffer(0)),
        );
        io.submit(bench.disk(), Request { tag: 2, op, data });
        assert_eq!(ended(&mut io, LONG), [2], "reads do not wait");
        assert!(ended(&mut io, SHORT).is_empty());
        bench.fake.hang(false);
        taken.join().unwrap().unwrap();
    });
    assert_eq!(ended(&mut io, LONG), [1]);
    let snapshot = fs::read(bench.folder().join("one")).unwrap();
    assert!(snapshot.iter().all(|&byte| byte == 1));
    assert_eq!(bench.bytes()[8192..12288], [7; 4096]);
}

#[test]
fn reads_wait_for_a_rollback_and_find_what_it_brought() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.fill(2);
    bench.fake.asked();
    let (mut io, found) = (Io::new().unwrap(), buffer(0));
    bench.fake.hang(true);
    std::thread::scope(|scope| {
        let rolled = scope.spawn(|| bench.roll_back("one"));
        bench.fake.wait_until_asked();
        let (op, data) = (
            Op::Read {
                offset: 0,
                len: 4096,
            },
            Some(found.clone()),
        );
        io.submit(bench.disk(), Request { tag: 1, op, data });
        write(&mut io, bench.disk(), 2, 4096, 9);
        assert!(ended(&mut io, SHORT).is_empty());
        bench.fake.hang(false);
        rolled.join().unwrap().unwrap();
    });
    let mut all = Vec::new();
    while all.len() < 2 {
        all.extend(ended(&mut io, LONG));
    }
    let mut bytes = [0; 4096];
    found.read_at(0, &mut bytes);
    assert_eq!(bytes, [1; 4096]);
    assert_eq!(bench.bytes()[4096..8192], [9; 4096], "it came afterwards");
}

#[test]
fn commands_wait_until_the_rollback_is_told_of() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    let rolled_back = bench.snapshots().rollback("one", || Ok(())).unwrap();
    let mut io = Io::new().unwrap();
    let (op, data) = (
        Op::Read {
            offset: 0,
            len: 4096,
        },
        Some(buffer(0)),
    );
    io.submit(bench.disk(), Request { tag: 1, op, data });
    assert!(ended(&mut io, SHORT).is_empty());
    drop(rolled_back);
    assert_eq!(ended(&mut io, LONG), [1]);
}

#[test]
fn a_disk_that_has_grown_stays_as_long_and_its_end_is_zeros() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.disk().grow(2 * LEN).unwrap();
    bench.fill(2);
    bench.roll_back("one").unwrap();
    assert!(bench.is_filled_with(1));
    let bytes = bench.bytes();
    assert_eq!(bytes.len() as u64, 2 * LEN);
    assert!(
        bytes[usize::try_from(LEN).unwrap()..]
            .iter()
            .all(|&byte| byte == 0)
    );
}

/// A rollback that ends in the middle, as if the machine had: the disk is closed.
fn crash_during_rollback(bench: &mut Bench) {
    bench.snapshots().create("one").unwrap();
    bench.fill(2);
    bench.disk = None;
    let folder = Folder::of(&bench.options.path);
    let mark = Mark {
        name: "one".into(),
        len: LEN,
    };
    folder.set_mark(&mark).unwrap();
    // Half of it is back.
    let file = File::options()
        .write(true)
        .open(&bench.options.path)
        .unwrap();
    file.write_all_at(&vec![1; 128 << 10], 0).unwrap();
}

#[test]
fn a_rollback_that_was_interrupted_is_finished_by_who_opens_the_disk() {
    for shared in [false, true] {
        let mut bench = Bench::new(Cache::Direct, 1);
        crash_during_rollback(&mut bench);
        bench.options.shared = shared;
        bench.open().unwrap();
        assert!(bench.is_filled_with(1));
        assert_eq!(Folder::of(&bench.options.path).mark().unwrap(), None);
        // Once is enough.
        bench.fill(3);
        bench.open().unwrap();
        assert!(bench.is_filled_with(3));
    }
}

#[test]
fn a_disk_that_is_rolled_back_in_part_is_not_served() {
    let mut bench = Bench::new(Cache::Direct, 1);
    crash_during_rollback(&mut bench);
    bench.options.read_only = true;
    let refused = bench.open().unwrap_err();
    assert!(
        matches!(refused, OpenProblem::HalfRolledBack(_)),
        "{refused}"
    );
    bench.options.read_only = false;
    bench.fake.fail_with(Some(libc::EIO));
    let refused = bench.open().unwrap_err();
    assert!(matches!(refused, OpenProblem::Rollback(_)), "{refused}");
    bench.fake.fail_with(None);
    fs::rename(bench.folder().join("one"), bench.folder().join("two")).unwrap();
    let refused = bench.open().unwrap_err().to_string();
    assert!(
        refused.contains("there is no snapshot \"one\"; there are two"),
        "{refused}"
    );
    assert!(refused.contains("remove `.rollback`"), "{refused}");
}

#[test]
fn a_rollback_that_fails_is_undone() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.fill(2);
    // What it was is kept; the snapshot is refused; what it was comes back.
    bench.fake.fail_in_turn([None, Some(libc::EIO), None]);
    let failed = bench.roll_back("one").unwrap_err();
    assert!(matches!(failed, SnapshotError::Undone(_)), "{failed}");
    assert!(bench.is_filled_with(2));
    assert_eq!(Folder::of(&bench.options.path).mark().unwrap(), None);
    bench.roll_back("one").unwrap();
    assert!(bench.is_filled_with(1));
}

#[test]
fn a_disk_whose_rollback_cannot_be_undone_waits_until_it_is_rolled_back_again() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.disk().grow(2 * LEN).unwrap();
    bench.fill(2);
    bench
        .fake
        .fail_in_turn([None, Some(libc::EIO), Some(libc::EIO)]);
    let failed = bench.roll_back("one").unwrap_err();
    assert!(matches!(failed, SnapshotError::Stuck(_)), "{failed}");
    let mut io = Io::new().unwrap();
    let (op, data) = (
        Op::Read {
            offset: 0,
            len: 4096,
        },
        Some(buffer(0)),
    );
    io.submit(bench.disk(), Request { tag: 1, op, data });
    write(&mut io, bench.disk(), 2, 0, 9);
    assert!(ended(&mut io, SHORT).is_empty());
    let needed = bench.snapshots().remove("one").unwrap_err();
    assert!(matches!(needed, SnapshotError::Needed(_)), "{needed}");
    io.cancel(2);
    let mut events = Vec::new();
    io.wait(Some(LONG), &mut events).unwrap();
    let result = Err(DiskError::Cancelled);
    assert_eq!(events, [Event::Done { tag: 2, result }]);
    bench.roll_back("one").unwrap();
    assert_eq!(ended(&mut io, LONG), [1]);
    assert!(bench.is_filled_with(1));
    assert_eq!(bench.bytes().len() as u64, 2 * LEN);
}

/// Leaves a disk rolled back to `one` in part; it has grown to twice [`LEN`] since that was taken.
fn get_stuck(bench: &Bench) {
    bench.snapshots().create("one").unwrap();
    bench.disk().grow(2 * LEN).unwrap();
    assert!(bench.disk().refresh().unwrap());
    bench.fill(2);
    let errors = [None, Some(libc::EIO), Some(libc::EIO)];
    bench.fake.fail_in_turn(errors);
    let failed = bench.roll_back("one").unwrap_err();
    assert!(matches!(failed, SnapshotError::Stuck(_)), "{failed}");
}

#[test]
fn a_second_attempt_that_fails_early_leaves_the_rollback_to_be_finished() {
    let mut bench = Bench::new(Cache::Direct, 1);
    get_stuck(&bench);
    // In the way of the new mark.
    let part = bench.folder().join(".part");
    fs::create_dir(&part).unwrap();
    let failed = bench.roll_back("one").unwrap_err();
    assert!(matches!(failed, SnapshotError::Io { .. }), "{failed}");
    fs::remove_dir(part).unwrap();
    assert!(bench.folder().join(".before").exists());
    bench.open().unwrap();
    assert!(bench.is_filled_with(1));
    assert_eq!(bench.bytes().len() as u64, 2 * LEN);
}

#[test]
fn a_stuck_disk_whose_length_cannot_be_read_is_not_rolled_back_to_another() {
    let bench = Bench::new(Cache::Direct, 1);
    get_stuck(&bench);
    let mark = bench.folder().join(".rollback");
    let text = fs::read(&mark).unwrap();
    fs::write(&mark, "damaged").unwrap();
    let failed = bench.roll_back("one").unwrap_err();
    assert!(matches!(failed, SnapshotError::Io { .. }), "{failed}");
    fs::write(&mark, text).unwrap();
    bench.roll_back("one").unwrap();
    assert!(bench.is_filled_with(1));
    assert_eq!(bench.bytes().len() as u64, 2 * LEN);
}

#[test]
fn a_disk_keeps_its_size_while_its_rollback_is_not_finished() {
    let bench = Bench::new(Cache::Direct, 1);
    let blocks = || bench.disk().geometry().blocks;
    get_stuck(&bench);
    // The file is short, and the disk is not.
    assert_eq!(bench.bytes().len() as u64, LEN);
    assert!(!bench.disk().refresh().unwrap());
    assert_eq!(blocks(), 2 * LEN / 512);
    let refused = bench.disk().grow(3 * LEN).unwrap_err().to_string();
    assert!(
        refused.contains("a rollback of it is not finished"),
        "{refused}"
    );
    assert_eq!(bench.bytes().len() as u64, LEN);
    bench.roll_back("one").unwrap();
    assert!(!bench.disk().refresh().unwrap());
    assert_eq!(bench.bytes().len() as u64, 2 * LEN);
    bench.disk().grow(3 * LEN).unwrap();
    assert_eq!(bench.bytes().len() as u64, 3 * LEN);
}

#[test]
fn a_disk_keeps_its_size_while_it_is_rolled_back() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.disk().grow(2 * LEN).unwrap();
    assert!(bench.disk().refresh().unwrap());
    // What it was is kept; then it hangs with the file short.
    bench.fake.asked();
    bench.fake.hang_after(1);
    std::thread::scope(|scope| {
        let rolled = scope.spawn(|| bench.roll_back("one"));
        bench.fake.wait_until_asked_for(2);
        assert_eq!(bench.bytes().len() as u64, LEN);
        assert!(!bench.disk().refresh().unwrap());
        assert_eq!(bench.disk().geometry().blocks, 2 * LEN / 512);
        assert!(bench.disk().grow(3 * LEN).is_err());
        bench.fake.hang(false);
        rolled.join().unwrap().unwrap();
    });
    assert!(!bench.disk().refresh().unwrap());
    assert_eq!(bench.bytes().len() as u64, 2 * LEN);
}

/// All of the first disk to the second.
fn copy(io: &mut Io, [from, to]: [&Bench; 2], tag: u64) {
    let op = Op::Copy {
        source: Source(Arc::clone(from.disk())),
        from: 0,
        offset: 0,
        len: LEN,
        fua: true,
    };
    io.submit(
        to.disk(),
        Request {
            tag,
            op,
            data: None,
        },
    );
}

/// How the only operation under way ends.
fn end(io: &mut Io) -> Result<Reply, DiskError> {
    let mut events = Vec::new();
    io.wait(Some(LONG), &mut events).unwrap();
    match events[..] {
        [Event::Done { ref result, .. }] => result.clone(),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_copied_from_a_disk_that_is_being_rolled_back_or_stuck() {
    let (from, to) = (Bench::new(Cache::Direct, 1), Bench::new(Cache::Direct, 5));
    let mut io = Io::new().unwrap();
    get_stuck(&from);
    copy(&mut io, [&from, &to], 1);
    assert_eq!(end(&mut io), Err(DiskError::Busy));
    let rolled_back = from.snapshots().rollback("one", || Ok(())).unwrap();
    copy(&mut io, [&from, &to], 2);
    assert_eq!(end(&mut io), Err(DiskError::Busy));
    assert!(to.is_filled_with(5));
    drop(rolled_back);
    copy(&mut io, [&from, &to], 3);
    assert_eq!(end(&mut io), Ok(Reply::Done));
    assert!(to.is_filled_with(1));
}

#[test]
fn a_copy_fails_whose_source_is_rolled_back_meanwhile() {
    // By reference; by the filesystem, in parts.
    for fake in [Fake::new(), Fake::elsewhere(64 << 10)] {
        let from = Bench::new(Cache::Direct, 1);
        from.snapshots().create("one").unwrap();
        from.fill(2);
        let mut to = Bench::new(Cache::Direct, 5);
        to.fake = fake;
        to.options.reflink = Arc::<Fake>::clone(&to.fake);
        to.open().unwrap();
        let mut io = Io::new().unwrap();
        to.fake.hang(true);
        copy(&mut io, [&from, &to], 1);
        to.fake.wait_until_asked();
        from.roll_back("one").unwrap();
        to.fake.hang(false);
        assert_eq!(end(&mut io), Err(DiskError::SourceFailed));
        assert_eq!(to.fake.asked().len(), 1, "nothing more is begun");
        copy(&mut io, [&from, &to], 2);
        assert_eq!(end(&mut io), Ok(Reply::Done));
        assert!(to.is_filled_with(1));
    }
}

#[test]
fn a_copy_within_a_disk_waits_for_its_rollback() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.fill(2);
    let mut io = Io::new().unwrap();
    let rolled_back = bench.snapshots().rollback("one", || Ok(())).unwrap();
    let op = Op::Copy {
        source: Source(Arc::clone(bench.disk())),
        from: 0,
        offset: LEN / 2,
        len: LEN / 2,
        fua: true,
    };
    let (tag, data) = (1, None);
    io.submit(bench.disk(), Request { tag, op, data });
    assert!(ended(&mut io, SHORT).is_empty());
    drop(rolled_back);
    assert_eq!(ended(&mut io, LONG), [1]);
    assert!(bench.is_filled_with(1));
}

#[test]
fn what_is_refused_when_the_disk_stands_still_is_not_rolled_back() {
    let bench = Bench::new(Cache::Direct, 1);
    let refused = || {
        let ranges = Ranges::of(subject(&bench.options.path));
        assert!(ranges.is_quiet(), "nobody gets by any more");
        Err(SnapshotError::Erasing)
    };
    bench.snapshots().create("one").unwrap();
    bench.fill(2);
    let failed = bench.snapshots().rollback("one", refused).unwrap_err();
    assert!(matches!(failed, SnapshotError::Erasing), "{failed}");
    assert!(bench.is_filled_with(2));
    assert_eq!(Folder::of(&bench.options.path).mark().unwrap(), None);
    bench.roll_back("one").unwrap();
    assert!(bench.is_filled_with(1));
    // One that is stuck stays so.
    let bench = Bench::new(Cache::Direct, 1);
    get_stuck(&bench);
    let refused = || Err(SnapshotError::Erasing);
    assert!(bench.snapshots().rollback("one", refused).is_err());
    let needed = bench.snapshots().remove("one").unwrap_err();
    assert!(matches!(needed, SnapshotError::Needed(_)), "{needed}");
    assert!(bench.disk().grow(3 * LEN).is_err());
}

#[test]
fn a_clone_is_a_file_of_its_own() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    bench.fill(2);
    let [now, then] = ["now", "then"].map(|name| bench.scratch.path().join(name));
    bench.snapshots().clone_to(None, &now).unwrap();
    bench.snapshots().clone_to(Some("one"), &then).unwrap();
    bench.fill(3);
    assert!(fs::read(&now).unwrap().iter().all(|&byte| byte == 2));
    assert!(fs::read(&then).unwrap().iter().all(|&byte| byte == 1));
    let again = bench.snapshots().clone_to(None, &now).unwrap_err();
    assert!(matches!(again, SnapshotError::FileExists(_)), "{again}");
    assert!(fs::read(&now).unwrap().iter().all(|&byte| byte == 2));
    let inside = bench.folder().join("x");
    let refused = bench.snapshots().clone_to(None, &inside).unwrap_err();
    assert!(matches!(refused, SnapshotError::Inside(_)), "{refused}");
    let third = bench.scratch.path().join("third");
    bench.fake.fail_with(Some(libc::EXDEV));
    let refused = bench.snapshots().clone_to(None, &third).unwrap_err();
    assert!(
        matches!(refused, SnapshotError::Elsewhere { .. }),
        "{refused}"
    );
    assert!(!third.exists());
}

#[test]
fn a_file_that_was_exchanged_is_not_taken_for_the_disk() {
    let bench = Bench::new(Cache::Direct, 1);
    bench.snapshots().create("one").unwrap();
    let path = &bench.options.path;
    fs::rename(path, path.with_extension("old")).unwrap();
    fs::write(path, [0; 4096]).unwrap();
    for error in [
        bench.snapshots().create("two").unwrap_err(),
        bench.roll_back("one").unwrap_err(),
    ] {
        assert!(matches!(error, SnapshotError::Moved(_)), "{error}");
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Write(u64, u8),
    Take(u8),
    Back(u8),
    Remove(u8),
    Clone(Option<u8>),
    Reopen,
    Grow,
}

fn deed() -> impl Strategy<Value = Deed> {
    let name = 0..4_u8;
    prop_oneof![
        4 => (0..32_u64, 1..=255_u8).prop_map(|(at, fill)| Deed::Write(at * 4096, fill)),
        2 => name.clone().prop_map(Deed::Take),
        2 => name.clone().prop_map(Deed::Back),
        1 => name.clone().prop_map(Deed::Remove),
        1 => proptest::option::of(name).prop_map(Deed::Clone),
        1 => Just(Deed::Reopen),
        1 => Just(Deed::Grow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against a model that copies whole disks.
    #[test]
    fn snapshots_hold_what_was_there_whatever_happens_in_between(
        deeds in proptest::collection::vec(deed(), 1..24),
        direct: bool,
    ) {
        let cache = if direct { Cache::Direct } else { Cache::WriteBack };
        let mut bench = Bench::new(cache, 0);
        let mut io = Io::new().unwrap();
        let mut now = bench.bytes();
        let mut taken = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        for deed in deeds {
            match deed {
                Deed::Write(at, fill) => {
                    write(&mut io, bench.disk(), 1, at, fill);
                    prop_assert_eq!(ended(&mut io, LONG), [1]);
                    let at = usize::try_from(at).unwrap();
                    now[at..at + 4096].fill(fill);
                }
                Deed::Take(name) => {
                    let done = bench.snapshots().create(&name.to_string());
                    prop_assert_eq!(done.is_ok(), !taken.contains_key(&name));
                    taken.entry(name).or_insert_with(|| now.clone());
                }
                Deed::Back(name) => {
                    let done = bench.roll_back(&name.to_string());
                    prop_assert_eq!(done.is_ok(), taken.contains_key(&name));
                    if let Some(then) = taken.get(&name) {
                        let len = now.len();
                        now.clone_from(then);
                        now.resize(len, 0);
                    }
                }
                Deed::Remove(name) => {
                    let done = bench.snapshots().remove(&name.to_string());
                    prop_assert_eq!(done.is_ok(), taken.remove(&name).is_some());
                }
                Deed::Clone(name) => {
                    let path = bench.scratch.path().join("clone");
                    let of = name.map(|name| name.to_string());
                    let done = bench.snapshots().clone_to(of.as_deref(), &path);
                    let expected = name.map_or(Some(&now), |name| taken.get(&name));
                    prop_assert_eq!(done.is_ok(), expected.is_some());
                    if let Some(expected) = expected {
                        prop_assert!(&fs::read(&path).unwrap() == expected);
                        fs::remove_file(path).unwrap();
                    }
                }
                Deed::Reopen => bench.open().unwrap(),
                Deed::Grow => {
                    let len = now.len() + 4096;
                    bench.disk().grow(len as u64).unwrap();
                    bench.disk().refresh().unwrap();
                    now.resize(len, 0);
                }
            }
            prop_assert!(bench.bytes() == now);
            let names: Vec<_> = taken.keys().map(u8::to_string).collect();
            let mut listed = bench.names();
            listed.sort();
            prop_assert_eq!(listed, names);
        }
    }
}
