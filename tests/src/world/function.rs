//! The vhost-pci function as the storage VM sees it: QEMU's `vfio-user-pci` in front, the guest's
//! `vfio-pci` behind.

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use appliance::device::Device;
use appliance::memory::Mapping;
use spec::device::{BAR_REGISTERS, DEVICE_ID, DOORBELLS, DRIVER_VERSION, RING_ERROR, VENDOR_ID};
use spec::version::Version;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::readiness::eventually;
use super::vfio_user::{CONFIG_REGION, ERR, MSI, RegionInfo, VfioUser, region_flag};

/// Standard config space offsets (PCI 3.0 §6.1, §6.7, §6.8.1).
mod config {
    pub const COMMAND: u64 = 0x04;
    pub const BARS: u64 = 0x10;
    pub const ROM: u64 = 0x30;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_PIN: u64 = 0x3d;
    pub const CAP_MSI: u8 = 0x05;
    pub const CAP_MSI_X: u8 = 0x11;
    /// Command register: memory space, bus master.
    pub const MEMORY: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    /// MSI message control: enable.
    pub const MSI_ENABLE: u16 = 1;
}

/// GET_INFO: the device can be reset.
const RESETTABLE: u32 = 1;

/// A vhost-pci function that was plugged into the storage VM.
pub struct Function {
    client: Mutex<VfioUser>,
    regions: Vec<RegionInfo>,
    msi: u64,
    /// MSI vectors that the function offers.
    vectors: usize,
    /// MSI vectors that the guest's kernel is willing to give.
    granted: usize,
    /// Set when the storage VM's appliance "died": what it still does reaches nobody.
    dead: AtomicBool,
    /// What the appliance says in DRIVER_VERSION, if that is not its own version.
    pretended: AtomicU32,
    doorbells: AtomicU64,
    /// What was written to RING_ERROR: ring and reason.
    ring_errors: Mutex<Vec<(u16, u32)>>,
    /// The VFIO REQ interrupt: the guest's kernel wants the function back.
    release: EventFd,
    /// Held by every mapping.
    mapped: Arc<dyn Any + Send + Sync>,
}

impl Function {
    /// Realizes the device on `stream`, then resets it and sets it up as firmware does; each
    /// message in the order in which QEMU 11.1 was seen to send it. The guest's kernel grants
    /// at most `granted` vectors.
    ///
    /// # Errors
    /// What would have made `device_add` fail, or crashed QEMU.
    pub fn realize(stream: UnixStream, granted: usize) -> io::Result<Self> {
        let mut client = VfioUser::connect(stream)?;
        client.dma_map(&[(0, 0xa_0000), (0xc_0000, 0x4_0000), (1 << 20, 255 << 20)])?;
        let info = client.info()?;
        if !(8..=100).contains(&info.regions) || !(3..=50).contains(&info.irqs) {
            return Err(wrong(format!("QEMU refuses {info:?}")));
        }
        let mut regions = Vec::new();
        for index in 0..=7 {
            // QEMU asks neither for the VGA region nor, where there is none, for the ROM.
            if index != 6 {
                regions.push(client.region(index)?);
            }
        }
        let config_region = regions.pop().ok_or_else(|| wrong("no config region"))?;
        let _ = client.irq_count(ERR)?;
        let len = u32::try_from(config_region.len).map_err(wrong)?;
        let config = client.read(CONFIG_REGION, 0, len)?;
        size_rom(&mut client)?;
        for (i, region) in (0u64..).zip(&regions) {
            if region.len != 0 {
                client.read(CONFIG_REGION, config::BARS + 4 * i, 4)?;
            }
        }
        let (msi, vectors) = inspect(&config)?;
        if client.read(CONFIG_REGION, config::INTERRUPT_PIN, 1)? != [0] {
            return Err(wrong("an INTx pin"));
        }
        reset(&mut client, info.flags & RESETTABLE != 0)?;
        set_command(&mut client, config::MEMORY)?;
        Ok(Self {
            client: Mutex::new(client),
            regions,
            msi,
            vectors,
            granted,
            dead: AtomicBool::new(false),
            pretended: AtomicU32::new(0),
            doorbells: AtomicU64::new(0),
            ring_errors: Mutex::default(),
            release: EventFd::new(EFD_NONBLOCK)?,
            mapped: Arc::new(()),
        })
    }

    /// Trapped doorbell writes so far.
    pub fn doorbells(&self) -> u64 {
        self.doorbells.load(Ordering::Relaxed)
    }

