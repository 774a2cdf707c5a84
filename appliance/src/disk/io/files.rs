//! The files that a loop's ring knows by a slot, which saves the kernel looking a descriptor up and
//! counting the file's users for each transfer (IOSQE_FIXED_FILE).
//!
//! A slot keeps a file open beyond its last descriptor. The lock was given up by then, as
//! `open_file.rs` does; the rest (the space of a file without a name) is given up here, when the
//! loop hears that the file is gone.
//!
//! Only files that are cached have slots. The kernel keeps the files of a program that was killed, and
//! their locks, until all that its rings have begun is over: where one disk hangs, the next appliance
//! would find the others of the ring locked. A direct disk gains next to nothing by a slot, and nobody
//! may have a device while anybody has it open.

use std::io;
use std::sync::Arc;

use io_uring::squeue;
use io_uring::types::Fd;

use super::inbox::Inbox;
use super::ring::Ring;
use crate::disk::known::FileId;
use crate::disk::{Cache, OpenFile};

/// Slots of a ring; further files go by their descriptors.
const SLOTS: usize = 64;

/// How the kernel is told which file is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handle {
    Descriptor(i32),
    Slot(usize),
}

impl Handle {
    /// What a submission has of it: the number, and what kind of number it is.
    pub fn parts(self) -> (Fd, squeue::Flags) {
        match self {
            Self::Descriptor(fd) => (Fd(fd), squeue::Flags::empty()),
            Self::Slot(slot) => {
                let slot = i32::try_from(slot).unwrap_or(-1);
                (Fd(slot), squeue::Flags::FIXED_FILE)
            }
        }
    }
}

#[derive(Debug)]
pub struct Files {
    /// The files in the ring's slots; no slots where the kernel has none for us.
    ///
    /// A slot is another file's only after [`Self::forget`], when its file is gone. That is no
    /// sooner than the last operation on the file is over, which holds it: so no submission that
    /// names the slot is under way, nor in the backlog.
    slots: Vec<Option<FileId>>,
    /// Those that are empty.
    free: usize,
    /// Where the loop hears of files that are gone.
    inbox: Arc<Inbox>,
}

impl Files {
    /// No files yet; `ring` gets its slots.
    pub fn new(inbox: Arc<Inbox>, ring: &Ring) -> Self {
        let slots = match ring.submitter().register_files(&[-1; SLOTS]) {
            Ok(()) => vec![None; SLOTS],
            Err(error) => {
                refused(&error);
                Vec::new()
            }
        };
        Self {
            free: slots.len(),
            slots,
            inbox,
        }
    }

    /// How to name a file in a submission; with its first one it gets a slot, if it may have one and
    /// there is one.
    pub fn handle(&mut self, file: &OpenFile, ring: &Ring) -> Handle {
        if file.cache() != Cache::WriteBack || file.is_slow_to_close() {
            return Handle::Descriptor(file.raw_fd());
        }
        let id = Some(file.id());
        if let Some(slot) = self.slots.iter().position(|known| *known == id) {
            return Handle::Slot(slot);
        }
        let slot = if self.free > 0 {
            self.add(file, ring)
        } else {
            None
        };
        slot.map_or(Handle::Descriptor(file.raw_fd()), Handle::Slot)
    }

    #[cold]
    fn add(&mut self, file: &OpenFile, ring: &Ring) -> Option<usize> {
        let slot = self.slots.iter().position(Option::is_none)?;
        file.known_by(&self.inbox);
        match set(ring, slot, file.raw_fd()) {
            Ok(()) => {
                self.slots[slot] = Some(file.id());
                self.free -= 1;
                Some(slot)
            }
            Err(error) => {
                refused(&error);
                // Those that have a slot keep it; nobody asks again until one of them is gone.
                self.free = 0;
                None
            }
        }
    }

