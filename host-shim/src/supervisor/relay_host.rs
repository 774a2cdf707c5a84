//! Starts the relay, watches over it, and starts another when it fails.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::link::{FromRelay, Link, LinkError, Offer, ToRelay};
use crate::relay;

/// How long a relay may take to answer a ping.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pause between pings. Nothing the shim owes anybody depends on a hung relay being noticed
/// sooner, and each ping wakes two processes.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Shortest time from one start to the next.
const RESTART: Duration = Duration::from_millis(500);

/// The command line argument that makes the program a relay; its link is on standard input, the
/// socket for the tenant on standard output.
pub const RELAY_COMMAND: &str = "relay";

/// The flag that has a relay leave out its sandbox.
const NO_SANDBOX: &str = "--no-sandbox";

/// This program, whatever became of its file: after an upgrade a relay must still start, because
/// the supervisor cannot be restarted without unplugging the function.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How the relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayKind {
    /// As a process of its own: this program, started again.
    Process {
        /// Whether it confines itself.
        sandbox: bool,
    },
    /// On a thread of this process, for tests: it cannot be killed, only cut off.
    Thread,
}

/// The relay and what is known about it.
#[derive(Debug)]
pub(super) struct RelayHost {
    kind: RelayKind,
    name: String,
    /// The socket for the tenant; it outlives every relay.
    listener: UnixListener,
    offer: Offer,
    link: Option<Link>,
    child: Option<Child>,
    /// Killed, and not waited for yet.
    dying: Vec<Child>,
    /// When to look again whether they are gone.
    next_reap: Instant,
    /// One of them was ended by its sandbox.
    breach: bool,
    /// The tenant's connection, so that it ends when the relay does.
    tenant: Option<UnixStream>,
    /// The call that it waits for the answer of.
    asked: Option<u64>,
    started: Instant,
    ping: u32,
    /// When the unanswered ping was sent.
    pinged: Option<Instant>,
    next_ping: Instant,
}

impl RelayHost {
    pub fn new(
        kind: RelayKind,
        name: &str,
        listener: UnixListener,
        offer: Offer,
        now: Instant,
    ) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            listener,
            offer,
            link: None,
            child: None,
            dying: Vec::new(),
            next_reap: now,
            breach: false,
            tenant: None,
            asked: None,
            started: now.checked_sub(RESTART).unwrap_or(now),
            ping: 0,
            pinged: None,
            next_ping: now,
        }
    }

    /// Starts a relay if there is none and it is time; whether it did. Its link is to be watched
    /// then.
    ///
    /// # Errors
    /// What starting a process or thread gave.
    pub fn start(&mut self, now: Instant) -> io::Result<bool> {
        if self.link.is_some() || now < self.started + RESTART {
            return Ok(false);
        }
        self.started = now;
        let (ours, theirs) = Link::pair()?;
        match self.kind {
            RelayKind::Process { sandbox } => {
                let child = Command::new(OWN_PROGRAM)
                    .args([RELAY_COMMAND, "--name", &self.name])
                    .args((!sandbox).then_some(NO_SANDBOX))
                    .stdin(Stdio::from(theirs))
                    .stdout(Stdio::from(OwnedFd::from(self.listener.try_clone()?)))
                    .spawn()?;
                self.child = Some(child);
            }
            RelayKind::Thread => {
                let listener = self.listener.try_clone()?;
                std::thread::Builder::new()
                    .name(format!("relay {}", self.name))
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        if let Err(error) = relay::serve(theirs, &listener) {
                            tracing::error!(%error, "relay ended");
                        }
                    })?;
            }
        }
        let link = Link::new(ours);
        // An empty socket takes it; a relay that is dead already is noticed by its link.
        if let Err(error) = link.send(&ToRelay::Offer(self.offer), &[]) {
            tracing::debug!(%error, "offer to the relay");
        }
        self.link = Some(link);
        self.pinged = None;
        self.next_ping = now + PING_EVERY;
        Ok(true)
    }

    /// The link's descriptor, to be watched.
    pub fn link_fd(&self) -> Option<RawFd> {
        use std::os::fd::AsFd;
        self.link.as_ref().map(|link| link.as_fd().as_raw_fd())
    }

    /// Keeps a duplicate of the tenant's connection, or lets it go.
    pub fn set_tenant(&mut self, connection: Option<UnixStream>) {
        self.tenant = connection;
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// [`LinkError`]: the relay is of no use any more.
    pub fn receive(
        &mut self,
        now: Instant,
    ) -> Result<Option<(FromRelay, Vec<OwnedFd>)>, LinkError> {
        let Some(link) = &self.link else {
            return Ok(None);
        };
        let received = link.receive()?;
        match &received {
            Some((FromRelay::Alive(number), _)) if *number == self.ping => {
                self.pinged = None;
                self.next_ping = now + PING_EVERY;
            }
            Some((FromRelay::Call { .. }, _)) if self.asked.is_some() => {
                let reason = "a call before the last one was answered";
                return Err(LinkError::Malformed(reason.into()));
            }
            Some((FromRelay::Call { id, .. }, _)) => self.asked = Some(*id),
            Some((FromRelay::Disconnected(_), _)) => self.asked = None,
            _ => {}
        }
        Ok(received)
    }

    /// Answers a call, with a descriptor if it asks for one; `None` refuses it.
    ///
    /// # Errors
    /// [`LinkError`]: the relay is of no use any more.
    pub fn answer(
        &mut self,
        id: u64,
        value: Option<u64>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), LinkError> {
        match &self.link {
            Some(link) if self.asked.take_if(|asked| *asked == id).is_some() => {
                let fds: Vec<_> = fd.into_iter().collect();
                link.send(&ToRelay::Answer { id, value }, &fds)
            }
            // It was asked by a relay, or for a tenant, that is gone.
            _ => Ok(()),
        }
    }

    /// When [`Self::tick`] or [`Self::start`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let of_relay = match (&self.link, self.pinged) {
            (None, _) => Some(self.started + RESTART),
            (Some(_), Some(at)) => Some(at + HEARTBEAT),
            (Some(_), None) => self.tenant.is_some().then_some(self.next_ping),
        };
        let of_dying = (!self.dying.is_empty()).then_some(self.next_reap);
        [of_relay, of_dying].into_iter().flatten().min()
    }

    /// Pings the relay when it is time; an error says that it has failed.
    ///
    /// # Errors
    /// Why the relay is of no use any more.
    pub fn tick(&mut self, now: Instant) -> Result<(), &'static str> {
        self.reap(now);
        let Some(link) = &self.link else {
            return Ok(());
        };
        if self.pinged.is_some_and(|at| now >= at + HEARTBEAT) {
            return Err("it gave no sign of life for 1 s");
        }
        if self.pinged.is_none() && self.tenant.is_some() && now >= self.next_ping {
            self.ping = self.ping.wrapping_add(1);
            self.pinged = Some(now);
            return link
                .send(&ToRelay::Ping(self.ping), &[])
                .map_err(|_| "it does not read its link");
        }
        Ok(())
    }

    /// Waits for those relays that are gone by now.
    fn reap(&mut self, now: Instant) {
        self.next_reap = now + RESTART;
        self.dying.retain_mut(|child| {
            let Ok(Some(ended)) = child.try_wait() else {
                return true;
            };
            self.breach |= ended.signal() == Some(libc::SIGSYS);
            false
        });
    }

    /// Whether a relay was ended by its sandbox since this was asked last; that is known a moment
    /// after its link is closed.
    pub fn take_breach(&mut self) -> bool {
        std::mem::take(&mut self.breach)
    }

    /// Ends the relay, and with it the tenant's connection.
    pub fn kill(&mut self) {
        self.link = None;
        self.asked = None;
        self.pinged = None;
        if let Some(tenant) = self.tenant.take() {
            // Fails if the tenant's QEMU has closed it already.
            let _ = tenant.shutdown(std::net::Shutdown::Both);
        }
        if let Some(mut child) = self.child.take() {
            if let Err(error) = child.kill() {
                tracing::debug!(%error, "relay was gone already");
            }
            self.dying.push(child);
        }
    }
}

