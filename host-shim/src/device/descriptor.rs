//! What the kernel knows and does about file descriptors that others gave us.
#![expect(unsafe_code, reason = "fcntl(2) has no safe wrapper in std")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec};

/// The seals of a memfd (F_GET_SEALS), `None` for a file that cannot have any.
///
/// # Errors
/// What fcntl(2) reports, other than that the file knows no seals.
pub(super) fn seals(fd: BorrowedFd<'_>) -> io::Result<Option<c_int>> {
    // SAFETY: F_GET_SEALS takes no argument and touches no memory of ours.
    match check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) }) {
        Ok(seals) => Ok(Some(seals)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether reading and writing are both possible.
///
/// # Errors
/// What fcntl(2) reports.
pub(super) fn is_read_write(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(status_flags(fd)? & libc::O_ACCMODE == libc::O_RDWR)
}

/// Makes sure that a write does not wait, whoever made the descriptor.
///
/// # Errors
/// What fcntl(2) reports.
pub(super) fn make_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = status_flags(fd)?;
    if flags & libc::O_NONBLOCK != 0 {
        return Ok(());
    }
    // SAFETY: F_SETFL takes an int and touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// Has the kernel send this process SIGIO, which ends it, when the pipe `fd` has no writer left,
/// whatever the process waits for then.
///
/// # Errors
/// What fcntl(2) reports, or `BrokenPipe` if there is no writer by now.
pub(crate) fn signal_on_hangup(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: getpid(2) always succeeds; F_SETOWN takes an int and touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, libc::getpid()) })?;
    let flags = status_flags(fd)? | libc::O_ASYNC;
    // SAFETY: F_SETFL takes an int and touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) })?;
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default()))?;
    if fds[0].revents().contains(PollFlags::HUP) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

fn status_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
