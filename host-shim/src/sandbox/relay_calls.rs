//! The system calls of a relay.
//!
//! It works on the descriptors that it was started with and those that a tenant sends. A call
//! that is not listed ends it, with a line in the kernel's audit log: it costs one tenant its
//! connection, and another relay is started.

use libc::c_long;
use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::filter::{Calls, FIONBIO, bits, has, is};

/// Calls on the link, the listener and the tenant's connection.
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Memory, time, locks, signals and the end of the process, as libc and Rust use them. The clock
/// is a system call where the vDSO cannot read it.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
];

/// Refused without ending the process, because libraries try them and do without:
/// * files: glibc 2.41 counts the CPUs in /sys before it first uses the vDSO's getrandom; Rust
///   looks for the program, its mappings and sources when a panic prints a backtrace
/// * `prctl`: glibc 2.39 names its mappings (`PR_SET_VMA`) where GLIBC_TUNABLES asks for that
const TRIED: &[c_long] = &[
    libc::SYS_fstat,
    libc::SYS_getcwd,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_statx,
];

/// The filters, to be applied in this order: the second takes away the means to apply one.
pub(super) fn filters() -> Result<[BpfProgram; 2], BackendError> {
    let applying = [libc::SYS_seccomp];
    let allowed = allowed()?
        .any(TRIED)
        .any(&applying)
        .program(SeccompAction::Allow, SeccompAction::KillProcess)?;
    let refused = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    let tried = Calls::default()
        .any(TRIED)
        .any(&applying)
        .program(refused, SeccompAction::Allow)?;
    Ok([allowed, tried])
}

fn allowed() -> Result<Calls, BackendError> {
    let executable = bits(libc::PROT_EXEC);
    let anonymous = bits(libc::MAP_ANONYMOUS);
    let mut calls = Calls::default()
        .any(DESCRIPTORS)
        .any(PROCESS)
        // No file is mapped, the tenant's memory least of all, and nothing becomes code.
        .when(
            libc::SYS_mmap,
            [has(2, executable, 0), has(3, anonymous, anonymous)],
        )?
        .when(libc::SYS_mprotect, [has(2, executable, 0)])?
        // set_nonblocking.
        .when(libc::SYS_ioctl, [is(1, FIONBIO)])?
        // send; an address would make it sendto.
        .when(libc::SYS_sendto, [has(4, u64::MAX, 0)])?
        // abort.
        .when(
            libc::SYS_tgkill,
            [
                is(0, std::process::id()),
                is(2, libc::SIGABRT.unsigned_abs()),
            ],
        )?;
    for command in [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ] {
        calls = calls.when(libc::SYS_fcntl, [is(1, command.unsigned_abs())])?;
    }
    Ok(calls)
}
