//! How blocks come from other files to one of ours: which way works, and how many went it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::io::CopyJob;
use super::ranges::Subject;
use super::reflink::Reflink;
use super::sys;

/// Most files of which it is remembered how blocks come from them; then the oldest is tried anew.
const MAX_KNOWN: usize = 64;

/// What a regular file has to have for its filesystem to copy to it or from it.
#[derive(Debug)]
pub struct Sharing {
    subject: Subject,
    /// For the log.
    path: PathBuf,
    /// Bytes of a block of the filesystem.
    block: u64,
    calls: Arc<dyn Reflink>,
    /// Whether copy_file_range(2) is worth asking for.
    copies_elsewhere: bool,
    /// Whether blocks may be shared with it, in either direction: each of both files needs room of
    /// its own when it is written.
    takes: bool,
    known: Mutex<VecDeque<(Subject, Way)>>,
    counts: [AtomicU64; 3],
    /// Copies that its filesystem is to do.
    pub(super) jobs: Mutex<Jobs>,
}

/// The copies that wait, and how many threads do them.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub waiting: VecDeque<CopyJob>,
    pub threads: usize,
}

/// How blocks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By reference: FICLONERANGE.
    Reflink,
    /// By the filesystem: copy_file_range(2).
    Filesystem,
    /// Through the bounce pool.
    Pool,
}

/// Bytes that were copied to a disk since it was opened, by the way that they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// By reference.
    pub reflink: u64,
    /// By the filesystem.
    pub filesystem: u64,
    /// Read and written.
    pub pool: u64,
}

impl Sharing {
    /// Of a file that is called `path`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn of(
        file: &File,
        subject: Subject,
        path: &Path,
        calls: Arc<dyn Reflink>,
    ) -> io::Result<Self> {
        Ok(Self {
            subject,
            path: path.to_owned(),
            block: sys::filesystem(file)?.block.max(1),
            copies_elsewhere: calls.copies_elsewhere(file)?,
            calls,
            takes: true,
            known: Mutex::default(),
            counts: Default::default(),
            jobs: Mutex::default(),
        })
    }

    /// The same, but nothing is shared with it.
    pub fn keeps_its_own(&mut self) {
        self.takes = false;
    }

    /// The calls of its filesystem.
    pub fn calls(&self) -> &dyn Reflink {
        &*self.calls
    }

    /// Bytes of which the filesystem copies whole multiples, at multiples.
    pub fn block(&self) -> u64 {
        self.block
    }

    /// How blocks of `source` come here, as far as is known.
    pub fn way_from(&self, source: &Self) -> Way {
        if !self.takes || !source.takes {
            return Way::Pool;
        }
        let known = self.known();
        let found = known.iter().find(|(subject, _)| *subject == source.subject);
        found.map_or(Way::Reflink, |(_, way)| *way)
    }

    /// Takes note that blocks of `source` cannot come that way, and why.
    pub fn cannot(&self, source: &Self, way: Way, why: &io::Error) {
        let next = match way {
            Way::Reflink if self.copies_elsewhere => Way::Filesystem,
            _ => Way::Pool,
        };
        let mut known = self.known();
        // Those that are tried anew are told of no more: a tenant may copy among many.
        let is_told = known.len() < MAX_KNOWN;
        known.retain(|(subject, _)| *subject != source.subject);
        if known.len() >= MAX_KNOWN {
            known.pop_front();
        }
        known.push_back((source.subject, next));
        drop(known);
        if !is_told {
            return;
        }
        tracing::info!(
            from = %source.path.display(),
            to = %self.path.display(),
            cannot = ?way,
            does = ?next,
            "the filesystem copies another way: {why}"
        );
    }

    /// Counts bytes that came that way.
    pub fn count(&self, way: Way, bytes: u64) {
        let counter = &self.counts[way as usize];
        if counter.fetch_add(bytes, Ordering::Relaxed) == 0 {
            tracing::info!(to = %self.path.display(), ?way, "the first copy that goes this way");
        }
    }

    /// What was counted.
    pub fn copied(&self) -> Copied {
        let [reflink, filesystem, pool] = [Way::Reflink, Way::Filesystem, Way::Pool]
            .map(|way| self.counts[way as usize].load(Ordering::Relaxed));
        Copied {
            reflink,
            filesystem,
            pool,
        }
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<(Subject, Way)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;
    use crate::disk::reflink::Kernel;

    fn sharing(inode: u64) -> Sharing {
        let file = TempFile::new().unwrap();
        let subject = Subject::File {
            filesystem: 1,
            inode,
        };
        Sharing::of(file.as_file(), subject, file.as_path(), Arc::new(Kernel)).unwrap()
    }

    fn no() -> io::Error {
        io::Error::from_raw_os_error(libc::EOPNOTSUPP)
    }

    #[test]
    fn what_is_impossible_is_remembered_for_the_pair_and_for_no_other() {
        let (to, first, second) = (sharing(1), sharing(2), sharing(3));
        assert_eq!(to.way_from(&first), Way::Reflink);
        to.cannot(&first, Way::Reflink, &no());
        assert_eq!(to.way_from(&first), Way::Pool);
        assert_eq!(to.way_from(&second), Way::Reflink);
        assert_eq!(first.way_from(&to), Way::Reflink);
    }

    #[test]
    fn a_filesystem_that_copies_by_itself_is_asked_for_that_next() {
        let (mut to, from) = (sharing(1), sharing(2));
        to.copies_elsewhere = true;
        to.cannot(&from, Way::Reflink, &no());
        assert_eq!(to.way_from(&from), Way::Filesystem);
        to.cannot(&from, Way::Filesystem, &no());
        assert_eq!(to.way_from(&from), Way::Pool);
    }

    #[test]
    fn a_file_that_keeps_its_own_space_shares_nothing() {
        let (mut to, from) = (sharing(1), sharing(2));
        to.keeps_its_own();
        assert_eq!(to.way_from(&from), Way::Pool);
        assert_eq!(from.way_from(&to), Way::Pool, "nor does it give any");
    }

    #[test]
    fn only_so_many_pairs_are_remembered() {
        let (to, first) = (sharing(1), sharing(2));
        to.cannot(&first, Way::Reflink, &no());
        for inode in 3..3 + MAX_KNOWN as u64 {
            to.cannot(&sharing(inode), Way::Reflink, &no());
        }
        assert_eq!(to.way_from(&first), Way::Reflink, "it is tried anew");
        assert_eq!(to.known().len(), MAX_KNOWN);
    }

    #[test]
    fn bytes_are_counted_by_the_way_that_they_came() {
        let sharing = sharing(1);
        sharing.count(Way::Reflink, 4096);
        sharing.count(Way::Pool, 512);
        sharing.count(Way::Reflink, 4096);
        let copied = Copied {
            reflink: 8192,
            filesystem: 0,
            pool: 512,
        };
        assert_eq!(sharing.copied(), copied);
    }
}
