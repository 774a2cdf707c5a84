//! Atomic writes of parts of what the disk writes at once.

use std::sync::Arc;

use super::allocation::go_on;
use super::{BLOCKS, BOTH, Bench, DONE, done, events, pattern};
use crate::disk::{Abilities, Atomic, Cache, Disk, DiskError, Geometry, Op, OpenFile};

/// A disk that writes 1 to 16 blocks at once.
#[derive(Debug)]
pub struct Whole {
    disk: Arc<dyn Disk>,
    blocks: u64,
}

impl Whole {
    pub fn new(disk: &Arc<dyn Disk>) -> Self {
        Self {
            disk: Arc::clone(disk),
            blocks: disk.geometry().blocks,
        }
    }
}

impl Disk for Whole {
    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks,
            ..self.disk.geometry()
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            atomic: Some(Atomic {
                min: 512,
                max: 8192,
            }),
            ..Abilities::default()
        }
    }

    fn file_for(&self, op: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        self.disk.file_for(op)
    }
}

fn bench(cache: Cache) -> (Bench, Vec<u8>) {
    let before = pattern(BLOCKS * 512, 21);
    let mut bench = Bench::new(cache, &before);
    bench.disk = Arc::new(Whole::new(&bench.disk));
    bench.io.ring.tears_nothing = true;
    (bench, before)
}

fn atomic(offset: u64, len: usize, fua: bool) -> Op {
    Op::Write {
        offset,
        len,
        fua,
        atomic: true,
    }
}

/// Blocks, and the window that they are in; alone and at the beginning, middle and end of one, and
/// in the last one of the disk.
const PARTS: [(u64, usize, u64, usize); 6] = [
    (1, 1, 1, 1),
    (0, 3, 0, 4),
    (5, 2, 4, 4),
    (7, 2, 0, 16),
    (17, 15, 16, 16),
    (BLOCKS as u64 - 5, 5, BLOCKS as u64 - 8, 8),
];

#[test]
fn an_atomic_write_changes_its_blocks_and_no_others_of_the_window() {
    for cache in BOTH {
        for (block, blocks, ..) in PARTS {
            let (mut bench, mut expected) = bench(cache);
            let (offset, len) = (block * 512, blocks * 512);
            let data = pattern(len, 99);
            assert_eq!(bench.run(atomic(offset, len, false), &data), DONE);
            let start = usize::try_from(offset).unwrap();
            expected[start..start + len].copy_from_slice(&data);
            assert!(
                bench.on_disk() == expected,
                "{cache:?}, {blocks} at {block}"
            );
        }
    }
}

#[test]
fn the_window_is_read_at_once_and_written_at_once_and_then_synced() {
    for (block, blocks, _, window) in PARTS {
        let (mut bench, _) = bench(Cache::Direct);
        let len = blocks * 512;
        let request = bench.request(1, atomic(block * 512, len, true), &pattern(len, 5));
        bench.io.submit(&bench.disk, request);
        let mut moved = Vec::new();
        go_on(&mut bench, |result| {
            moved.push(usize::try_from(result).unwrap());
            result
        });
        assert_eq!(events(&mut bench.io, 1), [done(1)]);
        let whole = window * 512;
        if blocks == window {
            assert_eq!(moved, [whole, 0], "{blocks} at {block}");
        } else {
            assert_eq!(moved, [whole, whole, 0], "{blocks} at {block}");
        }
    }
}

#[test]
fn an_atomic_write_in_no_window_of_the_disk_is_refused() {
    let (mut bench, mut expected) = bench(Cache::Direct);
    bench.disk = Arc::new(Whole {
        blocks: 4094,
        ..Whole::new(&bench.disk)
    });
    // The disk ends inside it; on both sides of block 16; more than 16.
    for (block, blocks) in [(4088, 5), (4091, 2), (15, 2), (0, 17)] {
        let len = blocks * 512;
        let refused = bench.run(atomic(block * 512, len, false), &vec![1; len]);
        assert_eq!(refused, Err(DiskError::Unsupported), "{blocks} at {block}");
    }
    assert!(bench.on_disk() == expected);
    let last = 4092 * 512;
    assert_eq!(
        bench.run(atomic(last as u64, 1024, false), &[1; 1024]),
        DONE
    );
    expected[last..last + 1024].fill(1);
    assert!(bench.on_disk() == expected);
}
