//! The real shim and the real appliance, joined in one process.
//!
//! ```text
//! Initiator ─ rings in a memfd ─ Frontend ─ vhost-user ─ host-shim ─ vfio-user ─ Function ─ appliance
//! └────────── Tenant ────────────────────┘                                      └── StorageVm ──────┘
//! ```
//!
//! Everything runs as in production but two things: the two QEMUs are played by clients of a few
//! hundred lines that keep to the message order that QEMU 11.1 was seen to use, and VFIO's
//! ioctls are a vfio-user client.
//!
//! [`World::over`] a socket, shim and function are left out: the frontend speaks with the appliance.

mod control;
mod copies;
mod forgetful;
mod frontend;
mod function;
mod gate;
mod initiator;
mod lun;
mod map;
pub mod memfd;
mod metrics;
mod qmp;
mod readiness;
mod ring;
mod shim;
mod storage;
mod tenant;
mod tenant_memory;
mod vfio_user;
mod write_log;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spec::device::DEFAULT_VECTORS;
use spec::version::{CURRENT, Version};
use uuid::Uuid;

use appliance::config::Poll;
use appliance::disk::{Kernel, Reflink};
pub use control::{Control, Operator};
pub use copies::{Copies, Filesystem, Sharing};
pub use forgetful::{Crash, Forgetful};
pub use frontend::{Frontend, FrontendError, Inflight, VringAddress, protocol, request};
pub use function::Function;
pub use gate::{Gate, Trouble};
pub use initiator::*;
pub use lun::Lun;
use map::Map;
pub use memfd::memfd;
pub use metrics::{Metrics, Scrape};
use qmp::Qmp;
pub use readiness::{eventually, readable};
pub use ring::*;
use shim::Shim;
use storage::{StorageVm, port_names};
pub use tenant::{Shape, Tenant};
pub use tenant_memory::{MIB, Region, TenantMemory, user_address};
pub use vfio_user::{DeviceInfo, RegionInfo, VfioUser};
pub use write_log::{Loss, WriteLog};

/// What a [`World`] is to be like.
pub struct Builder {
    attach: Attach,
    hbas: Vec<Vec<Seen>>,
    granted: usize,
    appliance: bool,
    known: bool,
    poll: String,
    coalesce: String,
    workers: usize,
    keeps_state: bool,
    reflink: Arc<dyn Reflink>,
    images: Option<PathBuf>,
    shim: ShimOptions,
}

/// Where the appliance runs, and so how a tenant reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// In a storage VM: through a shim and a vhost-pci function.
    Function,
    /// On the tenant's host: through a vhost-user socket of its own.
    Socket,
}

impl Attach {
    /// That of a suite: those whose name ends with `_local` run over a socket.
    pub fn of_suite(name: &str) -> Self {
        if name.ends_with("_local") {
            Self::Socket
        } else {
            Self::Function
        }
    }
}

/// What an HBA sees from the start.
enum Seen {
    /// A LUN of its own, as the next one of target 0 or where it is said.
    Lun(Lun, Option<(u8, u16)>),
    /// The LUN of this number, counted over all HBAs, that another has.
    Shared(usize),
}

/// How the shims of a [`World`] are started.
#[derive(Debug, Clone, Copy)]
struct ShimOptions {
    version: Version,
    drain_timeout: Duration,
    grace: Duration,
    doorbell_poll: Duration,
}

/// One or more HBAs with their shims, one storage VM with its appliance. Tenants come by
/// themselves.
pub struct World {
    // In this order, as the machine would be shut down.
    shims: Vec<Shim>,
    shim: ShimOptions,
    qmp: Option<Qmp>,
    storage: Arc<StorageVm>,
    map: Map,
    attach: Attach,
    workers: usize,
    uuids: Vec<Uuid>,
    /// Where the tenants of each HBA connect.
    vhost_user: Vec<PathBuf>,
    _directory: Directory,
}

