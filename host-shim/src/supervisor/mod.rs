//! The supervisor: one loop that owns the function, the session and everything that connects
//! them, and never waits for anybody.
//!
//! The storage VM's QEMU freezes while the shim does not answer it, so nothing here blocks:
//! sockets and eventfds are polled, QMP is a state machine, timers are the poll's timeout. What
//! the tenant's QEMU says comes through the relay, a process that may die.

mod appliance;
mod counters;
mod handover;
mod inflight;
mod keeper_host;
mod relay_host;
mod status;
mod storage;
mod tenant;
mod tenant_fd;
#[cfg(test)]
mod tests;
mod vigil;
mod window;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use spec::virtio_scsi::FIRST_REQUEST_QUEUE;
use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::complaints::Complaints;
use crate::device::{Profile, VhostPci};
use crate::journal::Journal;
use crate::kept::{Kept, KeptFd, ToKeeper};
use crate::link::Offer;
use crate::log_budget::LogBudget;
use crate::plug::QmpPlug;
use crate::session::{Event, Limits, Session};
use crate::vfio_user::Connection;
use counters::Counters;
pub use counters::Report;
use inflight::Inflight;
use keeper_host::KeeperHost;
pub use keeper_host::{KEEPER_COMMAND, KeeperProcess};
pub(crate) use relay_host::OWN_PROGRAM;
use relay_host::RelayHost;
pub use relay_host::{RELAY_COMMAND, RelayKind};
use status::StatusSocket;
use tenant::RingEvents;
use tenant_fd::file_facts;
use vigil::Vigil;
use window::Window;

const STOP: Token = Token(0);
const LISTENER: Token = Token(1);
const CONNECTION: Token = Token(2);
const RELAY: Token = Token(3);
const QMP: Token = Token(4);
const REPORT: Token = Token(5);
const KEEPER: Token = Token(6);
const STATUS: Token = Token(7);
/// The kick eventfd of ring `i` has token `FIRST_KICK + i`.
const FIRST_KICK: usize = 16;
/// Events taken from one poll.
const EVENTS: usize = 64;
/// How long after the session and the appliance had their time an orderly end may take.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Virtio features offered to a tenant unless told otherwise.
pub const DEFAULT_FEATURES: u64 = {
    use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
    use spec::virtio_scsi::feature;
    VERSION_1 | INDIRECT_DESC | EVENT_IDX | feature::HOTPLUG | feature::CHANGE | feature::INOUT
};

/// Times of a [`Config`] unless told otherwise.
pub mod default_time {
    use std::time::Duration;

    /// [`super::Config::drain_timeout`].
    pub const DRAIN: Duration = Duration::from_secs(10);
    /// [`super::Config::attach_timeout`].
    pub const ATTACH: Duration = Duration::from_secs(30);
    /// [`super::Config::grace`]: a QEMU with reconnect-ms=1000 is back in little more than a
    /// second.
    pub const GRACE: Duration = Duration::from_secs(3);
    /// [`super::Config::doorbell_poll`].
    pub const DOORBELL_POLL: Duration = Duration::from_micros(50);
}

/// How the function gets into the storage VM.
pub enum Plug {
    /// Through QMP, when a tenant starts its first ring.
    Qmp(Box<QmpPlug>),
    /// It is there from the start; the tenant's memory is this file, which only the operator may
    /// write.
    Cold(KeptFd),
    /// Somebody else does it when told: `true` to connect to the vfio-user socket, `false` to
    /// close that connection. Must not block.
    Manual(Box<dyn FnMut(bool) + Send>),
}

/// What a supervisor is started with.
pub struct Config {
    /// The function.
    pub profile: Profile,
    /// Virtio feature bits offered to the tenant.
    pub features: u64,
    /// Where the tenant's QEMU connects.
    pub vhost_user: UnixListener,
    /// Where the storage VM's QEMU connects.
    pub vfio_user: UnixListener,
    /// How the relay runs.
    pub relay: RelayKind,
    /// How the function gets into the storage VM.
    pub plug: Plug,
    /// How long the appliance may take to answer, and to drain a ring.
    pub drain_timeout: Duration,
    /// How long a plugged function may be without an appliance before that is reported.
    pub attach_timeout: Duration,
    /// How long the function stays plugged after the tenant disconnected.
    pub grace: Duration,
    /// How long call counters are polled after the last call, where that is not in vain.
    pub doorbell_poll: Duration,
    /// Where others ask what it does, if they may.
    pub status: Option<UnixListener>,
    /// What outlives this process.
    pub kept: Kept,
    /// Who keeps it, if that is another process.
    pub keeper: Option<KeeperProcess>,
}

impl Config {
    /// A configuration with the default features and times.
    pub fn new(
        profile: Profile,
        vhost_user: UnixListener,
        vfio_user: UnixListener,
        relay: RelayKind,
        plug: Plug,
    ) -> Self {
        Self {
            profile,
            features: DEFAULT_FEATURES,
            vhost_user,
            vfio_user,
            relay,
            plug,
            drain_timeout: default_time::DRAIN,
            attach_timeout: default_time::ATTACH,
            grace: default_time::GRACE,
            doorbell_poll: default_time::DOORBELL_POLL,
            status: None,
            kept: Kept::alone(),
            keeper: None,
        }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0)
    }
}

