//! The storage VM.

use std::{
    fs::{self, Permissions},
    ops::{Deref, DerefMut},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::accelerator::KERNEL_OPTIONS;
use super::appliance_config::ApplianceConfig;
use super::disk::Disk;
use super::error::{FileContext, Result};
use super::link::{End, Link};
use super::machine::Machine;
use super::scenario::Scenario;
use super::shim::RunningShim;
use super::storage_image::StorageImage;

/// "Ready" comes within 10 s, even under TCG (suites/harness.rs); a busy machine may need more.
const READY: Duration = Duration::from_secs(120);
/// Twice the BAR of the largest tenant: 6 GiB of RAM split at 4 GiB make a BAR of 8 GiB.
const WINDOW: &str = "16G";

/// How to make a storage VM.
#[derive(Debug, Clone)]
pub struct StorageVm {
    config: Option<String>,
    disks: Vec<Disk>,
    memory_mib: u32,
    ports: usize,
    image: Option<StorageImage>,
    functions: Vec<PathBuf>,
    link: Option<Link>,
    operated: bool,
}

impl StorageVm {
    /// A storage VM of 256 MiB with four ports for tenants, configured by `config`.
    pub fn new(config: &ApplianceConfig) -> Self {
        Self {
            config: Some(config.to_toml()),
            ..Self::unconfigured()
        }
    }

    /// The same without a configuration, unless it is on a config disk.
    pub fn unconfigured() -> Self {
        Self {
            config: None,
            disks: Vec::new(),
            memory_mib: 256,
            ports: 4,
            image: None,
            functions: Vec::new(),
            link: None,
            operated: false,
        }
    }

    /// With what an operator gives a storage VM: a virtio console, the control port, entropy and
    /// a watchdog.
    pub fn operated(mut self) -> Self {
        self.operated = true;
        self
    }

    /// With the function of `shim` plugged from the start, into the next root port.
    pub fn function(mut self, shim: &RunningShim) -> Self {
        self.functions.push(shim.vfio_user().to_owned());
        self
    }

    /// With a virtio-blk disk.
    pub fn disk(mut self, disk: &Disk) -> Self {
        self.disks.push(disk.clone());
        self
    }

    /// With this much RAM.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// With this many root ports.
    pub fn ports(mut self, ports: usize) -> Self {
        self.ports = ports;
        self
    }

    /// From another image than the one with this tree's appliance.
    pub fn image(mut self, image: &StorageImage) -> Self {
        self.image = Some(image.clone());
        self
    }

    /// At the first end of `link`.
    pub fn link(mut self, link: &Link) -> Self {
        self.link = Some(link.clone());
        self
    }

    /// Starts it, and waits until its appliance is ready.
    pub fn start(self, scenario: &Scenario) -> Result<RunningStorageVm> {
        let mut running = self.power_on(scenario)?;
        running.wait_console("ready", READY)?;
        running.wait_booted()?;
        Ok(running)
    }

    /// Starts it, whatever the appliance makes of its configuration.
    pub fn power_on(self, scenario: &Scenario) -> Result<RunningStorageVm> {
        let image = self.image.clone().map_or_else(StorageImage::build, Ok)?;
        let shim_qmp = scenario.socket("storage.shims");
        let mut arguments = self.arguments(&image, &shim_qmp);
        if let Some(text) = &self.config {
            let config = scenario.disk("appliance.toml");
            fs::write(&config, text).file("write", &config)?;
            let file = config.display();
            arguments.extend([
                "-fw_cfg".to_owned(),
                format!("name=opt/vhost-pci/appliance.toml,file={file}"),
            ]);
        }
        let virtio_console = scenario.socket("storage.hvc0");
        let control = scenario.socket("storage.control");
        if self.operated {
            arguments.extend(operator_devices(&virtio_console, &control));
        }
        let machine = Machine::start(scenario, "storage", &arguments)?;
        let shims = Permissions::from_mode(0o666);
        fs::set_permissions(&shim_qmp, shims).file("open up", &shim_qmp)?;
        let ports = (0..self.ports).map(port).collect();
        Ok(RunningStorageVm {
            machine,
            shim_qmp,
            virtio_console,
            control,
            ports,
            serials: self.disks.iter().map(|d| d.serial().to_owned()).collect(),
        })
    }

    fn arguments(&self, image: &StorageImage, shim_qmp: &Path) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut option = |name: &str, value: String| {
            arguments.extend([format!("-{name}"), value]);
        };
        // The vIOMMU comes before everything that it translates for. The RAM is anonymous, so
        // no shim is given a piece of it.
        option("machine", "q35".to_owned());
        option(
            "device",
            "intel-iommu,intremap=on,caching-mode=on".to_owned(),
        );
        option("smp", "2".to_owned());
        option("m", self.memory_mib.to_string());
        option("kernel", image.vmlinuz().display().to_string());
        option("initrd", image.initramfs().display().to_string());
        option(
            "append",
            format!("{KERNEL_OPTIONS} intel_iommu=on iommu=pt"),
        );
        option(
            "qmp",
            format!("unix:{},server=on,wait=off", shim_qmp.display()),
        );
        for index in 0..self.ports {
            let number = index + 1;
            option(
                "device",
                format!(
                    "pcie-root-port,id={},chassis={number},slot={number},pref64-reserve={WINDOW}",
                    port(index)
                ),
            );
        }
        for (index, socket) in self.functions.iter().enumerate() {
            let device = json!({
                "driver": "vfio-user-pci",
                "bus": port(index),
                "socket": { "type": "unix", "path": socket },
            });
            option("device", device.to_string());
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let (drive, path) = (drive(index), disk.path().display());
            let throttle = disk
                .operations_per_second()
                .map_or_else(String::new, |most| format!(",throttling.iops-total={most}"));
            // What the storage VM discards, the host's file system gets back.
            option(
                "drive",
                format!(
                    "if=none,id={drive},format=raw,discard=unmap,file={path}{throttle}{}",
                    disk.drive_options()
                ),
            );
            option("device", format!("{},drive={drive}", disk.device()));
        }
        if let Some(link) = &self.link {
            arguments.extend(link.arguments(End::First));
        }
        arguments
    }
}

