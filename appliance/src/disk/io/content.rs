//! What the bytes of a piece are: those of the tenant, or those that it is to be compared with.

use super::operation::{Operation, index};
use super::piece::{Memory, Piece, Step};
use super::pool::{Pool, Run};
use super::work::{Half, Work};
use crate::disk::DiskError;

/// Uses what the kernel has done for a piece; whether it has another step. `copy` is scratch.
pub fn take(
    piece: &mut Piece,
    operation: &mut Operation,
    pool: &mut Pool,
    copy: &mut Vec<u8>,
) -> bool {
    if !operation.wants(piece.at) {
        return false;
    }
    let at = index(piece.at);
    match (&operation.work, piece.step, &piece.memory) {
        (Work::Read, Step::Read, Memory::Pool(run)) => {
            if let Some(data) = &operation.data {
                data.write_at(at, pool.bytes(run));
            }
            false
        }
        (Work::Compare | Work::CompareAndWrite(Half::Compare), Step::Read, Memory::Pool(run)) => {
            let copy = copied(copy, operation, at, run);
            let difference = first_difference(pool.bytes(run), copy);
            miscompare(operation, piece.at, difference);
            false
        }
        (Work::CompareSame(block), Step::Read, Memory::Pool(run)) => {
            // Pieces consist of whole blocks.
            let blocks = pool.bytes(run).chunks(block.len());
            let difference = (0..)
                .step_by(block.len())
                .zip(blocks)
                .find_map(|(start, bytes)| Some(start + first_difference(bytes, block)?));
            miscompare(operation, piece.at, difference);
            false
        }
        (Work::Or, Step::Read, Memory::Pool(run)) => {
            let copy = copied(copy, operation, at, run);
            for (byte, operand) in pool.bytes_mut(run).iter_mut().zip(copy) {
                *byte |= *operand;
            }
            piece.begin(Step::Write);
            true
        }
        (Work::Copy { .. }, Step::Read, Memory::Pool(_)) => {
            piece.begin(Step::Write);
            true
        }
        (&Work::Patch { skip, len }, Step::Read, Memory::Pool(run)) => {
            let part = pool.bytes_mut(run).get_mut(index(skip)..index(skip + len));
            if let (Some(part), Some(data)) = (part, &operation.data) {
                data.read_at(0, part);
            }
            piece.begin(Step::WriteAtomic);
            true
        }
        (Work::WriteVerify, Step::Write, Memory::Pair(..)) => {
            piece.begin(Step::ReadBack);
            true
        }
        (Work::WriteVerify, Step::ReadBack, Memory::Pair(written, read)) => {
            let (written, read) = (pool.bytes(written), pool.bytes(read));
            let difference = first_difference(&written[..piece.len], &read[..piece.len]);
            miscompare(operation, piece.at, difference);
            false
        }
        _ => false,
    }
}

/// Writes what a piece at byte `at` puts on the disk into its memory.
pub fn fill(operation: &Operation, at: u64, to: &mut [u8]) {
    let at = match operation.work {
        Work::WriteSame(ref block) => {
            // Pieces begin with a block.
            for chunk in to.chunks_mut(block.len()) {
                chunk.copy_from_slice(&block[..chunk.len()]);
            }
            return;
        }
        Work::Zero(_) | Work::Mend(_) | Work::Unmap { .. } => return to.fill(0),
        // The second half of the buffer.
        Work::CompareAndWrite(_) => operation.len + at,
        _ => at,
    };
    if let Some(data) = &operation.data {
        data.read_at(index(at), to);
    }
}

/// The tenant's bytes for a run, read once into `copy`.
fn copied<'a>(copy: &'a mut Vec<u8>, operation: &Operation, at: usize, run: &Run) -> &'a [u8] {
    copy.clear();
    copy.resize(run.len(), 0);
    if let Some(data) = &operation.data {
        data.read_at(at, copy);
    }
    copy
}

/// Index of the first byte that differs.
fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    left.iter()
        .zip(right)
        .position(|(left, right)| left != right)
}

/// Fails an operation whose piece at byte `at` has a difference.
fn miscompare(operation: &mut Operation, at: u64, difference: Option<usize>) {
    if let Some(difference) = difference {
        let at = at + difference as u64;
        operation.fail(at, DiskError::Miscompare { at });
    }
}
