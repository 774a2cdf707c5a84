//! Bytes and file descriptors through a stream socket, without waiting.
#![expect(
    unsafe_code,
    reason = "recvmsg and sendmsg with control messages have no stable wrapper in std"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::Ordering;

use super::wire::MAX_FDS;
use crate::device::shared_memory::SharedMemory;

/// Room for the control message of one recvmsg or sendmsg, in 8-byte units so that it is
/// aligned for a `cmsghdr`.
type Control = [u64; CONTROL_LEN / size_of::<u64>()];
/// A header and at most [`MAX_FDS`] descriptors.
const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>();

const _: () = assert!(
    CONTROL_LEN.is_multiple_of(size_of::<u64>())
        && align_of::<libc::cmsghdr>() <= align_of::<u64>()
);

/// What one receive brought.
#[derive(Debug)]
pub(super) struct Received {
    /// Bytes received, 0 at the end of the stream.
    pub(super) len: usize,
    /// Whether more descriptors came than a message may carry; the rest is closed.
    pub(super) too_many_fds: bool,
}

/// Receives at most `to.len()` bytes, and the descriptors that came with them.
///
/// # Errors
/// What recvmsg(2) reports; `WouldBlock` if nothing is there.
pub(super) fn receive(
    stream: &UnixStream,
    to: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    receive_with(stream, to, fds, 0)
}

/// As [`receive`], but leaves bytes and descriptors where they are.
///
/// # Errors
/// As [`receive`].
pub(super) fn peek(
    stream: &UnixStream,
    to: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    receive_with(stream, to, fds, libc::MSG_PEEK)
}

/// Where the kernel writes how many bytes a call has moved, in memory that outlives this
/// process. It does so within the call, which SIGKILL does not divide: so that number and the
/// socket always agree.
pub(super) struct Recorded<'a> {
    /// The memory.
    pub(super) memory: &'a SharedMemory,
    /// Offset of the call's `mmsghdr` in it, aligned to eight bytes.
    pub(super) call: u64,
    /// Offset of the bytes.
    pub(super) bytes: u64,
    /// How many bytes.
    pub(super) len: usize,
}

/// Bytes of a `mmsghdr`.
pub(super) const CALL_LEN: usize = size_of::<libc::mmsghdr>();
/// Offset of the number of bytes moved in it.
pub(super) const CALL_MOVED: u64 = std::mem::offset_of!(libc::mmsghdr, msg_len) as u64;

impl Recorded<'_> {
    /// Receives at most as many bytes, and lets the descriptors go that come with them;
    /// returns how many.
    ///
    /// # Errors
    /// As [`receive`].
    pub(super) fn receive(&self, stream: &UnixStream) -> io::Result<usize> {
        let mut iov = self.iov();
        let call = self.write(message(&mut iov, &mut [0; _], 0));
        let flags = libc::MSG_DONTWAIT.unsigned_abs();
        // SAFETY: `call` points to one mmsghdr, written by `write`, with one iovec over bytes of
        // the mapping (asserted in `iov`), all alive during the call. A timeout is not given.
        let calls =
            unsafe { libc::recvmmsg(stream.as_raw_fd(), call, 1, flags as _, ptr::null_mut()) };
        self.moved(calls)
    }

    /// Sends as many of the bytes as there is room for, the descriptor with the first of them;
    /// returns how many.
    ///
    /// # Errors
    /// As [`send`].
    pub(super) fn send(
        &self,
        stream: &UnixStream,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<usize> {
        let mut iov = self.iov();
        let mut control: Control = [0; _];
        let control_len = attach(&mut control, fd);
        let call = self.write(message(&mut iov, &mut control, control_len));
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).unsigned_abs();
        // SAFETY: as in `receive`; the control bytes are alive during the call, too.
        let calls = unsafe { libc::sendmmsg(stream.as_raw_fd(), call, 1, flags as _) };
        self.moved(calls)
    }

    fn iov(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.memory.place(self.bytes, self.len).cast(),
            iov_len: self.len,
        }
    }

    /// Writes the call's header. That also has its page be there when the kernel writes to it.
    fn write(&self, message: libc::msghdr) -> *mut libc::mmsghdr {
        let call = self
            .memory
            .place(self.call, CALL_LEN)
            .cast::<libc::mmsghdr>();
        assert!(call.is_aligned(), "a call is recorded at a multiple of 8");
        // SAFETY: `place` has asserted that the bytes are inside the mapping, and they are
        // aligned (asserted above). Nobody else has them: no other process is given this
        // memory while this one lives.
        unsafe {
            call.write_volatile(libc::mmsghdr {
                msg_hdr: message,
                msg_len: 0,
            });
        }
        call
    }

    fn moved(&self, calls: libc::c_int) -> io::Result<usize> {
        if calls < 1 {
            return Err(io::Error::last_os_error());
        }
        let moved = self.memory.load(self.call + CALL_MOVED, Ordering::Relaxed);
        Ok(usize::try_from(moved).unwrap_or(usize::MAX))
    }
}