impl World {
    /// A world with one HBA that has no LUN yet.
    #[expect(clippy::new_ret_no_self, reason = "a World is built, step by step")]
    pub fn new() -> Builder {
        Self::over(Attach::Function)
    }

    /// As [`Self::new`], as the name of a suite says: how tenants reach the appliance
    /// ([`Attach::of_suite`]), and how many workers HBAs have ([`Builder::workers_of_suite`]).
    pub fn of_suite(name: &str) -> Builder {
        Self::over(Attach::of_suite(name)).workers_of_suite(name)
    }

    /// As [`Self::new`], with another way between tenant and appliance.
    pub fn over(attach: Attach) -> Builder {
        Builder {
            attach,
            hbas: vec![Vec::new()],
            granted: DEFAULT_VECTORS,
            appliance: true,
            known: true,
            poll: Poll::USUAL.to_string(),
            coalesce: String::new(),
            workers: 1,
            keeps_state: false,
            reflink: Arc::new(Kernel),
            images: None,
            shim: ShimOptions {
                version: CURRENT,
                drain_timeout: Duration::from_secs(5),
                grace: Duration::from_secs(1),
                doorbell_poll: Duration::from_micros(50),
            },
        }
    }
}

impl Builder {
    /// The next LUN of the HBA: 0, 1, …
    pub fn lun(mut self, lun: Lun) -> Self {
        let seen = Seen::Lun(lun, None);
        self.hbas.last_mut().expect("there is one").push(seen);
        self
    }

    /// A LUN of the HBA at this target and LUN.
    pub fn lun_at(mut self, target: u8, number: u16, lun: Lun) -> Self {
        let seen = Seen::Lun(lun, Some((target, number)));
        self.hbas.last_mut().expect("there is one").push(seen);
        self
    }

    /// The next LUN of the HBA is the `index`-th of all, which another HBA has.
    pub fn shared_lun(mut self, index: usize) -> Self {
        let seen = Seen::Shared(index);
        self.hbas.last_mut().expect("there is one").push(seen);
        self
    }

    /// Another HBA; LUNs given from here on are its.
    pub fn another_hba(mut self) -> Self {
        self.hbas.push(Vec::new());
        self
    }

    /// The storage VM's kernel grants at most this many MSI vectors.
    pub fn vectors(mut self, granted: usize) -> Self {
        self.granted = granted;
        self
    }

    /// The appliance does not run yet.
    pub fn without_appliance(mut self) -> Self {
        self.appliance = false;
        self
    }

    /// The appliance's configuration has other UUIDs than the shims.
    pub fn unknown_hba(mut self) -> Self {
        self.known = false;
        self
    }

    /// The HBAs poll as this TOML says.
    pub fn poll(mut self, poll: &str) -> Self {
        poll.clone_into(&mut self.poll);
        self
    }

    /// The HBAs' calls are held back for so long, and for so many requests.
    pub fn coalesce(mut self, delay: Duration, requests: u32) -> Self {
        self.coalesce = coalesce(delay, requests);
        self
    }

    /// The HBAs have two workers, if the name of a suite has `_workers` in it. The first request
    /// queue is the second worker's then.
    pub fn workers_of_suite(self, name: &str) -> Self {
        if name.contains("_workers") {
            self.workers(2)
        } else {
            self
        }
    }

    /// The HBAs have so many workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The appliance has a folder for what is to outlive it.
    pub fn keeping_state(mut self) -> Self {
        self.keeps_state = true;
        self
    }

    /// The shims say they are of this version.
    pub fn shim_version(mut self, version: Version) -> Self {
        self.shim.version = version;
        self
    }

