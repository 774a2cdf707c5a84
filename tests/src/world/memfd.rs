//! Memory files as QEMU's `memory-backend-memfd` makes them.
#![expect(
    unsafe_code,
    reason = "memfd_create and F_ADD_SEALS have no safe wrapper here"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A sparse memory file of `len` bytes, with QEMU's default seals (SEAL, SHRINK, GROW) if
/// `sealed`.
///
/// # Errors
/// What memfd_create(2), ftruncate(2) or fcntl(2) report.
pub fn memfd(len: u64, sealed: bool) -> io::Result<File> {
    // SAFETY: the name is a C string; the result is checked before it is owned.
    let fd = unsafe {
        libc::memfd_create(
            c"tenant-ram".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len)?;
    if sealed {
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: F_ADD_SEALS takes an int and touches no memory of ours.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}
