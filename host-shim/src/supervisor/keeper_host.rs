//! The supervisor's side of the keeper: does what it says, and starts another when it is gone.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::relay_host::OWN_PROGRAM;
use super::{KEEPER, Supervisor};
use crate::kept::{FromKeeper, ToKeeper};
use crate::link::{Link, LinkError};

/// The command line argument that makes the program the keeper of a running supervisor, whose
/// link is on standard input.
pub const KEEPER_COMMAND: &str = "keep";
/// Shortest time from one start to the next.
const RESTART: Duration = Duration::from_millis(500);
/// How long a shim that nobody uses goes on after the process was killed that its user started:
/// whoever that is may not know that there is anything left to end.
const UNUSED: Duration = Duration::from_secs(60);

/// The keeper of a supervisor that starts.
#[derive(Debug)]
pub struct KeeperProcess {
    /// Its process id.
    pub id: u32,
    /// The arguments of `run`, for the next one.
    pub arguments: Vec<OsString>,
}

/// The keeper and what is known about it.
#[derive(Debug)]
pub(super) struct KeeperHost {
    arguments: Vec<OsString>,
    process: Option<OwnedFd>,
    /// Started by this process.
    child: Option<Child>,
    /// Killed or ended, and not waited for yet.
    ended: Vec<Child>,
    started: Option<Instant>,
    /// There is none.
    missing: bool,
    /// Since when nobody uses an HBA whose first keeper is gone.
    unused_since: Option<Instant>,
    /// The process that the user started is gone.
    orphan: bool,
}

impl KeeperHost {
    pub fn new(keeper: KeeperProcess) -> Self {
        Self {
            arguments: keeper.arguments,
            process: open_process(keeper.id),
            child: None,
            ended: Vec::new(),
            started: None,
            missing: false,
            unused_since: None,
            orphan: false,
        }
    }

    /// Whether the process that the user started is gone.
    pub fn is_orphan(&self) -> bool {
        self.orphan
    }

    /// Goes on as the keeper of a supervisor that is gone, which has written down whether that
    /// process was.
    pub fn restore(&mut self, orphan: bool) {
        self.orphan |= orphan;
    }

    /// When the supervisor has something to do about it.
    pub fn deadline(&self) -> Option<Instant> {
        let restart = self.missing.then(|| self.started.map(|at| at + RESTART));
        let unused = self.unused_since.map(|at| at + UNUSED);
        [restart.flatten(), unused].into_iter().flatten().min()
    }

    /// Starts another; the supervisor's end of its link.
    fn start(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = Link::pair()?;
        let child = Command::new(OWN_PROGRAM)
            .arg(KEEPER_COMMAND)
            .args(&self.arguments)
            .stdin(Stdio::from(theirs))
            .spawn()?;
        self.process = open_process(child.id());
        self.child = Some(child);
        Ok(ours)
    }

    fn kill(&mut self) {
        // It must not take this supervisor for dead, and start another.
        if let Some(process) = self.process.take() {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
        self.ended.extend(self.child.take());
        self.ended
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    }
}

/// A handle of a process that lives: the child or the parent of this one.
fn open_process(id: u32) -> Option<OwnedFd> {
    let id = Pid::from_raw(i32::try_from(id).ok()?)?;
    pidfd_open(id, PidfdFlags::empty()).ok()
}

impl Supervisor {
    /// Watches the link to the keeper.
    pub(super) fn watch_keeper(&self) -> io::Result<()> {
        let Some(fd) = self.kept.link_fd() else {
            return Ok(());
        };
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&fd), KEEPER, Interest::READABLE)
    }

    /// Does what the keeper says.
    pub(super) fn hear_keeper(&mut self) {
        loop {
            match self.kept.hear() {
                Ok(Some(FromKeeper::Ping(number))) => self.kept.tell(&ToKeeper::Alive(number)),
                Ok(Some(FromKeeper::Stop)) => self.stop_now(1),
                Ok(Some(FromKeeper::Report)) => self.counters.report(&self.name),
                Ok(Some(FromKeeper::Has(_) | FromKeeper::Begin(_))) => {}
                Ok(None) => return,
                Err(error) => return self.keeper_lost(&error),
            }
        }
    }

    fn keeper_lost(&mut self, error: &LinkError) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        keeper.kill();
        keeper.missing = true;
        self.kept.change_keeper(None);
        self.complain(&format!("keeper failed: {error}; another is started"));
    }

    /// Starts a keeper where there is none, and ends an HBA that is left alone for too long.
    pub(super) fn keep_keeper(&mut self, now: Instant) {
        if self.kept.has_failed() {
            self.keeper_lost(&LinkError::Full);
        }
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        if keeper.missing && keeper.started.is_none_or(|at| now >= at + RESTART) {
            keeper.started = Some(now);
            keeper.orphan = true;
            self.changed = true;
            match keeper.start() {
                Ok(link) => {
                    keeper.missing = false;
                    self.kept.change_keeper(Some(Link::new(link)));
                    self.kept.tell(&ToKeeper::Watch(self.connection.is_some()));
                    if let Err(error) = self.watch_keeper() {
                        self.complain(&format!("keeper: {error}"));
                    }
                }
                Err(error) => self.complain(&format!("keeper cannot be started: {error}")),
            }
        }
        self.end_when_unused(now);
    }

    fn end_when_unused(&mut self, now: Instant) {
        let used = self.connection.is_some()
            || self.relay.has_tenant()
            || !self.window.is_closed()
            || self.stopping.is_some();
        let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.orphan) else {
            return;
        };
        if used {
            keeper.unused_since = None;
        } else if now >= *keeper.unused_since.get_or_insert(now) + UNUSED {
            tracing::warn!(
                hba = %self.name,
                "the process that was started first is gone, and no VM has used this HBA for {} s",
                UNUSED.as_secs()
            );
            self.stop_now(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_exist_cannot_be_opened() {
        assert!(open_process(0).is_none());
        assert!(open_process(std::process::id()).is_some());
    }
}
