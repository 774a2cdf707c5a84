//! REASSIGN BLOCKS: blocks that cannot be read are given a good place (SBC-4, REASSIGN BLOCKS).
//!
//! The disk underneath has its own spare blocks, and takes one when a bad block is written. So a
//! block that can be read stays, and one that cannot is written with zeros.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::errand::Runner;
use super::run::{Failure, mend};
use super::{Ended, Erasing, Errand, Shared};
use crate::disk::{Disk, Gate};
use crate::pinning;
use crate::scsi::fault::{During, Fault, Work};

/// Most blocks of a list.
const MAX_BLOCKS: usize = 256;
/// Most bytes of a list.
pub const MAX_REASSIGN_LIST: usize = 4 + 8 * MAX_BLOCKS;

/// The blocks of a parameter list, and the bytes that it has; `list` is what there is of it. `None`
/// if it says that there is more.
///
/// # Errors
/// [`Fault::InvalidParameter`] for more blocks than the limit; [`Fault::OutOfRange`] for a block
/// that the unit of so many does not have.
pub fn blocks(
    list: &[u8],
    long_lba: bool,
    long_list: bool,
    all: u64,
) -> Result<Option<(Vec<u64>, usize)>, Fault> {
    let Some((&[a, b, c, d], rest)) = list.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let (len, at) = if long_list {
        (u32::from_be_bytes([a, b, c, d]), 0)
    } else {
        (u16::from_be_bytes([c, d]).into(), 2)
    };
    let size = if long_lba { 8 } else { 4 };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > MAX_BLOCKS * size {
        return Err(Fault::InvalidParameter { byte: at, bit: 7 });
    }
    let Some(bytes) = rest.get(..len) else {
        return Ok(None);
    };
    let mut blocks = Vec::new();
    for lba in bytes.chunks_exact(size) {
        let lba = lba.iter().fold(0, |lba, &byte| lba << 8 | u64::from(byte));
        if lba >= all {
            return Err(Fault::OutOfRange { lba });
        }
        blocks.push(lba);
    }
    Ok(Some((blocks, 4 + len)))
}

/// Keeps the unit from being erased meanwhile.
struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.reassigning.store(false, Ordering::SeqCst);
    }
}

impl Erasing {
    /// Reassigns blocks in the background; whoever asked waits at the gate. No block is begun once
    /// the errand is dropped.
    ///
    /// # Errors
    /// [`Fault::Busy`] while another list is worked on, or blocks are being erased.
    pub fn reassign(
        &self,
        blocks: Vec<u64>,
        disk: &Arc<dyn Disk>,
    ) -> Result<(Arc<Gate>, Ended, Errand), Fault> {
        let shared = Arc::clone(&self.0);
        if shared.reassigning.swap(true, Ordering::SeqCst) {
            return Err(Fault::Busy);
        }
        let busy = Busy(Arc::clone(&shared));
        // Whoever claims the unit looks the other way round.
        if let Some(fault) = shared.progress.fault() {
            return Err(fault);
        }
        let (gate, closed) = Gate::closed().map_err(|_| Fault::Busy)?;
        let (ended, disk) = (Ended::default(), Arc::clone(disk));
        let (errand, runner) = Errand::new();
        let tell = ended.clone();
        let work = move || {
            tell.tell(run(&blocks, &disk, &shared, &runner));
            drop((busy, closed));
        };
        pinning::spawn_free("reassign", work).map_err(|_| Fault::Busy)?;
        Ok((gate, ended, errand))
    }
}

fn run(
    blocks: &[u64],
    disk: &Arc<dyn Disk>,
    shared: &Shared,
    runner: &Runner,
) -> Result<(), Fault> {
    mend(disk, blocks, (&shared.progress, runner)).map_err(|(lba, failure)| match failure {
        Failure::Disk(error) => Fault::Disk {
            error,
            work: Work {
                during: During::Write,
                lba,
                blocks: 1,
                block_size: disk.geometry().block_size,
            },
        },
        Failure::Unwanted => Fault::NoUnit,
        Failure::Io { .. } => {
            shared.complain(&format_args!("blocks cannot be reassigned: {failure}"));
            Fault::BadReply
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lengths_of_lists_and_of_addresses_are_read() {
        let short = [0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 9];
        assert_eq!(blocks(&short, false, false, 10), Ok(Some((vec![5, 9], 12))));
        let long = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(blocks(&long, true, true, 10), Ok(Some((vec![9], 12))));
        assert_eq!(blocks(&[0; 4], false, false, 10), Ok(Some((vec![], 4))));
        assert_eq!(blocks(&short[..11], false, false, 10), Ok(None));
        assert_eq!(blocks(&short[..3], false, false, 10), Ok(None));
    }

    #[test]
    fn blocks_that_are_not_there_or_too_many_are_refused() {
        let list = [0, 0, 0, 4, 0, 0, 0, 10];
        let beyond = Fault::OutOfRange { lba: 10 };
        assert_eq!(blocks(&list, false, false, 10), Err(beyond));
        let many = |byte| Err(Fault::InvalidParameter { byte, bit: 7 });
        assert_eq!(blocks(&[0, 0, 4, 4], false, false, 10), many(2));
        assert_eq!(blocks(&[0, 1, 0, 0], true, true, 10), many(0));
    }
}