/// An eventfd, which is open for as long as it is borrowed.
#[expect(unsafe_code, reason = "EventFd has no AsFd")]
fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is that of `eventfd`, which lives as long as the result.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

/// Stops a supervisor from another thread or a signal handler.
#[derive(Debug, Clone)]
pub struct Stop(Arc<EventFd>);

impl Stop {
    /// A new one, which nobody has asked.
    ///
    /// # Errors
    /// What `eventfd` gave.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
    }

    /// How often it was asked since this was called last.
    pub fn asked(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }

    /// Asks for an orderly end; asking twice ends at once.
    pub fn stop(&self) {
        // Only fails if the supervisor has been asked 2^64 times.
        let _ = self.0.write(1);
    }
}

/// See the module's text.
pub struct Supervisor {
    name: String,
    hba: Uuid,
    began: Instant,
    poll: Poll,
    stop: Stop,
    /// When an end that is under way is over at the latest.
    stopping: Option<Instant>,
    /// Asked to stop twice.
    abandon: bool,
    device: VhostPci,
    session: Session,
    relay: RelayHost,
    rings: Vec<RingEvents>,
    listener: mio::net::UnixListener,
    connection: Option<Connection>,
    /// The connection has more to read than was read.
    more: bool,
    /// So has the relay's link.
    relay_more: bool,
    window: Window,
    /// The file of the tenant's memory, by the first descriptor that came.
    memory: Option<(crate::session::FileId, KeptFd)>,
    /// In-flight memory that the tenant's QEMU has.
    inflight: Inflight,
    /// The tenant's driver has accepted features in this connection.
    started: bool,
    /// When an appliance should have attached.
    attach_by: Option<Instant>,
    attach_timeout: Duration,
    drain_timeout: Duration,
    /// Whether call counters are polled; asleep, the appliance rings.
    vigil: Vigil,
    complaints: Complaints,
    counters: Counters,
    report: Report,
    status: Option<StatusSocket>,
    /// For what tenants and appliances do all the time, told apart so that neither hides the
    /// other.
    notes: [LogBudget; 2],
    kept: Kept,
    keeper: Option<KeeperHost>,
    journal: Arc<Mutex<Journal>>,
    /// Something changed since the last commit.
    changed: bool,
    /// It goes on for another supervisor.
    resumed: bool,
}

/// Whose doings a note is about.
#[derive(Debug, Clone, Copy)]
enum About {
    Tenant,
    StorageVm,
}

impl Supervisor {
    /// Sets everything up; nothing is served before [`Self::run`].
    ///
    /// # Errors
    /// What the system refused, with the thing's name.
    pub fn new(config: Config) -> io::Result<Self> {
        let now = Instant::now();
        let poll = Poll::new()?;
        let stop = Stop::new()?;
        let registry = poll.registry();
        registry.register(&mut SourceFd(&stop.0.as_raw_fd()), STOP, Interest::READABLE)?;
        let report = Report::new()?;
        registry.register(
            &mut SourceFd(&report.as_raw_fd()),
            REPORT,
            Interest::READABLE,
        )?;
        config.vfio_user.set_nonblocking(true)?;
        let mut listener = mio::net::UnixListener::from_std(config.vfio_user);
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;

        let mut device = VhostPci::new(&config.profile)?;
        let kept = config.kept;
        let (journal, records) = handover::open(&kept)?;
        let (mut window, trusted) = Window::new(config.plug, config.grace, &mut device)?;
        let rings = config.profile.rings;
        let mut session = Session::new(Limits {
            rings,
            features: config.features,
            patience: config.drain_timeout,
            trusted,
        });
        session.handle(now, Event::Window(window.file()));
        window.keep(&kept);
        if records.is_none() {
            device.keep(&kept)?;
        }
        if let Some(memory) = device.inflight_memory() {
            let facts = file_facts(memory.fd())?;
            session.handle(now, Event::Inflight(facts.id));
        }
        let status = config.status;
        let status = status.map(|listener| StatusSocket::new(listener, poll.registry()));
        let hba = config.profile.hba;
        let name = config.profile.name;
        let offer = Offer {
            features: config.features,
            request_queues: rings.saturating_sub(FIRST_REQUEST_QUEUE),
            inflight: device.inflight_memory().is_some(),
        };
        let relay = RelayHost::new(
            config.relay,
            &name,
            config.vhost_user,
            offer,
            kept.clone(),
            now,
        );
        let mut this = Self {
            name,
            hba,
            began: now,
            status: status.transpose()?,
            poll,
            stop,
            stopping: None,
            abandon: false,
            device,
            session,
            relay,
            rings: (0..rings).map(|_| RingEvents::default()).collect(),
            listener,
            connection: None,
            more: false,
            relay_more: false,
            window,
            memory: None,
            inflight: Inflight::default(),
            started: false,
            attach_by: None,
            attach_timeout: config.attach_timeout,
            drain_timeout: config.drain_timeout,
            vigil: Vigil::new(config.doorbell_poll),
            complaints: Complaints::new(now),
            counters: Counters::default(),
            report,
            notes: [LogBudget::new(now), LogBudget::new(now)],
            keeper: config.keeper.map(KeeperHost::new),
            kept,
            journal: Arc::new(Mutex::new(journal)),
            changed: true,
            resumed: records.is_some(),
        };
        this.watch_keeper()?;
        if let Some(records) = records {
            this.resume(now, &records)?;
        }
        this.commit();
        Ok(this)
    }

