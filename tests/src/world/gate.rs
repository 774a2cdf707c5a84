//! A disk that hangs or fails when a test wants it to, in place of a LUN's own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use appliance::disk::{
    Abilities, Cache, Disk, DiskError, Geometry, Io, Op, OpenFile, Request, Usage,
};

use super::forgetful::Forgetful;

/// The gates of the LUNs that have one, by name.
pub(super) type Gates = Mutex<HashMap<String, Arc<Gate>>>;

/// What stands between a LUN's disk and those who use it.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    forgetful: Arc<Forgetful>,
    /// Where nothing can be written, and where what is written is forgotten.
    odd: [Arc<OpenFile>; 2],
    /// Operations that met it closed.
    waiting: AtomicUsize,
    /// The disk behind it.
    disk: Mutex<Weak<GatedDisk>>,
    /// A socket with nothing to read and no room to write.
    hangs: File,
    /// Its other end.
    other: UnixStream,
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Every operation ends with this error.
    Fails(DiskError),
    /// The kernel finds no space for anything that is written.
    Full,
    /// What is written is forgotten, and all reads as zeros.
    Forgets,
    /// Whoever wants something of it waits for it himself, as for a lock; for half a minute at most.
    Blocks,
}

impl Gate {
    /// What the disk has on stable storage.
    pub fn forgetful(&self) -> &Forgetful {
        &self.forgetful
    }

    /// Makes trouble from now on, or no more.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        self.waiting.store(0, Ordering::SeqCst);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What becomes of an operation while there is trouble.
    fn troubled(&self, op: &Op) -> Option<Result<&Arc<OpenFile>, DiskError>> {
        let trouble = self.current()?;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let [full, zero] = &self.odd;
        match trouble {
            Trouble::Fails(error) => Some(Err(error)),
            Trouble::Full if op.changes_blocks() => Some(Ok(full)),
            Trouble::Full => None,
            Trouble::Forgets => Some(Ok(zero)),
            Trouble::Blocks => {
                let deadline = Instant::now() + Duration::from_secs(30);
                while self.current() == Some(trouble) && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(5));
                }
                None
            }
        }
    }

    fn current(&self) -> Option<Trouble> {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open gate before the disk with this image.
    pub(super) fn new(image: File) -> io::Result<Self> {
        let (mut hangs, other) = UnixStream::pair()?;
        hangs.set_nonblocking(true)?;
        while hangs.write(&[0; 4096]).is_ok() {}
        hangs.set_nonblocking(false)?;
        other.set_nonblocking(true)?;
        let odd = |path| {
            let file = File::options().read(true).write(true).open(path)?;
            io::Result::Ok(Arc::new(OpenFile::new(file, Cache::Direct)))
        };
        Ok(Self {
            odd: [odd("/dev/full")?, odd("/dev/zero")?],
            closed: AtomicBool::new(false),
            trouble: Mutex::new(None),
            forgetful: Forgetful::new(image)?,
            waiting: AtomicUsize::new(0),
            disk: Mutex::default(),
            hangs: File::from(OwnedFd::from(hangs)),
            other,
        })
    }

    /// Reads and writes hang from now on.
    pub fn close(&self) {
        self.waiting.store(0, Ordering::SeqCst);
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Reads and writes that come from now on are carried out again.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// How many reads and writes have come since it was closed, or operations since there is
    /// trouble.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Lets reads that hang end with these bytes. Reads that were given up have them, too, if
    /// the kernel is still at them.
    ///
    /// # Panics
    /// If they are more than a socket holds.
    pub fn let_read(&self, bytes: &[u8]) {
        (&self.other).write_all(bytes).expect("room in the socket");
    }

    /// Has a write of block 0 hang that is no worker's: as one that was given up, while the kernel
    /// is still at it. It is over when what is returned is dropped.
    ///
    /// # Panics
    /// If the disk is not open, or the loop cannot be had.
    pub fn leave_write(&self) -> Io {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let disk: Arc<dyn Disk> = disk.upgrade().expect("an open disk");
        let was_closed = self.closed.swap(true, Ordering::SeqCst);
        let mut io = Io::new().expect("a loop");
        let op = Op::Zero {
            offset: 0,
            len: disk.geometry().block_size.into(),
            unmap: false,
            fua: false,
        };
        let (tag, data) = (0, None);
        io.submit(&disk, Request { tag, op, data });
        io.wait(Some(Duration::ZERO), &mut Vec::new())
            .expect("a loop that works");
        self.closed.store(was_closed, Ordering::SeqCst);
        io
    }

    /// Lets writes that hang end.
    pub fn let_write(&self) {
        let mut bytes = [0; 4096];
        while (&self.other).read(&mut bytes).is_ok_and(|len| len > 0) {}
    }
}

/// The disk of the LUN `name`, behind its gate if it has one.
pub(super) fn gated(gates: &Gates, name: &str, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
    let gates = gates.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(gate) = gates.get(name) else {
        return disk;
    };
    let hangs = gate.hangs.try_clone().expect("another descriptor");
    let hangs = match disk.file_for(&Op::Flush) {
        Ok(file) => {
            file.witnessed_by(gate.forgetful.witness());
            OpenFile::beside(file, hangs, Cache::Direct)
        }
        Err(_) => OpenFile::new(hangs, Cache::Direct),
    };
    let disk = Arc::new(GatedDisk {
        disk,
        hangs: Arc::new(hangs),
        gate: Arc::clone(gate),
    });
    *gate.disk.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&disk);
    disk
}

/// A LUN's disk behind a gate.
#[derive(Debug)]
struct GatedDisk {
    disk: Arc<dyn Disk>,
    /// The gate's socket, as another way to the disk's blocks.
    hangs: Arc<OpenFile>,
    gate: Arc<Gate>,
}

impl Disk for GatedDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn abilities(&self) -> Abilities {
        self.disk.abilities()
    }

    fn usage(&self) -> Option<Usage> {
        self.disk.usage()
    }

    fn refresh(&self) -> io::Result<bool> {
        self.disk.refresh()
    }

    fn caches_writes(&self) -> bool {
        self.disk.caches_writes()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.disk.flush()
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        let file = self.disk.file_for(op)?;
        if let Some(result) = self.gate.troubled(op) {
            return result;
        }
        if !self.gate.closed.load(Ordering::SeqCst) {
            return Ok(file);
        }
        if !matches!(op, Op::Read { .. } | Op::Write { .. } | Op::Zero { .. }) {
            return Ok(file);
        }
        self.gate.waiting.fetch_add(1, Ordering::SeqCst);
        Ok(&self.hangs)
    }
}
