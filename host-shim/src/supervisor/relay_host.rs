//! Starts the relay, watches over it, and starts another when it fails.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::kept::{Kept, KeptFd};
use crate::link::{FromRelay, Link, LinkError, MAX_FDS, Offer, Said, ToRelay};
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

/// This program, whatever became of its file: all processes of a shim are of one program, and
/// each must still start after an upgrade.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

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
    kept: Kept,
    link: Option<Link>,
    /// The same, as it is kept.
    kept_link: Option<KeptFd>,
    /// The last message of this relay that was taken in.
    heard: u64,
    /// By another supervisor, which may not have removed it.
    resumed: bool,
    child: Option<Child>,
    /// Its process, also where another supervisor started it.
    process: Option<KeptFd>,
    /// The end of a pipe: a relay whose pipe has none ends.
    lifeline: Option<KeptFd>,
    /// Killed, and not waited for yet.
    dying: Vec<Child>,
    /// When to look again whether they are gone.
    next_reap: Instant,
    /// One of them was ended by its sandbox.
    breach: bool,
    /// The tenant's connection, so that it ends when the relay does.
    tenant: Option<(UnixStream, KeptFd)>,
    /// The call that it waits for the answer of.
    asked: Option<u64>,
    started: Instant,
    ping: u32,
    /// When the unanswered ping was sent.
    pinged: Option<Instant>,
    next_ping: Instant,
}

/// A relay that goes on under a next supervisor; descriptors by their names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RelayRecord {
    link: u64,
    heard: u64,
    process: Option<u64>,
    lifeline: Option<u64>,
    tenant: Option<u64>,
    asked: Option<u64>,
    ping: u32,
}

