//! BAR2: whose memory the function shows, and so when it is in the storage VM.

use std::io;
use std::time::{Duration, Instant};

use mio::Interest;
use serde::{Deserialize, Serialize};

use super::tenant_fd::file_facts;
use super::{About, Plug, QMP, Supervisor};
use crate::device::VhostPci;
use crate::kept::Kept;
use crate::plug::{Outcome, PlugRecord, QmpPlug};
use crate::session::{Event, FileId};

/// How the window is opened and closed.
enum Way {
    Qmp(Box<QmpPlug>),
    Cold,
    Manual(Box<dyn FnMut(bool) + Send>),
}

/// The window to a tenant's memory.
pub(super) struct Window {
    way: Way,
    /// What it shows.
    file: Option<FileId>,
    /// It is being closed.
    closing: bool,
    grace: Duration,
    /// When a tenant that is away has been away for too long.
    grace_until: Option<Instant>,
    /// It has.
    grace_over: bool,
}

/// A window between two supervisors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WindowRecord {
    plug: Option<PlugRecord>,
    file: Option<FileId>,
    closing: bool,
    #[serde(with = "crate::moment::option")]
    grace_until: Option<Instant>,
    grace_over: bool,
}

impl Window {
    /// The window of `plug`, and the file that needs no seal.
    ///
    /// # Errors
    /// What the function says about a file that it is to show from the start.
    pub fn new(
        plug: Plug,
        grace: Duration,
        device: &mut VhostPci,
    ) -> io::Result<(Self, Option<FileId>)> {
        let (way, file) = match plug {
            Plug::Qmp(plug) => (Way::Qmp(plug), None),
            Plug::Manual(tell) => (Way::Manual(tell), None),
            Plug::Cold(file) => {
                let facts = file_facts(&file)?;
                device
                    .set_trusted_tenant_memory(file)
                    .map_err(io::Error::other)?;
                (Way::Cold, Some(facts.id))
            }
        };
        let window = Self {
            way,
            file,
            closing: false,
            grace,
            grace_until: None,
            grace_over: false,
        };
        Ok((window, file))
    }

    /// Has what it takes kept in `kept`.
    pub fn keep(&mut self, kept: &Kept) {
        if let Way::Qmp(plug) = &mut self.way {
            plug.keep(kept.clone());
        }
    }

    /// What a next supervisor goes on from.
    pub fn record(&mut self) -> WindowRecord {
        WindowRecord {
            plug: match &mut self.way {
                Way::Qmp(plug) => Some(plug.record()),
                Way::Cold | Way::Manual(_) => None,
            },
            file: self.file,
            closing: self.closing,
            grace_until: self.grace_until,
            grace_over: self.grace_over,
        }
    }

    /// Goes on from `record`.
    pub fn restore(&mut self, now: Instant, record: WindowRecord) {
        if let (Way::Qmp(plug), Some(record)) = (&mut self.way, record.plug) {
            plug.restore(now, record);
        }
        self.file = record.file;
        self.closing = record.closing;
        self.grace_until = record.grace_until;
        self.grace_over = record.grace_over;
    }

    /// The file that the function shows.
    pub fn file(&self) -> Option<FileId> {
        self.file
    }

    /// The root port that it is plugged into, by QMP.
    pub fn port(&self) -> Option<&str> {
        match &self.way {
            Way::Qmp(plug) => plug.port(),
            Way::Cold | Way::Manual(_) => None,
        }
    }

    /// Whether the function is in the storage VM from the start to the end.
    pub fn is_cold(&self) -> bool {
        matches!(self.way, Way::Cold)
    }

    /// Whether nothing has to be unplugged any more.
    pub fn is_closed(&self) -> bool {
        match &self.way {
            Way::Qmp(plug) => self.file.is_none() && plug.is_out(),
            Way::Cold => true,
            Way::Manual(_) => self.file.is_none(),
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let qmp = match &self.way {
            Way::Qmp(plug) => plug.deadline(),
            Way::Cold | Way::Manual(_) => None,
        };
        [qmp, self.grace_until].into_iter().flatten().min()
    }

    /// The storage VM's QEMU opened the function.
    pub fn connection_opened(&mut self) {
        if let Way::Qmp(plug) = &mut self.way {
            plug.connection_opened();
        }
    }

    /// The storage VM's QEMU closed its connection.
    pub fn connection_closed(&mut self, now: Instant) {
        if let Way::Qmp(plug) = &mut self.way {
            plug.connection_closed(now);
        }
    }
}

impl Supervisor {
    /// Opens and closes the window as the session wants it; whether anything changed.
    pub(super) fn keep_window(&mut self, now: Instant) -> bool {
        let mut changed = self.qmp_step(now);
        changed |= self.show_inflight(now);
        if matches!(self.window.way, Way::Cold) {
            return changed;
        }
        match self.window.file {
            None => changed |= self.open_window(now),
            Some(shown) if !self.window.closing => {
                if !self.stays_open(now, shown) {
                    self.close_window();
                    changed = true;
                }
            }
            Some(_) => {}
        }
        changed |= self.closed_window(now);
        self.watch_qmp();
        changed
    }