    /// A register, as the storage VM reads it.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn read(&self, register: u64) -> u32 {
        self.read32(register).expect("a register")
    }

    /// The rings that the appliance retired, and for which reasons, in its order.
    pub fn ring_errors(&self) -> Vec<(u16, u32)> {
        self.ring_errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// As [`Self::ring_errors`], once there are `count`.
    ///
    /// # Panics
    /// If there are fewer after five seconds.
    pub fn wait_ring_errors(&self, count: usize) -> Vec<(u16, u32)> {
        eventually("a ring is retired", || self.ring_errors().len() >= count);
        self.ring_errors()
    }

    /// Mappings of its BARs that still exist; hot-unplug hangs until there are none.
    pub fn mappings(&self) -> usize {
        Arc::strong_count(&self.mapped) - 1
    }

    /// Asks whoever has the function open to let it go, as the guest's kernel does at unplug.
    ///
    /// # Panics
    /// If it was asked 2^64 times.
    pub fn ask_back(&self) {
        self.release.write(1).expect("an eventfd");
    }

    /// Gives the interrupts eventfds that nobody reads: to the shim, the appliance hangs.
    ///
    /// # Errors
    /// The server is gone.
    pub fn mute(&self) -> io::Result<()> {
        let nobody = EventFd::new(EFD_NONBLOCK)?;
        let count = self.vectors.min(self.granted);
        self.client().set_irqs(MSI, &vec![&nobody; count])
    }

    /// From now on an appliance that attaches says that it is of this version.
    pub fn pretend(&self, version: Version) {
        let version = version.to_register();
        self.pretended.store(version, Ordering::SeqCst);
    }

    /// From now on nothing that the appliance does reaches the device: its process is gone.
    pub fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// What the kernel does when a process that held the device is gone: interrupts off, and a
    /// function reset.
    ///
    /// # Errors
    /// The server is gone.
    pub fn clean_up(&self) -> io::Result<()> {
        let mut client = self.client();
        self.msi_off(&mut client)?;
        client.reset()?;
        self.dead.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// What QEMU does at `device_del` before it closes the socket.
    ///
    /// # Errors
    /// The server is gone.
    pub fn unrealize(&self) -> io::Result<()> {
        let mut client = self.client();
        client.clear_irqs(MSI)?;
        client.dma_unmap(0, 0xa_0000)?;
        client.dma_unmap(0xc_0000, 0x4_0000)?;
        client.dma_unmap(1 << 20, 255 << 20)?;
        client.close()
    }

    /// A doorbell, a register or config space, in words of our own.
    pub fn client(&self) -> MutexGuard<'_, VfioUser> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn msi_off(&self, client: &mut VfioUser) -> io::Result<()> {
        let control = client.read(CONFIG_REGION, self.msi + 2, 2)?;
        let control = u16::from_le_bytes([control[0], control[1]]) & !config::MSI_ENABLE;
        client.write(CONFIG_REGION, self.msi + 2, &control.to_le_bytes())?;
        client.clear_irqs(MSI)
    }
}