impl RelayHost {
    pub fn new(
        kind: RelayKind,
        name: &str,
        listener: UnixListener,
        offer: Offer,
        kept: Kept,
        now: Instant,
    ) -> Self {
        Self {
            kept,
            kept_link: None,
            heard: 0,
            resumed: false,
            process: None,
            lifeline: None,
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

    /// What a next supervisor goes on from, if there is a relay.
    pub fn record(&self) -> Option<RelayRecord> {
        let name = |kept: &Option<KeptFd>| kept.as_ref().map(KeptFd::name);
        self.link.as_ref()?;
        Some(RelayRecord {
            link: name(&self.kept_link)?,
            heard: self.heard,
            process: name(&self.process),
            lifeline: name(&self.lifeline),
            tenant: self.tenant.as_ref().map(|(_, kept)| kept.name()),
            asked: self.asked,
            ping: self.ping,
        })
    }

    /// Goes on with the relay of a supervisor that is gone.
    ///
    /// # Errors
    /// What duplicating a descriptor gave, or `NotFound` if the link is not kept.
    pub fn restore(&mut self, now: Instant, record: &RelayRecord) -> io::Result<()> {
        let find = |name: Option<u64>| name.and_then(|name| self.kept.get(name));
        let link = find(Some(record.link)).ok_or(io::ErrorKind::NotFound)?;
        self.process = find(record.process);
        self.lifeline = find(record.lifeline);
        self.tenant = match find(record.tenant) {
            Some(kept) => Some((kept.as_fd().try_clone_to_owned()?.into(), kept)),
            None => None,
        };
        self.link = Some(Link::new(link.as_fd().try_clone_to_owned()?));
        self.kept_link = Some(link);
        self.heard = record.heard;
        self.resumed = true;
        self.asked = record.asked;
        self.ping = record.ping;
        self.pinged = None;
        self.next_ping = now;
        Ok(())
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
                self.process = process(&child).map(|process| self.kept.keep(process));
                self.child = Some(child);
                let (lifeline, held) = io::pipe()?;
                self.lifeline = Some(self.kept.keep(held.into()));
                // An empty socket takes it; a relay that is dead already is noticed by its link.
                let sent =
                    Link::new(ours.try_clone()?).send(&ToRelay::Lifeline, &[lifeline.as_fd()]);
                if let Err(error) = sent {
                    tracing::debug!(%error, "lifeline of the relay");
                }
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
        self.kept_link = Some(self.kept.keep(ours.try_clone()?));
        let link = Link::new(ours);
        if let Err(error) = link.send(&ToRelay::Offer(self.offer), &[]) {
            tracing::debug!(%error, "offer to the relay");
        }
        self.link = Some(link);
        self.heard = 0;
        self.resumed = false;
        self.pinged = None;
        self.next_ping = now + PING_EVERY;
        Ok(true)
    }

    /// The link's descriptor, to be watched.
    pub fn link_fd(&self) -> Option<RawFd> {
        self.link.as_ref().map(|link| link.as_fd().as_raw_fd())
    }

    /// Keeps a duplicate of the tenant's connection, or lets it go.
    ///
    /// # Errors
    /// What duplicating it once more gave.
    pub fn set_tenant(&mut self, connection: Option<KeptFd>) -> io::Result<()> {
        self.tenant = match connection {
            Some(kept) => Some((kept.as_fd().try_clone_to_owned()?.into(), kept)),
            None => None,
        };
        Ok(())
    }

    /// The next message, if one is there. It stays there until [`Self::taken_in`], so that a
    /// supervisor that dies meanwhile leaves it to the next.
    ///
    /// # Errors
    /// [`LinkError`]: the relay is of no use any more.
    pub fn receive(
        &mut self,
        now: Instant,
    ) -> Result<Option<(FromRelay, Vec<OwnedFd>)>, LinkError> {
        let (message, fds) = loop {
            let Some(link) = &self.link else {
                return Ok(None);
            };
            let Some((Said { number, message }, fds)) = link.peek()? else {
                return Ok(None);
            };
            // The supervisor before this one may have taken this in and not removed it, or have
            // removed signs of life, which are not written down.
            let resumed = std::mem::take(&mut self.resumed);
            if resumed && number == self.heard {
                link.skip()?;
                continue;
            }
            let next = self.heard.checked_add(1).ok_or_else(out_of_order)?;
            if number < next || (number > next && !resumed) {
                return Err(out_of_order());
            }
            self.heard = number;
            break (message, fds);
        };
        let most = match &message {
            FromRelay::Connected => 1,
            FromRelay::Call { .. } => MAX_FDS,
            FromRelay::Alive(_) | FromRelay::Disconnected(_) => 0,
        };
        if fds.len() > most {
            let reason = format!("{} descriptors where {most} may come", fds.len());
            return Err(LinkError::Malformed(reason));
        }
        match &message {
            FromRelay::Alive(number) if *number == self.ping => {
                self.pinged = None;
                self.next_ping = now + PING_EVERY;
            }
            FromRelay::Call { .. } if self.asked.is_some() => {
                let reason = "a call before the last one was answered";
                return Err(LinkError::Malformed(reason.into()));
            }
            FromRelay::Call { id, .. } => self.asked = Some(*id),
            FromRelay::Disconnected(_) => self.asked = None,
            _ => {}
        }
        Ok(Some((message, fds)))
    }

    /// The message that was received is taken in, and that is written down.
    ///
    /// # Errors
    /// [`LinkError`]: the relay is of no use any more.
    pub fn taken_in(&self) -> Result<(), LinkError> {
        self.link.as_ref().map_or(Ok(()), Link::skip)
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

    /// Whether a tenant's QEMU is connected.
    pub fn has_tenant(&self) -> bool {
        self.tenant.is_some()
    }

    /// When [`Self::tick`] or [`Self::start`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let of_relay = match (&self.link, self.pinged) {
            (None, _) => Some(self.started + RESTART),
            (Some(_), Some(at)) => Some(at + HEARTBEAT),
            (Some(_), None) => Some(self.next_ping),
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
        // Without a tenant, too: a relay that hangs takes no tenant in.
        if self.pinged.is_none() && now >= self.next_ping {
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
        if let Some(link) = self.link.take() {
            link.close();
        }
        self.kept_link = None;
        self.lifeline = None;
        self.asked = None;
        self.pinged = None;
        if let Some((tenant, _)) = self.tenant.take() {
            // Fails if the tenant's QEMU has closed it already.
            let _ = tenant.shutdown(std::net::Shutdown::Both);
        }
        if let Some(process) = self.process.take()
            && let Err(error) = pidfd_send_signal(&process, Signal::KILL)
        {
            tracing::debug!(%error, "relay was gone already");
        }
        self.dying.extend(self.child.take());
    }
}

fn out_of_order() -> LinkError {
    LinkError::Malformed("messages out of order".into())
}

/// A handle of a child's process that does not end with this one.
fn process(child: &Child) -> Option<OwnedFd> {
    // It is not waited for yet, so nobody else has its number.
    pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok()
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
        let kept = Kept::alone();
        let kind = RelayKind::Thread;
        let mut host = RelayHost::new(kind, "a", listener, offer, kept, Instant::now());
        let (ours, theirs) = Link::pair().unwrap();
        host.link = Some(Link::new(ours));
        (host, Link::new(theirs))
    }

    fn call(id: u64) -> FromRelay {
        let call = WireCall::GetBase(2);
        FromRelay::Call { id, call }
    }

    fn say(relay: &Link, number: u64, message: FromRelay) {
        relay.send(&Said { number, message }, &[]).unwrap();
    }

    fn receive(host: &mut RelayHost) -> Result<Option<FromRelay>, LinkError> {
        let received = host.receive(Instant::now())?;
        host.taken_in()?;
        Ok(received.map(|(message, _)| message))
    }

    #[test]
    fn a_relay_that_does_not_wait_for_its_answers_has_failed() {
        let (mut host, relay) = linked();
        say(&relay, 1, call(1));
        say(&relay, 2, call(2));
        assert_eq!(receive(&mut host).unwrap(), Some(call(1)));
        assert!(receive(&mut host).is_err());
    }

    #[test]
    fn an_answer_that_nobody_waits_for_any_more_is_not_sent() {
        let (mut host, relay) = linked();
        say(&relay, 1, call(1));
        say(&relay, 2, FromRelay::Disconnected(Ending::Closed));
        receive(&mut host).unwrap();
        receive(&mut host).unwrap();
        host.answer(1, Some(0), None).unwrap();
        assert!(relay.receive::<ToRelay>().unwrap().is_none());
    }

    #[test]
    fn a_message_that_was_taken_in_and_not_removed_is_not_heard_again() {
        let (mut host, relay) = linked();
        say(&relay, 1, call(1));
        say(&relay, 2, FromRelay::Connected);
        // The supervisor dies here, between the two.
        host.receive(Instant::now()).unwrap();
        host.resumed = true;
        assert_eq!(receive(&mut host).unwrap(), Some(FromRelay::Connected));
        assert_eq!(receive(&mut host).unwrap(), None);
    }

    #[test]
    fn signs_of_life_that_the_supervisor_before_has_removed_are_not_missed() {
        let (mut host, relay) = linked();
        host.heard = 1;
        host.resumed = true;
        say(&relay, 4, FromRelay::Connected);
        assert_eq!(receive(&mut host).unwrap(), Some(FromRelay::Connected));
        say(&relay, 6, FromRelay::Connected);
        assert!(receive(&mut host).is_err());
    }

    #[test]
    fn a_relay_that_sends_descriptors_where_none_belong_has_failed() {
        let (ours, also_ours) = io::pipe().unwrap();
        let fds = [ours.as_fd(), also_ours.as_fd()];
        for (message, count, is_taken) in [
            (FromRelay::Alive(0), 0, true),
            (FromRelay::Alive(0), 1, false),
            (FromRelay::Connected, 1, true),
            (FromRelay::Connected, 2, false),
            (FromRelay::Disconnected(Ending::Closed), 1, false),
            (call(1), 2, true),
        ] {
            let (mut host, relay) = linked();
            let said = format!("{message:?} with {count}");
            let message = Said { number: 1, message };
            relay.send(&message, &fds[..count]).unwrap();
            assert_eq!(receive(&mut host).is_ok(), is_taken, "{said}");
        }
    }

    #[test]
    fn a_relay_that_numbers_its_messages_as_it_likes_has_failed() {
        for number in [0, 2, u64::MAX] {
            let (mut host, relay) = linked();
            say(&relay, number, FromRelay::Connected);
            assert!(receive(&mut host).is_err(), "{number}");
        }
    }
}
