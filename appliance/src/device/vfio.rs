//! A vhost-pci function of this (storage) VM, opened through VFIO.
#![expect(
    unsafe_code,
    reason = "a second descriptor of the VFIO device and registers over its mapped BAR0"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use pci_driver::config::PciConfig;
use pci_driver::regions::{BackedByPciSubregion, PciMemoryRegion, PciRegion, Permissions};
use spec::device::{BAR_REGISTERS, REGISTERS_LEN, VECTORS};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Device;
use crate::memory::Mapping;

/// Bytes of conventional configuration space (PCI 3.0 §6.1).
const CONFIG_LEN: usize = 256;
/// Where the command register is in it.
const COMMAND: std::ops::Range<usize> = 4..6;

/// A function that is open; closed when it and every mapping of it are dropped.
pub struct VfioFunction {
    /// Typed access to `_mapped_registers`.
    registers: PciMemoryRegion<'static>,
    _mapped_registers: Mapping,
    request: Option<EventFd>,
    open: Arc<Open>,
}

/// What mappings keep alive. The fields are dropped in this order: as long as `file` is open the
/// kernel does not take the function away, and `VfioDevice` looks for it in sysfs when dropped.
struct Open {
    device: VfioDevice,
    file: File,
}

/// Why a function cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// VFIO refused.
    #[error(
        "VFIO cannot open it: {0}; the storage VM needs a vIOMMU (QEMU: -device \
         intel-iommu,intremap=on,caching-mode=on; guest kernel: intel_iommu=on iommu=pt), and \
         nobody else may have the function open"
    )]
    Vfio(#[from] VfioError),
    /// A system call failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        error: io::Error,
    },
}

impl OpenError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, error }
    }
}

impl VfioFunction {
    /// Opens the function whose sysfs directory is `path`, bound to vfio-pci already.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let container = Arc::new(VfioContainer::new(None)?);
        let device = VfioDevice::new(path, container, false)?;
        // SAFETY: `device` is open and outlives the borrow.
        let borrowed = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let file = borrowed
            .try_clone_to_owned()
            .map_err(OpenError::io("duplicating the VFIO descriptor"))?
            .into();
        let open = Arc::new(Open { device, file });
        open.enable_bus_master()
            .map_err(OpenError::io("enabling bus mastering"))?;
        let mapped_registers = open
            .map(BAR_REGISTERS, REGISTERS_LEN, None)
            .map_err(OpenError::io("mapping the registers (BAR0)"))?;
        // SAFETY: the region covers exactly the mapping, which stands beside it in the same
        // structure and is dropped after its last use.
        let registers = unsafe {
            PciMemoryRegion::new_raw(
                mapped_registers.as_ptr(),
                mapped_registers.len(),
                Permissions::ReadWrite,
            )
        };
        let request =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(OpenError::io("making an eventfd"))?;
        let request = match open
            .device
            .enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&request])
        {
            Ok(()) => Some(request),
            Err(error) => {
                tracing::warn!("no release request from VFIO, unplug will need a restart: {error}");
                None
            }
        };
        Ok(Self {
            registers,
            _mapped_registers: mapped_registers,
            request,
            open,
        })
    }
}

impl Open {
    fn enable_bus_master(&self) -> io::Result<()> {
        let offset = self.device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
        let mut bytes = [0; CONFIG_LEN];
        self.file.read_exact_at(&mut bytes, offset)?;
        {
            let region = PciMemoryRegion::new_mut(&mut bytes);
            let config = PciConfig::backed_by(&region);
            config.command().memory_space_enable().write(true)?;
            config.command().bus_master_enable().write(true)?;
        }
        self.file
            .write_all_at(&bytes[COMMAND], offset + COMMAND.start as u64)
    }

    fn map(&self, bar: usize, len: u64, owner: Option<Arc<Self>>) -> io::Result<Mapping> {
        let invalid =
            |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("BAR{bar} {what}"));
        let index = u32::try_from(bar).map_err(|_| invalid("does not exist"))?;
        if self.device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Err(invalid("cannot be mapped"));
        }
        if len > self.device.get_region_size(index) {
            return Err(invalid("is shorter than what should be mapped"));
        }
        let len = usize::try_from(len).map_err(|_| invalid("is too long"))?;
        let owner = owner.map(|open| -> Arc<dyn std::any::Any + Send + Sync> { open });
        let offset = self.device.get_region_offset(index);
        Mapping::new(self.file.as_fd(), offset, len, owner)
    }
}

impl Device for VfioFunction {
    fn read32(&self, offset: u64) -> io::Result<u32> {
        self.registers.read_le_u32(offset)
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        self.registers.write_le_u32(offset, value)
    }

    fn map(&self, bar: usize, len: u64) -> io::Result<Mapping> {
        self.open.map(bar, len, Some(Arc::clone(&self.open)))
    }

    fn bar_len(&self, bar: usize) -> io::Result<u64> {
        Ok(u32::try_from(bar).map_or(0, |index| self.open.device.get_region_size(index)))
    }

    fn enable_vectors(&self, fds: &[&EventFd]) -> io::Result<usize> {
        let irq = self.open.device.get_irq_info(VFIO_PCI_MSI_IRQ_INDEX);
        let offered = irq.map_or(0, |irq| usize::try_from(irq.count).unwrap_or(usize::MAX));
        let wanted = fds.len().min(offered);
        let mut count = wanted;
        while count > 0 {
            // VFIO enables all or nothing, and vfio-ioctls takes "only so many can be had" for
            // success: what the function itself sees is the truth.
            if self.open.device.enable_msi(fds[..count].to_vec()).is_ok()
                && self.read32(VECTORS)? > 0
            {
                if count < wanted {
                    tracing::warn!(
                        count,
                        wanted,
                        "fewer MSI vectors than offered: rings share them"
                    );
                }
                return Ok(count);
            }
            count /= 2;
        }
        Err(io::Error::other(format!(
            "no MSI vector can be enabled of the {offered} that VFIO reports"
        )))
    }

    fn disable_vectors(&self) -> io::Result<()> {
        self.open.device.disable_msi().map_err(io::Error::other)
    }

    fn release_request(&self) -> Option<&EventFd> {
        self.request.as_ref()
    }
}
