//! Deaths of a supervisor, for tests: between any two things that it does.

use std::io;

/// Counts the moments at which a process could be killed, and lets one of them be its last.
#[derive(Debug, Default)]
pub(super) struct Steps {
    done: usize,
    /// The step that fails, if one is to.
    pub(super) last: Option<usize>,
}

impl Steps {
    /// One step further.
    pub(super) fn next(&mut self) -> io::Result<()> {
        self.done += 1;
        if self.last == Some(self.done) {
            return Err(io::Error::other("killed"));
        }
        Ok(())
    }
}