/// The devices of README.md, "Operate it", and of the guide.
fn operator_devices(virtio_console: &Path, control: &Path) -> Vec<String> {
    let socket = |id: &str, path: &Path| {
        let path = path.display();
        format!("socket,id={id},path={path},server=on,wait=off")
    };
    let devices = [
        ("-device", "virtio-serial-pci,id=operator".to_owned()),
        ("-chardev", socket("hvc0", virtio_console)),
        (
            "-device",
            "virtconsole,bus=operator.0,chardev=hvc0".to_owned(),
        ),
        ("-chardev", socket("control", control)),
        (
            "-device",
            "virtserialport,bus=operator.0,chardev=control,name=org.vhost-pci.control".to_owned(),
        ),
        ("-device", "virtio-rng-pci".to_owned()),
        ("-device", "i6300esb".to_owned()),
    ];
    let devices = devices.into_iter();
    devices
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

fn port(index: usize) -> String {
    format!("rp{index}")
}

fn drive(index: usize) -> String {
    format!("disk{index}")
}

/// A storage VM that runs.
#[derive(Debug)]
pub struct RunningStorageVm {
    machine: Machine,
    shim_qmp: PathBuf,
    virtio_console: PathBuf,
    control: PathBuf,
    ports: Vec<String>,
    /// Those of its disks, in the order of their drives.
    serials: Vec<String>,
}

impl RunningStorageVm {
    /// The monitor socket that belongs to the shims.
    pub fn shim_qmp(&self) -> &Path {
        &self.shim_qmp
    }

    /// A socket that is the other end of its virtio console, if it is [`StorageVm::operated`].
    pub fn virtio_console(&self) -> &Path {
        &self.virtio_console
    }

    /// A socket that is the other end of its control port, if it is [`StorageVm::operated`].
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The root ports that shims may plug into.
    pub fn ports(&self) -> &[String] {
        &self.ports
    }

    /// Gives the appliance another configuration while it runs.
    pub fn reconfigure(&mut self, config: &ApplianceConfig) -> Result<()> {
        let file = "/etc/vhost-pci/appliance.toml";
        let text = config.to_toml();
        // In place whole, as an editor does it.
        self.sh(&format!(
            "cat >{file}.new <<'END'\n{text}\nEND\nmv {file}.new {file} && \
             kill -HUP $(pidof appliance)"
        ))
        .map(drop)
    }

    /// Makes `disk` `bytes` long while the machine runs.
    pub fn resize(&mut self, disk: &Disk, bytes: u64) -> Result<()> {
        let drive = self.drive(disk);
        let arguments = json!({ "device": drive, "size": bytes });
        self.qmp().execute("block_resize", arguments).map(drop)
    }

    /// Lets `disk` move only so many bytes in a second; 0 for no limit.
    pub fn throttle(&mut self, disk: &Disk, bytes_per_second: u64) -> Result<()> {
        let arguments = json!({
            "device": self.drive(disk),
            "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0,
            "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        self.qmp()
            .execute("block_set_io_throttle", arguments)
            .map(drop)
    }

    fn drive(&self, disk: &Disk) -> String {
        let index = self.serials.iter().position(|s| s == disk.serial());
        drive(index.expect("a disk of this machine"))
    }
}

impl Deref for RunningStorageVm {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for RunningStorageVm {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}