impl Drop for RelayHost {
    fn drop(&mut self) {
        self.kill();
        for child in &mut self.dying {
            // SIGKILL was sent; this is the end of the supervisor, which may wait.
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Ending, WireCall};
    use vmm_sys_util::tempdir::TempDir;

    /// The supervisor's side, and the relay's end of its link.
    fn linked() -> (RelayHost, Link) {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.as_path().join("hba.sock")).unwrap();
        let offer = Offer {
            features: 0,
            request_queues: 1,
            inflight: true,
        };
        let mut host = RelayHost::new(RelayKind::Thread, "a", listener, offer, Instant::now());
        let (ours, theirs) = Link::pair().unwrap();
        host.link = Some(Link::new(ours));
        (host, Link::new(theirs))
    }

    fn call(id: u64) -> FromRelay {
        let call = WireCall::GetBase(2);
        FromRelay::Call { id, call }
    }

    fn receive(host: &mut RelayHost) -> Result<Option<FromRelay>, LinkError> {
        let received = host.receive(Instant::now())?;
        Ok(received.map(|(message, _)| message))
    }

    #[test]
    fn a_relay_that_does_not_wait_for_its_answers_has_failed() {
        let (mut host, relay) = linked();
        relay.send(&call(1), &[]).unwrap();
        relay.send(&call(2), &[]).unwrap();
        assert_eq!(receive(&mut host).unwrap(), Some(call(1)));
        assert!(receive(&mut host).is_err());
    }

    #[test]
    fn an_answer_that_nobody_waits_for_any_more_is_not_sent() {
        let (mut host, relay) = linked();
        relay.send(&call(1), &[]).unwrap();
        relay
            .send(&FromRelay::Disconnected(Ending::Closed), &[])
            .unwrap();
        receive(&mut host).unwrap();
        receive(&mut host).unwrap();
        host.answer(1, Some(0), None).unwrap();
        assert!(relay.receive::<ToRelay>().unwrap().is_none());
    }
}
