use super::*;
use crate::disk::Atomic;
use crate::memory::Segments;
use crate::memory::testing::shared_memory;

const EXTENT: Extent = Extent { lba: 8, blocks: 8 };

/// A medium with this write cache.
fn medium(write_cache: bool) -> Medium {
    Medium {
        geometry: Geometry {
            block_size: 512,
            blocks: 0x1000,
            physical_block_size: 512,
            read_only: false,
        },
        abilities: Abilities {
            atomic: Some(Atomic {
                min: 512,
                max: 65536,
            }),
            ..Abilities::default()
        },
        write_cache,
    }
}

/// Whether the operation waits for stable storage.
fn is_stable(outcome: Result<Outcome, Fault>) -> bool {
    match outcome {
        Ok(Outcome::Disk {
            op: Op::Write { fua, .. } | Op::Or { fua, .. } | Op::Zero { fua, .. },
            ..
        }) => fua,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_write_cache_every_write_waits_for_stable_storage() {
    let commands = |medium: &Medium, fua| {
        [
            write_at(&medium.geometry, EXTENT, medium.stable(fua)),
            medium.write_atomic(EXTENT, fua),
            medium.or(EXTENT, fua),
        ]
        .map(is_stable)
    };
    assert_eq!(commands(&medium(true), false), [false; 3]);
    assert_eq!(commands(&medium(true), true), [true; 3]);
    assert_eq!(commands(&medium(false), false), [true; 3]);
}

#[test]
fn without_a_write_cache_zeros_wait_for_stable_storage() {
    let data_out = &Segments::new(shared_memory(1));
    let buffers = Buffers {
        data_out,
        data_in: 0,
        tags: crate::scsi::Tags::default(),
    };
    let same = Same {
        extent: EXTENT,
        unmap: false,
        zeros: true,
        flags_at: 1,
        blocks_at: 10,
    };
    assert!(!is_stable(medium(true).write_same(same, buffers)));
    assert!(is_stable(medium(false).write_same(same, buffers)));
}

#[test]
fn an_offset_that_no_disk_has_is_out_of_range() {
    let mut endless = medium(true);
    endless.geometry.blocks = u64::MAX;
    let extent = Extent {
        lba: 1 << 60,
        blocks: 1,
    };
    let fault = read_at(&endless.geometry, extent).unwrap_err();
    assert_eq!(fault, Fault::OutOfRange { lba: 1 << 60 });
}
