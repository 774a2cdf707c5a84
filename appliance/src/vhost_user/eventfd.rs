//! Eventfds that come from a frontend, checked before they are used.
#![expect(
    unsafe_code,
    reason = "an eventfd of vmm-sys-util can be made of a descriptor in no other way"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vmm_sys_util::eventfd::EventFd;

/// What a descriptor of an eventfd is a link to.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// Takes an eventfd over, and makes it non-blocking.
///
/// # Errors
/// `InvalidInput` if it is no eventfd: anything else could make a worker wait, or wake it without
/// end.
pub(super) fn eventfd(file: File) -> io::Result<EventFd> {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != EVENTFD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} where an eventfd was expected", link.display()),
        ));
    }
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    // SAFETY: the descriptor is open and ours alone; it was seen above to be an eventfd.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn duplicate(fd: &impl AsFd) -> File {
        fd.as_fd().try_clone_to_owned().unwrap().into()
    }

    #[test]
    fn an_eventfd_is_taken_and_does_not_block() {
        let theirs = EventFd::new(0).unwrap();
        // SAFETY: the duplicate is open and owned by nobody else.
        let file = unsafe { File::from_raw_fd(theirs.try_clone().unwrap().into_raw_fd()) };
        let ours = eventfd(file).unwrap();
        let error = ours.read().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        theirs.write(3).unwrap();
        assert_eq!(ours.read().unwrap(), 3);
    }

    #[test]
    fn a_descriptor_that_is_no_eventfd_is_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for file in [duplicate(&socket), File::open("/dev/zero").unwrap()] {
            let error = eventfd(file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }
}
