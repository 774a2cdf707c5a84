//! The keeper: holds a duplicate of every descriptor that the supervisor cannot get again, and
//! starts another supervisor when one is killed or hangs.
//!
//! It is the process that the user starts, and it parses nothing that comes from either VM: the
//! descriptors are numbers with a name to it. While it has them, no connection is closed; the
//! QEMUs on their other ends wait. A keeper that is killed is started again by its supervisor.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::kept::{FromKeeper, ToKeeper};
use crate::link::{Link, LinkError, MAX_FDS};
use crate::supervisor::{OWN_PROGRAM, Report, Stop};

/// The command line argument that makes the program a supervisor, whose link to its keeper is on
/// standard input.
pub const SUPERVISOR_COMMAND: &str = "supervise";
/// How long a supervisor may take to answer a ping.
const HEARTBEAT: Duration = Duration::from_millis(1500);
/// Pause between pings while the storage VM has the function.
const PING_EVERY: Duration = Duration::from_millis(1500);
/// How long storage QEMU waits for an answer.
const QEMU_PATIENCE: Duration = Duration::from_secs(5);
const _: () = assert!(
    HEARTBEAT.as_millis() + PING_EVERY.as_millis() + 1000 < QEMU_PATIENCE.as_millis(),
    "a supervisor that hangs is replaced before storage QEMU gives up"
);
/// Supervisors that may end by a fault of their own in [`FAULT_PERIOD`].
const MAX_FAULTS: usize = 5;
/// See [`MAX_FAULTS`].
const FAULT_PERIOD: Duration = Duration::from_secs(60);

/// Pause before a supervisor that could not be started is tried again, for as long as
/// [`FAULT_PERIOD`].
const RESTART: Duration = Duration::from_millis(500);

