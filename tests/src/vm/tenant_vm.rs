//! A tenant VM, whose disks are LUNs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::disk::Disk;
use super::error::{Error, FileContext, Result};
use super::link::{End, Link};
use super::machine::{Machine, Starting};
use super::qemu::Qemu;
use super::scenario::Scenario;
use super::shim::RunningShim;

/// The disk that the tenant has booted from, as `/dev/sdX`; Linux names disks in any order.
pub fn root_disk(tenant: &mut Machine) -> Result<String> {
    let name = tenant.sh("lsblk -no PKNAME $(findmnt -no SOURCE /)")?;
    Ok(format!("/dev/{}", name.trim()))
}

/// The tenant's other disk, as `/dev/sdX`.
pub fn data_disk(tenant: &mut Machine) -> Result<String> {
    let root = root_disk(tenant)?;
    let name = tenant.sh(&format!(
        "lsblk -dnpo NAME | grep '^/dev/sd' | grep -vx {root}"
    ))?;
    Ok(name.trim().to_owned())
}

/// The tenant's LUN `lun` of its only HBA, as `/dev/sdX`.
pub fn disk_at(tenant: &mut Machine, lun: u16) -> Result<String> {
    disk_on(tenant, 0, lun)
}

/// The tenant's LUN `lun` of the HBA `hba`, counted from 0 in the order of its QEMU's arguments;
/// as `/dev/sdX`.
pub fn disk_on(tenant: &mut Machine, hba: usize, lun: u16) -> Result<String> {
    // "0:0:1:0 /dev/sdb": host, channel, target, LUN. Only hosts with disks are listed.
    let list = tenant.sh("lsblk -dnpo HCTL,NAME | tr ':' ' '")?;
    let mut disks: Vec<(u32, u16, &str)> = Vec::new();
    for line in list.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [host, _, _, lun, name] = words[..]
            && let (Ok(host), Ok(lun)) = (host.parse(), lun.parse())
        {
            disks.push((host, lun, name));
        }
    }
    disks.sort_unstable();
    let mut hosts: Vec<_> = disks.iter().map(|(host, ..)| *host).collect();
    hosts.dedup();
    let found = disks
        .iter()
        .find(|(host, number, _)| hosts.get(hba) == Some(host) && *number == lun);
    found
        .map(|(.., name)| (*name).to_owned())
        .ok_or_else(|| Error::Unexpected {
            what: format!("HBA {hba} of {}", tenant.name()),
            problem: format!("has no disk as LUN {lun}:\n{list}"),
        })
}

/// What the tenant boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// A BIOS.
    SeaBios,
    /// UEFI.
    Ovmf,
}

/// Where the tenant's RAM comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantMemory {
    /// One shared, sealed memfd: what vhost-pci needs.
    SharedMemfd,
    /// A file that was there before, for a device that is plugged from the start.
    File(PathBuf),
    /// Anonymous RAM, which no other process can see.
    Private,
    /// Two shared memfds.
    TwoBackends,
    /// A shared memfd that its owner could shrink.
    UnsealedMemfd,
}

/// How to make a tenant VM.
#[derive(Debug, Clone)]
pub struct TenantVm {
    name: String,
    hbas: Vec<(PathBuf, u16)>,
    own_disks: Vec<Disk>,
    memory: TenantMemory,
    memory_mib: u32,
    cpus: u16,
    firmware: Firmware,
    link: Option<Link>,
    t10_pi: bool,
}