    /// How long the tenant's QEMU waits for a ring to stop.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.shim.drain_timeout = timeout;
        self
    }

    /// How long a function stays plugged after its tenant has gone.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.shim.grace = grace;
        self
    }

    /// How long the shims poll the mapped doorbells after a call.
    pub fn doorbell_poll(mut self, time: Duration) -> Self {
        self.shim.doorbell_poll = time;
        self
    }

    /// The filesystem under the images copies in this way.
    pub fn copies_by(mut self, reflink: Arc<dyn Reflink>) -> Self {
        self.reflink = reflink;
        self
    }

    /// The images are made in this folder.
    pub fn images_in(mut self, folder: &Path) -> Self {
        self.images = Some(folder.to_owned());
        self
    }

    /// Starts shims and appliance.
    ///
    /// # Panics
    /// If something cannot be started.
    pub fn start(self) -> World {
        let directory = Directory::new();
        let uuids: Vec<_> = self.hbas.iter().map(|_| Uuid::new_v4()).collect();
        let mut map = Map::new(self.images.unwrap_or_else(|| directory.0.clone()));
        if self.keeps_state {
            map.keep_state();
        }
        let mut gated = Vec::new();
        for (h, luns) in self.hbas.iter().enumerate() {
            map.add_hba(if self.known { uuids[h] } else { Uuid::new_v4() });
            map.set_poll(h, &self.poll);
            map.set_coalesce(h, &self.coalesce);
            map.set_workers(h, self.workers);
            for seen in luns {
                let next = (0, map.next_lun(h));
                let (at, image) = match seen {
                    Seen::Shared(image) => (next, *image),
                    Seen::Lun(lun, at) => {
                        let image = map.make(lun).expect("an image file");
                        gated.extend(lun.gated.then_some(image));
                        (at.unwrap_or(next), image)
                    }
                };
                map.show(h, at, image);
            }
        }
        let storage = StorageVm::new(map.toml(), self.granted, uuids.len(), self.reflink);
        for image in gated {
            storage.add_gate(map.image(image)).expect("a gate");
        }
        let storage = Arc::new(storage);
        let vhost_user: Vec<_> = (0..uuids.len())
            .map(|hba| directory.0.join(format!("hba{hba}.vhost-user")))
            .collect();
        if self.attach == Attach::Socket {
            storage.listen(&vhost_user, self.shim.drain_timeout);
        }
        if self.appliance {
            storage.start_appliance();
        }
        let (mut qmp, mut shims) = (None, Vec::new());
        if self.attach == Attach::Function {
            let qmp = qmp.insert(Qmp::serve(directory.0.join("qmp"), storage.clone()));
            let ports: Vec<_> = port_names(uuids.len()).collect();
            for (hba, (uuid, socket)) in uuids.iter().zip(&vhost_user).enumerate() {
                shims.push(Shim::start(
                    hba,
                    *uuid,
                    socket,
                    self.shim,
                    qmp.path(),
                    &ports,
                ));
            }
        }
        World {
            shims,
            qmp,
            storage,
            map,
            shim: self.shim,
            attach: self.attach,
            workers: self.workers,
            uuids,
            vhost_user,
            _directory: directory,
        }
    }
}

impl World {
    /// How tenants reach the appliance.
    pub fn attach(&self) -> Attach {
        self.attach
    }

