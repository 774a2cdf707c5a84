//! The storage VM: its slots for vhost-pci functions, and the appliance that runs in it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use appliance::config::LunConfig;
use appliance::disk::Reflink;
use appliance::vhost_user::{Options, Served, Socket};
use appliance::{Appliance, Applied, Attachment, Config, open_disk_with};

use uuid::Uuid;

use super::function::Function;
use super::gate::{Gate, Gates, gated};
use super::lun::Image;
use super::readiness::eventually;

/// How often the appliance looks again at a function that it could not attach to yet.
const RETRY: Duration = Duration::from_millis(2);

/// The storage VM.
pub(super) struct StorageVm {
    /// The appliance's configuration, TOML.
    config: Mutex<String>,
    /// What stands before some of its disks.
    gates: Arc<Gates>,
    /// How the filesystem under its disks copies.
    reflink: Arc<dyn Reflink>,
    /// MSI vectors that its kernel grants.
    granted: usize,
    /// Which boot of it this is.
    boot: Mutex<Uuid>,
    /// While its kernel does not get round to letting functions go: the ids of those it should.
    slow: Mutex<Option<Vec<String>>>,
    state: Mutex<State>,
}

struct State {
    /// Running unless it was stopped.
    appliance: Option<Arc<Appliance>>,
    slots: Vec<Slot>,
}

/// A root port's worth of one HBA.
#[derive(Default)]
struct Slot {
    /// Where the function is plugged, and as what.
    port: Option<(String, String)>,
    function: Option<Arc<Function>>,
    attachment: Option<Attachment>,
    /// Where the HBA is served without a function, and its service.
    socket: Option<Arc<Socket>>,
    options: Options,
    served: Option<Served>,
    /// Why the appliance did not attach to the function.
    error: Option<String>,
    /// How often a function was plugged here.
    plugs: u32,
}

impl StorageVm {
    /// A storage VM with `slots` root ports, without an appliance.
    pub(super) fn new(
        config: String,
        granted: usize,
        slots: usize,
        reflink: Arc<dyn Reflink>,
    ) -> Self {
        Self {
            reflink,
            config: Mutex::new(config),
            gates: Arc::default(),
            granted,
            boot: Mutex::new(Uuid::new_v4()),
            slow: Mutex::default(),
            state: Mutex::new(State {
                appliance: None,
                slots: (0..slots).map(|_| Slot::default()).collect(),
            }),
        }
    }

    /// From now on there are no functions: each HBA is served at a socket of these, in order.
    /// `patience` is how long a frontend waits for a ring to stop.
    pub(super) fn listen(&self, paths: &[PathBuf], patience: Duration) {
        for (slot, path) in self.state().slots.iter_mut().zip(paths) {
            slot.options.patience = patience;
            slot.socket = Some(Arc::new(Socket::bind(path).expect("a socket")));
        }
    }

    /// The names of the root ports, and the ids of the devices in them.
    pub(super) fn ports(&self) -> Vec<(String, Option<String>)> {
        let state = self.state();
        port_names(state.slots.len())
            .map(|name| {
                let devices = state.slots.iter().filter_map(|slot| slot.port.as_ref());
                let id = devices.clone().find(|(port, _)| *port == name);
                (name.clone(), id.map(|(_, id)| id.clone()))
            })
            .collect()
    }

    /// `device_add` of the function behind `socket`; an appliance that runs takes it up.
    pub(super) fn plug(&self, id: &str, port: &str, socket: &Path) -> io::Result<()> {
        let taken = |why: &str| io::Error::other(format!("{port}, {id}: {why}"));
        if !self.ports().contains(&(port.to_owned(), None)) {
            return Err(taken("no such port, or it is occupied"));
        }
        let hba = hba_of(id).ok_or_else(|| taken("not an HBA of this world"))?;
        let function = Function::realize(UnixStream::connect(socket)?, self.granted)?;
        let mut state = self.state();
        let State { appliance, slots } = &mut *state;
        let slot = &mut slots[hba];
        if slot.function.is_some() {
            return Err(taken("duplicate device"));
        }
        slot.port = Some((port.to_owned(), id.to_owned()));
        slot.function = Some(Arc::new(function));
        slot.plugs += 1;
        if let Some(appliance) = appliance {
            slot.attach(appliance);
        }
        Ok(())
    }

