//! The files that a loop's ring knows by a slot, which saves the kernel looking a descriptor up and
//! counting the file's users for each transfer (IOSQE_FIXED_FILE).
//!
//! A slot keeps a file open beyond its last descriptor. The lock was given up by then, as
//! `open_file.rs` does; the rest (the space of a file without a name, the claim on a device) is
//! given up here, when the loop hears that the file is gone. A device has a slot only where the
//! kernel makes that quick.

use std::io;
use std::sync::Arc;

use io_uring::squeue;
use io_uring::types::Fd;

use super::inbox::Inbox;
use super::ring::Ring;
use crate::disk::OpenFile;
use crate::disk::known::FileId;

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

    /// How to name a file in a submission; with its first one it gets a slot, if there is one.
    pub fn handle(&mut self, file: &OpenFile, ring: &Ring) -> Handle {
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
        // The loop may be the last to have it open: neither it nor who wants the device is to wait.
        if file.is_slow_to_close() || (file.is_device() && !ring.closes_at_once()) {
            return None;
        }
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
    use crate::disk::Cache;

    fn null() -> OpenFile {
        OpenFile::new(File::open("/dev/null").unwrap(), Cache::Direct)
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
    fn a_device_whose_closing_takes_long_gets_no_slot() {
        let ring = Ring::new().unwrap();
        let mut files = Files::new(Arc::new(Inbox::new().unwrap()), &ring);
        for (cache, expected) in [
            (Cache::WriteBack, false),
            (Cache::Direct, ring.closes_at_once()),
        ] {
            let device = OpenFile::closing(File::open("/dev/null").unwrap(), cache, true);
            let handle = files.handle(&device, &ring);
            let has_slot = matches!(handle, Handle::Slot(_));
            assert_eq!(has_slot, expected, "{cache:?}");
            assert_eq!(files.len(), usize::from(expected));
        }
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
