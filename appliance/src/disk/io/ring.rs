//! The io_uring instance: set-up with what the kernel has, submission, completion.
#![expect(unsafe_code, reason = "submissions hand memory to the kernel")]

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode, squeue};

use super::files::Handle;

/// Submissions that fit between two enters; more wait in the backlog.
const ENTRIES: u32 = 256;
/// Completions that fit; the kernel keeps more for us (IORING_FEAT_NODROP).
const COMPLETIONS: u32 = 1024;

/// Why there is no io_uring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The kernel has it switched off for us.
    #[error(
        "io_uring is switched off for this program; allow it with `sysctl kernel.io_uring_disabled=0`"
    )]
    Disabled,
    /// The kernel is too old.
    #[error("this kernel's io_uring is too old; Linux 5.13 or newer is needed")]
    TooOld,
    /// Too little memory may be locked, or there is none.
    #[error(
        "too little memory for io_uring; raise RLIMIT_MEMLOCK (`ulimit -l`, in systemd \
         `LimitMEMLOCK=`) or give the storage VM more"
    )]
    Memory,
    /// Anything else.
    #[error("cannot set up io_uring: {0}")]
    Io(#[from] io::Error),
}

/// Memory that a transfer reads or writes.
#[derive(Debug, Clone, Copy)]
pub enum Memory<'a> {
    /// Bytes of the bounce pool.
    Pool { address: *mut u8, len: usize },
    /// Pieces of the tenant's memory.
    Vectors(&'a [libc::iovec]),
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
    /// A write that nothing tears.
    WriteAtomic,
    /// A write that is done when it is on stable storage.
    WriteThrough,
}

impl Direction {
    /// As pwritev2(2) has it.
    fn rw_flags(self) -> i32 {
        match self {
            Self::Read | Self::Write => 0,
            Self::WriteAtomic => libc::RWF_ATOMIC,
            Self::WriteThrough => libc::RWF_DSYNC,
        }
    }
}

/// What fallocate(2) does to a range; none changes the file's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Gives it back; it reads as zeros.
    Punch,
    /// Makes it zeros.
    Zero,
}

/// A completion.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    pub user_data: u64,
    /// Not negative, or a negated errno.
    pub result: i32,
    /// Whether the same submission will complete again.
    pub more: bool,
}

pub struct Ring {
    uring: IoUring,
    /// Submissions that found the queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Whether the bounce pool is registered as buffer 0.
    registered: bool,
    /// As if the kernel gave nothing up that it has begun.
    #[cfg(test)]
    pub stubborn: bool,
    /// As if every file took atomic writes.
    #[cfg(test)]
    pub tears_nothing: bool,
}

impl Ring {
    pub fn new() -> Result<Self, SetupError> {
        let uring = build()?;
        let params = uring.params();
        // EXT_ARG came with 5.11. Multishot poll came with 5.13 and cannot be asked for; resource
        // tags, of the same release, can.
        if !params.is_feature_ext_arg() || !params.is_feature_resource_tagging() {
            return Err(SetupError::TooOld);
        }
        Ok(Self {
            uring,
            backlog: VecDeque::new(),
            registered: false,
            #[cfg(test)]
            stubborn: false,
            #[cfg(test)]
            tears_nothing: false,
        })
    }

    /// Registers the bounce pool, so that the kernel does not pin its pages for each transfer.
    /// Where RLIMIT_MEMLOCK forbids that, transfers work all the same, only slower.
    ///
    /// # Safety
    /// The memory must stay mapped until the ring is dropped.
    pub unsafe fn register(&mut self, whole: libc::iovec) {
        // SAFETY: the caller keeps the memory mapped.
        match unsafe { self.uring.submitter().register_buffers(&[whole]) } {
            Ok(()) => self.registered = true,
            Err(error) => tracing::warn!(
                bytes = whole.iov_len,
                %error,
                "cannot register the bounce pool, so I/O will be slower; raise RLIMIT_MEMLOCK"
            ),
        }
    }

