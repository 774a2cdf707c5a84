//! Loops on several threads that change the same blocks.

use std::sync::Arc;

use super::atomic::Whole;
use super::{BOTH, Bench, events, segments, tenant};
use crate::disk::io::{Event, Io, Request};
use crate::disk::{Disk, DiskError, Op, Reply};
use std::os::unix::fs::FileExt;

/// Increments by each of two threads, and writes and ORs by one each.
const TIMES: u64 = 150;

/// A tenant of its own for each thread.
struct Initiator {
    io: Io,
    disk: Arc<dyn Disk>,
    memory: std::fs::File,
    mapping: Arc<crate::memory::Mapping>,
}

impl Initiator {
    fn new(disk: &Arc<dyn Disk>) -> Self {
        let (memory, mapping) = tenant(8192);
        Self {
            io: Io::new().unwrap(),
            disk: Arc::clone(disk),
            memory,
            mapping,
        }
    }

    fn run(&mut self, op: Op, data: &[u8]) -> Result<Reply, DiskError> {
        self.memory.write_all_at(data, 0).unwrap();
        let data = segments(&self.mapping, &[(0, data.len())]);
        let request = Request {
            tag: 1,
            op,
            data: Some(data),
        };
        self.io.submit(&self.disk, request);
        match events(&mut self.io, 1).remove(0) {
            Event::Done { result, .. } => result,
            Event::Wake(_) => unreachable!(),
        }
    }

    /// Blocks 0 and 1.
    fn read(&mut self) -> Vec<u8> {
        let op = Op::Read {
            offset: 0,
            len: 1024,
        };
        self.run(op, &[0; 1024]).unwrap();
        let mut bytes = vec![0; 1024];
        self.memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Adds one to the counter at the start of block 0, by comparing and writing blocks 0 and 1.
    fn increment(&mut self) {
        loop {
            let mut data = self.read();
            let counter = u64::from_le_bytes(data[..8].try_into().unwrap());
            data.extend_from_within(..);
            data[1024..1032].copy_from_slice(&(counter + 1).to_le_bytes());
            let op = Op::CompareAndWrite {
                offset: 0,
                len: 1024,
                fua: false,
            };
            match self.run(op, &data) {
                Ok(Reply::Done) => return,
                Err(DiskError::Miscompare { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn no_update_is_lost_between_loops_that_compare_and_write_or_and_write_the_same_blocks() {
    for cache in BOTH {
        let bench = Bench::new(cache, &[]);
        let disk = &bench.disk;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut initiator = Initiator::new(disk);
                    for _ in 0..TIMES {
                        initiator.increment();
                    }
                });
            }
            // Sets a bit of block 0 after the other.
            scope.spawn(|| {
                let mut initiator = Initiator::new(disk);
                for bit in 0..usize::try_from(TIMES).unwrap() {
                    let mut data = [0; 512];
                    data[100 + bit / 8] = 1 << (bit % 8);
                    let op = Op::Or {
                        offset: 0,
                        len: 512,
                        fua: false,
                    };
                    assert_eq!(initiator.run(op, &data), Ok(Reply::Done));
                }
            });
            // Writes block 1; a late write of an older one would show.
            scope.spawn(|| {
                let mut initiator = Initiator::new(disk);
                for number in 1..=TIMES {
                    let mut data = [0; 512];
                    data[..8].copy_from_slice(&number.to_le_bytes());
                    let op = Op::Write {
                        offset: 512,
                        len: 512,
                        fua: false,
                        atomic: false,
                    };
                    assert_eq!(initiator.run(op, &data), Ok(Reply::Done));
                    assert_eq!(initiator.read()[512..520], number.to_le_bytes());
                }
            });
        });
        let after = bench.on_disk();
        assert_eq!(after[..8], (2 * TIMES).to_le_bytes(), "{cache:?}");
        assert_eq!(after[100..118], [0xff; 18], "144 of the 150 bits");
        assert_eq!(after[118], 0x3f, "the other 6");
        assert_eq!(after[512..520], TIMES.to_le_bytes());
    }
}

#[test]
fn no_write_to_the_window_of_an_atomic_write_is_lost() {
    for cache in BOTH {
        let bench = Bench::new(cache, &[]);
        let disk: Arc<dyn Disk> = Arc::new(Whole::new(&bench.disk));
        let write = |block: u64, blocks: usize, atomic| Op::Write {
            offset: block * 512,
            len: blocks * 512,
            fua: false,
            atomic,
        };
        std::thread::scope(|scope| {
            // Blocks 1 to 3, with block 0 in the window.
            scope.spawn(|| {
                let mut initiator = Initiator::new(&disk);
                initiator.io.ring.tears_nothing = true;
                for number in 1..=TIMES {
                    let data = [number.to_le_bytes(); 192].concat();
                    let done = initiator.run(write(1, 3, true), &data);
                    assert_eq!(done, Ok(Reply::Done));
                    assert_eq!(initiator.read()[512..520], number.to_le_bytes());
                }
            });
            // Block 0; one that the window put back would show.
            scope.spawn(|| {
                let mut initiator = Initiator::new(&disk);
                for number in 1..=TIMES {
                    let data = [number.to_le_bytes(); 64].concat();
                    let done = initiator.run(write(0, 1, false), &data);
                    assert_eq!(done, Ok(Reply::Done));
                    assert_eq!(initiator.read()[..512], data);
                }
            });
        });
        assert_eq!(
            bench.on_disk()[..2048],
            [TIMES.to_le_bytes(); 256].concat(),
            "{cache:?}"
        );
    }
}
