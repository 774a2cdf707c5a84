//! The regions of the function, as a vfio-user client asks for them.

use spec::device::{
    BAR_INFLIGHT, BAR_REGISTERS, BAR_SESSION, BAR_TENANT, DOORBELLS, REGISTERS_LEN,
};
use spec::{inflight, session};

use super::{VhostPci, config_space};
use crate::kept::KeptFd;

/// Regions of a PCI function in VFIO's numbering: 6 BARs, ROM, configuration space, VGA.
pub(crate) const REGIONS: usize = 9;
/// Region of configuration space in VFIO's numbering.
const CONFIG: usize = 7;
/// What a read gives where nothing answers, as on PCI.
const NOBODY: u8 = 0xff;

/// One region of the function.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// Length in bytes; 0 where there is no region.
    pub(crate) len: u64,
    /// The file behind it, if it can be mapped: the first so many bytes of the region are the
    /// first so many bytes of the file.
    pub(crate) mapped: Option<(KeptFd, u64)>,
}

/// An access that is not inside its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutsideRegion;

impl VhostPci {
    /// The region with this index, `None` if PCI has no such region.
    pub(crate) fn region(&self, index: usize) -> Option<Region> {
        let trapped = |len| Region { len, mapped: None };
        match index {
            BAR_REGISTERS => Some(trapped(REGISTERS_LEN)),
            BAR_INFLIGHT => Some(self.inflight.as_ref().map_or(trapped(0), |memory| Region {
                len: inflight::LEN,
                mapped: Some((memory.fd().clone(), inflight::LEN)),
            })),
            BAR_TENANT => Some(self.tenant.as_ref().map_or(trapped(0), |tenant| Region {
                len: tenant.bar_len(),
                mapped: Some((tenant.fd().clone(), tenant.len())),
            })),
            BAR_SESSION => Some(Region {
                len: session::LEN,
                mapped: Some((self.session.fd().clone(), session::LEN)),
            }),
            CONFIG => Some(trapped(config_space::LEN)),
            _ => (index < REGIONS).then(|| trapped(0)),
        }
    }

    /// A trapped read.
    pub(crate) fn region_read(
        &self,
        index: usize,
        offset: u64,
        to: &mut [u8],
    ) -> Result<(), OutsideRegion> {
        self.inside(index, offset, to.len())?;
        match index {
            CONFIG => self.config.read(offset, to),
            BAR_REGISTERS if is_registers(offset, to.len()) => {
                for (at, word) in (offset..).step_by(4).zip(to.chunks_exact_mut(4)) {
                    word.copy_from_slice(&self.registers.read(at).to_le_bytes());
                }
            }
            // Mapped memory that the client did not map, or a register read of odd width.
            _ => to.fill(NOBODY),
        }
        Ok(())
    }

    /// A trapped write.
    pub(crate) fn region_write(
        &mut self,
        index: usize,
        offset: u64,
        from: &[u8],
    ) -> Result<(), OutsideRegion> {
        self.inside(index, offset, from.len())?;
        // A doorbell is rung again for every ring after a handover.
        self.changed |= index != BAR_REGISTERS || offset < DOORBELLS;
        match index {
            CONFIG => {
                let reset = self.config.write(offset, from);
                if reset {
                    self.reset();
                }
            }
            BAR_REGISTERS if is_registers(offset, from.len()) => {
                let (words, _) = from.as_chunks::<4>();
                for (at, word) in (offset..).step_by(4).zip(words) {
                    self.registers.write(at, u32::from_le_bytes(*word));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inside(&self, index: usize, offset: u64, len: usize) -> Result<(), OutsideRegion> {
        let region = self.region(index).ok_or(OutsideRegion)?;
        u64::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len))
            .filter(|&end| end <= region.len)
            .map(|_| ())
            .ok_or(OutsideRegion)
    }
}

/// Whether an access is made of whole registers.
fn is_registers(offset: u64, len: usize) -> bool {
    offset.is_multiple_of(4) && len.is_multiple_of(4)
}