fn receive_with(
    stream: &UnixStream,
    to: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    more: libc::c_int,
) -> io::Result<Received> {
    let mut control: Control = [0; _];
    let mut iov = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let mut message = message(&mut iov, &mut control, CONTROL_LEN);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | more;
    // SAFETY: `message` points to one iovec over `to` and to CONTROL_LEN bytes of `control`, all
    // alive and writable during the call.
    let len = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled `message` and the control bytes it points to, and said in
    // msg_controllen how many; CMSG_FIRSTHDR returns null or a header inside them.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return aligned headers inside `control` (which
        // is aligned for them, asserted above) that the kernel wrote.
        let (level, kind, cmsg_len) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len,
            )
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let bytes = cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `cmsg_len` bytes of header and descriptors, so
                // descriptor `index` is among them; CMSG_DATA has no alignment to rely on. Each
                // is open and new in this process, so nobody else owns it.
                let fd = unsafe {
                    let data = libc::CMSG_DATA(header).cast::<RawFd>();
                    OwnedFd::from_raw_fd(ptr::read_unaligned(data.add(index)))
                };
                fds.push(fd);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received {
        len,
        too_many_fds: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Writes a control message with `fd`, if there is one; returns its length.
fn attach(control: &mut Control, fd: Option<BorrowedFd<'_>>) -> usize {
    let header = libc::cmsghdr {
        cmsg_len: size_of::<libc::cmsghdr>() + size_of::<RawFd>(),
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    match fd {
        None => 0,
        Some(fd) => {
            let start = control.as_mut_ptr().cast::<u8>();
            // SAFETY: `control` has room for a header (aligned, asserted above) and MAX_FDS
            // descriptors after it, of which one is written.
            unsafe {
                start.cast::<libc::cmsghdr>().write(header);
                start
                    .add(size_of::<libc::cmsghdr>())
                    .cast::<RawFd>()
                    .write_unaligned(fd.as_raw_fd());
            }
            header.cmsg_len
        }
    }
}

/// Sends as many of `bytes` as there is room for, the descriptor with the first of them; returns
/// how many.
///
/// # Errors
/// What sendmsg(2) reports; `WouldBlock` if there is no room at all.
#[cfg(test)]
pub(super) fn send(
    stream: &UnixStream,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut control: Control = [0; _];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let control_len = attach(&mut control, fd);
    let message = message(&mut iov, &mut control, control_len);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to one iovec over `bytes`, which sendmsg only reads, and to
    // `control_len` bytes of `control`, all alive during the call.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn message(iov: &mut libc::iovec, control: &mut Control, control_len: usize) -> libc::msghdr {
    // SAFETY: a msghdr of zeroes is a valid one: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    if control_len > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control_len;
    }
    message
}
