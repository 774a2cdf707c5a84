//! What a filesystem does to copy blocks without anybody reading them.

use std::fmt;
use std::fs::File;
use std::io;

use super::sys;

#[cfg(test)]
pub mod testing;

/// The calls by which a filesystem copies.
///
/// Offsets and lengths are multiples of the filesystem's block, but for the end of a file.
pub trait Reflink: Send + Sync + fmt::Debug {
    /// Has `to` share `len` bytes of `from`, from byte `at` on, at `offset`; all that there are if
    /// `len` is 0. FICLONERANGE of ioctl_ficlonerange(2).
    ///
    /// # Errors
    /// What the kernel reports; some bytes may be there then, and some not.
    fn clone_range(&self, from: &File, at: u64, to: &File, offset: u64, len: u64)
    -> io::Result<()>;

    /// Has the filesystem copy up to `len` bytes; returns how many it did. copy_file_range(2).
    ///
    /// # Errors
    /// What the kernel reports.
    fn copy_range(
        &self,
        from: &File,
        at: u64,
        to: &File,
        offset: u64,
        len: usize,
    ) -> io::Result<usize>;

    /// Whether [`Self::copy_range`] is more than the kernel reading and writing.
    ///
    /// # Errors
    /// What the kernel reports.
    fn copies_elsewhere(&self, file: &File) -> io::Result<bool>;
}

/// The kernel's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

/// Filesystems that hand copy_file_range(2) over to whoever has the blocks, by their magic numbers
/// of linux/magic.h: NFS, CIFS, SMB 2, Ceph, FUSE. On others the kernel copies by itself, through a
/// pipe of 64 KiB and one piece after the other: on ext4 with O_DIRECT that takes three times as
/// long as reading and writing a MiB at a time.
const ELSEWHERE: [i64; 5] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x6573_5546];

impl Reflink for Kernel {
    fn clone_range(
        &self,
        from: &File,
        at: u64,
        to: &File,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        sys::clone_range(from, at, to, offset, len)
    }

    fn copy_range(
        &self,
        from: &File,
        mut at: u64,
        to: &File,
        mut offset: u64,
        len: usize,
    ) -> io::Result<usize> {
        let copied = rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut offset), len)?;
        Ok(copied)
    }

    fn copies_elsewhere(&self, file: &File) -> io::Result<bool> {
        let magic = sys::filesystem_magic(file)?;
        Ok(ELSEWHERE.contains(&magic))
    }
}

/// Whether an error says that the filesystem cannot do it, or not with these two files: asking
/// again would be of no use.
pub fn is_impossible(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EOPNOTSUPP
                | libc::EXDEV
                | libc::EINVAL
                | libc::ENOSYS
                | libc::ENOTTY
                | libc::EPERM
                | libc::ETXTBSY
        )
    )
}