impl TenantVm {
    /// A tenant of 768 MiB with two processors, booted by SeaBIOS.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            hbas: Vec::new(),
            own_disks: Vec::new(),
            memory: TenantMemory::SharedMemfd,
            memory_mib: 768,
            cpus: 2,
            firmware: Firmware::SeaBios,
            link: None,
            t10_pi: false,
        }
    }

    /// With the HBA that `shim` serves; the first one is booted from, unless there is an own disk.
    pub fn hba(self, shim: &RunningShim) -> Self {
        self.hba_at(shim.vhost_user(), shim.queues())
    }

    /// With an HBA served at `socket`.
    pub fn hba_at(mut self, socket: &Path, queues: u16) -> Self {
        self.hbas.push((socket.to_owned(), queues));
        self
    }

    /// With a disk on QEMU's own virtio-scsi HBA; the first one is booted from.
    pub fn own_disk(mut self, disk: &Disk) -> Self {
        self.own_disks.push(disk.clone());
        self
    }

    /// With this much RAM.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// With another kind of RAM.
    pub fn memory(mut self, memory: TenantMemory) -> Self {
        self.memory = memory;
        self
    }

    /// With this many processors.
    pub fn cpus(mut self, cpus: u16) -> Self {
        self.cpus = cpus;
        self
    }

    /// With another firmware.
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// At the second end of `link`.
    pub fn link(mut self, link: &Link) -> Self {
        self.link = Some(link.clone());
        self
    }

    /// With HBAs that may move protection information.
    pub fn with_t10_pi(mut self) -> Self {
        self.t10_pi = true;
        self
    }

    /// Starts it, and waits until it runs commands.
    pub fn start(&self, scenario: &Scenario) -> Result<Machine> {
        let mut machine = self.power_on(scenario)?.connect()?;
        machine.wait_booted()?;
        Ok(machine)
    }

    /// Starts it, and does not expect it to come far.
    pub fn power_on(&self, scenario: &Scenario) -> Result<Starting> {
        let arguments = self.arguments(scenario)?;
        Machine::begin(scenario, &self.name, &arguments)
    }

    fn arguments(&self, scenario: &Scenario) -> Result<Vec<String>> {
        let mut arguments = self.memory_arguments();
        let mut option = |name: &str, value: String| {
            arguments.extend([format!("-{name}"), value]);
        };
        option("smp", self.cpus.to_string());
        if self.firmware == Firmware::Ovmf {
            let (code, empty_vars) = Qemu::find()?.ovmf()?;
            let vars = scenario.disk(&format!("{}.vars", self.name));
            fs::copy(&empty_vars, &vars).file("copy", &empty_vars)?;
            let pflash = "if=pflash,format=raw";
            option(
                "drive",
                format!("{pflash},readonly=on,file={}", code.display()),
            );
            option("drive", format!("{pflash},file={}", vars.display()));
        }
        let t10_pi = if self.t10_pi { ",t10_pi=on" } else { "" };
        for (index, (socket, queues)) in self.hbas.iter().enumerate() {
            let socket = socket.display();
            option(
                "chardev",
                format!("socket,id=hba{index},path={socket},reconnect-ms=1000"),
            );
            option(
                "device",
                format!(
                    "vhost-user-scsi-pci,id=scsi{index},chardev=hba{index},num_queues={queues},\
                     boot_tpgt=0,bootindex={}{t10_pi}",
                    index + self.own_disks.len()
                ),
            );
        }
        if !self.own_disks.is_empty() {
            option("device", "virtio-scsi-pci,id=own,num_queues=4".to_owned());
        }
        for (index, disk) in self.own_disks.iter().enumerate() {
            let (serial, path) = (disk.serial(), disk.path().display());
            let more = disk.drive_options();
            option(
                "drive",
                format!("if=none,id=own{index},format=raw,file={path}{more}"),
            );
            option(
                "device",
                format!(
                    "scsi-hd,bus=own.0,lun={index},drive=own{index},serial={serial},\
                     bootindex={index}"
                ),
            );
        }
        if let Some(link) = &self.link {
            arguments.extend(link.arguments(End::Second));
        }
        Ok(arguments)
    }

    fn memory_arguments(&self) -> Vec<String> {
        let size = self.memory_mib;
        let memfd = |id: &str, size: u32, options: &str| {
            let backend = format!("memory-backend-memfd,id={id},size={size}M,share=on{options}");
            ["-object".to_owned(), backend]
        };
        let mut arguments = vec!["-m".to_owned(), size.to_string(), "-machine".to_owned()];
        match &self.memory {
            TenantMemory::Private => arguments.push("q35".to_owned()),
            TenantMemory::SharedMemfd => {
                arguments.push("q35,memory-backend=mem".to_owned());
                arguments.extend(memfd("mem", size, ""));
            }
            TenantMemory::File(path) => {
                arguments.push("q35,memory-backend=mem".to_owned());
                arguments.push("-object".to_owned());
                arguments.push(format!(
                    "memory-backend-file,id=mem,size={size}M,share=on,mem-path={}",
                    path.display()
                ));
            }
            TenantMemory::UnsealedMemfd => {
                arguments.push("q35,memory-backend=mem".to_owned());
                arguments.extend(memfd("mem", size, ",seal=off"));
            }
            TenantMemory::TwoBackends => {
                arguments.push("q35".to_owned());
                for (node, id) in ["mem0", "mem1"].into_iter().enumerate() {
                    arguments.extend(memfd(id, size / 2, ""));
                    arguments.push("-numa".to_owned());
                    arguments.push(format!("node,nodeid={node},cpus={node},memdev={id}"));
                }
            }
        }
        arguments
    }
}