impl Device for Function {
    fn read32(&self, offset: u64) -> io::Result<u32> {
        self.alive()?;
        let bytes = self.client().read(bar(BAR_REGISTERS), offset, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        self.alive()?;
        let pretended = self.pretended.load(Ordering::SeqCst);
        let value = match offset {
            DRIVER_VERSION if pretended != 0 => pretended,
            _ => value,
        };
        if offset >= DOORBELLS {
            self.doorbells.fetch_add(1, Ordering::Relaxed);
        }
        self.client()
            .write(bar(BAR_REGISTERS), offset, &value.to_le_bytes())?;
        if offset == RING_ERROR {
            let mut errors = self
                .ring_errors
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let [a, b, c, d] = value.to_le_bytes();
            errors.push((
                u16::from_le_bytes([a, b]),
                u32::from(u16::from_le_bytes([c, d])),
            ));
        }
        Ok(())
    }

    fn map(&self, bar: usize, len: u64) -> io::Result<Mapping> {
        self.alive()?;
        let region = self.regions.get(bar).ok_or_else(|| wrong("no such BAR"))?;
        let fd = match &region.fd {
            Some(fd) if region.flags & region_flag::MMAP != 0 => fd,
            _ => return Err(wrong(format!("BAR{bar} cannot be mapped"))),
        };
        if !region
            .areas
            .iter()
            .any(|&(at, size)| at == 0 && len <= size)
        {
            return Err(wrong(format!("{len} bytes of BAR{bar} are not all mapped")));
        }
        let len = usize::try_from(len).map_err(wrong)?;
        Mapping::new(fd.as_fd(), region.offset, len, Some(self.mapped.clone()))
    }

    fn bar_len(&self, bar: usize) -> io::Result<u64> {
        self.alive()?;
        Ok(self.regions.get(bar).map_or(0, |region| region.len))
    }

    fn enable_vectors(&self, fds: &[&EventFd]) -> io::Result<usize> {
        self.alive()?;
        let count = fds.len().min(self.vectors).min(self.granted);
        let mut client = self.client();
        set_command(&mut client, config::MEMORY | config::BUS_MASTER)?;
        client.set_irqs(MSI, &fds[..count])?;
        let control = client.read(CONFIG_REGION, self.msi + 2, 2)?;
        let control = u16::from_le_bytes([control[0], control[1]]) | config::MSI_ENABLE;
        client.write(CONFIG_REGION, self.msi + 2, &control.to_le_bytes())?;
        Ok(count)
    }

    fn disable_vectors(&self) -> io::Result<()> {
        self.alive()?;
        let mut client = self.client();
        self.msi_off(&mut client)
    }

    fn release_request(&self) -> Option<&EventFd> {
        Some(&self.release)
    }
}

fn size_rom(client: &mut VfioUser) -> io::Result<()> {
    let before = client.read(CONFIG_REGION, config::ROM, 4)?;
    client.write(CONFIG_REGION, config::ROM, &0xffff_f800_u32.to_le_bytes())?;
    if client.read(CONFIG_REGION, config::ROM, 4)? != [0; 4] {
        return Err(wrong("a phantom ROM"));
    }
    client.write(CONFIG_REGION, config::ROM, &before)
}

fn reset(client: &mut VfioUser, resettable: bool) -> io::Result<()> {
    set_command(client, 0)?;
    if resettable {
        client.reset()?;
    }
    client.read(CONFIG_REGION, config::INTERRUPT_PIN, 1)?;
    for i in 0..6 {
        client.write(CONFIG_REGION, config::BARS + 4 * i, &[0; 4])?;
    }
    Ok(())
}

fn set_command(client: &mut VfioUser, bits: u16) -> io::Result<()> {
    client.read(CONFIG_REGION, config::COMMAND, 2)?;
    client.write(CONFIG_REGION, config::COMMAND, &bits.to_le_bytes())
}

/// Checks the function's identity; returns where its MSI capability is, and its vectors.
fn inspect(config: &[u8]) -> io::Result<(u64, usize)> {
    let id = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
    if (id(0), id(2)) != (VENDOR_ID, DEVICE_ID) {
        return Err(wrong(format!(
            "{:04x}:{:04x} is no vhost-pci",
            id(0),
            id(2)
        )));
    }
    let mut found = None;
    let mut at = usize::from(config[config::CAPABILITIES]);
    // 48 capabilities fill the space there is.
    for _ in 0..48 {
        match config[at] {
            _ if at == 0 => break,
            config::CAP_MSI => found = Some((at as u64, 1 << (id(at + 2) >> 1 & 7))),
            config::CAP_MSI_X => return Err(wrong("MSI-X, which aborts QEMU at unplug")),
            _ => {}
        }
        at = usize::from(config[at + 1]);
    }
    found.ok_or_else(|| wrong("no MSI capability"))
}

fn bar(index: usize) -> u32 {
    u32::try_from(index).expect("six BARs")
}

fn wrong(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::thread;
    use std::time::Duration;

    use host_shim::device::{DeviceEvent, Profile, VhostPci};
    use host_shim::vfio_user::Connection;
    use spec::device::{self, BAR_SESSION, BAR_TENANT};
    use uuid::Uuid;

    use super::super::memfd::memfd;
    use super::super::readiness::readable;
    use super::*;

    /// Serves `device` to one client until it leaves; returns the events.
    fn serve(mut device: VhostPci, stream: UnixStream) -> thread::JoinHandle<Vec<DeviceEvent>> {
        thread::spawn(move || {
            let mut connection = Connection::new(stream).unwrap();
            let mut events = Vec::new();
            loop {
                readable(&connection, Duration::from_secs(5)).unwrap();
                let open = connection.ready(&mut device).is_ok();
                while let Some(event) = device.take_event() {
                    if let DeviceEvent::BackendUp { .. } = event {
                        device.kick(2);
                    }
                    events.push(event);
                }
                if !open {
                    return events;
                }
            }
        })
    }

    #[test]
    fn the_function_is_realized_mapped_attached_and_kicked() {
        let mut shim = VhostPci::new(&Profile::new("hba0", Uuid::new_v4())).unwrap();
        shim.set_tenant_memory(OwnedFd::from(memfd(3 << 20, true).unwrap()))
            .unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = serve(shim, theirs);
        let function = Function::realize(ours, 16).unwrap();

        assert_eq!(function.read(device::MAGIC), device::MAGIC_VALUE);
        assert_eq!(function.bar_len(BAR_TENANT).unwrap(), 4 << 20);
        assert!(function.map(BAR_TENANT, 4 << 20).is_err());
        let session = function.map(BAR_SESSION, spec::session::LEN).unwrap();
        assert_eq!(function.mappings(), 1);
        drop(session);
        let fds: Vec<_> = (0..16)
            .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
            .collect();
        let fds: Vec<_> = fds.iter().collect();
        assert_eq!(function.enable_vectors(&fds).unwrap(), 16);
        function
            .write32(device::DRIVER_VERSION, spec::version::CURRENT.to_register())
            .unwrap();
        function
            .write32(device::STATUS, device::status::BACKEND_UP)
            .unwrap();
        assert!(readable(fds[3], Duration::from_secs(5)).unwrap());

        function.clean_up().unwrap();
        function.unrealize().unwrap();
        assert_eq!(function.mappings(), 0);
        drop(function);
        let events = server.join().unwrap();
        let version = spec::version::CURRENT;
        assert!(events.contains(&DeviceEvent::BackendUp { version }));
        assert!(events.contains(&DeviceEvent::BackendDown));
    }
}
