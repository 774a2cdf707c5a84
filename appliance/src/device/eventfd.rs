//! The descriptor of an eventfd, borrowed.
#![expect(
    unsafe_code,
    reason = "vmm-sys-util's EventFd gives out its descriptor only as a number"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of `eventfd`.
pub(crate) fn fd_of(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `eventfd` owns the descriptor and is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