    /// Has the ring let go of a file that is gone.
    pub fn forget(&mut self, id: FileId, ring: &Ring) {
        let Some(slot) = self.slots.iter().position(|known| *known == Some(id)) else {
            return;
        };
        match set(ring, slot, -1) {
            Ok(()) => {
                self.slots[slot] = None;
                self.free += 1;
            }
            // Not to be used for another then.
            Err(error) => tracing::error!(%error, "a file that is not used any more stays open"),
        }
    }

    /// Has the ring let go of all files, now rather than when the kernel puts the ring away: for when
    /// nothing is submitted any more.
    pub fn forget_all(&mut self, ring: &Ring) {
        if self.slots.iter().any(Option::is_some) {
            let none = vec![-1; self.slots.len()];
            // An error leaves it to the kernel.
            let _ = ring.submitter().register_files_update(0, &none);
        }
        (self.slots, self.free) = (Vec::new(), 0);
    }

    /// Slots with a file.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }
}

/// Puts a file into a slot, or none if it is -1.
fn set(ring: &Ring, slot: usize, fd: i32) -> io::Result<()> {
    let slot = u32::try_from(slot).unwrap_or(u32::MAX);
    ring.submitter()
        .register_files_update(slot, &[fd])
        .map(drop)
}

fn refused(error: &io::Error) {
    tracing::warn!(
        %error,
        "cannot register files, so I/O will be a little slower; RLIMIT_NOFILE may be too low"
    );
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn null() -> OpenFile {
        OpenFile::new(File::open("/dev/null").unwrap(), Cache::WriteBack)
    }

    #[test]
    fn a_file_keeps_its_slot_until_it_is_forgotten() {
        let ring = Ring::new().unwrap();
        let mut files = Files::new(Arc::new(Inbox::new().unwrap()), &ring);
        let [first, second, third] = [(); 3].map(|()| null());
        assert_eq!(files.handle(&first, &ring), Handle::Slot(0));
        assert_eq!(files.handle(&second, &ring), Handle::Slot(1));
        files.forget(first.id(), &ring);
        files.forget(first.id(), &ring);
        assert_eq!(files.handle(&second, &ring), Handle::Slot(1));
        assert_eq!(files.handle(&third, &ring), Handle::Slot(0));
        assert_eq!(files.handle(&first, &ring), Handle::Slot(2));
        files.forget_all(&ring);
        assert_eq!(files.len(), 0);
    }

    #[test]
    fn direct_files_and_devices_get_no_slot() {
        let ring = Ring::new().unwrap();
        let mut files = Files::new(Arc::new(Inbox::new().unwrap()), &ring);
        for (cache, is_device) in [
            (Cache::Direct, false),
            (Cache::Direct, true),
            (Cache::WriteBack, true),
        ] {
            let file = OpenFile::closing(File::open("/dev/null").unwrap(), cache, is_device);
            let plain = Handle::Descriptor(file.raw_fd());
            assert_eq!(files.handle(&file, &ring), plain, "{cache:?}");
        }
        assert_eq!(files.len(), 0);
    }

    #[test]
    fn where_the_kernel_refuses_files_go_by_their_descriptors() {
        let ring = Ring::new().unwrap();
        let inbox = Arc::new(Inbox::new().unwrap());
        // Without a table, it refuses each file; and with one, another.
        let mut no_table = Files {
            slots: vec![None; SLOTS],
            free: SLOTS,
            inbox: Arc::clone(&inbox),
        };
        let file = null();
        let plain = Handle::Descriptor(file.raw_fd());
        assert_eq!(no_table.handle(&file, &ring), plain);
        assert_eq!((no_table.free, no_table.len()), (0, 0), "it is asked once");
        let mut table = Files::new(Arc::clone(&inbox), &ring);
        assert_eq!(no_table.handle(&file, &ring), plain);
        assert_eq!(Files::new(inbox, &ring).handle(&file, &ring), plain);
        assert_eq!(table.handle(&file, &ring), Handle::Slot(0));
    }
}
