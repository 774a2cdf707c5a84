//! KVM if it really works here, else TCG.

use std::{
    env,
    fs::{self, File},
    path::Path,
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use super::error::{Error, FileContext, Result};
use super::process::Process;
use super::qemu::Qemu;
use super::tenant_image;

/// What every guest's kernel is told, as it may be emulated. On a busy machine its own test of its
/// timer may fail, so it is left out. And where it takes the TSC for stable, it exchanges code that
/// all its CPUs run (sched_clock_idle_wakeup_event) when they have started, of which QEMU's
/// emulation may still run what was there meanwhile: an int3, and the kernel panics.
pub const KERNEL_OPTIONS: &str = "console=ttyS0 quiet no_timer_check tsc=unstable";

/// How guests are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// In hardware.
    Kvm,
    /// In software.
    Tcg,
}

impl Accelerator {
    /// What `VPCI_ACCEL` says; with `auto` or nothing, KVM if it really works.
    pub fn choose(qemu: &Qemu) -> Result<Self> {
        static CHOICE: OnceLock<Accelerator> = OnceLock::new();
        if let Some(choice) = CHOICE.get() {
            return Ok(*choice);
        }
        let wish = env::var("VPCI_ACCEL").unwrap_or_else(|_| "auto".to_owned());
        let choice = match wish.as_str() {
            "kvm" => Self::Kvm,
            "tcg" => Self::Tcg,
            "auto" if Self::kvm_works(qemu)? => Self::Kvm,
            "auto" => Self::Tcg,
            _ => {
                return Err(Error::Environment {
                    variable: "VPCI_ACCEL",
                    value: wish,
                    expected: "kvm, tcg or auto",
                });
            }
        };
        Ok(*CHOICE.get_or_init(|| choice))
    }

    /// QEMU's arguments for it.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm,kernel-irqchip=split", "-cpu", "host"],
            // 40 bits of physical address, TCG's default, are few for many large BARs.
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,phys-bits=46"],
        }
    }

    /// Whether KVM runs guests here, at the speed of hardware.
    ///
    /// A machine may have `/dev/kvm` and yet run only some guests, or crawl. So a boot sector
    /// must get through the firmware quickly, and then a Linux kernel must come as far as
    /// missing its root.
    fn kvm_works(qemu: &Qemu) -> Result<bool> {
        if File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(false);
        }
        let directory = tempfile::tempdir().file("create", "a temporary directory")?;
        let boot_sector = directory.path().join("boot-sector");
        fs::write(&boot_sector, boot_sector_that_exits()).file("write", &boot_sector)?;
        let mut firmware = probe(qemu);
        firmware.args(["-device", "isa-debug-exit,iobase=0xf4", "-drive"]);
        firmware.arg(format!(
            "if=floppy,format=raw,readonly=on,file={}",
            boot_sector.display()
        ));
        // isa-debug-exit ends QEMU with twice the value plus one.
        if ends_with(33, &firmware, Duration::from_secs(2), directory.path())? {
            let mut linux = probe(qemu);
            linux.arg("-kernel").arg(tenant_image::kernel()?);
            linux.args(["-append", "panic=-1", "-m", "256"]);
            return ends_with(0, &linux, Duration::from_secs(10), directory.path());
        }
        Ok(false)
    }
}

fn probe(qemu: &Qemu) -> Command {
    let mut command = qemu.command();
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-machine",
        "q35",
        "-nodefaults",
    ]);
    command.args(["-display", "none", "-no-reboot"]);
    command
}

/// Whether `command` ends with `code` in time.
fn ends_with(code: i32, command: &Command, limit: Duration, directory: &Path) -> Result<bool> {
    let mut process = Process::start("the KVM probe", command, &directory.join("log"))?;
    match process.wait(limit) {
        Ok(status) => Ok(status.code() == Some(code)),
        Err(Error::TooLate { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `mov al, 16; out 0xf4, al; hlt; jmp` back to the `hlt`, with the mark of a boot sector.
fn boot_sector_that_exits() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..7].copy_from_slice(&[0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