    /// `device_del`: the appliance lets go, then QEMU closes the socket.
    pub(super) fn unplug(&self, id: &str) -> Result<(), String> {
        if let Some(asked) = &mut *self.slow() {
            asked.push(id.to_owned());
            return Ok(());
        }
        let mut state = self.state();
        let slot = hba_of(id).and_then(|hba| state.slots.get_mut(hba));
        let Some((slot, function)) =
            slot.and_then(|slot| slot.function.take().map(|function| (slot, function)))
        else {
            return Err(format!("Device '{id}' not found"));
        };
        (slot.error, slot.port) = (None, None);
        function.ask_back();
        if let Some(attachment) = &slot.attachment {
            eventually("the appliance lets the function go", || {
                attachment.is_over()
            });
            slot.detach();
            assert_eq!(function.mappings(), 0, "hot-unplug would hang");
        } else {
            // A test may play the appliance; the guest's kernel waits for that one, too.
            eventually("whoever has the function mapped lets it go", || {
                function.mappings() == 0
            });
        }
        // A server that is gone already cannot be told.
        let _ = function.unrealize();
        Ok(())
    }

    /// Lets `device_del` be answered and nothing come of it, until this is called with `false`.
    pub(super) fn be_slow(&self, slow: bool) {
        let asked = std::mem::replace(&mut *self.slow(), slow.then(Vec::new));
        for id in asked.into_iter().flatten() {
            // Asked twice, it is gone the second time.
            let _ = self.unplug(&id);
        }
    }

    fn slow(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Boots the appliance; it takes up every function that is there.
    pub(super) fn start_appliance(&self) {
        let config = parse(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let config = config.expect("a good config");
        let mut state = self.state();
        assert!(state.appliance.is_none(), "the appliance runs already");
        // The disks of a killed appliance are free when its last I/O has ended.
        let mut appliance = None;
        eventually("the disks are free", || {
            let gates = self.gates.clone();
            let reflink = Arc::clone(&self.reflink);
            let open = move |lun: &LunConfig| {
                let disk = open_disk_with(lun, Arc::clone(&reflink))?;
                Ok(gated(&gates, &lun.name, disk))
            };
            appliance = Appliance::with_disks(config.clone(), open)
                .ok()
                .filter(|appliance| appliance.problems().is_empty());
            appliance.is_some()
        });
        let boot = *self.boot.lock().unwrap_or_else(PoisonError::into_inner);
        let appliance = Arc::new(appliance.expect("was waited for").in_boot(boot));
        for (hba, slot) in state.slots.iter_mut().enumerate() {
            slot.attach(&appliance);
            slot.serve(hba, &appliance);
        }
        state.appliance = Some(appliance);
    }

    /// Puts another configuration into force; the appliance's lifecycle then looks again at HBAs
    /// that it did not know, or has let go.
    pub(super) fn apply(&self, text: String) -> Result<Applied, String> {
        let config = parse(&text)?;
        let mut state = self.state();
        let State { appliance, slots } = &mut *state;
        let appliance = appliance.as_ref().expect("the appliance runs");
        let applied = appliance.apply(config).map_err(|error| error.to_string())?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = text;
        for (hba, slot) in slots.iter_mut().enumerate() {
            slot.look_again(appliance, &applied);
            slot.leave(hba, &applied);
            slot.serve(hba, appliance);
        }
        Ok(applied)
    }

    /// What the appliance's lifecycle does time and again: functions that it does not serve, though
    /// it could, are attached to. Says whether there were any that it had let go by itself.
    pub(super) fn look_at_bus(&self) -> bool {
        let mut state = self.state();
        let mut let_go = false;
        let State { appliance, slots } = &mut *state;
        if let Some(appliance) = appliance {
            for slot in slots {
                if slot.attachment.as_ref().is_some_and(Attachment::is_over) {
                    slot.detach();
                    let_go = true;
                }
                if slot.attachment.is_none() {
                    slot.attach(appliance);
                }
            }
        }
        let_go
    }

    /// The appliance, with the configuration that it was given last.
    pub(super) fn appliance(&self) -> Option<(Arc<Appliance>, String)> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        Some((state.appliance.clone()?, config.clone()))
    }

    /// A gate before the disk of the LUN with this image, once that is opened.
    pub(super) fn add_gate(&self, image: &Image) -> io::Result<()> {
        let gate = Gate::new(image.file.try_clone()?)?;
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(image.name.clone(), Arc::new(gate));
        Ok(())
    }

    /// The gate before the disk of the LUN `name`.
    pub(super) fn gate(&self, name: &str) -> Option<Arc<Gate>> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.get(name).cloned()
    }

