//! The file behind BAR1, which the tenant's QEMU keeps while nobody serves its rings.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use spec::inflight::{LEN, REGIONS, Regions};

use super::descriptor;
use super::shared_memory::memfd;
use crate::kept::{Kept, KeptFd};

/// What keeps its length, so that nobody who maps it can be sent to SIGBUS, and keeps others from
/// adding seals: one against writing would take it from the appliance.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
/// Zeros that are written at once.
const ZEROS: usize = 0x1_0000;

/// A file that cannot become BAR1.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// It is not what a shim gave.
    #[error(
        "the tenant's in-flight memory is none of a host-shim's: it has to be a memfd of {LEN} \
         bytes that cannot be resized and can be written; power the tenant off and on to start \
         without it"
    )]
    NotOurs,
    /// The storage VM's QEMU has the device open: what it mapped cannot be changed.
    #[error("the device is plugged into the storage VM; unplug it before BAR1 is changed")]
    InUse,
    /// The kernel refused something.
    #[error("in-flight memory: {0}")]
    Io(#[from] io::Error),
}

/// In-flight memory. The shim never maps it and never reads it.
#[derive(Debug)]
pub struct InflightMemory {
    fd: KeptFd,
}

impl InflightMemory {
    /// A fresh one, all zero.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) or fcntl(2) report.
    pub fn new() -> io::Result<Self> {
        let file = memfd(c"vhost-pci-inflight", LEN, SEALS)?;
        Ok(Self {
            fd: OwnedFd::from(file).into(),
        })
    }

    /// What another supervisor had, kept as `fd`.
    pub(crate) fn kept(fd: KeptFd) -> Self {
        Self { fd }
    }

    /// Has the file kept.
    ///
    /// # Errors
    /// What duplicating its descriptor gave.
    pub(crate) fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        self.fd = kept.keep(self.fd.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// One that a shim gave to the tenant's QEMU, and that comes back.
    ///
    /// # Errors
    /// [`InflightError::NotOurs`] if none can have.
    pub fn adopted(fd: impl Into<KeptFd>) -> Result<Self, InflightError> {
        const READ_ONLY: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;
        let fd = fd.into();
        let seals = descriptor::seals(fd.as_fd())?.unwrap_or(0);
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        let fits = seals & SEALS == SEALS
            && seals & READ_ONLY == 0
            && descriptor::is_read_write(file.as_fd())?
            && file.metadata()?.len() == LEN;
        if !fits {
            return Err(InflightError::NotOurs);
        }
        Ok(Self { fd })
    }

    /// Makes these regions empty.
    ///
    /// # Errors
    /// What pwrite(2) reports.
    pub fn clear(&self, regions: Regions) -> io::Result<()> {
        let file = File::from(self.fd.as_fd().try_clone_to_owned()?);
        let end = REGIONS + regions.len();
        let zeros = vec![0; ZEROS];
        let mut at = REGIONS;
        while at < end {
            let len = usize::try_from(end - at).map_or(ZEROS, |left| left.min(ZEROS));
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
        Ok(())
    }

    /// The file.
    pub fn fd(&self) -> &KeptFd {
        &self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::super::tenant_memory::tests::memfd;
    use super::*;

    // covers: VPCI-BAR-5
    #[test]
    fn its_length_cannot_be_changed_by_whoever_has_the_descriptor() {
        let memory = InflightMemory::new().unwrap();
        let theirs = File::from(memory.fd().as_fd().try_clone_to_owned().unwrap());
        assert_eq!(theirs.metadata().unwrap().len(), 1 << 20);
        assert!(theirs.set_len(0).is_err());
        assert!(theirs.set_len(2 << 20).is_err());
    }

    // covers: VPCI-INF-3
    #[test]
    fn only_what_a_shim_can_have_given_is_adopted() {
        let again = InflightMemory::new().unwrap().fd().clone();
        assert!(InflightMemory::adopted(again).is_ok());
        for (len, seals) in [
            (1 << 20, 0),
            (1 << 20, libc::F_SEAL_SHRINK),
            (1 << 20, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW),
            (1 << 20, SEALS | libc::F_SEAL_WRITE),
            (1 << 19, SEALS),
            (1 << 21, SEALS),
        ] {
            let adopted = InflightMemory::adopted(memfd(len, seals));
            assert!(
                matches!(adopted, Err(InflightError::NotOurs)),
                "{len} bytes, seals {seals:#x}"
            );
        }
        let no_memfd =
            InflightMemory::adopted(OwnedFd::from(File::open("/proc/self/exe").unwrap()));
        assert!(matches!(no_memfd, Err(InflightError::NotOurs)));
    }

    // covers: VPCI-INF-1
    #[test]
    fn the_regions_asked_for_are_cleared_and_no_byte_beside_them() {
        let memory = InflightMemory::new().unwrap();
        let file = File::from(memory.fd().as_fd().try_clone_to_owned().unwrap());
        file.write_all_at(&vec![0xff; 1 << 20], 0).unwrap();
        // 40 regions of 2112 bytes: more than is written at once.
        memory.clear(Regions::new(40, 128).unwrap()).unwrap();
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let end = 4096 + 40 * 2112;
        assert!(bytes[4096..end].iter().all(|byte| *byte == 0));
        assert!(
            bytes[..4096]
                .iter()
                .chain(&bytes[end..])
                .all(|byte| *byte == 0xff)
        );
    }
}
