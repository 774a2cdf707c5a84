//! Where log lines go: to standard error, which must not be able to stop the shim.
//!
//! The storage VM freezes while its shim waits, and may abort when its shim dies. So a line that
//! nobody takes is dropped: neither a full pipe is waited for, nor a closed one an error.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest line in bytes, the rest is cut off: what a pipe that is writable has room for.
const MAX_LINE: usize = 4096;

/// Standard error as the log's destination.
pub fn to_stderr() -> impl io::Write {
    Lines(io::stderr())
}

/// Writes lines to a descriptor, as far as it takes them at once. One write is one line.
struct Lines<F>(F);

impl<F: AsFd> io::Write for Lines<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_line(self.0.as_fd(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_line(to: BorrowedFd<'_>, line: &[u8]) {
    let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    if !poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
        return;
    }
    let whole = line.len() <= MAX_LINE;
    // Nobody could be told that the log cannot be written.
    let _ = if whole {
        rustix::io::write(to, line)
    } else {
        let mut cut = line[..MAX_LINE].to_vec();
        cut[MAX_LINE - 1] = b'\n';
        rustix::io::write(to, &cut)
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Lines(writer);
        for _ in 0..1000 {
            log.write_all(&[b'x'; 3000]).unwrap();
        }
        drop(log);
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert!(!taken.is_empty() && taken.len().is_multiple_of(3000));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        Lines(writer).write_all(b"line\n").unwrap();
    }

    #[test]
    fn a_line_too_long_is_cut_and_ends() {
        let (mut reader, writer) = io::pipe().unwrap();
        Lines(writer).write_all(&[b'x'; 5000]).unwrap();
        let mut taken = Vec::new();
        reader.read_to_end(&mut taken).unwrap();
        assert_eq!((taken.len(), taken.last()), (4096, Some(&b'\n')));
    }
}
