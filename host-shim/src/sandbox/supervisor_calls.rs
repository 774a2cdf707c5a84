//! The system calls of supervisor and keeper, which start each other, and of the relay until that
//! has a list of its own.
//!
//! The storage VM's QEMU may abort when its supervisor ends. So a call that is not listed is
//! refused as by a kernel that does not have it (`ENOSYS`): a libc newer than the list falls back
//! to the older call, and what has none fails by itself. Only what neither this program nor a
//! libc makes ends the process, with a line in the kernel's audit log.

use libc::c_long;
use seccompiler::{BackendError, BpfProgram, SeccompAction};

use super::filter::{Calls, FIONBIO, bits, has, is, is_not};

/// Calls on sockets, eventfds, session memory and what is polled.
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_getsockopt,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Lock files, sockets and libraries, as far as Landlock allows them, and /proc/self/fd.
const FILES: &[c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_flock,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
];

/// Processes, memory, time and signals, as libc, Rust and the dynamic loader use them.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // The relay confines itself.
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_seccomp,
];

/// What other architectures do by the calls above.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[c_long] = &[];

/// Options of prctl(2): what [`crate::privileges`] and the sandbox ask for, and names of
/// mappings.
const PRCTL: &[u32] = &[
    libc::PR_SET_DUMPABLE.unsigned_abs(),
    libc::PR_SET_NO_NEW_PRIVS.unsigned_abs(),
    libc::PR_GET_NO_NEW_PRIVS.unsigned_abs(),
    // PR_SET_VMA
    0x5356_4d41,
];

/// What nobody but an attacker asks for: other processes' memory, the kernel's machinery, other
/// users, mounts, keys, namespaces.
const ATTACKS: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setns,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_settimeofday,
    libc::SYS_setuid,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Flags of clone(2) that make a namespace.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The filters.
pub(super) fn filters() -> Result<[BpfProgram; 2], BackendError> {
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let allowed = allowed()?.program(SeccompAction::Allow, unknown)?;
    let attacks = attacks()?.program(SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok([allowed, attacks])
}

/// clone3 is not among them: a filter cannot see its flags, and libc falls back to clone.
fn allowed() -> Result<Calls, BackendError> {
    let unix = libc::AF_UNIX.unsigned_abs();
    let mut calls = Calls::default()
        .any(DESCRIPTORS)
        .any(FILES)
        .any(PROCESS)
        .any(LEGACY)
        .when(libc::SYS_socket, [is(0, unix)])?
        .when(libc::SYS_socketpair, [is(0, unix)])?
        .when(libc::SYS_ioctl, [is(1, FIONBIO)])?
        // isatty, of a relay that starts.
        .when(libc::SYS_ioctl, [is(1, TCGETS)])?;
    for &option in PRCTL {
        calls = calls.when(libc::SYS_prctl, [is(0, option)])?;
    }
    Ok(calls)
}

/// The ioctl behind isatty(3).
const TCGETS: u32 = 0x5401;

fn attacks() -> Result<Calls, BackendError> {
    let unix = libc::AF_UNIX.unsigned_abs();
    let both = bits(libc::PROT_WRITE | libc::PROT_EXEC);
    let mut calls = Calls::default()
        .any(ATTACKS)
        .when(libc::SYS_socket, [is_not(0, unix)])?
        .when(libc::SYS_socketpair, [is_not(0, unix)])?
        .when(libc::SYS_mmap, [has(2, both, both)])?
        .when(libc::SYS_mprotect, [has(2, both, both)])?;
    for &namespace in NAMESPACES {
        let flag = bits(namespace);
        calls = calls.when(libc::SYS_clone, [has(0, flag, flag)])?;
    }
    Ok(calls)
}
