//! Descriptors that outlive the supervisor, because the keeper has a duplicate of each.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::link::{Link, LinkError, MAX_FDS};

/// Names of the descriptors that a keeper has from the start; those that come later are numbered.
pub mod name {
    /// The socket for the tenant's QEMU.
    pub const VHOST_USER: u64 = 1;
    /// The lock of its path.
    pub const VHOST_USER_LOCK: u64 = 2;
    /// The socket for the storage VM's QEMU.
    pub const VFIO_USER: u64 = 3;
    /// The lock of its path.
    pub const VFIO_USER_LOCK: u64 = 4;
    /// The tenant's memory, where it is known beforehand.
    pub const TRUSTED_MEMORY: u64 = 5;
    /// The journal: without it the supervisor that starts is the first.
    pub const JOURNAL: u64 = 6;
    /// The connection of the storage VM's QEMU.
    pub const CONNECTION: u64 = 7;
    /// The status socket, if there is one.
    pub const STATUS: u64 = 8;
    /// The lock of its path.
    pub const STATUS_LOCK: u64 = 9;
    /// The first number that is given.
    pub(super) const FIRST: u64 = 16;
}

/// From the keeper to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// The descriptors that come along are kept under these names.
    Has(Vec<u64>),
    /// Those were all: go on from where the journal says, or begin. The keeper's process id.
    Begin(u32),
    /// Answer [`ToKeeper::Alive`] with this number.
    Ping(u32),
    /// End in order; said twice, at once.
    Stop,
    /// Log the counters.
    Report,
}

/// From the supervisor to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Keep the descriptors that come along under these names.
    Keep(Vec<u64>),
    /// These are needed no more.
    Drop(Vec<u64>),
    /// The answer to a ping.
    Alive(u32),
    /// Whether the storage VM has the function, so that it must not wait for long.
    Watch(bool),
    /// This is the orderly end: nobody needs to go on.
    Done,
}

/// A descriptor that is kept. Clones share it; when the last is gone, the keeper is told after
/// the next commit.
#[derive(Debug, Clone)]
pub struct KeptFd {
    name: u64,
    fd: Arc<OwnedFd>,
}

impl KeptFd {
    /// What a record says in its place.
    pub fn name(&self) -> u64 {
        self.name
    }

    /// Whether `other` is a clone of this one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fd, &other.fd)
    }
}

/// One that nobody keeps.
impl From<OwnedFd> for KeptFd {
    fn from(fd: OwnedFd) -> Self {
        Self {
            name: 0,
            fd: Arc::new(fd),
        }
    }
}

impl AsFd for KeptFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for KeptFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// All that is kept, and the link to the keeper, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Kept(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    keeper: Option<Link>,
    /// The keeper does not take what it is given.
    failed: bool,
    fds: BTreeMap<u64, KeptFd>,
}

impl Kept {
    /// Nothing, and nobody to keep it: what is kept ends with this process.
    pub fn alone() -> Self {
        Self::default()
    }

    /// What the keeper at the other end of `link` has; waits until it has said all.
    ///
    /// # Errors
    /// [`LinkError`] if it is not a keeper.
    pub fn by_keeper(link: OwnedFd) -> Result<(Self, u32), LinkError> {
        let link = Link::new(link);
        let mut fds = BTreeMap::new();
        let keeper = loop {
            let (message, received) = link.wait()?;
            match message {
                FromKeeper::Has(names) => {
                    fds.extend(names.into_iter().zip(received).map(|(name, fd)| {
                        let fd = Arc::new(fd);
                        (name, KeptFd { name, fd })
                    }));
                }
                FromKeeper::Begin(keeper) => break keeper,
                _ => return Err(LinkError::Malformed("no beginning".into())),
            }
        };
        let table = Table {
            keeper: Some(link),
            failed: false,
            fds,
        };
        Ok((Self(Arc::new(Mutex::new(table))), keeper))
    }

    /// What is kept under `name`.
    pub fn get(&self, name: u64) -> Option<KeptFd> {
        self.table().fds.get(&name).cloned()
    }

    /// Keeps `fd` from now on; when this returns, it outlives this process.
    pub fn keep(&self, fd: OwnedFd) -> KeptFd {
        let mut table = self.table();
        let last = table.fds.last_key_value().map_or(0, |(name, _)| *name);
        let name = last.saturating_add(1).max(name::FIRST);
        table.add(name, fd)
    }

    /// As [`Self::keep`], under a name of its own.
    pub fn keep_as(&self, name: u64, fd: OwnedFd) -> KeptFd {
        self.table().add(name, fd)
    }

    /// Lets go what is kept under `name`.
    pub fn release(&self, name: u64) {
        let mut table = self.table();
        if table.fds.remove(&name).is_some() {
            table.tell(&ToKeeper::Drop(vec![name]), &[]);
        }
    }

    /// Lets go what nobody uses any more: the record that was written last does not name it.
    pub fn tidy(&self) {
        let mut table = self.table();
        let unused: Vec<_> = table
            .fds
            .extract_if(name::FIRST.., |_, kept| Arc::strong_count(&kept.fd) == 1)
            .map(|(name, _)| name)
            .collect();
        for names in unused.chunks(NAMES) {
            table.tell(&ToKeeper::Drop(names.to_vec()), &[]);
        }
    }

    /// Tells the keeper `message`.
    pub fn tell(&self, message: &ToKeeper) {
        self.table().tell(message, &[]);
    }

    /// What the keeper says, if it says something.
    ///
    /// # Errors
    /// [`LinkError`] if it is gone, or of no use any more.
    pub fn hear(&self) -> Result<Option<FromKeeper>, LinkError> {
        let table = self.table();
        if table.failed {
            return Err(LinkError::Full);
        }
        let Some(keeper) = &table.keeper else {
            return Ok(None);
        };
        Ok(keeper.receive()?.map(|(message, _)| message))
    }

    /// The link to the keeper, to be watched.
    pub fn link_fd(&self) -> Option<RawFd> {
        let table = self.table();
        table.keeper.as_ref().map(|link| link.as_fd().as_raw_fd())
    }

    /// Whether the keeper has stopped taking what it is given.
    pub fn has_failed(&self) -> bool {
        self.table().failed
    }

    /// Gives everything to another keeper, or has none from now on.
    pub fn change_keeper(&self, link: Option<Link>) {
        let mut table = self.table();
        table.keeper = link;
        table.failed = false;
        let all: Vec<_> = table.fds.values().cloned().collect();
        for some in all.chunks(MAX_FDS) {
            let names = some.iter().map(KeptFd::name).collect();
            let fds: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            table.tell(&ToKeeper::Keep(names), &fds);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most names in one message: it fits a packet.
const NAMES: usize = 1024;

impl Table {
    fn add(&mut self, name: u64, fd: OwnedFd) -> KeptFd {
        let kept = KeptFd {
            name,
            fd: Arc::new(fd),
        };
        self.fds.insert(name, kept.clone());
        self.tell(&ToKeeper::Keep(vec![name]), &[kept.as_fd()]);
        kept
    }

    fn tell(&mut self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        let Some(keeper) = &self.keeper else { return };
        if let Err(error) = keeper.send(message, fds) {
            tracing::debug!(%error, "keeper");
            self.failed = true;
        }
    }
}