    /// Where files are registered.
    pub fn submitter(&self) -> Submitter<'_> {
        self.uring.submitter()
    }

    /// Submits a transfer between file and memory.
    ///
    /// # Safety
    /// File, memory and the array of vectors must stay valid, and nobody else may access
    /// the pool's bytes, until the completion with `user_data` is out.
    pub unsafe fn transfer(
        &mut self,
        user_data: u64,
        file: Handle,
        direction: Direction,
        offset: u64,
        memory: Memory<'_>,
    ) {
        #[cfg(test)]
        let direction = match direction {
            Direction::WriteAtomic if self.tears_nothing => Direction::Write,
            direction => direction,
        };
        let (fd, flags) = file.parts();
        let is_read = direction == Direction::Read;
        let how = direction.rw_flags();
        // The kernel takes atomic writes neither in a registered buffer nor in several pieces
        // (generic_atomic_write_valid of fs/read_write.c).
        let registered = self.registered && direction != Direction::WriteAtomic;
        let entry = match memory {
            Memory::Pool { address, len } if registered && is_read => {
                opcode::ReadFixed::new(fd, address, length(len), 0)
                    .offset(offset)
                    .build()
            }
            Memory::Pool { address, len } if registered => {
                opcode::WriteFixed::new(fd, address, length(len), 0)
                    .offset(offset)
                    .rw_flags(how)
                    .build()
            }
            Memory::Pool { address, len } => single(fd, is_read, address, len, (offset, how)),
            // The usual buffer, without a vector that the kernel would have to read.
            Memory::Vectors([one]) => {
                let (address, len) = (one.iov_base.cast(), one.iov_len);
                single(fd, is_read, address, len, (offset, how))
            }
            Memory::Vectors(vectors) if is_read => {
                opcode::Readv::new(fd, vectors.as_ptr(), length(vectors.len()))
                    .offset(offset)
                    .build()
            }
            Memory::Vectors(vectors) => {
                opcode::Writev::new(fd, vectors.as_ptr(), length(vectors.len()))
                    .offset(offset)
                    .rw_flags(how)
                    .build()
            }
        };
        self.push(entry.flags(flags).user_data(user_data));
    }

    /// Submits an fdatasync(2). The file must stay open until the kernel has the submission; a
    /// closed one is an error, not a hazard.
    pub fn sync(&mut self, user_data: u64, file: Handle) {
        let (fd, flags) = file.parts();
        let entry = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        self.push(entry.flags(flags).user_data(user_data));
    }

    /// Submits a fallocate(2); as for [`Self::sync`].
    pub fn allocate(
        &mut self,
        user_data: u64,
        file: Handle,
        allocation: Allocation,
        offset: u64,
        len: u64,
    ) {
        let mode = match allocation {
            Allocation::Punch => libc::FALLOC_FL_PUNCH_HOLE,
            Allocation::Zero => libc::FALLOC_FL_ZERO_RANGE,
        };
        let (fd, flags) = file.parts();
        let entry = opcode::Fallocate::new(fd, len)
            .offset(offset)
            .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
            .build();
        self.push(entry.flags(flags).user_data(user_data));
    }

    /// Submits a posix_fadvise(2) that a range will be read soon; as for [`Self::sync`].
    pub fn advise(&mut self, user_data: u64, file: Handle, offset: u64, len: usize) {
        let (fd, flags) = file.parts();
        let entry = opcode::Fadvise::new(fd, length(len).into(), libc::POSIX_FADV_WILLNEED)
            .offset(offset)
            .build();
        self.push(entry.flags(flags).user_data(user_data));
    }

    /// Watches a descriptor: one completion each time it becomes readable or is written to again.
    pub fn poll(&mut self, user_data: u64, fd: i32) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build();
        self.push(entry.user_data(user_data));
    }

    /// Asks the kernel to give up a submission; it completes all the same. The completion of the
    /// asking itself carries `user_data`.
    pub fn cancel(&mut self, user_data: u64, of: u64) {
        #[cfg(test)]
        if self.stubborn {
            return;
        }
        let entry = opcode::AsyncCancel::new(of).build();
        self.push(entry.user_data(user_data));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: entries come from the functions above, whose callers keep what they refer to.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// Gives the kernel what was submitted and waits until there is a completion or `timeout` is
    /// over (`None`: for ever, zero: not at all).
    pub fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            if self.try_push(&entry) {
                continue;
            }
            self.backlog.push_front(entry);
            match self.uring.submit() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let timeout = if self.backlog.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let limit = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&limit);
                self.uring.submitter().submit_with_args(1, &args)
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel has completions that it shows only when it is entered.
    pub fn has_hidden_completions(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Moves what has completed to `to`.
    pub fn completions(&mut self, to: &mut Vec<Completion>) {
        to.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
        }));
    }

    /// Whether something is submitted that the kernel has not got yet.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.submission().is_empty()
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("backlog", &self.backlog.len())
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

/// A transfer between a file and one piece of memory, at an offset and with flags of pwritev2(2).
fn single(
    fd: Fd,
    is_read: bool,
    address: *mut u8,
    len: usize,
    (offset, how): (u64, i32),
) -> squeue::Entry {
    if is_read {
        opcode::Read::new(fd, address, length(len))
            .offset(offset)
            .build()
    } else {
        opcode::Write::new(fd, address, length(len))
            .offset(offset)
            .rw_flags(how)
            .build()
    }
}

/// A length for a submission; lengths are limited by `io::limits`.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Errors of io_uring_enter(2) after which the next attempt may succeed: a signal, the time-out,
/// too little memory for the moment, or completions to be taken first.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY)
    )
}

/// The best instance that the kernel has: completions are processed only when we ask for them
/// (6.1), or without interrupting us (5.19), or as ever.
fn build() -> Result<IoUring, SetupError> {
    let mut last = None;
    for attempt in 0..3 {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_clamp();
        match attempt {
            0 => builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag(),
            1 => builder.setup_coop_taskrun().setup_taskrun_flag(),
            _ => &mut builder,
        };
        match builder.build(ENTRIES) {
            Ok(uring) => return Ok(uring),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL) => last = Some(error),
                Some(libc::EPERM) => return Err(SetupError::Disabled),
                Some(libc::ENOSYS) => return Err(SetupError::TooOld),
                Some(libc::ENOMEM) => return Err(SetupError::Memory),
                _ => return Err(error.into()),
            },
        }
    }
    Err(last.map_or(SetupError::TooOld, SetupError::Io))
}
