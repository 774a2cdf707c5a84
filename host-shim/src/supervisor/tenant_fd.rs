//! File descriptors that come from the tenant's QEMU, checked before they are used.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, OFlags, SealFlags, StatxFlags};
use rustix::io::ReadWriteFlags;

use crate::kept::KeptFd;
use crate::session::{FileFacts, FileId};

/// An eventfd of the tenant's QEMU. Neither reading nor writing it waits, whatever its owner
/// does to it meanwhile.
#[derive(Debug)]
pub(super) struct TenantEvent(KeptFd);

impl TenantEvent {
    /// Takes over `fd`.
    ///
    /// # Errors
    /// `InvalidInput` if it is no eventfd: anything else could make the shim wait.
    pub fn new(fd: impl Into<KeptFd>) -> io::Result<Self> {
        let fd = fd.into();
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{link:?} where an eventfd was expected"),
            ));
        }
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// One that was checked by the supervisor before this one.
    pub fn kept(fd: KeptFd) -> Self {
        Self(fd)
    }

    /// What a record says in its place.
    pub fn name(&self) -> u64 {
        self.0.name()
    }

    /// Takes what was signalled; whether anything was.
    pub fn take(&self) -> bool {
        let mut count = [0; 8];
        // NOWAIT holds even if the tenant's QEMU has made the eventfd blocking again.
        rustix::io::preadv2(
            &self.0,
            &mut [IoSliceMut::new(&mut count)],
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        )
        .is_ok()
    }

    /// Signals it, unless it is signalled to the brim already.
    pub fn signal(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        let room = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        if room {
            // Its owner cannot gain anything from making this fail.
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }
    }
}

impl AsFd for TenantEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the kernel says about a file of tenant memory.
///
/// # Errors
/// What `statx` gave, or `InvalidInput` if it is no regular file.
pub(super) fn file_facts(fd: &impl AsFd) -> io::Result<FileFacts> {
    // Not synced: a file system of the tenant's QEMU (FUSE) would let us wait.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(fd, "", flags, StatxFlags::BASIC_STATS)?;
    if !rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()).is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "tenant memory that is no file",
        ));
    }
    // Only memfds have seals; for every other file the question is an error.
    let sealed =
        rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    Ok(FileFacts {
        id: FileId {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
        },
        len: stat.stx_size,
        sealed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use rustix::event::EventfdFlags;
    use rustix::fs::MemfdFlags;

    /// An eventfd as the tenant's QEMU has it, blocking, and as it comes to us.
    fn eventfd() -> (OwnedFd, TenantEvent) {
        let theirs = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ours = TenantEvent::new(theirs.try_clone().unwrap()).unwrap();
        let flags = rustix::fs::fcntl_getfl(&theirs).unwrap();
        rustix::fs::fcntl_setfl(&theirs, flags - OFlags::NONBLOCK).unwrap();
        (theirs, ours)
    }

    fn write(eventfd: &OwnedFd, count: u64) {
        rustix::io::write(eventfd, &count.to_ne_bytes()).unwrap();
    }

    fn read(eventfd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(eventfd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn a_blocking_eventfd_does_not_block_us() {
        let (qemu, event) = eventfd();
        assert!(!event.take());
        write(&qemu, 3);
        assert!(event.take());
        assert!(!event.take());
        event.signal();
        assert_eq!(read(&qemu), 1);
        write(&qemu, u64::MAX - 1);
        event.signal();
        assert_eq!(read(&qemu), u64::MAX - 1);
    }

    #[test]
    fn a_file_where_an_eventfd_was_expected_is_refused() {
        let file = rustix::fs::memfd_create("kick", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(
            TenantEvent::new(file).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn seals_and_length_of_a_memfd_are_seen() {
        let file = rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .unwrap();
        rustix::fs::ftruncate(&file, 8192).unwrap();
        let before = file_facts(&file).unwrap();
        assert_eq!((before.len, before.sealed), (8192, false));
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert!(file_facts(&file).unwrap().sealed);
    }

    #[test]
    fn a_device_node_is_no_tenant_memory() {
        let null = fs::File::open("/dev/null").unwrap();
        assert!(file_facts(&null).is_err());
    }
}
