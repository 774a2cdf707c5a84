//! Whether every byte of a file has its place on the disk for good.
//!
//! A direct write into a hole, or into space that was only reserved, leaves the storage VM's memory
//! at once, but where the file has it now is in the filesystem's journal, and that in memory for
//! some seconds: after a crash the blocks read as zeros again. Such a write has to be followed by a
//! sync before it is acknowledged. Where a file has been written all over and is overwritten in
//! place, there is nothing to remember, and no write needs one.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::sys;

/// The filesystem that overwrites in place what is written, by its magic number of linux/magic.h:
/// ext4 (with ext2 and ext3). Others write elsewhere, or may: XFS does once somebody has made a
/// reflink copy of the file, of which nobody tells us.
const IN_PLACE: i64 = 0xef53;
/// Time between two looks at a file that was not settled; each look may have many extents to ask
/// for.
const PERIOD: Duration = Duration::from_secs(10);

/// What is known of one file.
#[derive(Debug)]
pub struct Settled {
    /// Whether it may ever be: nobody else changes it, and its filesystem writes in place.
    possible: bool,
    /// Changes of what is allocated that were begun.
    begun: AtomicU64,
    /// Those that have ended.
    ended: AtomicU64,
    /// How many were begun when all was found settled, and one; 0 if it never was.
    found: AtomicU64,
}

impl Settled {
    /// Of a file of which nothing is known, and which is used by nobody else if `alone`.
    pub fn of(file: &File, alone: bool) -> io::Result<Self> {
        Ok(Self {
            possible: alone && is_in_place(sys::filesystem_magic(file)?),
            ..Self::never()
        })
    }

    /// Of a file that never is.
    pub const fn never() -> Self {
        Self {
            possible: false,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            found: AtomicU64::new(0),
        }
    }

    /// Whether no write needs a sync for the sake of its place.
    pub fn is(&self) -> bool {
        self.found.load(Ordering::SeqCst) == self.begun.load(Ordering::SeqCst) + 1
    }

    /// Blocks are about to be given back, or the file has another length.
    pub fn begin_change(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// The change is over.
    pub fn end_change(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    /// Blocks are about to be given back or shared; the change is over when this is dropped.
    pub fn change(&self) -> Change<'_> {
        self.begin_change();
        Change(self)
    }

    /// Looks whether the first `len` bytes of `file` are settled by now, and makes `sync` sync it
    /// if so: where they are may have been found in memory only.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn look(
        &self,
        file: &File,
        len: u64,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        // One under way could come between the look and the end of it.
        if !self.possible || self.is() || begun != ended {
            return Ok(());
        }
        if sys::is_written_in_place(file, len)? {
            sync()?;
            self.found.store(begun + 1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// A change of what is allocated that is under way.
#[derive(Debug)]
#[must_use = "dropping it ends the change"]
pub struct Change<'a>(&'a Settled);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.end_change();
    }
}

/// Whether a filesystem of this magic number overwrites in place, whatever is done to its files.
fn is_in_place(magic: i64) -> bool {
    magic == IN_PLACE
}

/// When to look next.
#[derive(Debug)]
pub struct Rounds(Option<Instant>);

impl Rounds {
    /// At once.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether it is time to look; the next time is later then.
    pub fn are_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|next| now >= next);
        if due {
            self.0 = now.checked_add(PERIOD);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    const LEN: u64 = 1 << 20;

    /// A file of zeros in the build directory, and whether it can be settled there.
    fn written() -> (TempFile, Settled) {
        let temporary = TempFile::new_in(&std::env::current_dir().unwrap()).unwrap();
        let file = temporary.as_file();
        file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let settled = Settled {
            possible: true,
            ..Settled::never()
        };
        (temporary, settled)
    }

    fn look(settled: &Settled, file: &File) -> bool {
        settled.look(file, LEN, || file.sync_data()).unwrap();
        settled.is()
    }

    #[test]
    fn a_file_is_settled_when_it_is_written_all_over_and_until_something_is_given_back() {
        let (file, settled) = written();
        let file = file.as_file();
        assert!(!settled.is());
        assert!(look(&settled, file));
        settled.begin_change();
        assert!(!settled.is());
        assert!(!look(&settled, file), "under way");
        sys::punch_hole(file, 4096, 4096).unwrap();
        settled.end_change();
        assert!(!look(&settled, file), "a hole");
        file.write_all_at(&[1; 4096], 4096).unwrap();
        assert!(look(&settled, file), "written again");
    }

    #[test]
    fn a_sparse_file_and_one_of_reserved_space_are_not_settled() {
        let (written, settled) = written();
        let (file, len) = (written.as_file(), 2 * LEN);
        file.set_len(len).unwrap();
        let look = |len| {
            settled.look(file, len, || panic!("it is not")).unwrap();
            settled.is()
        };
        assert!(!look(len), "a hole at the end");
        sys::reserve(file, LEN, LEN).unwrap();
        assert!(!look(len), "never written");
        file.write_all_at(&vec![1; 1 << 20], LEN).unwrap();
        settled.look(file, len, || file.sync_data()).unwrap();
        assert!(settled.is());
    }

    #[test]
    fn a_change_that_begins_during_a_look_counts() {
        let (file, settled) = written();
        let during = || {
            settled.begin_change();
            settled.end_change();
            Ok(())
        };
        settled.look(file.as_file(), LEN, during).unwrap();
        assert!(!settled.is());
    }

    #[test]
    fn a_sync_that_fails_settles_nothing() {
        let (file, settled) = written();
        let failing = || Err(io::ErrorKind::StorageFull.into());
        assert!(settled.look(file.as_file(), LEN, failing).is_err());
        assert!(!settled.is());
    }

    #[test]
    fn what_others_use_or_another_kind_of_filesystem_has_is_never_settled() {
        let (file, _) = written();
        let file = file.as_file();
        let shared = Settled::of(file, false).unwrap();
        assert!(!look(&shared, file));
        let memory = TempFile::new_in(std::path::Path::new("/dev/shm")).unwrap();
        let memory = memory.as_file();
        memory.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        assert!(!look(&Settled::of(memory, true).unwrap(), memory));
    }

    #[test]
    fn where_files_can_be_copied_by_reference_none_is_settled() {
        // Of linux/magic.h: XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC and EXT4_SUPER_MAGIC.
        let in_place = [0x5846_5342, 0x9123_683e, 0xef53].map(is_in_place);
        assert_eq!(in_place, [false, false, true]);
    }

    #[test]
    fn a_file_that_is_not_settled_is_looked_at_now_and_then() {
        let now = Instant::now();
        let mut rounds = Rounds::new();
        assert!(rounds.are_due(now));
        assert!(!rounds.are_due(now + PERIOD / 2));
        assert!(rounds.are_due(now + PERIOD));
    }
}