    /// Whether it goes on for another supervisor, which has said that it is ready.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// A handle that stops [`Self::run`].
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// A handle that asks for a log line with what was counted.
    pub fn report_handle(&self) -> Report {
        self.report.clone()
    }

    /// Serves until it is stopped; then the function is unplugged and everything let go.
    ///
    /// # Errors
    /// What the system refused; the loop cannot go on then.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        // From the start the appliance must ring: nobody polls.
        let _ = self.device.arm();
        loop {
            let now = Instant::now();
            self.work(now);
            if self.is_finished(now) {
                self.disconnect();
                self.relay.kill();
                self.kept.tell(&ToKeeper::Done);
                return Ok(());
            }
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                self.event(event.token());
            }
        }
    }

    /// Serves what one source has to say.
    fn event(&mut self, token: Token) {
        match token {
            STOP => self.stop_asked(),
            REPORT if self.report.is_asked() => self.counters.report(&self.name),
            REPORT => {}
            KEEPER => self.hear_keeper(),
            STATUS => self.status_asked(),
            LISTENER => self.accept(),
            CONNECTION => self.serve(),
            RELAY => self.hear_relay(Instant::now()),
            // Taken up by the next `work`.
            QMP => {}
            Token(kick) => self.kicked(kick.wrapping_sub(FIRST_KICK)),
        }
    }

    /// Everything that follows from events and from the time, until nothing does.
    fn work(&mut self, now: Instant) {
        if self.more {
            self.serve();
        }
        if self.relay_more {
            self.hear_relay(now);
        }
        self.collect_calls(now);
        self.keep_relay(now);
        self.session.handle(now, Event::Tick);
        self.settle(now);
        self.expect_appliance(now);
        self.keep_keeper(now);
        self.answer_status(now);
        self.commit();
    }

    /// Everything that follows from what the storage VM and the tenant have said.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut quiet = !self.device_events(now);
            quiet &= !self.act_all(now);
            if self.keep_window(now) {
                self.changed = true;
                quiet = false;
            }
            if quiet {
                return;
            }
        }
    }

    /// How long to wait for events.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.more || self.relay_more || self.vigil.is_kept() || self.has_status_clients() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.session.deadline(),
            self.relay.deadline().filter(|_| self.stopping.is_none()),
            self.window.deadline(),
            self.attach_by,
            self.stopping,
            self.keeper.as_ref().and_then(KeeperHost::deadline),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    fn stop_asked(&mut self) {
        let asked = self.stop.asked();
        self.stop_now(asked);
    }

    /// Begins to end in order, or ends at once when asked again.
    fn stop_now(&mut self, asked: u64) {
        if asked == 0 {
            return;
        }
        self.changed = true;
        if self.stopping.is_some() || asked > 1 {
            self.abandon = true;
            return;
        }
        tracing::info!(hba = %self.name, "stopping: the function is unplugged first");
        let now = Instant::now();
        self.stopping = Some(now + self.drain_timeout + STOP_PATIENCE);
        self.relay.kill();
        self.tenant_gone(now);
    }

    fn is_finished(&self, now: Instant) -> bool {
        let Some(latest) = self.stopping else {
            return false;
        };
        if self.abandon || now >= latest {
            tracing::warn!(
                hba = %self.name,
                "ended without the storage VM having let the function go; unplug it there"
            );
            return true;
        }
        self.session.is_settled() && self.window.is_closed()
    }

    /// One line of the log, unless it was there lately.
    fn complain(&mut self, line: &str) {
        if let Some(left_out) = self.complaints.is_news(Instant::now(), line) {
            let left_out = (left_out > 0).then_some(left_out);
            tracing::error!(hba = %self.name, left_out, "{line}");
        }
    }

    /// One line of the log about something ordinary, unless there are too many of them.
    fn note(&mut self, about: About, line: &str) {
        if let Some(left_out) = self.notes[about as usize].take(Instant::now()) {
            let left_out = (left_out > 0).then_some(left_out);
            tracing::info!(hba = %self.name, left_out, "{line}");
        }
    }
}

/// The descriptor of something to be watched.
fn raw(fd: &impl AsFd) -> std::os::fd::RawFd {
    fd.as_fd().as_raw_fd()
}