    /// Opens the window when a ring is started, because the whole memory table is known then.
    fn open_window(&mut self, now: Instant) -> bool {
        let ready = match &self.window.way {
            Way::Qmp(plug) => plug.is_out(),
            Way::Cold | Way::Manual(_) => self.connection.is_none(),
        };
        if !ready || self.stopping.is_some() || !self.session.has_work() {
            return false;
        }
        let wanted = self.session.memory_file();
        let Some((id, fd)) = self.memory.take_if(|(id, _)| Some(*id) == wanted) else {
            return false;
        };
        if let Err(error) = self.device.set_tenant_memory(fd) {
            self.complain(&format!("tenant memory ({id}): {error}"));
            return false;
        }
        self.window.file = Some(id);
        self.window.closing = false;
        self.session.handle(now, Event::Window(Some(id)));
        match &mut self.window.way {
            Way::Qmp(plug) => plug.want(true),
            Way::Manual(tell) => tell(true),
            Way::Cold => {}
        }
        true
    }

    /// Whether the window goes on showing `shown`: the tenant uses it, or has not been away for
    /// long.
    fn stays_open(&mut self, now: Instant, shown: FileId) -> bool {
        let named = self.session.memory_file();
        let other_inflight = self.inflight.waits();
        let window = &mut self.window;
        if named == Some(shown) && self.stopping.is_none() && !other_inflight {
            window.grace_until = None;
            window.grace_over = false;
            return true;
        }
        if named.is_some() || self.stopping.is_some() || other_inflight {
            window.grace_over = true;
        }
        if !window.grace_over {
            let until = *window.grace_until.get_or_insert(now + window.grace);
            window.grace_over = now >= until;
        }
        if window.grace_over {
            window.grace_until = None;
        }
        // The appliance's word has a deadline of its own.
        !window.grace_over || !self.session.is_settled()
    }

    fn close_window(&mut self) {
        self.note(About::Tenant, "the function is unplugged");
        self.window.closing = true;
        self.window.grace_over = false;
        match &mut self.window.way {
            Way::Qmp(plug) => plug.want(false),
            Way::Manual(tell) => tell(false),
            Way::Cold => {}
        }
    }

    /// Lets the memory go once the storage VM has let the function go.
    fn closed_window(&mut self, now: Instant) -> bool {
        let out = match &self.window.way {
            Way::Qmp(plug) => plug.is_out(),
            Way::Cold | Way::Manual(_) => true,
        };
        if !self.window.closing || !out || self.connection.is_some() {
            return false;
        }
        if let Err(error) = self.device.clear_tenant_memory() {
            self.complain(&format!("tenant memory: {error}"));
        }
        self.window.closing = false;
        self.window.file = None;
        self.session.handle(now, Event::Window(None));
        true
    }

    /// Goes on with QMP; whether it told anything.
    fn qmp_step(&mut self, now: Instant) -> bool {
        let mut told = false;
        let before = self.plug_record();
        while let Way::Qmp(plug) = &mut self.window.way
            && let Some(outcome) = plug.step(now)
        {
            told = true;
            match outcome {
                Outcome::Plugged(port) => {
                    let line = format!("plugged into the storage VM at {port}");
                    self.note(About::StorageVm, &line);
                    if self.connection.is_none() {
                        // It has closed it already.
                        self.window.connection_closed(now);
                    }
                }
                // QEMU still tears the device down after it has left the list, and closes the
                // connection last: it is served until then.
                Outcome::Unplugged => {
                    self.note(About::StorageVm, "not in the storage VM any more");
                }
                Outcome::Failed(reason) => self.complain(&reason),
            }
        }
        self.changed |= before != self.plug_record();
        told
    }

    fn plug_record(&mut self) -> Option<PlugRecord> {
        match &mut self.window.way {
            Way::Qmp(plug) => Some(plug.record()),
            Way::Cold | Way::Manual(_) => None,
        }
    }

    /// Watches the QMP connection of the command that is under way.
    fn watch_qmp(&mut self) {
        let Way::Qmp(plug) = &mut self.window.way else {
            return;
        };
        let Some(stream) = plug.stream() else {
            return;
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        // Each command has a connection of its own; closing one ends its watch.
        match registry.register(stream, QMP, interest) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // The command runs into its deadline, and is tried again.
            Err(error) => self.complain(&format!("QMP connection: {error}")),
        }
    }
}