    /// How many workers each HBA has.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// A tenant of the first HBA whose driver is up.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn tenant(&self) -> Tenant {
        self.tenant_of(0, Shape::default())
    }

    /// A tenant of the first HBA whose driver is up.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn tenant_like(&self, shape: Shape) -> Tenant {
        self.tenant_of(0, shape)
    }

    /// A tenant of HBA `hba` whose driver is up.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn tenant_of(&self, hba: usize, shape: Shape) -> Tenant {
        let mut tenant = Tenant::new(&self.vhost_user[hba], shape);
        tenant.connect().expect("the shim is there");
        tenant.start().expect("the shim takes the session");
        tenant
    }

    /// A tenant of the first HBA that has not connected yet.
    pub fn tenant_not_started(&self, shape: Shape) -> Tenant {
        Tenant::new(&self.vhost_user[0], shape)
    }

    /// The function of the first HBA, once it is plugged.
    ///
    /// # Panics
    /// If it is not plugged within five seconds.
    pub fn function(&self) -> Arc<Function> {
        let mut function = None;
        eventually("the function is plugged", || {
            function = self.storage.function(0);
            function.is_some()
        });
        function.expect("was waited for")
    }

    /// Whether the function of `hba` is plugged into the storage VM.
    pub fn is_plugged(&self, hba: usize) -> bool {
        self.storage.function(hba).is_some()
    }

    /// How often the function of `hba` was plugged.
    pub fn plugs(&self, hba: usize) -> u32 {
        self.storage.plugs(hba)
    }

    /// Why the appliance did not attach to the function of `hba`.
    pub fn attach_error(&self, hba: usize) -> Option<String> {
        self.storage.error(hba)
    }

    /// UUID of `hba`.
    pub fn hba_uuid(&self, hba: usize) -> Uuid {
        self.uuids[hba]
    }

    /// Boots the appliance.
    pub fn start_appliance(&mut self) {
        self.storage.start_appliance();
    }

    /// Shuts the appliance down as an operator does.
    pub fn stop_appliance(&mut self) {
        self.storage.stop_appliance();
    }

    /// Has the appliance take up functions that it let go by itself, as its lifecycle does. Says
    /// whether there were any.
    pub fn look_at_bus(&self) -> bool {
        self.storage.look_at_bus()
    }

    /// Kills the appliance.
    pub fn kill_appliance(&mut self) {
        self.storage.kill_appliance();
    }

    /// Ends the shim of HBA `hba` and starts another one, of another version if that is said.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn restart_shim(&mut self, hba: usize, version: Version) {
        let uuid = self.uuids[hba];
        let after = self.shims.split_off(hba + 1);
        drop(self.shims.pop());
        let qmp = self.qmp.as_ref().expect("there until the end").path();
        let ports: Vec<_> = port_names(self.shims.len() + 1 + after.len()).collect();
        let options = ShimOptions {
            version,
            ..self.shim
        };
        let socket = &self.vhost_user[hba];
        let shim = Shim::start(hba, uuid, socket, options, qmp, &ports);
        self.shims.push(shim);
        self.shims.extend(after);
    }

    /// Kills the storage VM: the appliance is killed, and the one after it finds another boot. What
    /// was in the page cache is still there.
    pub fn crash_storage_vm(&mut self) {
        self.storage.kill_appliance();
        self.storage.reboot();
    }

    /// Has the appliance find another boot when it is started next; it was stopped before.
    pub fn reboot_storage_vm(&mut self) {
        self.storage.reboot();
    }

    /// From now on the storage VM's guest does not react to `device_del`; or it does again, and
    /// makes up for what it missed.
    pub fn slow_unplug(&self, slow: bool) {
        self.storage.be_slow(slow);
    }

    /// `len` bytes of the image of the `index`-th LUN (counted over all HBAs), as the host sees
    /// them.
    ///
    /// # Panics
    /// If it has no such bytes.
    pub fn image(&self, index: usize, offset: u64, len: usize) -> Vec<u8> {
        let image = self.map.image(index);
        image.read(offset, len).expect("image bytes")
    }

    /// Turns all bits of a byte of the image of the `index`-th LUN, behind everybody's back.
    ///
    /// # Panics
    /// If it has no such byte.
    pub fn damage(&self, index: usize, offset: u64) {
        let image = self.map.image(index);
        image.damage(offset).expect("an image byte");
    }

    /// The gate of the `index`-th LUN.
    ///
    /// # Panics
    /// If it has none.
    pub fn gate(&self, index: usize) -> Arc<Gate> {
        let gate = self.storage.gate(&self.map.image(index).name);
        gate.expect("a gated LUN")
    }

    /// Lets the appliance be controlled, as `file` is its configuration file, until what this
    /// returns is dropped. From the first change on, the World does not know any more what the
    /// appliance serves.
    ///
    /// # Panics
    /// If it does not run.
    pub fn control(&self, file: Option<&Path>) -> Control {
        let (appliance, text) = self.storage.appliance().expect("the appliance runs");
        Control::start(appliance, text, file)
    }

    /// Gives HBA `hba` one more LUN while everything runs; returns its number among all.
    ///
    /// # Errors
    /// Why the appliance does not take it.
    ///
    /// # Panics
    /// If there is no image for it.
    pub fn add_lun(
        &mut self,
        hba: usize,
        target: u8,
        number: u16,
        lun: Lun,
    ) -> Result<usize, String> {
        let image = self.map.make(&lun).expect("an image file");
        if lun.gated {
            let image = self.map.image(image);
            self.storage.add_gate(image).expect("a gate");
        }
        self.map.show(hba, (target, number), image);
        self.apply()
            .inspect_err(|_| self.map.hide(hba, (target, number)))?;
        Ok(image)
    }

    /// Takes a LUN from HBA `hba` while everything runs.
    ///
    /// # Errors
    /// Why the appliance does not take that.
    pub fn remove_lun(&mut self, hba: usize, target: u8, number: u16) -> Result<(), String> {
        self.map.hide(hba, (target, number));
        self.apply()
    }

    /// Gives HBA `hba` a LUN that it, or another, had or has.
    ///
    /// # Errors
    /// Why the appliance does not take that.
    pub fn show_lun(
        &mut self,
        hba: usize,
        target: u8,
        number: u16,
        index: usize,
    ) -> Result<(), String> {
        self.map.show(hba, (target, number), index);
        self.apply()
            .inspect_err(|_| self.map.hide(hba, (target, number)))
    }

    /// Takes HBA `hba` out of the configuration, or puts it in again.
    ///
    /// # Errors
    /// Why the appliance does not take that.
    pub fn hide_hba(&mut self, hba: usize, hidden: bool) -> Result<(), String> {
        self.map.hide_hba(hba, hidden);
        self.apply()
    }

    /// Makes HBA `hba` another way to the LUNs that are shared, as the configuration calls it.
    ///
    /// # Errors
    /// Why the appliance does not take that.
    pub fn set_access(&mut self, hba: usize, access: &str) -> Result<(), String> {
        self.map.set_access(hba, access);
        self.apply()
    }

    /// Makes the image of the `index`-th LUN longer or shorter.
    ///
    /// # Panics
    /// If that fails.
    pub fn resize(&self, index: usize, len: u64) {
        self.map.image(index).resize(len).expect("a resized image");
    }

    /// Puts a configuration of other text into force, made from the one that the map gives.
    ///
    /// # Errors
    /// Why the appliance does not take it.
    pub fn apply_changed(&self, change: impl FnOnce(String) -> String) -> Result<(), String> {
        self.storage.apply(change(self.map.toml())).map(drop)
    }

    /// Has HBA `hba` poll as this TOML says from now on.
    ///
    /// # Errors
    /// Why the appliance does not take that.
    pub fn set_poll(&mut self, hba: usize, poll: &str) -> Result<(), String> {
        self.map.set_poll(hba, poll);
        self.apply()
    }

    /// Has calls of HBA `hba` held back for so long, and for so many requests, from now on.
    ///
    /// # Errors
    /// Why the appliance does not take that.
    pub fn set_coalesce(
        &mut self,
        hba: usize,
        delay: Duration,
        requests: u32,
    ) -> Result<(), String> {
        self.map.set_coalesce(hba, &coalesce(delay, requests));
        self.apply()
    }

    fn apply(&self) -> Result<(), String> {
        self.storage.apply(self.map.toml()).map(drop)
    }
}

/// The keys of an HBA that say so.
fn coalesce(delay: Duration, requests: u32) -> String {
    let micros = delay.as_micros();
    format!("coalesce_us = {micros}\ncoalesce_requests = {requests}\n")
}

impl Drop for World {
    fn drop(&mut self) {
        self.shims.clear();
        self.qmp = None;
        self.storage.stop_appliance();
    }
}

/// A directory of one world, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vpci-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a directory for a world");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