    /// Shuts the appliance down: every function is let go, in order.
    pub(super) fn stop_appliance(&self) {
        let mut state = self.state();
        let attachments = state.slots.iter().flat_map(|slot| &slot.attachment);
        attachments.for_each(Attachment::stop);
        for slot in &mut state.slots {
            slot.detach();
        }
        state.appliance = None;
    }

    /// Kills the appliance: nothing it still does reaches a function, whose interrupts the
    /// kernel then takes away, and which it resets.
    pub(super) fn kill_appliance(&self) {
        let mut state = self.state();
        for slot in &mut state.slots {
            if let Some(function) = &slot.function {
                function.die();
            }
            slot.detach();
            if let Some(function) = &slot.function {
                function.clean_up().expect("the shim is alive");
            }
        }
        state.appliance = None;
    }

    /// Has the appliance find another boot when it is started next.
    pub(super) fn reboot(&self) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = Uuid::new_v4();
    }

    /// The function in `slot`.
    pub(super) fn function(&self, slot: usize) -> Option<Arc<Function>> {
        self.state().slots[slot].function.clone()
    }

    /// Why the appliance did not attach to the function in `slot`.
    pub(super) fn error(&self, slot: usize) -> Option<String> {
        self.state().slots[slot].error.clone()
    }

    /// How often a function was plugged into `slot`.
    pub(super) fn plugs(&self, slot: usize) -> u32 {
        self.state().slots[slot].plugs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("world.toml")).map_err(|error| error.to_string())
}

/// Names of the root ports: one more than are needed.
pub(super) fn port_names(hbas: usize) -> impl Iterator<Item = String> {
    (0..=hbas).map(|n| format!("rp{n}"))
}

/// The HBA of the device that its shim calls `id`.
fn hba_of(id: &str) -> Option<usize> {
    id.rsplit_once("hba")?.1.parse().ok()
}

impl Slot {
    fn attach(&mut self, appliance: &Appliance) {
        let Some(function) = &self.function else {
            return;
        };
        // As the appliance's own lifecycle does: what may pass is tried again, a little.
        for _ in 0..10 {
            match appliance.attach(function.clone()) {
                Ok(attachment) => {
                    self.attachment = Some(attachment);
                    self.error = None;
                    return;
                }
                Err(error) => {
                    self.error = Some(error.to_string());
                    if !error.may_pass() {
                        return;
                    }
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// Serves the HBA at its socket, if it has one and is not served.
    fn serve(&mut self, hba: usize, appliance: &Appliance) {
        let Some(socket) = self.socket.as_ref().filter(|_| self.served.is_none()) else {
            return;
        };
        match appliance.serve(&format!("hba{hba}"), socket, self.options) {
            Ok(served) => (self.served, self.error) = (Some(served), None),
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    /// Waits until the HBA is not served any more, if it is no longer in the configuration.
    fn leave(&mut self, hba: usize, applied: &Applied) {
        let name = format!("hba{hba}");
        if let Some(served) = self
            .served
            .take_if(|_| applied.hbas_removed.contains(&name))
        {
            eventually("the appliance lets the socket go", || served.is_over());
        }
    }

    fn look_again(&mut self, appliance: &Appliance, applied: &Applied) {
        if !applied.hbas_removed.is_empty()
            && let Some(attachment) = &self.attachment
            && applied
                .hbas_removed
                .iter()
                .any(|hba| hba == attachment.hba())
        {
            eventually("the appliance lets the function go", || {
                attachment.is_over()
            });
            self.detach();
        }
        if self.attachment.is_none() {
            self.attach(appliance);
        }
    }

    fn detach(&mut self) {
        self.served = None;
        if let Some(attachment) = self.attachment.take()
            && let Err(error) = attachment.detach()
        {
            tracing::info!("an attachment ended by itself: {error}");
        }
    }
}
