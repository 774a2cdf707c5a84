//! The system calls on disk files that the standard library does not have.
#![expect(unsafe_code, reason = "each function here is one system call")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::Segments;

/// `_IOR(0x12, 114, size_t)` of linux/fs.h, which the libc crate leaves out.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IO(0x12, 94)` of linux/fs.h.
const BLKROGET: libc::c_ulong = 0x125e;

/// How often, and how long apart, a lock is tried that another may be letting go: a fifth of a
/// second in all.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes an open-file-description lock over the whole file, without waiting; it is held until
/// [`unlock`], or until the last duplicate of the descriptor, the last ring that knows the file and
/// the last I/O on it are gone.
pub fn lock(file: &File, exclusive: bool) -> io::Result<()> {
    set_lock(
        file,
        if exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        },
    )
}

/// Gives up what [`lock`] took, for all duplicates of the descriptor.
pub fn unlock(file: &File) -> io::Result<()> {
    set_lock(file, libc::F_UNLCK)
}

fn set_lock(file: &File, kind: libc::c_int) -> io::Result<()> {
    let short = |constant: libc::c_int| {
        libc::c_short::try_from(constant).map_err(|_| io::ErrorKind::InvalidInput)
    };
    let whole = libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: `whole` is a valid flock that outlives the call, and the descriptor is open.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) })
}

/// Like [`lock`], but waits a moment for whoever is letting go: the lock of a process that was
/// killed does not end while the kernel still puts away its last I/O and its rings, nor that of one
/// that closed the file while another that is being started has not yet dropped what it inherited.
pub fn lock_soon(file: &File, exclusive: bool) -> io::Result<()> {
    for _ in 0..LOCK_ATTEMPTS {
        match lock(file, exclusive) {
            Err(error) if is_locked(&error) => thread::sleep(LOCK_PAUSE),
            ended => return ended,
        }
    }
    lock(file, exclusive)
}

/// Whether a lock was refused because another holds it.
pub fn is_locked(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// Bytes of a block device.
pub fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64, which `size` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) })?;
    Ok(size)
}

/// Bytes of a logical block of a block device.
pub fn device_logical_block(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int, which `size` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET as _, &raw mut size) })?;
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Bytes of a physical block of a block device.
pub fn device_physical_block(file: &File) -> io::Result<u32> {
    let mut size: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int, which `size` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKPBSZGET as _, &raw mut size) })?;
    Ok(size)
}

/// Whether a block device is write-protected; it can be opened for writing all the same.
pub fn device_is_protected(file: &File) -> io::Result<bool> {
    let mut protected: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int, which `protected` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &raw mut protected) })?;
    Ok(protected != 0)
}

/// What O_DIRECT asks of a file, in bytes; zeros where it is not possible at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Alignment of memory addresses.
    pub memory: u32,
    /// Alignment of file offsets and lengths.
    pub offset: u32,
}

/// The alignment that statx(2) reports for O_DIRECT; `None` where the kernel or the filesystem
/// does not say.
pub fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    let statx = statx(file, libc::STATX_DIOALIGN)?;
    Ok(
        (statx.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectAlignment {
            memory: statx.stx_dio_mem_align,
            offset: statx.stx_dio_offset_align,
        }),
    )
}

/// The shortest and the longest atomic write in bytes; `None` where there is none.
pub fn atomic_write_unit(file: &File) -> io::Result<Option<(u32, u32)>> {
    let statx = statx(file, libc::STATX_WRITE_ATOMIC)?;
    let unit = (
        statx.stx_atomic_write_unit_min,
        statx.stx_atomic_write_unit_max,
    );
    let known = statx.stx_mask & libc::STATX_WRITE_ATOMIC != 0;
    Ok((known && unit.0 > 0 && unit.0 <= unit.1).then_some(unit))
}

fn statx(file: &File, mask: libc::c_uint) -> io::Result<libc::statx> {
    let mut statx = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, as AT_EMPTY_PATH wants it, and `statx` has room for
    // what the call writes.
    check(unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            statx.as_mut_ptr(),
        )
    })?;
    // SAFETY: zeroed memory is a valid `statx` (integers only), and the call succeeded.
    Ok(unsafe { statx.assume_init() })
}

/// What fstatvfs(3) says of a filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// A block of it.
    pub block: u64,
    /// What somebody without privileges can still use.
    pub available: u64,
}

/// The filesystem that a file is in.
pub fn filesystem(file: &File) -> io::Result<Filesystem> {
    let mut statvfs = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `statvfs` has room for what the call writes.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), statvfs.as_mut_ptr()) })?;
    // SAFETY: zeroed memory is a valid `statvfs` (integers only), and the call succeeded.
    let statvfs = unsafe { statvfs.assume_init() };
    Ok(Filesystem {
        block: statvfs.f_frsize,
        available: statvfs.f_bavail.saturating_mul(statvfs.f_frsize),
    })
}

/// The magic number of the filesystem that a file is in, as linux/magic.h has it.
pub fn filesystem_magic(file: &File) -> io::Result<i64> {
    let mut statfs = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `statfs` has room for what the call writes.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), statfs.as_mut_ptr()) })?;
    // SAFETY: zeroed memory is a valid `statfs` (integers only), and the call succeeded.
    let statfs = unsafe { statfs.assume_init() };
    #[expect(
        clippy::unnecessary_cast,
        reason = "its type differs between C libraries"
    )]
    Ok(statfs.f_type as i64)
}

/// Extents that are asked for at a time.
const EXTENTS: u32 = 128;

