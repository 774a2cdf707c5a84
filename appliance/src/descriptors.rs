//! The limit on open descriptors (RLIMIT_NOFILE), raised for what frontends hand over.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spec::device::MAX_RINGS;
use spec::session::MEMORY_SLOTS;

/// Most descriptors that a frontend at one socket can make us hold: a file for each memory region;
/// for each ring its call, its kick, the worker's copy of that, and its error eventfd; and for the
/// connection, the worker and one message's files.
const SOCKET: u64 = MEMORY_SLOTS as u64 + 4 * MAX_RINGS as u64 + 64;
/// Most descriptors of a worker that is not the first of its HBA: its io_uring, and what it is woken
/// by.
const WORKER: u64 = 8;
/// Most descriptors of a LUN.
const LUN: u64 = 4;
/// Most descriptors of the program itself.
const PROGRAM: u64 = 64;

/// Fewer descriptors than frontends can use up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "at most {limit} files may be open, but frontends at {sockets} sockets can use up {needed}: one \
     that does so keeps the others from being served; set LimitNOFILE={needed} in the systemd unit, \
     or ulimit -n {needed} before the start"
)]
pub struct TooFew {
    /// The hard limit.
    pub limit: u64,
    /// How many sockets there are.
    pub sockets: usize,
    /// What is needed for them.
    pub needed: u64,
}

/// Raises the soft limit to the hard one, which is returned; `None` if there is none. It is said in
/// the log if that fails.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!("the limit on open files cannot be raised: {error}");
            current
        }
    }
}

/// Whether `limit` descriptors are enough for so many sockets, LUNs, and workers beside the first of
/// each HBA.
///
/// # Errors
/// [`TooFew`] if not.
pub fn check(
    limit: Option<u64>,
    sockets: usize,
    luns: usize,
    workers: usize,
) -> Result<(), TooFew> {
    let (places, disks) = (sockets as u64, luns as u64);
    let needed = PROGRAM
        .saturating_add(SOCKET.saturating_mul(places))
        .saturating_add(LUN.saturating_mul(disks))
        .saturating_add(WORKER.saturating_mul(workers as u64));
    match limit {
        Some(limit) if limit < needed => Err(TooFew {
            limit,
            sockets,
            needed,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sockets_need_more_descriptors_than_the_usual_soft_limit() {
        let error = check(Some(1024), 2, 1, 0).unwrap_err();
        // 64, 4 for the LUN, and 512 + 4 * 128 + 64 for each socket.
        assert_eq!(error.needed, 2244);
        let text = error.to_string();
        assert!(text.contains("LimitNOFILE=2244"), "{text}");
        assert_eq!(check(Some(2244), 2, 1, 0), Ok(()));
        assert!(check(Some(2243), 2, 1, 0).is_err());
        assert_eq!(check(None, 2, 1, 0), Ok(()));
        // Three workers more.
        assert_eq!(check(Some(2244), 2, 1, 3).unwrap_err().needed, 2268);
    }
}
