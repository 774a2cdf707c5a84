//! A filesystem that copies as its tests want it to.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex};

use super::Reflink;

/// What was asked for: how, the first byte at the source, the first here, and how many.
pub type Asked = (&'static str, u64, u64, u64);

/// Copies by reading and writing, or fails, or hangs.
#[derive(Debug, Default)]
pub struct Fake(Mutex<State>, Condvar);

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    /// Errno of clone_range.
    error: Option<i32>,
    /// The same of the next ones, before that.
    next: VecDeque<Option<i32>>,
    hangs: bool,
    /// So many do not hang before they do.
    passes: usize,
    /// Most bytes of a copy_range, if there is that.
    elsewhere: Option<usize>,
    /// So many copy_range are left before they fail.
    left: Option<usize>,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One whose clone_range fails.
    pub fn failing(errno: i32) -> Arc<Self> {
        let fake = Self::new();
        fake.0.lock().unwrap().error = Some(errno);
        fake
    }

    /// One that has copy_range alone, which copies so many bytes at a time.
    pub fn elsewhere(most: usize) -> Arc<Self> {
        let fake = Self::failing(libc::EOPNOTSUPP);
        fake.0.lock().unwrap().elsewhere = Some(most);
        fake
    }

    pub fn hang(&self, hangs: bool) {
        let mut state = self.0.lock().unwrap();
        (state.hangs, state.passes) = (hangs, 0);
        self.1.notify_all();
    }

    /// All that come after so many hang.
    pub fn hang_after(&self, passes: usize) {
        let mut state = self.0.lock().unwrap();
        (state.hangs, state.passes) = (true, passes);
    }

    /// After so many, copy_range fails with EIO.
    pub fn fail_after(&self, copies: usize) {
        self.0.lock().unwrap().left = Some(copies);
    }

    pub fn fail_with(&self, errno: Option<i32>) {
        self.0.lock().unwrap().error = errno;
    }

    /// So the next ones end.
    pub fn fail_in_turn(&self, errors: impl IntoIterator<Item = Option<i32>>) {
        self.0.lock().unwrap().next.extend(errors);
    }

    /// What was asked for since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }

    /// Waits until something is asked for.
    pub fn wait_until_asked(&self) {
        self.wait_until_asked_for(1);
    }

    /// Waits until so much is asked for.
    pub fn wait_until_asked_for(&self, times: usize) {
        let state = self.0.lock().unwrap();
        drop(
            self.1
                .wait_while(state, |state| state.asked.len() < times)
                .unwrap(),
        );
    }

    fn ask(&self, asked: Asked) -> Option<i32> {
        let mut state = self.0.lock().unwrap();
        state.asked.push(asked);
        self.1.notify_all();
        if state.passes > 0 {
            state.passes -= 1;
        } else {
            state = self.1.wait_while(state, |state| state.hangs).unwrap();
        }
        let error = state.error;
        state.next.pop_front().unwrap_or(error)
    }
}

/// As open for page cache and O_DIRECT alike: through other descriptors.
fn copy(from: &File, at: u64, to: &File, offset: u64, len: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut bytes = vec![0; len];
    File::open(path(from))?.read_exact_at(&mut bytes, at)?;
    let to = File::options().write(true).open(path(to))?;
    to.write_all_at(&bytes, offset)?;
    to.sync_data()
}

impl Reflink for Fake {
    fn clone_range(
        &self,
        from: &File,
        at: u64,
        to: &File,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        if let Some(errno) = self.ask(("clone", at, offset, len)) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let len = if len == 0 {
            from.metadata()?.len() - at
        } else {
            len
        };
        copy(from, at, to, offset, usize::try_from(len).unwrap())
    }

    fn copy_range(
        &self,
        from: &File,
        at: u64,
        to: &File,
        offset: u64,
        len: usize,
    ) -> io::Result<usize> {
        self.ask(("copy", at, offset, len as u64));
        let mut state = self.0.lock().unwrap();
        if let Some(left) = &mut state.left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        }
        let most = state.elsewhere.unwrap();
        drop(state);
        copy(from, at, to, offset, len.min(most))?;
        Ok(len.min(most))
    }

    fn copies_elsewhere(&self, _: &File) -> io::Result<bool> {
        Ok(self.0.lock().unwrap().elsewhere.is_some())
    }
}
