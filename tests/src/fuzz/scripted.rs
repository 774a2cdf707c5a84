//! A function whose other side is a fuzz target, without a shim.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use appliance::device::Device;
use appliance::memory::Mapping;
use spec::device::{
    BAR_INFLIGHT, BAR_SESSION, BAR_TENANT, DEVICE_TYPE, DEVICE_TYPE_SCSI, HBA_UUID, MAGIC,
    MAGIC_VALUE, MAILBOX_REPLY, VECTORS, VERSION,
};
use vmm_sys_util::eventfd::EventFd;

/// See the module's text.
pub(super) struct Scripted {
    state: Mutex<State>,
    session: File,
    inflight: File,
    tenant: File,
    /// Held by every mapping.
    pub(super) mapped: Arc<dyn Any + Send + Sync>,
}

/// What the other side says and has heard.
#[derive(Default)]
pub(super) struct State {
    pub(super) registers: BTreeMap<u64, u32>,
    pub(super) vectors: Vec<EventFd>,
    pub(super) granted: usize,
    /// The function has gone.
    pub(super) fails: bool,
    /// What was written to MAILBOX_REPLY.
    pub(super) replies: Vec<u32>,
}

impl Scripted {
    /// A function with these files as its BARs, and nothing in its registers.
    pub(super) fn new(session: File, inflight: File, tenant: File) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            session,
            inflight,
            tenant,
            mapped: Arc::new(()),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reachable(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.fails {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(state)
    }

    /// Sets a register.
    pub(super) fn set(&self, register: u64, value: u32) {
        self.state().registers.insert(register, value);
    }

    /// Gives an interrupt, if that vector was granted.
    pub(super) fn fire(&self, vector: usize) {
        if let Some(eventfd) = self.state().vectors.get(vector) {
            eventfd.write(1).expect("an eventfd");
        }
    }

    fn file(&self, bar: usize) -> io::Result<&File> {
        match bar {
            BAR_SESSION => Ok(&self.session),
            BAR_INFLIGHT => Ok(&self.inflight),
            BAR_TENANT => Ok(&self.tenant),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Device for Scripted {
    fn read32(&self, offset: u64) -> io::Result<u32> {
        let state = self.reachable()?;
        Ok(state.registers.get(&offset).copied().unwrap_or(0))
    }

    fn write32(&self, offset: u64, value: u32) -> io::Result<()> {
        let mut state = self.reachable()?;
        match offset {
            MAILBOX_REPLY => state.replies.push(value),
            spec::device::STATUS => drop(state.registers.insert(offset, value)),
            _ => {}
        }
        Ok(())
    }

    fn map(&self, bar: usize, len: u64) -> io::Result<Mapping> {
        drop(self.reachable()?);
        let file = self.file(bar)?;
        // As VFIO has it: nothing past the BAR can be mapped.
        if len > file.metadata()?.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Mapping::new(file.as_fd(), 0, len, Some(self.mapped.clone()))
    }

    fn bar_len(&self, bar: usize) -> io::Result<u64> {
        drop(self.reachable()?);
        Ok(self.file(bar)?.metadata()?.len())
    }

    fn enable_vectors(&self, fds: &[&EventFd]) -> io::Result<usize> {
        let mut state = self.reachable()?;
        let count = fds.len().min(state.granted);
        let clones = fds[..count].iter().map(|fd| fd.try_clone());
        state.vectors = clones.collect::<io::Result<_>>()?;
        state
            .registers
            .insert(VECTORS, u32::try_from(count).map_err(io::Error::other)?);
        Ok(count)
    }

    fn disable_vectors(&self) -> io::Result<()> {
        self.reachable()?.vectors.clear();
        Ok(())
    }

    fn release_request(&self) -> Option<&EventFd> {
        None
    }
}

/// Registers of a good function of the HBA `uuid`.
pub(super) fn good_registers(uuid: [u8; 16]) -> Vec<(u64, u32)> {
    let mut good = vec![
        (MAGIC, MAGIC_VALUE),
        (VERSION, spec::version::CURRENT.to_register()),
        (DEVICE_TYPE, DEVICE_TYPE_SCSI),
    ];
    for (offset, word) in (HBA_UUID..).step_by(4).zip(uuid.as_chunks::<4>().0) {
        good.push((offset, u32::from_le_bytes(*word)));
    }
    good
}

/// A file in memory, all zeros.
pub(super) fn memory_file(len: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file");
    file.set_len(len).expect("a longer file");
    file
}

/// All of a file, mapped.
pub(super) fn mapping(file: &File) -> Mapping {
    let len = usize::try_from(file.metadata().expect("a file").len()).expect("it is small");
    Mapping::new(file.as_fd(), 0, len, None).expect("a mapping")
}
