//! A logical unit whose disk is copied, or put back, as it was at one moment.

use std::path::Path;

use super::LogicalUnit;
use crate::disk::{Snapshot, SnapshotError};
use crate::scsi::attention::Attention;

impl LogicalUnit {
    /// Takes a snapshot of its disk, as [`crate::disk::Snapshots::create`] does.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn take_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        self.check_not_erasing()?;
        self.disk.snapshots()?.create(name)
    }

    /// The snapshots of its disk, the oldest first.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        self.disk.snapshots()?.list()
    }

    /// Removes a snapshot of its disk.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn remove_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        self.disk.snapshots()?.remove(name)
    }

    /// Makes a new file with what its disk holds, or held when a snapshot was taken.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn clone_to(&self, snapshot: Option<&str>, path: &Path) -> Result<(), SnapshotError> {
        self.check_not_erasing()?;
        self.disk.snapshots()?.clone_to(snapshot, path)
    }

    /// Rolls its disk back. Establishes the unit attentions that come of it for everyone before
    /// anybody's command goes on, and returns them.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn roll_back(&self, name: &str) -> Result<Vec<Attention>, SnapshotError> {
        self.check_not_erasing()?;
        // And again when nothing gets by: what was claimed in between is half erased by then.
        let check = || self.check_not_erasing();
        let rolled_back = self.disk.snapshots()?.rollback(name, check)?;
        let mut attentions = self.look();
        self.tell(Attention::MediumChanged);
        attentions.push(Attention::MediumChanged);
        drop(rolled_back);
        Ok(attentions)
    }

    fn check_not_erasing(&self) -> Result<(), SnapshotError> {
        match self.erasing() {
            Some(_) => Err(SnapshotError::Erasing),
            None => Ok(()),
        }
    }
}