/// `struct fiemap_extent` of linux/fiemap.h, without what is not looked at.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Mapped {
    logical: u64,
    _physical: u64,
    length: u64,
    _reserved: [u64; 2],
    flags: u32,
    _reserved_32: [u32; 3],
}

/// `struct fiemap` of linux/fiemap.h, with room for extents.
#[repr(C)]
#[derive(Debug)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Mapped; EXTENTS as usize],
}

/// `_IOWR('f', 11, struct fiemap)`, where the struct counts without its extents.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const _: () = assert!(size_of::<Fiemap>() == 32 + EXTENTS as usize * 56);
/// Dirty pages are written first.
const FIEMAP_FLAG_SYNC: u32 = 1;
/// What an extent may be and yet be overwritten in place: the last one, or put together from
/// several. All else (unwritten, shared, delayed, encoded, inline, …) may not.
const FIEMAP_HARMLESS: u32 = 0x1 | 0x1000;

/// Whether each of the first `len` bytes of a file is written, alone in its place, and so would
/// be overwritten there by a filesystem that writes in place; never where the filesystem does not
/// tell.
pub fn is_written_in_place(file: &File, len: u64) -> io::Result<bool> {
    let mut at = 0;
    while at < len {
        let mut map = Fiemap {
            start: at,
            length: len - at,
            flags: FIEMAP_FLAG_SYNC,
            mapped_extents: 0,
            extent_count: EXTENTS,
            reserved: 0,
            extents: [Mapped {
                logical: 0,
                _physical: 0,
                length: 0,
                _reserved: [0; 2],
                flags: 0,
                _reserved_32: [0; 3],
            }; EXTENTS as usize],
        };
        // SAFETY: `map` is a fiemap with room for as many extents as it says.
        match check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut map) }) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                return Ok(false);
            }
            result => result?,
        }
        let found = usize::try_from(map.mapped_extents).unwrap_or(0);
        for extent in map.extents.iter().take(found) {
            if extent.logical > at || extent.flags & !FIEMAP_HARMLESS != 0 {
                return Ok(false);
            }
            at = at.max(extent.logical.saturating_add(extent.length));
        }
        if found == 0 {
            // A hole up to the end.
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reserves space without writing it; the file keeps its length.
#[cfg(test)]
pub fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: a system call on an open descriptor, without memory.
    check(unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) })
}

/// Punches a hole; the file keeps its length.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let (offset, len) = (signed(offset)?, signed(len)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a system call on an open descriptor, without memory.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
}

/// `struct file_clone_range` of linux/fs.h.
#[repr(C)]
#[derive(Debug)]
struct CloneRange {
    source: i64,
    source_offset: u64,
    len: u64,
    offset: u64,
}

/// `_IOW(0x94, 13, struct file_clone_range)`, which the libc crate leaves out.
const FICLONERANGE: libc::c_ulong = 0x4020_940d;
const _: () = assert!(size_of::<CloneRange>() == 0x20);

/// Has `to` share `len` bytes of `from`, from byte `at` on, at `offset`; all that there are if
/// `len` is 0. Both files' pages are written before.
pub fn clone_range(from: &File, at: u64, to: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = CloneRange {
        source: from.as_raw_fd().into(),
        source_offset: at,
        len,
        offset,
    };
    // SAFETY: FICLONERANGE reads one file_clone_range, which `range` is and which outlives the
    // call; both descriptors are open.
    check(unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE as _, &raw const range) })
}

/// The first byte from `offset` on that is not in a hole; `None` if there is none.
pub fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_DATA)
}

/// The first byte from `offset` on that is in a hole, as what is behind the file's end is; `None`
/// if `offset` is already there.
pub fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_HOLE)
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a system call on an open descriptor, without memory. It moves the descriptor's
    // position, which no I/O of ours uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(Some(found));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        error => Err(error),
    }
}

/// Reads the bytes from `offset` into the first `len` of a buffer; whether all of them are there
/// now. Waits for the file, so that it must be one that is in memory.
pub fn read_into(file: &File, offset: u64, data: &Segments, len: usize) -> bool {
    let (Some((vectors, count)), Ok(offset)) =
        (data.few_iovecs::<FEW>(len), libc::off_t::try_from(offset))
    else {
        return false;
    };
    let Ok(count) = libc::c_int::try_from(count) else {
        return false;
    };
    // SAFETY: the first `count` vectors are those of pieces of `data`, which keeps their mapping
    // in place until the call is over.
    let read = unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(read) == Ok(len)
}

/// Pieces of a buffer that [`read_into`] reads into.
const FEW: usize = 8;

/// Reads an eventfd's counter back to zero, without waiting even where the descriptor is
/// blocking; nothing happens if it is zero already.
pub fn drain_eventfd(fd: &EventFd) {
    let mut counter = 0u64;
    let vector = libc::iovec {
        iov_base: (&raw mut counter).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: `vector` describes `counter`, which outlives the call. The result does not matter:
    // an error means that there was nothing to drain.
    unsafe { libc::preadv2(fd.as_raw_fd(), &raw const vector, 1, -1, libc::RWF_NOWAIT) };
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn a_lock_that_is_given_up_is_gone_though_the_file_is_still_open() {
        let file = TempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.as_path());
        let (first, second) = (open().unwrap(), open().unwrap());
        let duplicate = first.try_clone().unwrap();
        lock(&first, true).unwrap();
        assert!(is_locked(&lock(&second, false).unwrap_err()));
        unlock(&first).unwrap();
        lock(&second, true).unwrap();
        drop((first, duplicate));
    }
}