/// Why a keeper gave up.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The supervisor said in the log why it does not go on.
    #[error("the supervisor of this HBA has failed ({0}); the line before this one says why")]
    Failed(ExitStatus),
    /// It ends by itself whenever it is started.
    #[error(
        "the supervisor of this HBA ended {MAX_FAULTS} times within a minute, last by {0}; a bug of host-shim: please report it"
    )]
    Faulty(ExitStatus),
    /// The link to the supervisor.
    #[error("link to the supervisor: {0}")]
    Link(#[from] LinkError),
    /// The system refused.
    #[error("keeper: {0}")]
    Io(#[from] io::Error),
}

/// See the module's text.
#[derive(Debug)]
pub struct Keeper {
    /// Of `run`, for the next supervisor.
    arguments: Vec<OsString>,
    fds: BTreeMap<u64, OwnedFd>,
    link: Link,
    child: Option<Child>,
    process: Option<OwnedFd>,
    /// The storage VM has the function.
    watch: bool,
    ping: u32,
    pinged: Option<Instant>,
    next_ping: Instant,
    /// The supervisor has ended in order.
    done: bool,
    /// When supervisors ended by a fault.
    faults: Vec<Instant>,
    stop: Stop,
    /// Asked to stop.
    stopping: bool,
    report: Report,
}

impl Keeper {
    /// Keeps `fds`, and starts the first supervisor with the `arguments` of `run`.
    ///
    /// # Errors
    /// [`KeeperError`] if it cannot be started.
    pub fn start(
        arguments: Vec<OsString>,
        fds: BTreeMap<u64, OwnedFd>,
        stop: Stop,
        report: Report,
    ) -> Result<Self, KeeperError> {
        // Nobody is at its other end, and nothing is said through it.
        let (link, _) = Link::pair()?;
        let mut keeper = Self::new(arguments, link, stop, report);
        keeper.fds = fds;
        keeper.start_supervisor()?;
        Ok(keeper)
    }

    /// Keeps what the supervisor at the other end of `link` gives, whose keeper was killed.
    pub fn follow(arguments: Vec<OsString>, link: OwnedFd, stop: Stop, report: Report) -> Self {
        let peer = socket_peercred(&link).ok();
        let process = peer.and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()).ok());
        let mut keeper = Self::new(arguments, link, stop, report);
        keeper.process = process;
        keeper
    }

    fn new(arguments: Vec<OsString>, link: OwnedFd, stop: Stop, report: Report) -> Self {
        Self {
            arguments,
            fds: BTreeMap::new(),
            link: Link::new(link),
            child: None,
            process: None,
            watch: false,
            ping: 0,
            pinged: None,
            next_ping: Instant::now(),
            done: false,
            faults: Vec::new(),
            stop,
            stopping: false,
            report,
        }
    }

    /// Keeps until the supervisor has ended in order.
    ///
    /// # Errors
    /// [`KeeperError`]: what was kept is let go, as if all were killed.
    pub fn run(mut self) -> Result<(), KeeperError> {
        loop {
            self.wait()?;
            for _ in 0..self.stop.asked() {
                self.stopping = true;
                self.say(&FromKeeper::Stop);
            }
            if self.report.is_asked() {
                self.say(&FromKeeper::Report);
            }
            let gone = match self.hear() {
                Ok(()) => self.check_heart(Instant::now()),
                Err(LinkError::Closed) => true,
                Err(error) => {
                    tracing::error!(%error, "the supervisor is replaced");
                    true
                }
            };
            if gone && self.supervisor_gone()? {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<(), KeeperError> {
        let timeout = self.deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            // A little more, so that it is over then.
            Timespec::try_from(left + Duration::from_millis(1)).unwrap_or_default()
        });
        let mut fds = [
            PollFd::from_borrowed_fd(self.link.as_fd(), PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.report, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.pinged {
            Some(at) => Some(at + HEARTBEAT),
            None => self.watch.then_some(self.next_ping),
        }
    }

    /// Takes in all that the supervisor has said.
    fn hear(&mut self) -> Result<(), LinkError> {
        while let Some((message, fds)) = self.link.receive()? {
            match message {
                ToKeeper::Keep(names) => self.fds.extend(names.into_iter().zip(fds)),
                ToKeeper::Drop(names) => {
                    for name in names {
                        self.fds.remove(&name);
                    }
                }
                ToKeeper::Alive(number) if number == self.ping => {
                    self.pinged = None;
                    self.next_ping = Instant::now() + PING_EVERY;
                }
                ToKeeper::Alive(_) => {}
                ToKeeper::Watch(watch) => {
                    self.watch = watch;
                    self.next_ping = Instant::now() + PING_EVERY;
                }
                ToKeeper::Done => self.done = true,
            }
        }
        Ok(())
    }

    /// Pings when it is time; whether the supervisor has failed.
    fn check_heart(&mut self, now: Instant) -> bool {
        if self.pinged.is_some_and(|at| now >= at + HEARTBEAT) {
            tracing::error!(
                "the supervisor gave no sign of life for {} ms; another goes on for it",
                HEARTBEAT.as_millis()
            );
            return true;
        }
        if self.watch && self.pinged.is_none() && now >= self.next_ping {
            self.ping = self.ping.wrapping_add(1);
            self.pinged = Some(now);
            self.say(&FromKeeper::Ping(self.ping));
        }
        false
    }

    /// The supervisor is gone, or is to be. Starts another, unless it ended in order (`true`).
    fn supervisor_gone(&mut self) -> Result<bool, KeeperError> {
        if let Some(process) = self.process.take() {
            // Fails if it has ended already.
            let _ = pidfd_send_signal(&process, Signal::KILL);
        } else if let Some(child) = &mut self.child {
            // There was no descriptor left for a handle of it.
            let _ = child.kill();
        }
        // What it gave before it died is still in the link, which closes when it is dead.
        self.hear_the_last()?;
        let ended = match &mut self.child {
            Some(child) => Some(child.wait()?),
            None => None,
        };
        self.child = None;
        if self.done {
            return Ok(true);
        }
        if let Some(ended) = ended {
            self.judge(ended)?;
        }
        self.start_another()?;
        if self.stopping {
            self.say(&FromKeeper::Stop);
        }
        Ok(false)
    }

    fn hear_the_last(&mut self) -> Result<(), KeeperError> {
        loop {
            match self.hear() {
                Ok(()) => {}
                Err(LinkError::Io(error)) => return Err(error.into()),
                Err(LinkError::Malformed(_)) => continue,
                Err(LinkError::Closed | LinkError::Full) => return Ok(()),
            }
            let mut fds = [PollFd::from_borrowed_fd(self.link.as_fd(), PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut fds, None)).map_err(io::Error::from)?;
        }
    }

    /// Whether there is a point in another supervisor. One that somebody killed says nothing
    /// about the next; one that fails by itself may fail again.
    fn judge(&mut self, ended: ExitStatus) -> Result<(), KeeperError> {
        if ended.code().is_some() {
            return Err(KeeperError::Failed(ended));
        }
        if ended.signal() == Some(libc::SIGKILL) {
            return Ok(());
        }
        let now = Instant::now();
        self.faults
            .retain(|at| now.saturating_duration_since(*at) < FAULT_PERIOD);
        self.faults.push(now);
        if self.faults.len() >= MAX_FAULTS {
            return Err(KeeperError::Faulty(ended));
        }
        tracing::error!("the supervisor ended by {ended}; another goes on for it");
        Ok(())
    }

    /// Starts the next supervisor. What the system lacks for it now it may have in a moment, and
    /// nobody gets back what is let go here.
    fn start_another(&mut self) -> Result<(), KeeperError> {
        let until = Instant::now() + FAULT_PERIOD;
        loop {
            let Err(error) = self.start_supervisor() else {
                return Ok(());
            };
            if Instant::now() >= until {
                return Err(error);
            }
            tracing::error!(%error, "no supervisor can be started; it is tried again");
            let pause = Timespec::try_from(RESTART).unwrap_or_default();
            // A signal makes it shorter.
            let _ = poll(&mut [], Some(&pause));
        }
    }

    fn start_supervisor(&mut self) -> Result<(), KeeperError> {
        let (ours, theirs) = Link::pair()?;
        let child = Command::new(OWN_PROGRAM)
            .arg(SUPERVISOR_COMMAND)
            .args(&self.arguments)
            .stdin(Stdio::from(theirs))
            .spawn()?;
        Ok(self.hand_over(child, Link::new(ours))?)
    }

    /// Gives everything to `child`, which is at the other end of `link`.
    fn hand_over(&mut self, mut child: Child, link: Link) -> Result<(), LinkError> {
        match self.give_all(&link) {
            Ok(()) => {}
            // It has died meanwhile, which its link says again.
            Err(LinkError::Closed) => tracing::debug!("the supervisor ended before it began"),
            Err(error) => {
                // It has not begun, so it ends with its link, if not by this.
                drop(link);
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
        }
        self.process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        self.child = Some(child);
        self.link = link;
        self.pinged = None;
        self.next_ping = Instant::now() + PING_EVERY;
        Ok(())
    }

    fn give_all(&self, link: &Link) -> Result<(), LinkError> {
        let all: Vec<_> = self.fds.iter().collect();
        for some in all.chunks(MAX_FDS) {
            let names = some.iter().map(|(name, _)| **name).collect();
            let fds: Vec<_> = some.iter().map(|(_, fd)| fd.as_fd()).collect();
            link.send(&FromKeeper::Has(names), &fds)?;
        }
        link.send(&FromKeeper::Begin(std::process::id()), &[])
    }

    /// A supervisor that is gone, or does not listen, is noticed by its link.
    fn say(&self, message: &FromKeeper) {
        if let Err(error) = self.link.send(message, &[]) {
            tracing::debug!(%error, "supervisor");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_killed_while_it_is_given_everything_does_not_end_its_keeper() {
        let (stop, report) = (Stop::new().unwrap(), Report::new().unwrap());
        let (before, _) = Link::pair().unwrap();
        let mut keeper = Keeper::new(Vec::new(), before, stop, report);
        let fds = (16..99).map(|name| (name, io::pipe().unwrap().0.into()));
        keeper.fds = fds.collect();
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        child.kill().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        drop(theirs);

        keeper.hand_over(child, Link::new(ours)).unwrap();

        assert!(matches!(keeper.hear(), Err(LinkError::Closed)));
        let ended = keeper.child.take().unwrap().wait().unwrap();
        keeper.judge(ended).unwrap();
        assert_eq!(keeper.fds.len(), 83);
    }
}
