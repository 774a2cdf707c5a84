//! Random operations against an array of bytes.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{BLOCKS, BOTH, Bench, Event, Request, events, pattern, segments};
use crate::disk::{DiskError, Op, Reply};

/// The disk is cut into stripes; operations of different stripes are under way together.
const STRIPES: usize = 4;
/// Blocks of a stripe.
const STRIPE: usize = BLOCKS / STRIPES;

/// An operation on a stripe, with the seed of its data.
#[derive(Debug, Clone)]
struct Action {
    what: usize,
    /// First block in the stripe, and blocks.
    first: usize,
    count: usize,
    seed: usize,
    /// For comparisons: the byte to spoil.
    spoil: Option<usize>,
}

fn action() -> impl Strategy<Value = Action> {
    let count = prop_oneof![4 => 0..24usize, 1 => 0..=STRIPE];
    let spoil = prop_oneof![1 => Just(None), 1 => any::<usize>().prop_map(Some)];
    (0..12usize, 0..STRIPE, count, 0..1000usize, spoil).prop_map(
        |(what, first, count, seed, spoil)| Action {
            what,
            first,
            count: count.min(STRIPE - first),
            seed,
            spoil,
        },
    )
}

impl Action {
    /// The operation, its buffer, how it should end, and what it does to `disk`.
    fn apply(&self, stripe: usize, disk: &mut [u8]) -> (Op, Vec<u8>, Result<Reply, DiskError>) {
        let start = (stripe * STRIPE + self.first) * 512;
        let len = self.count * 512;
        let range = start..start + len;
        let (offset, long) = (start as u64, len as u64);
        let fua = self.seed.is_multiple_of(2);
        let data = pattern(len, self.seed);
        let block = pattern(512, self.seed);
        let spoil = |bytes: &mut [u8]| {
            let at = self.spoil.filter(|_| !bytes.is_empty())? % bytes.len();
            bytes[at] ^= 0x55;
            Some(at as u64)
        };
        let verdict = |at: Option<u64>| match at {
            Some(at) => Err(DiskError::Miscompare { at }),
            None => Ok(Reply::Done),
        };
        let done = Ok(Reply::Done);
        match self.what {
            0 => (Op::Read { offset, len }, vec![0; len], done),
            1 => {
                disk[range].copy_from_slice(&data);
                let op = Op::Write {
                    offset,
                    len,
                    fua,
                    atomic: false,
                };
                (op, data, done)
            }
            2 => {
                for chunk in disk[range].chunks_mut(512) {
                    chunk.copy_from_slice(&block);
                }
                let op = Op::WriteSame {
                    offset,
                    len: long,
                    fua,
                };
                (op, block, done)
            }
            3 => {
                disk[range].copy_from_slice(&data);
                (Op::WriteVerify { offset, len }, data, done)
            }
            4 => {
                let mut data = disk[range].to_vec();
                let at = spoil(&mut data);
                let op = Op::Compare {
                    offset,
                    len: long,
                    same: false,
                };
                (op, data, verdict(at))
            }
            5 => {
                let op = Op::Compare {
                    offset,
                    len: long,
                    same: true,
                };
                let at = disk[range]
                    .iter()
                    .zip(block.iter().cycle())
                    .position(|(left, right)| left != right);
                (op, block, verdict(at.map(|at| at as u64)))
            }
            6 => (Op::Check { offset, len: long }, vec![], done),
            7 => {
                let mut both = disk[range.clone()].to_vec();
                let at = spoil(&mut both);
                both.extend(&data);
                if at.is_none() {
                    disk[range].copy_from_slice(&data);
                }
                (Op::CompareAndWrite { offset, len, fua }, both, verdict(at))
            }
            8 => {
                for (byte, operand) in disk[range].iter_mut().zip(&data) {
                    *byte |= operand;
                }
                (Op::Or { offset, len, fua }, data, done)
            }
            9 | 10 => {
                disk[range].fill(0);
                let op = Op::Zero {
                    offset,
                    len: long,
                    unmap: self.what == 10,
                    fua,
                };
                (op, vec![], done)
            }
            _ => {
                disk[range].fill(0);
                let op = Op::Unmap {
                    ranges: Arc::from([(offset, 0), (offset, long)]),
                    fua: false,
                };
                (op, vec![], done)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn operations_do_to_a_file_what_they_do_to_an_array(
        batches in vec(vec(action(), STRIPES), 1..10),
    ) {
        for cache in BOTH {
            let mut disk = pattern(BLOCKS * 512, 1);
            let mut bench = Bench::new(cache, &disk);
            for batch in &batches {
                let mut expected = Vec::new();
                let mut reads = Vec::new();
                for (stripe, action) in batch.iter().enumerate() {
                    let (op, data, result) = action.apply(stripe, &mut disk);
                    let at = (stripe << 20) as u64;
                    bench.memory.write_all_at(&data, at).unwrap();
                    if let Op::Read { offset, len } = op {
                        let offset = usize::try_from(offset).unwrap();
                        reads.push((at, disk[offset..offset + len].to_vec()));
                    }
                    let tag = stripe as u64;
                    let data = Some(segments(&bench.mapping, &[(at, data.len())]));
                    bench.io.submit(&bench.disk, Request { tag, op, data });
                    expected.push(Event::Done { tag, result });
                }
                let mut seen = events(&mut bench.io, STRIPES);
                seen.sort_by_key(|event| match event {
                    Event::Done { tag, .. } | Event::Wake(tag) => *tag,
                });
                prop_assert_eq!(seen, expected);
                for (at, bytes) in reads {
                    let mut read = vec![0; bytes.len()];
                    bench.memory.read_exact_at(&mut read, at).unwrap();
                    prop_assert!(read == bytes);
                }
            }
            prop_assert!(bench.on_disk() == disk);
            prop_assert!(bench.io.transfers.is_idle());
        }
    }
}
