//! What each operation does to the bytes of a file.

use std::sync::Arc;

use super::{BLOCKS, BOTH, Bench, DONE, pattern};
use crate::disk::{DiskError, Op};

const WHOLE: usize = BLOCKS * 512;
/// Neither a multiple of a page nor of the largest piece.
const LEN: usize = (300 << 10) + 1536;
const OFFSET: usize = 2560;

fn bench(cache: crate::disk::Cache) -> (Bench, Vec<u8>) {
    let before = pattern(WHOLE, 11);
    (Bench::new(cache, &before), before)
}

#[test]
fn write_same_puts_the_block_everywhere_and_nowhere_else() {
    for cache in BOTH {
        let (mut bench, mut expected) = bench(cache);
        let block = pattern(512, 99);
        let op = Op::WriteSame {
            offset: OFFSET as u64,
            len: LEN as u64,
            fua: true,
        };
        assert_eq!(bench.run(op, &block), DONE);
        for chunk in expected[OFFSET..OFFSET + LEN].chunks_mut(512) {
            chunk.copy_from_slice(&block);
        }
        assert!(bench.on_disk() == expected, "{cache:?}");
    }
}

#[test]
fn what_is_written_and_verified_is_on_the_disk() {
    for cache in BOTH {
        let (mut bench, mut expected) = bench(cache);
        let data = pattern(LEN, 5);
        let op = Op::WriteVerify {
            offset: OFFSET as u64,
            len: LEN,
        };
        assert_eq!(bench.run(op, &data), DONE);
        expected[OFFSET..OFFSET + LEN].copy_from_slice(&data);
        assert!(bench.on_disk() == expected, "{cache:?}");
    }
}

#[test]
fn a_comparison_names_the_first_byte_that_differs() {
    for cache in BOTH {
        let (mut bench, before) = bench(cache);
        let op = Op::Compare {
            offset: OFFSET as u64,
            len: LEN as u64,
            same: false,
        };
        let mut data = before[OFFSET..OFFSET + LEN].to_vec();
        assert_eq!(bench.run(op.clone(), &data), DONE);
        // From the last byte to the first; each comes before those that differ already.
        for at in [LEN - 1, 270_000, 4096, 4095, 1, 0] {
            data[at] ^= 0x80;
            assert_eq!(
                bench.run(op.clone(), &data),
                Err(DiskError::Miscompare { at: at as u64 }),
                "{cache:?}"
            );
        }
        assert!(bench.on_disk() == before, "{cache:?}");
    }
}

#[test]
fn many_blocks_are_compared_with_one() {
    for cache in BOTH {
        let (mut bench, _) = bench(cache);
        let block = pattern(512, 3);
        let (offset, len) = (OFFSET as u64, LEN as u64);
        let fill = Op::WriteSame {
            offset,
            len,
            fua: false,
        };
        assert_eq!(bench.run(fill, &block), DONE);
        let op = Op::Compare {
            offset,
            len,
            same: true,
        };
        assert_eq!(bench.run(op.clone(), &block), DONE);
        for at in [LEN - 1, 8192 + 7] {
            let spoil = Op::Write {
                offset: (OFFSET + at / 512 * 512) as u64,
                len: 512,
                fua: false,
                atomic: false,
            };
            let mut spoilt = block.clone();
            spoilt[at % 512] ^= 1;
            assert_eq!(bench.run(spoil, &spoilt), DONE);
            assert_eq!(
                bench.run(op.clone(), &block),
                Err(DiskError::Miscompare { at: at as u64 }),
                "{cache:?}"
            );
        }
    }
}

#[test]
fn a_check_reads_everything_and_finds_a_file_that_became_shorter() {
    for cache in BOTH {
        let (mut bench, before) = bench(cache);
        let op = Op::Check {
            offset: 0,
            len: WHOLE as u64,
        };
        assert_eq!(bench.run(op.clone(), &[]), DONE);
        assert!(bench.on_disk() == before);
        bench.image.as_file().set_len(WHOLE as u64 - 512).unwrap();
        assert_eq!(bench.run(op, &[]), Err(DiskError::Truncated), "{cache:?}");
    }
}

#[test]
fn compare_and_write_writes_all_or_nothing() {
    for cache in BOTH {
        let (mut bench, mut expected) = bench(cache);
        let op = Op::CompareAndWrite {
            offset: OFFSET as u64,
            len: LEN,
            fua: true,
        };
        let new = pattern(LEN, 77);
        let mut data = expected[OFFSET..OFFSET + LEN].to_vec();
        data.extend(&new);
        data[LEN - 1] ^= 1;
        assert_eq!(
            bench.run(op.clone(), &data),
            Err(DiskError::Miscompare { at: LEN as u64 - 1 })
        );
        assert!(bench.on_disk() == expected, "{cache:?}");
        data[LEN - 1] ^= 1;
        assert_eq!(bench.run(op, &data), DONE);
        expected[OFFSET..OFFSET + LEN].copy_from_slice(&new);
        assert!(bench.on_disk() == expected, "{cache:?}");
    }
}

#[test]
fn or_sets_bits_and_clears_none() {
    for cache in BOTH {
        let (mut bench, mut expected) = bench(cache);
        let data = pattern(LEN, 123);
        let op = Op::Or {
            offset: OFFSET as u64,
            len: LEN,
            fua: false,
        };
        assert_eq!(bench.run(op, &data), DONE);
        for (byte, operand) in expected[OFFSET..].iter_mut().zip(&data) {
            *byte |= operand;
        }
        assert!(bench.on_disk() == expected, "{cache:?}");
    }
}

#[test]
fn blocks_are_zeroed_with_and_without_giving_them_back() {
    for cache in BOTH {
        for unmap in [false, true] {
            // In whole granules, and in parts of one, of two and of many.
            for (offset, len) in [
                (8192, 65536),
                (512, 512),
                (3584, 1024),
                (OFFSET, LEN),
                (0, WHOLE),
                (4096, 0),
            ] {
                let (mut bench, mut expected) = bench(cache);
                let op = Op::Zero {
                    offset: offset as u64,
                    len: len as u64,
                    unmap,
                    fua: true,
                };
                assert_eq!(bench.run(op, &[]), DONE);
                expected[offset..offset + len].fill(0);
                assert!(
                    bench.on_disk() == expected,
                    "{cache:?}, unmap {unmap}, {len} bytes at {offset}"
                );
            }
        }
    }
}

#[test]
fn unmap_zeroes_all_that_it_is_told_and_nothing_else() {
    for cache in BOTH {
        let (mut bench, mut expected) = bench(cache);
        let granularity = bench.disk.abilities().thin.unwrap().granularity;
        assert_eq!(granularity, 4096, "of the filesystem that the tests run on");
        let ranges = [
            (0, 0),
            // No whole granule.
            (512, 4096),
            // One, with a rest at either side.
            (8192 - 512, 4096 + 1024),
            (65536, 131_072),
            // Up to the end.
            (WHOLE as u64 - 6144, 6144),
        ];
        let op = Op::Unmap {
            ranges: Arc::from(ranges),
            fua: false,
        };
        assert_eq!(bench.run(op, &[]), DONE);
        for (offset, len) in ranges {
            let [offset, len] = [offset, len].map(|at| usize::try_from(at).unwrap());
            expected[offset..offset + len].fill(0);
        }
        assert!(bench.on_disk() == expected, "{cache:?}");
    }
}

#[test]
fn prefetching_changes_nothing() {
    for cache in BOTH {
        let (mut bench, before) = bench(cache);
        let op = Op::Prefetch {
            offset: 0,
            len: WHOLE as u64,
        };
        assert_eq!(bench.run(op, &[]), DONE);
        assert!(bench.on_disk() == before);
    }
}

#[test]
fn operations_of_no_bytes_are_done() {
    for cache in BOTH {
        let (mut bench, before) = bench(cache);
        let (offset, len) = (512, 0);
        for op in [
            Op::WriteVerify { offset, len },
            Op::Or {
                offset,
                len,
                fua: true,
            },
            Op::CompareAndWrite {
                offset,
                len,
                fua: true,
            },
            Op::Check { offset, len: 0 },
            Op::Unmap {
                ranges: Arc::from([]),
                fua: false,
            },
            Op::Prefetch { offset, len: 0 },
        ] {
            assert_eq!(bench.run(op, &[]), DONE);
        }
        assert!(bench.on_disk() == before);
    }
}

#[test]
fn an_operation_of_any_kind_outside_the_disk_or_its_buffer_is_refused() {
    let (mut bench, before) = bench(crate::disk::Cache::Direct);
    let end = WHOLE as u64;
    for (offset, len) in [
        (end - 512, 1024),
        (u64::MAX - 511, 512),
        (1, 512),
        (0, 511),
        (end, 512),
    ] {
        let long = len;
        let len = usize::try_from(len).unwrap();
        for op in [
            Op::WriteSame {
                offset,
                len: long,
                fua: false,
            },
            Op::WriteVerify { offset, len },
            Op::Compare {
                offset,
                len: long,
                same: false,
            },
            Op::Compare {
                offset,
                len: long,
                same: true,
            },
            Op::Check { offset, len: long },
            Op::CompareAndWrite {
                offset,
                len,
                fua: false,
            },
            Op::Or {
                offset,
                len,
                fua: false,
            },
            Op::Zero {
                offset,
                len: long,
                unmap: true,
                fua: false,
            },
            Op::Unmap {
                ranges: Arc::from([(0, 512), (offset, long)]),
                fua: false,
            },
            Op::Prefetch { offset, len: long },
        ] {
            let refused = bench.run(op.clone(), &[0; 2048]);
            assert_eq!(refused, Err(DiskError::OutOfRange), "{op:?}");
        }
    }
    for (op, needed) in [
        (
            Op::WriteSame {
                offset: 0,
                len: 4096,
                fua: false,
            },
            512,
        ),
        (
            Op::CompareAndWrite {
                offset: 0,
                len: 1024,
                fua: false,
            },
            2048,
        ),
        (
            Op::Or {
                offset: 0,
                len: 1024,
                fua: false,
            },
            1024,
        ),
    ] {
        let refused = bench.run(op, &vec![0; needed - 1]);
        assert_eq!(refused, Err(DiskError::OutOfRange));
    }
    assert!(bench.on_disk() == before);
}

#[test]
fn a_write_that_nothing_tears_is_refused_where_the_disk_has_none() {
    let (mut bench, before) = bench(crate::disk::Cache::WriteBack);
    assert_eq!(bench.disk.abilities().atomic, None);
    let op = Op::Write {
        offset: 0,
        len: 4096,
        fua: false,
        atomic: true,
    };
    assert_eq!(bench.run(op, &[1; 4096]), Err(DiskError::Unsupported));
    assert!(bench.on_disk() == before);
}
